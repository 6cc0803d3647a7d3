"""Bottleneck adapters: small networks after the parts of a pretrained one.

Legend: B batch, D width of a layer's output, M width of the bottleneck; `…` positions.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from jtl.adapters import Adapter, Site, check_layers, choose, choose_default, named_key
from jtl.errors import UserError

WHERE = 'config.model.bottleneck'
DEFAULT = (r'.*/(attn|mlp)', r'(stage\d+/)?block\d+', r'fc\d+')


def bottleneck(*, layers: str | Sequence[str] | None = None, width: int | None = None) -> Adapter:
    """y = x + gelu(x W + b) V + c after a layer's output x, for every position: [B, …, D] -> [B, …, D].

    Houlsby et al., "Parameter-Efficient Transfer Learning for NLP", ICML 2019: after the attention and after the MLP of
    each block, before the residual is added; 2 D M + D + M numbers each. V and c start at zero, so the model starts
    as it was. On the maps of a convolutional network W and V are 1×1 convolutions.

    Args:
        layers: regexes for paths below the backbone, `.*/attn`. None: attention and MLP of each block; where there are
            none, each block; where there are no blocks, each Dense layer `fc1`, `fc2`, …
        width: M; None is D / 16, rounded down, and at least 1 (Houlsby et al. took 64 for D = 1024).

    Raises:
        UserError: a regex matches no layer; a bottleneck without width, or wider than the layer.
    """
    check_layers(layers, f'{WHERE}.layers')
    if width is not None and width < 1:
        raise UserError(f'{WHERE}.width: {width} should be at least 1.')

    def init(rng, sites):
        if layers is None:
            chosen = choose_default(sites, DEFAULT, f'{WHERE}.layers', _has_width)
        else:
            chosen = choose(sites, layers, f'{WHERE}.layers', _has_width)
        own = {}
        for path in chosen:
            size = sites[path].outputs[-1]
            M = max(size // 16, 1) if width is None else width
            if size < M:
                name = path.removeprefix('backbone/')
                raise UserError(f'{WHERE}.width: {width} is above the width of layer {name!r}: expected 1 to {size}.')
            own[f'{path}/down'] = jax.nn.initializers.lecun_normal()(named_key(rng, path), (size, M))
            own[f'{path}/down_bias'] = jnp.zeros(M)
            own[f'{path}/up'] = jnp.zeros((M, size))
            own[f'{path}/up_bias'] = jnp.zeros(size)
        return own

    def around(own, layer, call, args, kwargs):
        x = call(*args, **kwargs)  # [B, …, D]
        if f'{layer.path}/down' not in own:
            return x
        keys = ('down', 'down_bias', 'up', 'up_bias')
        down, down_bias, up, up_bias = (own[f'{layer.path}/{key}'].astype(x.dtype) for key in keys)
        inner = jax.nn.gelu(x @ down + down_bias, approximate=False)  # [B, …, M]
        return x + (inner @ up + up_bias)  # [B, …, D]

    def merge(own, params):
        raise UserError(
            f'{WHERE}: bottleneck adapters cannot be merged into the weights, since they are not linear: '
            'keep the adapter beside the weights, or train lora or ia3, which can be merged.'
        )

    return Adapter('bottleneck', init, around, merge)


def _has_width(site: Site) -> bool:
    return len(site.outputs) > 1 and site.kind != 'Dropout'
