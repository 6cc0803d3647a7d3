"""ViT against Google's definition in float64 NumPy, on npz files."""

import math

import numpy as np
import pytest

pytest.importorskip('torch')

import parity  # noqa: E402

IMAGES = np.random.default_rng(0).normal(size=(3, 16, 16, 3)).astype(np.float32)  # a square of 2·2 patches

GOOGLE = {  # attention, the second norm, MLP; where the position embedding is, and its rows beside those of the patches
    'google': ('MultiHeadDotProductAttention_1', 'LayerNorm_2', 'MlpBlock_3', 'Transformer/posembed_input/', 1),
    'big_vision': ('MultiHeadDotProductAttention_0', 'LayerNorm_1', 'MlpBlock_0', '', 0),
    'big_vision, 2021': ('MultiHeadDotProductAttention_0', 'LayerNorm_1', 'MlpBlock_0', 'Transformer/', 1),
}


def google_arrays(names, token, pre_logits, width=24, heads=3, hidden=40, patches=4):
    attention, norm2, mlp, position, rows = names
    depth, split = 2, (heads, width // heads)
    shapes = {
        'embedding/kernel': (8, 8, 3, width),
        'embedding/bias': (width,),
        f'{position}pos_embedding': (1, patches + rows * token, width),
        'Transformer/encoder_norm/scale': (width,),
        'Transformer/encoder_norm/bias': (width,),
        'head/kernel': (pre_logits or width, 7),
        'head/bias': (7,),
    }
    shapes |= {'cls': (1, 1, width)} if token else {}
    shapes |= {'pre_logits/kernel': (width, pre_logits), 'pre_logits/bias': (pre_logits,)} if pre_logits else {}
    for i in range(depth):
        block = f'Transformer/encoderblock_{i}'
        for norm in ('LayerNorm_0', norm2):
            shapes |= {f'{block}/{norm}/scale': (width,), f'{block}/{norm}/bias': (width,)}
        for part in ('query', 'key', 'value'):
            shapes |= {f'{block}/{attention}/{part}/kernel': (width, *split), f'{block}/{attention}/{part}/bias': split}
        shapes |= {f'{block}/{attention}/out/kernel': (*split, width), f'{block}/{attention}/out/bias': (width,)}
        for j, (before, after) in enumerate(((width, hidden), (hidden, width))):
            shapes |= {f'{block}/{mlp}/Dense_{j}/kernel': (before, after), f'{block}/{mlp}/Dense_{j}/bias': (after,)}
    rng = np.random.default_rng(1)
    draw = lambda name, shape: (
        name.endswith('scale')
        + rng.normal(size=shape) * ((2 / shape[0]) ** 0.5 if name.endswith('kernel') and len(shape) == 2 else 0.3)
    )
    return {name: draw(name, shape).astype(np.float32) for name, shape in shapes.items()}


def google_forward(p, images, names, token, pre_logits):
    """`(hidden states after each block, logits)`."""
    p = {name: x.astype(np.float64) for name, x in p.items()}
    attention, norm2, mlp, position, rows = names

    def norm(x, name):
        x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
        return x * p[f'{name}/scale'] + p[f'{name}/bias']

    b, h, w, c = images.shape
    x = images.astype(np.float64).reshape(b, h // 8, 8, w // 8, 8, c)
    x = np.einsum('bhiwjc,ijcd->bhwd', x, p['embedding/kernel']) + p['embedding/bias']
    x = x.reshape(b, -1, x.shape[-1])
    cls = np.broadcast_to(p['cls'], (b, 1, x.shape[-1])) if token else x[:, :0]
    embedding = p[f'{position}pos_embedding']
    x = np.concatenate([cls, x], 1) + embedding if rows else np.concatenate([cls, x + embedding], 1)
    hidden = []
    for i in range(2):
        block = f'Transformer/encoderblock_{i}'
        y, name = norm(x, f'{block}/LayerNorm_0'), f'{block}/{attention}'
        q, k, v = (
            np.einsum('btd,dnh->btnh', y, p[f'{name}/{part}/kernel']) + p[f'{name}/{part}/bias']
            for part in ('query', 'key', 'value')
        )
        weights = np.exp(np.einsum('bqnh,bknh->bnqk', q, k) / math.sqrt(q.shape[-1]))
        y = np.einsum('bnqk,bknh->bqnh', weights / weights.sum(-1, keepdims=True), v)
        x = x + np.einsum('bqnh,nhd->bqd', y, p[f'{name}/out/kernel']) + p[f'{name}/out/bias']
        y = norm(x, f'{block}/{norm2}') @ p[f'{block}/{mlp}/Dense_0/kernel'] + p[f'{block}/{mlp}/Dense_0/bias']
        y = 0.5 * y * (1 + np.tanh(math.sqrt(2 / math.pi) * (y + 0.044715 * y**3)))  # flax.linen.gelu by default
        x = x + y @ p[f'{block}/{mlp}/Dense_1/kernel'] + p[f'{block}/{mlp}/Dense_1/bias']
        hidden.append(x)
    x = norm(x, 'Transformer/encoder_norm')
    x = x[:, 0] if token else x.mean(1)
    x = np.tanh(x @ p['pre_logits/kernel'] + p['pre_logits/bias']) if pre_logits else x
    return hidden, x @ p['head/kernel'] + p['head/bias']


@pytest.mark.parametrize('token, pre_logits', [(True, 0), (True, 20), (False, 0)])
@pytest.mark.parametrize('case', GOOGLE)
def test_vit_equals_google(case, token, pre_logits, tmp_path):
    names = GOOGLE[case]
    np.savez(tmp_path / 'x.npz', **google_arrays(names, token, pre_logits))
    tensors = dict(np.load(tmp_path / 'x.npz'))
    ours = parity.Ours(tensors, {})
    assert ours.known.dialect.name == case.split(',')[0]
    hidden, expected = google_forward(tensors, IMAGES, names, token, pre_logits)
    outputs, inner = ours({'image': IMAGES})
    assert parity.difference(outputs['logits'], expected) <= parity.TOLERANCE
    for block, states in enumerate(hidden):
        assert parity.difference(inner[f'backbone/block{block}'], states) <= parity.TOLERANCE


def test_vit_of_google_catches_a_swap():
    tensors = google_arrays(GOOGLE['google'], True, 20)
    assert parity.check_swaps(parity.Ours(tensors, {}), tensors, {'image': IMAGES}) == 29
