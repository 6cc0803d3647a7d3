"""Image operations on one example at a time: uint8 [H, W, C] in and out, C 1 or 3.

Random ones take `(rng, image, *args)` and are listed in a config by name, or as `(name, *args)`:
`(('pad_crop', 4), 'flip')`. None writes into its input, which may be a cached picture; the result may be a view of it.
"""

import inspect
import math

import numpy as np
from PIL import Image, ImageEnhance

from jtl.data import randaugment
from jtl.errors import UserError, nearest

INTERPOLATIONS = {name: Image.Resampling[name.upper()] for name in ('nearest', 'bilinear', 'bicubic', 'lanczos')}
RESIZES = ('short', 'squash')
CENTRES = {'even': lambda margin: round(margin / 2), 'floor': lambda margin: margin // 2}

# ---- deterministic ----


def fit(
    image: np.ndarray,
    size: int,
    crop: float = 1.0,
    interpolation: str = 'bicubic',
    resize: str = 'short',
    centre: str = 'even',
) -> np.ndarray:
    """Resize to floor(size / crop), then cut out the centre: [size, size, C].

    The usual preprocessing of evaluation: `crop` 0.875 with size 224 resizes to 256 first. Antialiased, by Pillow, so
    that the picture has the bits that the weights' own library gave it.

    Args:
        resize: `short` resizes the short side and keeps the shape; `squash` resizes both sides, so that all is seen.
        centre: where an odd margin is cut. `even` is torchvision's and timm's, which round half a pixel to the even
            number; `floor` is that of Hugging Face. They differ by one pixel.
    """
    for key, value, known in (
        ('interpolation', interpolation, INTERPOLATIONS),
        ('resize', resize, RESIZES),
        ('centre', centre, CENTRES),
    ):
        if value not in known:
            raise UserError(f'unknown {key} {value!r}: {nearest(str(value), known)}')
    height, width = image.shape[:2]
    short = math.floor(size / crop)
    long = int(short * max(height, width) / min(height, width)) if resize == 'short' else short
    shape = (short, long) if width < height else (long, short)  # (width, height)
    if shape != (width, height):
        image = _array(_picture(image).resize(shape, INTERPOLATIONS[interpolation]))
    left, top = (CENTRES[centre](side - size) for side in shape)
    return image[top : top + size, left : left + size]


def to_channels(image: np.ndarray, channels: int) -> np.ndarray:
    """Gray repeated to RGB, or RGB reduced to its luma (ITU-R 601): [H, W, channels]."""
    if image.shape[-1] == channels:
        return image
    return np.repeat(image, 3, axis=-1) if channels == 3 else _array(_picture(image).convert('L'))


# ---- random ----


def random_resized_crop(
    rng: np.random.Generator,
    image: np.ndarray,
    size: int,
    scale: tuple[float, float] = (0.08, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
    *,
    interpolation: str = 'bicubic',
) -> np.ndarray:
    """A box of random area and aspect ratio, resized to [size, size, C] (Szegedy et al. 2015, section 6).

    As torchvision draws it: the ratio is log-uniform; after ten boxes that do not fit, the largest centred one.

    Args:
        size: side of the result in pixels.
        scale: range of the box's area as a fraction of the picture's.
        ratio: range of width / height.
        interpolation: the model's.
    """
    height, width = image.shape[:2]
    for _ in range(10):
        area = height * width * rng.uniform(*scale)
        aspect = math.exp(rng.uniform(math.log(ratio[0]), math.log(ratio[1])))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            left, top = int(rng.integers(width - w + 1)), int(rng.integers(height - h + 1))
            break
    else:
        aspect = min(max(width / height, ratio[0]), ratio[1])
        w, h = min(width, round(height * aspect)), min(height, round(width / aspect))
        left, top = (width - w) // 2, (height - h) // 2
    box = image[top : top + h, left : left + w]  # not resize's `box` argument, which looks at pixels around the box too
    return _array(_picture(box).resize((size, size), INTERPOLATIONS[interpolation]))


def pad_crop(rng: np.random.Generator, image: np.ndarray, pad: int = 4) -> np.ndarray:
    """Pad each side by `pad` black pixels and cut out a random box of the old size (He et al. 2015, section 4.2).

    Black, not reflected, as in the CIFAR papers. Every shift by at most `pad` is equally likely.
    """
    height, width = image.shape[:2]
    dy = int(rng.random() * (2 * pad + 1)) - pad  # rng.integers would take ten times as long
    dx = int(rng.random() * (2 * pad + 1)) - pad
    out = np.zeros_like(image)
    out[max(-dy, 0) : height - max(dy, 0), max(-dx, 0) : width - max(dx, 0)] = image[
        max(dy, 0) : height - max(-dy, 0), max(dx, 0) : width - max(-dx, 0)
    ]
    return out


def flip(rng: np.random.Generator, image: np.ndarray) -> np.ndarray:
    """Mirror left and right half of the time (Krizhevsky et al. 2012, section 4.1)."""
    return image[:, ::-1] if rng.random() < 0.5 else image


def color_jitter(
    rng: np.random.Generator, image: np.ndarray, brightness: float, contrast: float, saturation: float, hue: float = 0.0
) -> np.ndarray:
    """Random brightness, contrast, saturation and hue, in random order (Howard 2013; Chen et al. 2020, appendix A).

    Factors are uniform in [max(0, 1 - x), 1 + x]; the hue turns by a uniform fraction in [-hue, hue] of the circle. As
    in torchvision, these are Pillow's ImageEnhance and its HSV. Gray pictures keep their saturation and hue.
    """
    if not 0 <= hue <= 0.5 or min(brightness, contrast, saturation) < 0:
        raise ValueError('brightness, contrast and saturation are at least 0, and hue is in [0, 0.5]')
    picture = _picture(image)
    for kind in rng.permutation(4 if image.shape[-1] == 3 else 2):
        if kind == 3:
            picture = _turn_hue(picture, rng.uniform(-hue, hue)) if hue else picture
            continue
        strength = (brightness, contrast, saturation)[kind]
        if strength:
            enhance = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)[kind]
            picture = enhance(picture).enhance(rng.uniform(max(0, 1 - strength), 1 + strength))
    return _array(picture)


def _turn_hue(picture: Image.Image, turn: float) -> Image.Image:
    h, s, v = picture.convert('HSV').split()
    h = Image.fromarray(np.asarray(h) + np.uint8(int(turn * 255) % 256))  # wraps around, as hue does
    return Image.merge('HSV', (h, s, v)).convert('RGB')


def random_erasing(
    rng: np.random.Generator,
    image: np.ndarray,
    p: float = 0.25,
    scale: tuple[float, float] = (0.02, 0.33),
    ratio: tuple[float, float] = (0.3, 3.3),
) -> np.ndarray:
    """With probability `p`, paint a random box with random pixels (Zhong et al. 2020, algorithm 1, RE-R).

    Args:
        p: probability of erasing at all.
        scale: range of the box's area as a fraction of the picture's.
        ratio: range of height / width, drawn log-uniformly.
    """
    if rng.random() >= p:
        return image
    height, width = image.shape[:2]
    for _ in range(10):
        area = height * width * rng.uniform(*scale)
        aspect = math.exp(rng.uniform(math.log(ratio[0]), math.log(ratio[1])))
        h, w = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < h < height and 0 < w < width:
            top, left = int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1))
            image = image.copy()
            image[top : top + h, left : left + w] = rng.integers(0, 256, (h, w, image.shape[-1]), np.uint8)
            break
    return image


