"""Resized position embeddings and first convolutions against PyTorch's `interpolate` and Hugging Face's models."""

import json

import numpy as np
import pytest

torch = pytest.importorskip('torch')
transformers = pytest.importorskip('transformers')

import parity  # noqa: E402
from safetensors.numpy import load_file  # noqa: E402

from jtl.pretrained import resize  # noqa: E402

RNG = np.random.default_rng(0)
GRIDS = [  # up, down, both at once, from and to what is not square, very small
    ((14, 14), (24, 24)),
    ((14, 14), (7, 7)),
    ((24, 24), (14, 14)),
    ((37, 37), (16, 16)),
    ((14, 14), (9, 20)),
    ((5, 7), (3, 11)),
    ((16, 16), (5, 5)),
    ((1, 1), (3, 2)),
    ((2, 2), (1, 1)),
]


@pytest.mark.parametrize('antialias', [True, False])
@pytest.mark.parametrize('old, new', GRIDS)
def test_position_equals_torch(old, new, antialias):
    embedding = RNG.uniform(-1, 1, size=(1, 2 + old[0] * old[1], 6)).astype(np.float32)
    grid = torch.from_numpy(embedding[:, 2:]).reshape(1, *old, 6).permute(0, 3, 1, 2)
    grid = torch.nn.functional.interpolate(grid, size=new, mode='bicubic', align_corners=False, antialias=antialias)
    result = resize.position(embedding, 2, 2, old, new, antialias)
    assert result.shape == (1, 2 + new[0] * new[1], 6) and result.dtype == np.float32
    np.testing.assert_array_equal(result[:, :2], embedding[:, :2])
    expected = grid.permute(0, 2, 3, 1).reshape(1, -1, 6)
    np.testing.assert_allclose(result[:, 2:], expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize('size', [(48, 80), (16, 24), (40, 40)])
@pytest.mark.parametrize('kind', ['vit', 'deit'])
def test_position_gives_the_logits_of_interpolate_pos_encoding(kind, size, tmp_path):
    """Weights for 32×32 pixels, pictures of another size; with antialiasing it would be something else."""
    config, made = {
        'vit': (transformers.ViTConfig, transformers.ViTForImageClassification),
        'deit': (transformers.DeiTConfig, transformers.DeiTForImageClassification),
    }[kind]
    config = config(
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=64,
        image_size=32,
        patch_size=8,
        num_labels=7,
    )
    torch.manual_seed(0)
    reference = parity.perturb(made(config))
    with torch.no_grad():  # so that the positions matter
        reference.base_model.embeddings.position_embeddings.mul_(20)
    reference.save_pretrained(tmp_path)
    tensors, config = load_file(tmp_path / 'model.safetensors'), json.loads((tmp_path / 'config.json').read_text())
    images = RNG.normal(size=(2, *size, 3)).astype(np.float32)
    with torch.no_grad():
        expected = reference(
            torch.from_numpy(images.transpose(0, 3, 1, 2).copy()), interpolate_pos_encoding=True
        ).logits

    ours = parity.Ours(tensors, config)
    position, prefix = ours.leaves['backbone/position'], 1 if kind == 'vit' else 2
    errors = []
    for antialias in (False, True):
        grid = size[0] // 8, size[1] // 8
        ours.leaves['backbone/position'] = resize.position(position, prefix, prefix, None, grid, antialias)
        errors.append(parity.difference(ours({'image': images})[0]['logits'], expected))
    assert errors[0] <= parity.TOLERANCE
    assert errors[1] > 10 * parity.TOLERANCE


@pytest.mark.parametrize('channels', [1, 2, 3, 4, 6])
def test_first_convolution_sums_what_torch_would(channels):
    """A picture of C channels in the new kernel is, in the old one, the picture whose channels have its in turn."""
    kernel = RNG.normal(size=(3, 3, 3, 5)).astype(np.float32)
    pixels = torch.from_numpy(RNG.normal(size=(2, channels, 8, 8)).astype(np.float32))
    result = resize.first_convolution(kernel, channels)
    assert result.shape == (3, 3, channels, 5)
    convolve = lambda x, k: torch.nn.functional.conv2d(x, torch.from_numpy(k.transpose(3, 2, 0, 1).copy()))
    if channels == 1:
        expected = convolve(pixels.expand(-1, 3, -1, -1), kernel)
    else:
        folded = torch.stack([pixels[:, c::3].sum(1) for c in range(3)], 1)  # channels past the third wrap around
        expected = convolve(folded, kernel) * 3 / channels
    np.testing.assert_allclose(convolve(pixels, result), expected, rtol=0, atol=1e-5)
