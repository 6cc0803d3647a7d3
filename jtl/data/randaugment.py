"""RandAugment: operations drawn uniformly, all of one strength.

Cubuk et al., "RandAugment: Practical Automated Data Augmentation with a Reduced Search Space", NeurIPS 2020, section 3.
The 14 operations are the paper's. Their ranges are torchvision's (which counts to 30 where the paper has 10), as there
each does more the larger M is, and nothing at 0; not so in the paper's own program. With m = M / 10, and ± a coin:

identity · autocontrast · equalize, which have no strength · rotate by ±30 m degrees · shear by ±0.3 m · translate by
±150/331 m of the side, in whole pixels · brightness, color, contrast, sharpness: Pillow's factor 1 ± 0.9 m · posterize
to 8 - round(4 m) bits · solarize what is at least 256 (1 - m)

What is turned or moved takes the nearest pixel, and black where there is none.
"""

from collections.abc import Callable

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

NEAREST, AFFINE = Image.Resampling.NEAREST, Image.Transform.AFFINE


def _affine(a: float, b: float, c: float, d: float, e: float, f: float) -> Callable:
    """Pillow's: the pixel at (x, y) is that of the picture at (a x + b y + c, d x + e y + f)."""
    return lambda picture: picture.transform(picture.size, AFFINE, (a, b, c, d, e, f), NEAREST)


# What each does at strength m, in 0 … 1, with sign s: (picture, m, s) -> picture.
OPERATIONS = {
    'identity': lambda picture, m, s: picture,
    'autocontrast': lambda picture, m, s: ImageOps.autocontrast(picture),
    'equalize': lambda picture, m, s: ImageOps.equalize(picture),
    'rotate': lambda picture, m, s: picture.rotate(s * 30 * m, NEAREST),
    'shear_x': lambda picture, m, s: _affine(1, s * 0.3 * m, 0, 0, 1, 0)(picture),
    'shear_y': lambda picture, m, s: _affine(1, 0, 0, s * 0.3 * m, 1, 0)(picture),
    'translate_x': lambda picture, m, s: _affine(1, 0, s * int(150 / 331 * m * picture.width), 0, 1, 0)(picture),
    'translate_y': lambda picture, m, s: _affine(1, 0, 0, 0, 1, s * int(150 / 331 * m * picture.height))(picture),
    'brightness': lambda picture, m, s: ImageEnhance.Brightness(picture).enhance(1 + s * 0.9 * m),
    'color': lambda picture, m, s: ImageEnhance.Color(picture).enhance(1 + s * 0.9 * m),  # none in gray, so as it is
    'contrast': lambda picture, m, s: ImageEnhance.Contrast(picture).enhance(1 + s * 0.9 * m),
    'sharpness': lambda picture, m, s: ImageEnhance.Sharpness(picture).enhance(1 + s * 0.9 * m),
    'posterize': lambda picture, m, s: ImageOps.posterize(picture, 8 - round(4 * m)),
    'solarize': lambda picture, m, s: ImageOps.solarize(picture, 256 - round(256 * m)),
}


def apply(rng: np.random.Generator, picture: Image.Image, count: int, magnitude: float) -> Image.Image:
    """`count` operations one after the other, each drawn from all of them."""
    if count != int(count) or count < 1 or not 0 <= magnitude <= 10:
        raise ValueError('count is a whole number from 1, and magnitude is in [0, 10]')
    for _ in range(count):
        operation = list(OPERATIONS.values())[rng.integers(len(OPERATIONS))]
        picture = operation(picture, magnitude / 10, 1 if rng.random() < 0.5 else -1)
    return picture
