"""RandAugment's operations against Pillow called directly, and how they are drawn."""

import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps

from jtl.data import ops_image, randaugment
from jtl.errors import UserError

ARRAY = np.random.default_rng(0).integers(20, 230, (24, 40, 3), dtype=np.uint8)
COLOUR = Image.fromarray(ARRAY)
GRAY = Image.fromarray(ARRAY[..., 0])
AFFINE = Image.Transform.AFFINE

# At M = 4, m is 0.4; signs + and -.
EXPECTED = {
    'identity': lambda p, s: p,
    'autocontrast': lambda p, s: ImageOps.autocontrast(p),
    'equalize': lambda p, s: ImageOps.equalize(p),
    'rotate': lambda p, s: p.rotate(s * 12),
    'shear_x': lambda p, s: p.transform((40, 24), AFFINE, (1, s * 0.12, 0, 0, 1, 0)),
    'shear_y': lambda p, s: p.transform((40, 24), AFFINE, (1, 0, 0, s * 0.12, 1, 0)),
    'translate_x': lambda p, s: p.transform((40, 24), AFFINE, (1, 0, s * 7, 0, 1, 0)),  # 150/331 · 0.4 · 40 = 7.25
    'translate_y': lambda p, s: p.transform((40, 24), AFFINE, (1, 0, 0, 0, 1, s * 4)),  # 150/331 · 0.4 · 24 = 4.35
    'brightness': lambda p, s: ImageEnhance.Brightness(p).enhance(1 + s * 0.36),
    'color': lambda p, s: ImageEnhance.Color(p).enhance(1 + s * 0.36),
    'contrast': lambda p, s: ImageEnhance.Contrast(p).enhance(1 + s * 0.36),
    'sharpness': lambda p, s: ImageEnhance.Sharpness(p).enhance(1 + s * 0.36),
    'posterize': lambda p, s: ImageOps.posterize(p, 6),  # 8 - round(1.6)
    'solarize': lambda p, s: ImageOps.solarize(p, 154),  # 256 - round(102.4)
}


class Fixed:
    """Stands in for a Generator: the given operation, and the sign."""

    def __init__(self, name, sign):
        self.name, self.sign = name, sign

    def integers(self, n):
        assert n == len(EXPECTED) == 14
        return list(randaugment.OPERATIONS).index(self.name)

    def random(self):
        return 0.25 if self.sign > 0 else 0.75


@pytest.mark.parametrize('sign', [1, -1])
@pytest.mark.parametrize('name', EXPECTED)
def test_rand_augment_is_pillow_s(name, sign):
    for picture in (COLOUR, GRAY):
        expected = np.asarray(EXPECTED[name](picture, sign))
        image = np.asarray(picture).reshape(24, 40, -1)
        out = ops_image.rand_augment(Fixed(name, sign), image, 1, 4)
        np.testing.assert_array_equal(out, expected.reshape(image.shape))
        same = name == 'identity' or (name == 'color' and picture is GRAY)  # which has none to change
        assert np.array_equal(out, image) == same


@pytest.mark.parametrize('name', EXPECTED)
def test_rand_augment_of_magnitude_0_changes_nothing(name):
    if name in ('autocontrast', 'equalize'):
        pytest.skip('has no magnitude')
    whole = np.arange(256, dtype=np.uint8).reshape(16, 16, 1)  # every level
    for image in (ARRAY, whole):
        for sign in (1, -1):
            np.testing.assert_array_equal(ops_image.rand_augment(Fixed(name, sign), image, 2, 0), image)


def test_rand_augment_at_full_magnitude():
    image = np.full((20, 331, 1), 77, np.uint8)
    moved = ops_image.rand_augment(Fixed('translate_x', 1), image, 1, 10)
    assert (moved[:, :181] == 77).all() and not moved[:, 181:].any()  # by 150 to the left, and black from there
    assert (ops_image.rand_augment(Fixed('solarize', 1), image, 1, 10) == 255 - 77).all()  # all of it
    assert (ops_image.rand_augment(Fixed('posterize', 1), image, 1, 10) == 64).all()  # 77 = 0b01001101, 4 bits of it


def test_rand_augment_applies_as_many_as_asked():
    image = np.full((4, 4, 1), 100, np.uint8)
    for count in (1, 2, 3):
        out = ops_image.rand_augment(Fixed('brightness', -1), image, count, 5)  # times 0.55, rounded down each time
        assert (out == [100, 55, 30, 16][count]).all()


def test_rand_augment_draws_all_operations_equally(monkeypatch):
    seen = dict.fromkeys(randaugment.OPERATIONS, 0)
    signs = []

    def record(name):
        def operation(picture, m, s):
            seen[name] += 1
            signs.append(s)
            assert m == 0.9
            return picture

        return operation

    monkeypatch.setattr(randaugment, 'OPERATIONS', {name: record(name) for name in seen})
    rng = np.random.default_rng(0)
    for _ in range(1400):
        randaugment.apply(rng, GRAY, 2, 9)
    # 2,800 draws of 14: 200 expected of each, with a deviation of sqrt(200 · 13/14) = 13.6. Of signs, sqrt(2800) = 53.
    assert all(abs(n - 200) < 60 for n in seen.values()) and sum(seen.values()) == 2800
    assert abs(sum(signs)) < 200


@pytest.mark.parametrize('channels', [1, 3])
def test_rand_augment_is_seeded_and_keeps_the_kind_of_picture(channels):
    image = ARRAY[..., :channels].copy()
    image.flags.writeable = False
    views = [ops_image.augment(np.random.default_rng(s), image, (('rand_augment', 2, 9),)) for s in range(40)]
    again = [ops_image.augment(np.random.default_rng(s), image, ('rand_augment',)) for s in range(40)]
    for one, two in zip(views, again):
        np.testing.assert_array_equal(one, two)
        assert one.dtype == np.uint8 and one.shape == image.shape
    assert len({view.tobytes() for view in views}) > 20


@pytest.mark.parametrize(
    'op', [('rand_augment', 0), ('rand_augment', 1.5), ('rand_augment', 2, 11), ('rand_augment', 2, -1)]
)
def test_check_ops_refuses_what_rand_augment_cannot_do(op):
    with pytest.raises(
        UserError, match=r"count is .* from 1, and magnitude is in \[0, 10\]. Usage: \('rand_augment', c"
    ):
        ops_image.check_ops((op,))
    with pytest.raises(UserError, match='Usage'):
        ops_image.check_ops((('rand_augment', 2, '9'),))
