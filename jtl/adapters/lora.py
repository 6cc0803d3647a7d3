"""LoRA: the change of a weight matrix has low rank. DoRA: its direction alone does, its length is free.

Legend: B batch, I and O widths of a layer's input and output, R rank; `…` positions; k kernel sizes, of a convolution.
"""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from jtl.adapters import Adapter, check_layers, check_rate, choose, choose_default, dropped, is_linear, named_key
from jtl.errors import UserError

WHERE = 'config.model.lora'
DEFAULT = (r'.*attn/(query|value)', '.*')


def lora(
    *,
    layers: str | Sequence[str] | None = None,
    rank: int = 8,
    alpha: float = 16.0,
    dropout: float = 0.0,
    rslora: bool = False,
    dora: bool = False,
) -> Adapter:
    """y = W x + b + s B A x, s = alpha / rank: [B, …, I] -> [B, …, O], with A [I, R], B [R, O] to be trained.

    Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", ICLR 2022. B starts at zero, so the model starts
    as it was; A is uniform in ±1/√I. It is computed on activations: a dense gradient of W never exists. A convolution's
    A has its kernel's size, strides and padding, [k, k, I, R], and its B is 1×1.

    With `dora`, y = m · (W + s B A) x / ‖W + s B A‖ + b, one m and one norm for each of the O outputs: Liu et al.,
    "DoRA: Weight-Decomposed Low-Rank Adaptation", ICML 2024. The norm is a constant in the gradient, as in their
    section 4.3. What is stored is not m but `magnitude`, m - ‖W‖: as W is frozen it has the gradient of m, it starts
    at zero, and no weights need to be read to make it. Weight decay would pull m to ‖W‖, and not to zero.

    Trained: R (I + O) a layer, k² I R + R O a convolution; DoRA has O more.

    Args:
        layers: regexes for paths below the backbone, `.*attn/(query|value|out)`, of Dense layers and convolutions.
            None: queries and values, as in the paper; where there is no attention, every Dense layer and convolution
            but the grouped ones.
        rank: R.
        alpha: with the rank, the scale s. Held constant while the rank is varied, as in the paper.
        dropout: rate at which A's input is dropped in training; needs the rng `dropout`.
        rslora: s = alpha / √rank, which lets large ranks learn (Kalajdzievski, 2023).

    Raises:
        UserError: a regex matches no layer, or a grouped convolution; a rank above that of a layer's weights.
    """
    check_layers(layers, f'{WHERE}.layers')
    check_rate(dropout, f'{WHERE}.dropout')
    if rank < 1:
        raise UserError(f'{WHERE}.rank: {rank} should be at least 1.')
    if not 0 < alpha < math.inf:
        raise UserError(f'{WHERE}.alpha: {alpha} should be above 0, and finite.')
    scale = alpha / (math.sqrt(rank) if rslora else rank)

    def init(rng, sites):
        own = {}
        for path in _chosen(sites, layers):
            *narrow, outputs = sites[path].kernel
            fan_in = math.prod(narrow)
            if rank > min(fan_in, outputs):
                name = path.removeprefix('backbone/')
                raise UserError(
                    f'{WHERE}.rank: {rank} is above the smaller width of layer {name!r}, {fan_in} to {outputs}: '
                    f'expected 1 to {min(fan_in, outputs)}, or other layers.'
                )
            bound = fan_in**-0.5
            own[f'{path}/a'] = jax.random.uniform(named_key(rng, path), (*narrow, rank), minval=-bound, maxval=bound)
            own[f'{path}/b'] = jnp.zeros((rank, outputs))
            if dora:
                own[f'{path}/magnitude'] = jnp.zeros(outputs)
        return own

    def around(own, layer, call, args, kwargs):
        if f'{layer.path}/a' not in own:
            return call(*args, **kwargs)
        a, b = own[f'{layer.path}/a'], own[f'{layer.path}/b']
        down = layer.module.clone(features=rank, use_bias=False, parent=None, name=None)  # same strides, padding, dtype
        inner = down.apply({'params': {'kernel': a}}, dropped(args[0], dropout, layer))  # [B, …, R]
        change = scale * (inner @ b.astype(inner.dtype))  # [B, …, O]
        y = call(*args, **kwargs)  # [B, …, O]
        if not dora:
            return y + change
        kernel = layer.module.get_variable('params', 'kernel')
        gain = _gain(kernel, a, b, own[f'{layer.path}/magnitude'], scale)  # [O]
        bias = layer.module.get_variable('params', 'bias') if layer.module.use_bias else None
        linear = y if bias is None else y - bias.astype(y.dtype)
        return y + gain.astype(y.dtype) * linear + (1 + gain).astype(y.dtype) * change  # at the start, the bits of y

    def merge(own, params):
        merged = dict(params)
        for path in (key.removesuffix('/a') for key in own if key.endswith('/a')):
            a, b, kernel = own[f'{path}/a'], own[f'{path}/b'], params[f'{path}/kernel']
            whole = kernel + scale * jnp.matmul(a, b, precision='highest')  # [I, O] or [k, k, I, O]
            if dora:
                whole = whole * (1 + _gain(kernel, a, b, own[f'{path}/magnitude'], scale))
            merged[f'{path}/kernel'] = whole
        return merged

    return Adapter('lora', init, around, merge)


def _chosen(sites, layers) -> list[str]:
    """The layers to adapt; grouped convolutions, which have no one matrix A, only where nobody asked for them."""
    if layers is None:
        return choose_default(sites, DEFAULT, f'{WHERE}.layers', lambda site: is_linear(site) and site.groups == 1)
    found = choose(sites, layers, f'{WHERE}.layers')
    for path in found:
        if sites[path].groups > 1:
            raise UserError(
                f'{WHERE}.layers: {path.removeprefix("backbone/")!r} is a convolution of {sites[path].groups} groups, '
                'which has no low rank to learn: expected Dense layers and convolutions of one group.'
            )
    return found


def _gain(kernel, a, b, magnitude, scale: float) -> jax.Array:
    """m / ‖W + s B A‖ - 1 for each output, exactly 0 at the start; its gradient is that of m alone: [O].

    ‖W + s A B‖² = ‖W‖² + 2 s b · (Aᵀ W) + s² b · (Aᵀ A b), so the dense product A B need not exist.
    """
    w, a = kernel.reshape(-1, kernel.shape[-1]), a.reshape(-1, a.shape[-1])  # [I, O], [I, R]; k² I of a convolution
    dot = lambda x, y: jnp.matmul(x, y, precision='highest')
    own = jnp.square(w).sum(0)  # [O]
    inner = 2 * scale * (b * dot(a.T, w)).sum(0) + scale**2 * (b * dot(dot(a.T, a), b)).sum(0)
    tiny = jnp.finfo(own.dtype).tiny  # of an output whose weights are all zero
    length, moved = (jax.lax.stop_gradient(jnp.sqrt(jnp.maximum(square, tiny))) for square in (own, own + inner))
    return (length - moved + magnitude) / moved
