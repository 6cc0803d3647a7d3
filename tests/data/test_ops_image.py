"""Image operations, against Pillow where it does the same and against hand-made examples where not."""

import numpy as np
import pytest
from PIL import Image, ImageEnhance

from jtl.data import ops_image as ops
from jtl.errors import UserError

IMAGE = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
ALL = (
    'random_resized_crop',
    ('pad_crop', 2),
    'flip',
    ('color_jitter', 0.4, 0.4, 0.4, 0.1),
    ('random_erasing', 1.0),
    ('rand_augment', 2, 9),
)


class Fixed:
    """Stands in for a Generator: returns the given uniform draws, and permutations as they are."""

    def __init__(self, *draws):
        self.draws = list(draws)

    def random(self):
        return self.draws.pop(0)

    def uniform(self, low, high):
        value = self.draws.pop(0)
        assert low <= value <= high
        return value

    def integers(self, *args):
        return self.draws.pop(0)

    def permutation(self, n):
        return np.arange(n)


# ---- deterministic ----


@pytest.mark.parametrize('channels', [1, 3])
@pytest.mark.parametrize('name', ['bilinear', 'bicubic', 'lanczos', 'nearest'])
def test_fit_is_pillows_resize_and_centre_crop(name, channels):
    # Short side 20 -> 16, long side 30 -> int(16 * 30 / 20) = 24, of which columns (24 - 16) / 2 = 4 … 20 remain.
    image = IMAGE[..., :channels]
    picture = Image.fromarray(image[..., 0] if channels == 1 else image)
    expected = np.asarray(picture.resize((24, 16), Image.Resampling[name.upper()])).reshape(16, 24, channels)[:, 4:20]
    np.testing.assert_array_equal(ops.fit(image, 16, interpolation=name), expected)
    np.testing.assert_array_equal(ops.fit(image.swapaxes(0, 1), 16, interpolation=name).shape, (16, 16, channels))


def test_fit_leaves_a_margin():
    # 14 / 0.7 = 20: nothing to resize; rows (20 - 14) / 2 = 3 … 17 and columns (30 - 14) / 2 = 8 … 22.
    np.testing.assert_array_equal(ops.fit(IMAGE, 14, crop=0.7), IMAGE[3:17, 8:22])


def test_fit_rounds_the_short_side_down():
    # As timm and Hugging Face do: 14 / 0.72 = 19.4 and 14 / 0.71 = 19.7 are 19 both, and the long side int(28.5) = 28.
    expected = np.asarray(Image.fromarray(IMAGE).resize((28, 19), Image.Resampling.BICUBIC))[2:16, 7:21]
    for crop in (0.72, 0.71):
        np.testing.assert_array_equal(ops.fit(IMAGE, 14, crop=crop), expected)


def test_fit_squashes_both_sides():
    # All of the picture in 16 × 16, of which 1 … 15 remain.
    whole = np.asarray(Image.fromarray(IMAGE).resize((16, 16), Image.Resampling.BICUBIC))
    np.testing.assert_array_equal(ops.fit(IMAGE, 16, resize='squash'), whole)
    np.testing.assert_array_equal(ops.fit(IMAGE, 14, crop=0.875, resize='squash'), whole[1:15, 1:15])


@pytest.mark.parametrize('centre, top, left', [('even', 2, 6), ('floor', 1, 6)])
def test_fit_halves_an_odd_margin(centre, top, left):
    # Margins of 20 - 17 = 3 and 30 - 17 = 13: 1.5 and 6.5, to the even number or down.
    out = ops.fit(IMAGE, 17, crop=17 / 20, centre=centre)
    np.testing.assert_array_equal(out, IMAGE[top : top + 17, left : left + 17])


def test_fit_keeps_what_fits():
    square = IMAGE[:, :20]
    assert np.shares_memory(ops.fit(square, 20), square)
    np.testing.assert_array_equal(ops.fit(square, 20), square)


def test_fit_suggests_the_nearest_word():
    with pytest.raises(UserError, match="unknown interpolation 'bicubik': did you mean 'bicubic'"):
        ops.fit(IMAGE, 16, interpolation='bicubik')
    with pytest.raises(UserError, match="unknown resize 'squosh': did you mean 'squash'"):
        ops.fit(IMAGE, 16, resize='squosh')
    with pytest.raises(UserError, match="unknown centre 'flor': did you mean 'floor'"):
        ops.fit(IMAGE, 16, centre='flor')


