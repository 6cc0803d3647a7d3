"""IA³: activations are rescaled, channel by channel.

Legend: B batch, I and O widths of a layer's input and output; `…` positions.
"""

from collections.abc import Sequence

import jax.numpy as jnp

from jtl.adapters import Adapter, check_layers, choose, choose_default, is_linear
from jtl.errors import UserError

WHERE = 'config.model.ia3'
OUTPUTS = (r'.*attn/(key|value)', '.*')


def ia3(*, layers: str | Sequence[str] | None = None, feedforward: str | Sequence[str] | None = None) -> Adapter:
    """y = l ⊙ (W x + b) of some layers, y = W (l ⊙ x) + b of others; l starts at one: [B, …, I] -> [B, …, O].

    Liu et al., "Few-Shot Parameter-Efficient Fine-Tuning is Better and Cheaper than In-Context Learning", NeurIPS 2022:
    the keys and the values of attention, and what the second layer of the MLP reads, d_k + d_v + d_ff numbers a block.
    A scale before a BatchNorm that normalises by its batch has no effect: keep the BatchNorm frozen, or use another.

    Args:
        layers: regexes for paths below the backbone, of Dense layers and convolutions whose outputs are scaled. None:
            keys and values; where there is no attention, every Dense layer and convolution. `()` is none.
        feedforward: of those whose inputs are scaled. None: `.*mlp/fc2`, or none where that does not exist.

    Raises:
        UserError: a regex matches no layer; nothing to scale; inputs of a grouped convolution.
    """
    check_layers(layers, f'{WHERE}.layers')
    check_layers(feedforward, f'{WHERE}.feedforward')

    def init(rng, sites):
        if layers is None:
            outputs = choose_default(sites, OUTPUTS, f'{WHERE}.layers')
        else:
            outputs = choose(sites, layers, f'{WHERE}.layers')
        if feedforward is None:
            inputs = [path for path, site in sites.items() if is_linear(site) and path.endswith('/mlp/fc2')]
        else:
            inputs = choose(sites, feedforward, f'{WHERE}.feedforward')
        for path in inputs:
            if sites[path].groups > 1:
                name = path.removeprefix('backbone/')
                raise UserError(
                    f'{WHERE}.feedforward: {name!r} is a grouped convolution; scale its outputs by `layers`.'
                )
        if not outputs + inputs:
            raise UserError(f'{WHERE}: no layers and no feedforward, so nothing would be scaled.')
        ones = {f'{path}/output': jnp.ones(sites[path].outputs[-1]) for path in outputs}
        return {**ones, **{f'{path}/input': jnp.ones(sites[path].inputs[-1]) for path in inputs}}

    def around(own, layer, call, args, kwargs):
        before, after = (own.get(f'{layer.path}/{which}') for which in ('input', 'output'))
        if before is not None:
            args = (args[0] * before.astype(args[0].dtype), *args[1:])
        y = call(*args, **kwargs)
        return y if after is None else y * after.astype(y.dtype)

    def merge(own, params):
        merged = dict(params)
        for key, scale in own.items():
            path, which = key.rsplit('/', 1)
            kernel = merged[f'{path}/kernel']  # [I, O] or [k, k, I, O]
            merged[f'{path}/kernel'] = kernel * (scale if which == 'output' else scale[:, None])
            if which == 'output' and f'{path}/bias' in merged:
                merged[f'{path}/bias'] = merged[f'{path}/bias'] * scale
        return merged

    return Adapter('ia3', init, around, merge)
