"""jtl: transfer learning in JAX. Data × method × rules, one loop."""

__version__ = '0.1.0'