def test_to_channels():
    assert ops.to_channels(IMAGE, 3) is IMAGE
    gray = ops.to_channels(IMAGE, 1)
    np.testing.assert_array_equal(gray[..., 0], np.asarray(Image.fromarray(IMAGE).convert('L')))
    np.testing.assert_array_equal(ops.to_channels(gray, 3), np.repeat(gray, 3, -1))


# ---- random ----


def test_pad_crop_shifts_by_every_amount_equally():
    image = np.arange(1, 17, dtype=np.uint8).reshape(4, 4, 1)
    padded = np.pad(image, ((1, 1), (1, 1), (0, 0)))
    boxes = {padded[y : y + 4, x : x + 4].tobytes(): 0 for y in range(3) for x in range(3)}
    rng = np.random.default_rng(0)
    for _ in range(9000):
        boxes[ops.pad_crop(rng, image, 1).tobytes()] += 1  # a KeyError here is a box that cannot be
    # 1,000 expected of each of the 9; the deviation of a count is sqrt(9000 / 9 * 8 / 9) = 30.
    assert max(abs(n - 1000) for n in boxes.values()) < 150


def test_flip_is_half_of_the_time():
    assert np.array_equal(ops.flip(Fixed(0.49), IMAGE), IMAGE[:, ::-1])
    assert np.array_equal(ops.flip(Fixed(0.51), IMAGE), IMAGE)


def test_random_resized_crop_cuts_the_box_it_drew():
    # Area 0.24 * 600 = 144 and aspect 1: a box of 12 × 12, at left 5, top 3.
    out = ops.random_resized_crop(Fixed(0.24, 0.0, 5, 3), IMAGE, 8)
    box = Image.fromarray(IMAGE).crop((5, 3, 17, 15))
    np.testing.assert_array_equal(out, np.asarray(box.resize((8, 8), Image.Resampling.BICUBIC)))


def test_augment_resizes_as_the_model_s_pictures_are():
    whole = (('random_resized_crop', (1.0, 1.0), (1.0, 1.0)),)
    square = IMAGE[:10, :10]
    for name, kind in (('bilinear', Image.Resampling.BILINEAR), ('bicubic', Image.Resampling.BICUBIC)):
        expected = np.asarray(Image.fromarray(square).resize((8, 8), kind))
        np.testing.assert_array_equal(ops.augment(np.random.default_rng(0), square, whole, 8, name), expected)


def test_random_resized_crop_draws_area_and_ratio(monkeypatch):
    boxes = []
    monkeypatch.setattr(ops, '_picture', lambda box: boxes.append(box.shape[:2]) or Image.new('L', (8, 8)))
    rng, image = np.random.default_rng(0), np.zeros((400, 400, 1), np.uint8)
    for _ in range(2000):
        ops.random_resized_crop(rng, image, 8)
    height, width = np.array(boxes).T
    areas, ratios = height * width / 160_000, np.log(width / height)
    # A box of area a and log ratio r fits if |r| <= -ln a; r is uniform in ±L, L = ln 4/3. So areas have density 1 on
    # [0.08, 0.75] and -ln(a) / L on [0.75, 1], before normalising: the mean is (0.2781 + 0.0989) / (0.67 + 0.1190) =
    # 0.478, with a standard error of 0.24 / sqrt(2000) = 0.0054. Log ratios are symmetric.
    assert areas.min() >= 0.079 and abs(areas.mean() - 0.478) < 0.016
    assert abs(ratios.mean()) < 0.02 and abs(ratios).max() < np.log(4 / 3) + 0.02


def test_random_resized_crop_falls_back_to_the_centre():
    # No box of ratio 3/4 … 4/3 covers a strip of 4 × 40; the largest centred one is 4 high and round(4 * 4/3) = 5 wide.
    strip = IMAGE.reshape(-1, 3)[:160].reshape(4, 40, 3)
    out = ops.random_resized_crop(np.random.default_rng(0), strip, 8, scale=(1, 1))
    box = Image.fromarray(strip).crop((17, 0, 22, 4))
    np.testing.assert_array_equal(out, np.asarray(box.resize((8, 8), Image.Resampling.BICUBIC)))


def test_color_jitter_is_pillows_enhance():
    out = ops.color_jitter(Fixed(1.3, 0.7, 1.2), IMAGE, 0.4, 0.4, 0.4)
    expected = Image.fromarray(IMAGE)
    for kind, factor in ((ImageEnhance.Brightness, 1.3), (ImageEnhance.Contrast, 0.7), (ImageEnhance.Color, 1.2)):
        expected = kind(expected).enhance(factor)
    np.testing.assert_array_equal(out, np.asarray(expected))


