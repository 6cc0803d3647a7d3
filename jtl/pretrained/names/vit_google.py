"""Vision Transformers as Google's npz files name them: those of vision_transformer (AugReg) and of big_vision.

They are Flax's names and shapes, so most arrays stay as they are. Nothing is exported to these names: queries, keys and
values have an axis of heads there, and our shapes do not show how many there are.
"""

import math

import numpy as np

from jtl.errors import UserError
from jtl.models import vit
from jtl.pretrained.names.vit import BLOCK, model, refuse, refused, seen
from jtl.pretrained.table import Arrays, Dialect, Row, Way

__all__ = ['DIALECTS', 'FAMILY', 'model']

FAMILY = 'vit'


def folded(axes: slice) -> Way:
    """An array with an axis of heads, [D, N, D/N], [N, D/N] or [N, D/N, D], with two axes made one."""

    def here(x: np.ndarray) -> np.ndarray:
        shape = list(x.shape)
        shape[axes] = [math.prod(shape[axes])]
        return x.reshape(shape)

    return Way('heads folded', here, refused)


def add_row(token: np.ndarray, position: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where the class token has no position of its own, ours is 0."""
    if position.ndim != 3:
        raise ValueError(f'of shape {position.shape}, expected 3 axes')
    if math.isqrt(position.shape[1] - 1) ** 2 == position.shape[1] - 1:
        return token, position
    return token, np.concatenate([np.zeros_like(position[:, :1]), position], axis=1)


POSITION = Way('the class token at its position, or at 0', add_row, refused)


def google_rows(attention: str, norm2: str, mlp: str) -> tuple[Row, ...]:
    """Flax counts a block's modules as they are made: three kinds together at first, each kind by itself later."""
    layer = 'Transformer/encoderblock_{block}'
    leaf, parts = '{leaf:kernel|bias}', '{part:query|key|value}'
    return (
        Row(('cls', '[Transformer/]pos_embedding'), ('backbone/class_token', 'backbone/position'), POSITION),
        Row('cls', 'backbone/class_token'),
        Row('[Transformer/]pos_embedding', 'backbone/position'),
        Row('Transformer/posembed_input/pos_embedding', 'backbone/position'),
        Row(f'embedding/{leaf}', f'backbone/patch/{leaf}'),
        Row(f'{layer}/LayerNorm_0/{{leaf:scale|bias}}', f'{BLOCK}/norm1/{{leaf}}'),
        Row(f'{layer}/{norm2}/{{leaf:scale|bias}}', f'{BLOCK}/norm2/{{leaf}}'),
        Row(f'{layer}/{attention}/{parts}/kernel', f'{BLOCK}/attn/{{part}}/kernel', folded(slice(1, 3))),
        Row(f'{layer}/{attention}/{parts}/bias', f'{BLOCK}/attn/{{part}}/bias', folded(slice(0, 2))),
        Row(f'{layer}/{attention}/out/kernel', f'{BLOCK}/attn/out/kernel', folded(slice(0, 2))),
        Row(f'{layer}/{attention}/out/bias', f'{BLOCK}/attn/out/bias'),
        Row(f'{layer}/{mlp}/Dense_{{i-1}}/{leaf}', f'{BLOCK}/mlp/fc{{i}}/{leaf}'),
        Row('Transformer/encoder_norm/{leaf:scale|bias}', 'backbone/norm/{leaf}'),
        Row(f'pre_logits/{leaf}', f'backbone/pre_logits/{leaf}'),
        Row(f'head/{leaf}', f'head/{leaf}'),
    )


def settings_google(tensors: Arrays, config: dict) -> dict:
    """`flax.linen.gelu` is the approximation with tanh unless told otherwise; the number of heads is in the shapes."""
    refuse(tensors)
    if not any(name.endswith('pos_embedding') for name in tensors):
        raise UserError('no position embedding among the tensors: fixed ones of sines (sincos2d) are not supported.')
    heads = next((x.shape[1] for name, x in tensors.items() if name.endswith('/query/kernel') and x.ndim == 3), None)
    settings = {'pool': 'token' if 'cls' in tensors else 'mean', 'activation': 'gelu_tanh'}
    return settings | ({'heads': heads} if heads else {})


def preprocess_google(tensors: Arrays, config: dict) -> dict:
    """The whole picture, squashed bilinearly, in [-1, 1]."""
    size = seen(tensors, 'pos_embedding', 'embedding/kernel', 0)
    return {**vit.preprocess('_b16'), **size, 'interpolation': 'bilinear', 'crop': 1.0, 'resize': 'squash'}


ORIGINAL = google_rows('MultiHeadDotProductAttention_1', 'LayerNorm_2', 'MlpBlock_3')
BIG_VISION = google_rows('MultiHeadDotProductAttention_0', 'LayerNorm_1', 'MlpBlock_0')
DIALECTS = (
    Dialect('google', ORIGINAL, settings_google, preprocess_google),
    Dialect('big_vision', BIG_VISION, settings_google, preprocess_google),
)
