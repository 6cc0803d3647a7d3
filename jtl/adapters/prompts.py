"""Visual prompt tuning: a few tokens that are learned, and that patches may look at.

Legend: B batch, T tokens, D width, N prompts, L blocks, P patch, C channels.
"""

import re

import jax
import jax.numpy as jnp

from jtl.adapters import Adapter, check_rate, dropped, named_key
from jtl.errors import UserError

WHERE = 'config.model.prompts'
BLOCK = re.compile(r'backbone/block\d+')


def prompts(*, tokens: int = 10, deep: bool = False, dropout: float = 0.0) -> Adapter:
    """[z, p] = block([z, p]): N prompts p beside the tokens z of a ViT, for all blocks or, if `deep`, new ones in each.

    Jia et al., "Visual Prompt Tuning", ECCV 2022. They stand after the last token, not behind the class token: blocks
    treat all tokens alike, and position has been added before. They are taken away after the last block, so pooling
    does not see them. They start uniform in ±√(6 / (C P² + D)), as in the paper.

    Trained: N D numbers, or N D L if deep.

    Args:
        tokens: N.
        deep: every block has its own, whose outputs are dropped. The paper finds this better.
        dropout: rate at which prompts' entries are dropped in training; needs the rng `dropout`.

    Raises:
        UserError: a model that is no ViT; no prompts.
    """
    check_rate(dropout, f'{WHERE}.dropout')
    if tokens < 1:
        raise UserError(f'{WHERE}.tokens: {tokens} should be at least 1.')

    def init(rng, sites):
        if sites['backbone'].kind != 'ViT':
            raise UserError(f'{WHERE}: {sites["backbone"].kind} has no patches to set prompts beside; expected a ViT.')
        blocks = [path for path in sites if BLOCK.fullmatch(path)]
        rows, columns, channels, width = sites['backbone/patch'].kernel
        bound = (6 / (rows * columns * channels + width)) ** 0.5
        uniform = lambda path: jax.random.uniform(named_key(rng, path), (tokens, width), minval=-bound, maxval=bound)
        return {f'{path}/tokens': uniform(path) for path in (blocks if deep else blocks[:1])}

    def around(own, layer, call, args, kwargs):
        if not BLOCK.fullmatch(layer.path):
            return call(*args, **kwargs)
        x, *others = args  # [B, T, D]
        added = own.get(f'{layer.path}/tokens')  # [N, D]
        if added is not None:
            added = dropped(jnp.broadcast_to(added.astype(x.dtype), (len(x), *added.shape)), dropout, layer)
            x = jnp.concatenate([x, added], axis=1)  # [B, T + N, D]
        x = call(x, *others, **kwargs)
        last = layer.path == f'backbone/block{layer.backbone.depth - 1}'
        return x[:, :-tokens] if deep or last else x  # [B, T, D] or [B, T + N, D]

    def merge(own, params):
        raise UserError(
            f'{WHERE}: prompts cannot be merged into the weights, since a model without them has fewer tokens: '
            'keep the adapter beside the weights, or train lora or ia3, which can be merged.'
        )

    return Adapter('prompts', init, around, merge)
