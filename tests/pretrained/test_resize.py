"""Position embeddings and first convolutions of another size."""

import jax
import numpy as np
import pytest
from PIL import Image

from jtl.errors import UserError
from jtl.pretrained import resize

RNG = np.random.default_rng(0)
EMBEDDING = RNG.normal(size=(1, 1 + 4 * 6, 5)).astype(np.float32)


def test_bicubic_halves_by_hand():
    """A value half way between two, a = -3/4: 19/32 of the neighbours, -3/32 of those behind; at the edge as it is."""
    near, far = 19 / 32, -3 / 32
    expected = [[near + far, near, far, 0], [0, far, near, near + far]]
    np.testing.assert_allclose(resize.bicubic(4, 2, antialias=False), expected, rtol=0, atol=1e-15)


@pytest.mark.parametrize('old, new', [(14, 24), (14, 7), (24, 10), (1, 4), (3, 1)])
def test_bicubic_with_antialiasing_equals_pil(old, new):
    values = RNG.uniform(size=(old, 2)).astype(np.float32)
    expected = np.asarray(Image.fromarray(values).resize((2, new), Image.Resampling.BICUBIC))
    np.testing.assert_allclose(resize.bicubic(old, new, antialias=True) @ values, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize('antialias', [True, False])
def test_position_constant_stays_constant(antialias):
    embedding = np.full((1, 24, 5), 0.3, np.float32)
    result = resize.position(embedding, 0, 0, (4, 6), (9, 5), antialias)
    np.testing.assert_allclose(result, np.full((1, 45, 5), 0.3), rtol=0, atol=1e-7)


@pytest.mark.parametrize('antialias', [True, False])
def test_position_of_the_same_grid_keeps_its_bits(antialias):
    result = resize.position(EMBEDDING, 1, 1, (4, 6), (4, 6), antialias)
    np.testing.assert_array_equal(result, EMBEDDING)
    assert result.dtype == np.float32


def test_position_rows_are_not_columns():
    """Values that grow with the row only still do, and do not differ along it."""
    grid = np.broadcast_to(np.arange(4.0)[:, None, None], (4, 6, 1)).reshape(1, 24, 1)
    result = resize.position(grid, 0, 0, (4, 6), (8, 3)).reshape(8, 3)
    assert (np.diff(result, axis=0) > 0).all() and np.abs(np.diff(result, axis=1)).max() < 1e-12


def test_position_drops_tokens_from_the_end_of_the_prefix():
    both = RNG.normal(size=(1, 2 + 9, 5)).astype(np.float32)
    one, none = (resize.position(both, 2, prefix, None, (3, 3)) for prefix in (1, 0))
    np.testing.assert_array_equal(one, both[:, [0, *range(2, 11)]])
    np.testing.assert_array_equal(none, both[:, 2:])


def test_position_takes_new_tokens_from_fresh_ones():
    fresh = RNG.normal(size=(1, 2, 5)).astype(np.float32)
    result = resize.position(EMBEDDING, 1, 2, (4, 6), (4, 6), fresh=fresh)
    np.testing.assert_array_equal(result[:, 0], EMBEDDING[:, 0])
    np.testing.assert_array_equal(result[:, 1], fresh[:, 1])
    np.testing.assert_array_equal(result[:, 2:], EMBEDDING[:, 1:])
    with pytest.raises(UserError, match='2 tokens in front of the patches, 1 given'):
        resize.position(EMBEDDING, 1, 2, (4, 6), (4, 6))
    with pytest.raises(UserError, match=r'no values of shape \(1, 2, 5\)'):
        resize.position(EMBEDDING, 1, 2, (4, 6), (4, 6), fresh=fresh[:, :1])


@pytest.mark.parametrize(
    'shape, prefix, grid',
    [
        ((1, 25, 5), 1, None),
        ((1, 25, 5), 0, (4, 6)),
        ((1, 1, 5), 1, None),
        ((1, 25), 1, (4, 6)),
        ((2, 25, 5), 1, (4, 6)),
    ],
)
def test_position_of_an_unknown_grid_is_refused(shape, prefix, grid):
    """24 patches are no square; neither are 25 a grid of 4×6, nor none; and three axes, the first of which is 1."""
    with pytest.raises(UserError, match='give the grid that its patches have'):
        resize.position(np.zeros(shape, np.float32), prefix, prefix, grid, (3, 3))


def test_first_convolution_of_a_grey_picture():
    """In one channel it gets the response that it got in three equal ones; in six equal ones, too."""
    kernel = RNG.normal(size=(3, 3, 3, 5)).astype(np.float32)
    grey = RNG.normal(size=(1, 9, 9, 1)).astype(np.float32)

    def respond(channels):
        image, made = np.repeat(grey, channels, -1), resize.first_convolution(kernel, channels)
        assert made.shape == (3, 3, channels, 5) and made.dtype == np.float32
        return jax.lax.conv_general_dilated(image, made, (1, 1), 'SAME', dimension_numbers=('NHWC', 'HWIO', 'NHWC'))

    for channels in (1, 6):
        np.testing.assert_allclose(respond(channels), respond(3), rtol=0, atol=1e-5)


def test_first_convolution_of_other_channels():
    kernel = RNG.normal(size=(2, 2, 3, 4)).astype(np.float32)
    np.testing.assert_array_equal(resize.first_convolution(kernel, 3), kernel)
    np.testing.assert_allclose(resize.first_convolution(kernel, 2), kernel[:, :, :2] * 1.5, rtol=1e-6)
    np.testing.assert_allclose(resize.first_convolution(kernel, 4), kernel[:, :, [0, 1, 2, 0]] * 0.75, rtol=1e-6)
    np.testing.assert_allclose(resize.first_convolution(kernel[:, :, :1], 3), kernel[:, :, [0] * 3] / 3, rtol=1e-6)


@pytest.mark.parametrize('shape, channels', [((3, 3, 3), 1), ((3, 3, 3, 4), 0)])
def test_first_convolution_of_the_wrong_rank(shape, channels):
    with pytest.raises(UserError, match='a first convolution is'):
        resize.first_convolution(np.zeros(shape, np.float32), channels)
