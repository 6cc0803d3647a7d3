"""`params.txt`: what every parameter is, how fast it moves, and where its value came from."""

from collections.abc import Sequence
from typing import Any

import jax

from jtl import tree
from jtl.optim import FROZEN, Phase

PyTree = Any


def parameters(
    params: PyTree, statistics: PyTree, phases: Sequence[Phase], origin: dict[str, str], opt_state: PyTree
) -> str:
    """A table, a row a parameter with path, shape, multiplier by phase, weight decay, origin; and a summary line.

    The model's statistics, a BatchNorm's for instance, follow the parameters if `origin` says where they came from.
    """
    flat = tree.flatten(params)
    rows = [('parameter', 'shape', 'rate', 'decay', '', 'from')]
    for i, (path, leaf) in enumerate(flat.items()):
        groups = [{name: (rate, decay) for name, rate, decay in p.groups}.get(p.labels[i]) for p in phases]
        rate = ' → '.join(f'×{g[0]:g}' if g else FROZEN for g in groups)
        decay = next((f'×{g[1]:g}' if g[1] else '-' for g in groups if g), '-')
        shape = '×'.join(map(str, leaf.shape)) or 'scalar'
        rows.append((path, shape, rate, decay, 'trained' if any(groups) else FROZEN, origin.get(path, 'fresh')))
    for path, leaf in tree.flatten({'model': statistics}).items():
        if path in origin:
            rows.append((path, '×'.join(map(str, leaf.shape)) or 'scalar', '-', '-', 'statistic', origin[path]))
    widths = [max(map(len, column)) for column in zip(*rows)]
    lines = ['  '.join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows]
    table = '\n'.join(lines)

    counts = sizes(params, phases)
    now = [leaf for leaf, label in zip(flat.values(), phases[0].labels) if label != FROZEN]
    slots = tree.nbytes([leaf for leaf in jax.tree.leaves(opt_state) if hasattr(leaf, 'shape')])
    later = '' if len(phases) == 1 else f' in phase 1 of {len(phases)}'
    summary = (
        f'{counts["total"]:,} parameters: {tree.count(now):,} trained, {counts["total"] - tree.count(now):,} frozen'
        f'{later}; gradients {_mib(tree.nbytes(now))}, optimiser {_mib(slots)}.'
    )
    return f'{table}\n{summary}'


def devices(state: PyTree, count: int) -> str:
    """A line on how much of a training state each of several devices holds."""
    arrays = [x for x in jax.tree.leaves(state) if not tree.is_key(x)]
    each = sum(x.addressable_shards[0].data.nbytes for x in arrays)
    return f'{count} devices, {_mib(each)} of the {_mib(tree.nbytes(arrays))} of training state on each.'


def sizes(params: PyTree, phases: Sequence[Phase]) -> dict[str, int]:
    """Parameters in total, and how many are trained in any phase."""
    leaves = jax.tree.leaves(params)
    trained = [leaf for i, leaf in enumerate(leaves) if any(p.labels[i] != FROZEN for p in phases)]
    return {'total': tree.count(leaves), 'trainable': tree.count(trained)}


def _mib(nbytes: int) -> str:
    return f'{nbytes / 2**20:.1f} MiB'