def test_color_jitter_turns_hue():
    # A third of the circle (85 of 255) takes red to green, back (-85) to blue: to hue 256 - 85 = 171, not 170, as bytes
    # wrap at 256. That hue is 171 / 255 * 6 = 4.0235, so red is 0.0235 * 255 = 6. torchvision does the same.
    red = np.full((2, 2, 3), (255, 0, 0), np.uint8)
    np.testing.assert_array_equal(ops.color_jitter(Fixed(1 / 3), red, 0, 0, 0, 0.5)[0, 0], (0, 255, 0))
    np.testing.assert_array_equal(ops.color_jitter(Fixed(-1 / 3), red, 0, 0, 0, 0.5)[0, 0], (6, 0, 255))


def test_color_jitter_keeps_gray_gray():
    gray = IMAGE[..., :1]
    out = ops.color_jitter(Fixed(1.3, 0.7), gray, 0.4, 0.4, 0.4, 0.1)  # two draws only
    expected = ImageEnhance.Contrast(ImageEnhance.Brightness(Image.fromarray(gray[..., 0])).enhance(1.3)).enhance(0.7)
    np.testing.assert_array_equal(out[..., 0], np.asarray(expected))


def test_random_erasing_paints_one_box():
    # Area 0.16 * 600 = 96 at height / width 1.5: 12 high, 8 wide, at top 2, left 3, filled with sevens.
    fill = np.full((12, 8, 3), 7, np.uint8)
    out = ops.random_erasing(Fixed(0.1, 0.16, np.log(1.5), 2, 3, fill), IMAGE)
    expected = IMAGE.copy()
    expected[2:14, 3:11] = 7
    np.testing.assert_array_equal(out, expected)
    assert ops.random_erasing(Fixed(0.25), IMAGE) is IMAGE


@pytest.mark.parametrize('op', ALL, ids=lambda op: op if isinstance(op, str) else op[0])
@pytest.mark.parametrize('channels', [1, 3])
def test_ops_are_seeded_and_leave_their_input_alone(op, channels):
    image = IMAGE[..., :channels].copy()
    image.flags.writeable = False
    first, second = (ops.augment(np.random.default_rng(3), image, (op,), 16) for _ in range(2))
    np.testing.assert_array_equal(first, second)
    assert first.dtype == np.uint8 and first.ndim == 3 and first.shape[-1] == channels
    different = [ops.augment(np.random.default_rng(seed), image, (op,), 16) for seed in range(8)]
    assert any(not np.array_equal(first, other) for other in different)


def test_augment_applies_in_order():
    out = ops.augment(np.random.default_rng(5), IMAGE, (('pad_crop', 2), 'flip'))
    rng = np.random.default_rng(5)
    np.testing.assert_array_equal(out, ops.flip(rng, ops.pad_crop(rng, IMAGE, 2)))


# ---- checks ----


def test_check_ops_accepts_good_ones():
    assert ops.check_ops(ALL, 16) is None
    assert ops.check_ops(('flip', ['pad_crop', 4], ('random_resized_crop', (0.2, 1.0))), 32) is None


@pytest.mark.parametrize(
    'op, message',
    [
        ('flipp', "unknown image operation 'flipp': did you mean 'flip'"),
        (('fit', 3), "unknown image operation 'fit'"),
        (
            ('random_resized_crop', (0.2, 1.0), (1.0, 1.0), 3),
            r"positional arguments but 6 .*were given. Usage: \('random_resized_crop', scale",
        ),
        (('pad_crop', 4, 5), 'positional arguments but 4 were given'),
        (('pad_crop', '4'), r"image operation \('pad_crop', '4'\)"),
        (('color_jitter', 0.4, 0.4, 0.4, 0.7), r'hue is in \[0, 0.5\]'),
        (('random_resized_crop', 0.5), 'image operation'),
    ],
)
def test_check_ops_refuses(op, message):
    with pytest.raises(UserError, match=message):
        ops.check_ops((op,), 32)


def test_check_ops_needs_a_size_to_crop_to():
    with pytest.raises(UserError, match='give config.preprocess.size'):
        ops.check_ops(('random_resized_crop',))


def test_takes_any_size():
    assert ops.takes_any_size(('random_resized_crop', 32)) and ops.takes_any_size('random_resized_crop')
    assert not ops.takes_any_size('flip') and not ops.takes_any_size(('pad_crop', 4))
