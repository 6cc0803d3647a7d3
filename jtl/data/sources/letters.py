"""`letters`: the 52 letters A–Z and a–z, rendered as 8×8 gray pictures like those of `digits`. Bundled: no download.

A source task for transfer to handwritten digits: other classes, other writing, similar strokes. Each picture is a
letter in one of the Latin typefaces that Matplotlib ships, thinned or thickened, rotated, sheared, narrowed and moved
at random, drawn as a 32×32 bitmap whose 4×4 blocks are averaged, which is how the digits were made (`digits.py`). The
random ranges make the ink like that of the digits: pixels have mean 0.33 and deviation 0.39 (digits: 0.31, 0.38), and
the mean of a picture deviates by 0.05 (digits: 0.03).
"""

import math
import os
import string

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from jtl.data.source import Source
from jtl.data.sources import tfds as tfds_source

LETTERS = tuple(string.ascii_uppercase + string.ascii_lowercase)
TRAIN_PER_CLASS, VAL_PER_CLASS = 160, 20
FONTS = (
    'DejaVuSans', 'DejaVuSans-Bold', 'DejaVuSans-Oblique', 'DejaVuSans-BoldOblique',
    'DejaVuSansMono', 'DejaVuSansMono-Bold', 'DejaVuSansMono-Oblique', 'DejaVuSansMono-BoldOblique',
    'DejaVuSerif', 'DejaVuSerif-Bold', 'DejaVuSerif-Italic', 'DejaVuSerif-BoldItalic',
    'STIXGeneral', 'STIXGeneralBol', 'STIXGeneralItalic', 'STIXGeneralBolIta',
    'cmr10', 'cmb10', 'cmss10', 'cmtt10', 'cmti10', 'cmmi10',
)  # fmt: skip

_EM, _MARGIN, _BLUR = 64, 16, 3.0  # of the big drawing, in pixels: size of the type, empty border, radius of the blur
_BITMAP = 32  # side of the bitmap that each sample is warped to
_INK = (0.31, 0.035)  # mean and spread of the fraction of that bitmap which is ink


class Letters(tfds.core.GeneratorBasedBuilder):
    """Rendered letters as a TFDS data set: 160 for training and 20 for validation of each of 52 classes."""

    VERSION = tfds.core.Version('1.0.0')
    code_path = None  # there are no checksums to find beside it; TFDS looks with a package that it does not require

    def _info(self):
        return tfds.core.DatasetInfo(
            builder=self,
            description='8×8 letters rendered from typefaces.',
            features=tfds.features.FeaturesDict(
                {
                    'image': tfds.features.Image(shape=(8, 8, 1), encoding_format='png'),
                    'label': tfds.features.ClassLabel(names=LETTERS),
                }
            ),
            supervised_keys=('image', 'label'),
        )

    def _split_generators(self, dl_manager):
        fonts = _fonts()
        return {
            'train': self._generate_examples(fonts, TRAIN_PER_CLASS, seed=0),
            'val': self._generate_examples(fonts, VAL_PER_CLASS, seed=1),
        }

    def _generate_examples(self, fonts, per_class, seed):
        for label, letter in enumerate(LETTERS):
            rng = np.random.default_rng((seed, label))
            drawings = [_draw(font, letter) for font in fonts]
            for i in range(per_class):
                image = _warp(rng, *drawings[rng.integers(len(fonts))])
                yield f'{letter}{i}', {'image': tfds_source.encode_png(image), 'label': label}


def _fonts() -> list[ImageFont.FreeTypeFont]:
    import matplotlib  # only to find its files

    folder = os.path.join(matplotlib.get_data_path(), 'fonts', 'ttf')
    return [ImageFont.truetype(os.path.join(folder, f'{name}.ttf'), _EM) for name in FONTS]


def _draw(font: ImageFont.FreeTypeFont, letter: str) -> tuple[Image.Image, int, int, float]:
    """The letter in white on a margin, blurred; its width and height in pixels, and its height by that of an H.

    The blur makes brightness fall off with the distance from the middle of a stroke, so that the level at which the
    picture is later cut sets the weight of the strokes.
    """
    left, top, right, bottom = font.getbbox(letter, stroke_width=1)
    capital = font.getbbox('H', stroke_width=1)
    picture = Image.new('L', (right - left + 2 * _MARGIN, bottom - top + 2 * _MARGIN))
    ImageDraw.Draw(picture).text((_MARGIN - left, _MARGIN - top), letter, fill=255, font=font, stroke_width=1)
    blurred = picture.filter(ImageFilter.GaussianBlur(_BLUR))
    return blurred, right - left, bottom - top, (bottom - top) / (capital[3] - capital[1])


def _warp(rng: np.random.Generator, picture: Image.Image, width: int, height: int, relative: float) -> np.ndarray:
    """One random picture of a drawing: uint8 [8, 8]."""
    # Nearly fill the box, as every digit does, but let c stay smaller than C.
    size = 32 * relative**0.35 * rng.uniform(0.9, 1.0) / height
    narrow = min(rng.uniform(0.7, 1.0), 24 / (size * width))
    angle, shear = rng.normal(0, 0.08), rng.normal(0, 0.15)
    turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    forward = turn @ np.array([[1, shear], [0, 1]]) @ np.diag([size * narrow, size])
    # `Image.transform` wants the map from bitmap (x, y) to drawing (x, y): the inverse.
    inverse = np.linalg.inv(forward)
    centre = inverse @ (_BITMAP / 2 + rng.normal(0, 0.8, 2))
    offset = np.array(picture.size) / 2 - centre
    matrix = (*inverse[0], offset[0], *inverse[1], offset[1])
    bitmap = picture.transform((_BITMAP, _BITMAP), Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR)
    # Cut at the level that leaves as much ink as a digit has, unless that would swell a letter or break its hairlines.
    bitmap = np.asarray(bitmap)  # [32, 32]
    level = np.clip(np.quantile(bitmap, 1 - rng.normal(*_INK)), 40, 120)
    blocks = (bitmap > level).reshape(8, _BITMAP // 8, 8, _BITMAP // 8)
    return np.round(blocks.mean((1, 3)) * 255).astype(np.uint8)


def read(path: str) -> Source:
    """Prepare the data on first use (a few seconds), then read it like any TFDS data set."""
    tfds_source.prepare_bundled(Letters)
    return tfds_source.read('letters')