def rand_augment(rng: np.random.Generator, image: np.ndarray, count: int = 2, magnitude: float = 9) -> np.ndarray:
    """`count` of 14 operations, drawn uniformly, at one magnitude in 0 … 10 (Cubuk et al. 2020).

    Ranges are torchvision's: see `jtl.data.randaugment`.
    """
    return _array(randaugment.apply(rng, _picture(image), count, magnitude))


# ---- lists of them ----

_OPS = {op.__name__: op for op in (random_resized_crop, pad_crop, flip, color_jitter, random_erasing, rand_augment)}


def augment(
    rng: np.random.Generator,
    image: np.ndarray,
    ops: tuple,
    size: int | None = None,
    interpolation: str = 'bicubic',
) -> np.ndarray:
    """Apply `ops`, names or (name, *args), one after the other; check them once with `check_ops` before.

    Args:
        size, interpolation: the side of the model's pictures, and how they are resized, which operations that make a
            picture of a given size are told.
    """
    for op in ops:
        name, *args = (op,) if isinstance(op, str) else op
        if takes_any_size(op):
            image = _OPS[name](rng, image, size, *args, interpolation=interpolation)
        else:
            image = _OPS[name](rng, image, *args)
    return image


def takes_any_size(op: str | tuple) -> bool:
    """Whether `op` cuts its own square from a picture of any size, so that resizing before it would be a loss."""
    return (op if isinstance(op, str) else op[0]) == 'random_resized_crop'


def check_ops(ops: tuple, size: int | None = None) -> None:
    """Refuse what `augment` would fail on: an unknown name, a wrong number of arguments, arguments of no use."""
    for op in ops:
        name, *args = (op,) if isinstance(op, str) else op
        if name not in _OPS:
            raise UserError(f'unknown image operation {name!r}: {nearest(str(name), _OPS)}')
        if takes_any_size(op) and size is None:
            raise UserError(
                f'image operation {name!r} needs the size of the model’s pictures: give config.preprocess.size.'
            )
        known = [p for p in inspect.signature(_OPS[name]).parameters.values() if p.kind is not p.KEYWORD_ONLY]
        usage = [str(p) for p in known[2 + takes_any_size(op) :]]
        try:
            augment(np.random.default_rng(0), np.zeros((64, 64, 3), np.uint8), (op,), size)
        except (TypeError, ValueError) as e:
            raise UserError(f'image operation {op!r}: {e}. Usage: ({", ".join([repr(name), *usage])}).') from e


def _picture(image: np.ndarray) -> Image.Image:
    return Image.fromarray(np.ascontiguousarray(image[:, :, 0] if image.shape[-1] == 1 else image))


def _array(picture: Image.Image) -> np.ndarray:
    image = np.asarray(picture)
    return image if image.ndim == 3 else image[:, :, None]
