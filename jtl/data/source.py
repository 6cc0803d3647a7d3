"""What every data source gives, and the checks and decoding that they share.

A data URI is `scheme:path` (`folder:flowers.zip`, `tfds:cifar10`) or one of the bare words `letters`, `digits`. Each
scheme is a module of `jtl/data/sources/` with one function, `read(path) -> Source`. Reading learns the labels and class
names and finds mistakes; pictures are decoded later, one at a time, by `Split.get`.
"""

import difflib
import io
import os
from collections.abc import Callable, Iterable
from typing import IO, NamedTuple

import numpy as np
from PIL import Image, ImageOps

from jtl.errors import UserError, nearest

IMAGE_EXTENSIONS = ('.png', '.jpg', '.jpeg', '.bmp', '.gif', '.webp', '.tif', '.tiff')

_SPLIT_NAMES = {
    'train': 'train', 'training': 'train',
    'val': 'val', 'valid': 'val', 'validation': 'val', 'dev': 'val',
    'test': 'test', 'testing': 'test',
}  # fmt: skip
_MAX_PIXELS = 89_478_485  # Pillow's own limit (256 MiB of RGB), at which it merely warns
_GRAY_MODES = ('1', 'L', 'LA', 'La', 'I', 'I;16', 'I;16B', 'I;16L', 'I;16N')


class Split(NamedTuple):
    """The examples of one split, in a fixed order."""

    labels: np.ndarray  # int32 [N], or float32 [N, K] of 0 and 1 when multi-label; known without decoding a picture
    get: Callable[[int], dict]  # i -> {'image': uint8 [H, W, C]}, not resized, {'features': float32 [D]}, or
    # {'text': str [1]}, of a pair [2]; picklable


class Source(NamedTuple):
    """A labelled data set as it came: nothing resized, held out or subsampled yet."""

    splits: dict[str, Split]  # 'train' always; 'val' and 'test' if the data came with them
    classes: tuple[str, ...]  # label i means classes[i]
    channels: int | None  # 1 or 3 for images, None for features and texts
    files: tuple[str, ...] = ()  # all that it is read from: where these are the same, the examples are


def split_name(name: str) -> str | None:
    """'train', 'val' or 'test' for the usual spellings of these ('Validation', 'dev', 'testing', …), else None."""
    return _SPLIT_NAMES.get(name.strip().lower())


def require_path(path: str, what: str) -> str:
    """`path` with ~ expanded, if it exists; otherwise an error that suggests a sibling."""
    path = os.path.expanduser(path)
    if not path:
        raise UserError(f'no path given for {what}: write scheme:PATH.')
    if os.path.exists(path):
        return path
    folder, name = os.path.split(os.path.abspath(path))
    while not os.path.isdir(folder):  # the mistake is further up: name the first part that is missing
        folder, name = os.path.split(folder)
    siblings = sorted(os.listdir(folder))
    if len(siblings) > 20:
        siblings = difflib.get_close_matches(name, siblings, n=3, cutoff=0.5)
    raise UserError(f'{path} does not exist ({what}): no {name!r} in {folder}. {nearest(name, siblings)}')


def index_classes(names: dict[str, list[str]], where: str) -> tuple[tuple[str, ...], dict[str, np.ndarray]]:
    """Class names -> integers, by the sorted names of the training split.

    Args:
        names: split -> the class name of each example.
        where: the file or folder, for errors.

    Returns:
        The classes, and split -> int32 [N].
    """
    if 'train' not in names:
        raise UserError(f'{where} has no training split, only: {", ".join(sorted(names))}.')
    classes = sorted_names(names['train'])
    index = {name: i for i, name in enumerate(classes)}
    for split, found in names.items():
        for name in sorted(set(found) - set(index)):
            raise UserError(f'{where}: class {name!r} is in split {split!r} but not in train: {nearest(name, index)}')
    return classes, {s: np.array([index[name] for name in found], np.int32) for s, found in names.items()}


def sorted_names(names: Iterable[str]) -> tuple[str, ...]:
    """The distinct names in order: as numbers if all are whole numbers ('9' before '10'), else as text."""
    names = set(names)
    return tuple(sorted(names, key=int if all(name.isdecimal() for name in names) else None))


def first_of_each(labels: np.ndarray) -> list[int]:
    """The index of the first example of every class: a cheap sample that sees each kind of picture. labels: [N]."""
    return sorted(np.unique(labels, return_index=True)[1].tolist())


def count_channels(pictures: Iterable[tuple[bytes | str, str]]) -> int:
    """1 if all of `pictures`, (bytes or path, name) pairs, are gray, else 3. Reads headers, decodes nothing."""
    for data, name in pictures:
        with _open(data, name) as picture:
            if picture.mode not in _GRAY_MODES:
                return 3
    return 1


def decode_image(data: bytes | str | IO[bytes], name: str, channels: int) -> np.ndarray:
    """An encoded picture -> uint8 [H, W, channels], upright as its EXIF orientation says.

    Palette, CMYK and 16-bit pictures are converted; transparency is dropped, not blended; of an animation the first
    frame counts.

    Args:
        data: the file's bytes, its path, or an open file.
        name: how the user knows the file, for errors.
        channels: 3 for RGB, 1 for gray.
    """
    with _open(data, name) as picture:
        try:
            picture = ImageOps.exif_transpose(picture)
            if picture.mode.startswith('I'):  # 16 bits: Pillow's convert would clip at 255, not scale
                picture = Image.fromarray((np.asarray(picture).clip(0, 65535) // 256).astype(np.uint8))
            image = np.asarray(picture.convert('RGB' if channels == 3 else 'L'))
        except Exception as e:  # Pillow's decoders raise nearly anything on damaged files
            raise UserError(f'cannot decode {name}: {e} (truncated or damaged?).') from e
    return image if channels == 3 else image[:, :, None]


def _open(data: bytes | str | IO[bytes], name: str) -> Image.Image:
    """Pillow's lazily decoded picture, or an error that names the file."""
    try:
        picture = Image.open(io.BytesIO(data) if isinstance(data, bytes) else data)
    except Image.UnidentifiedImageError as e:
        raise UserError(f'cannot decode {name}: it is empty or not a picture that Pillow knows.') from e
    except Image.DecompressionBombError as e:
        raise UserError(f'{name} is too large to decode: {e}') from e
    except Exception as e:
        raise UserError(f'cannot read {name}: {e}') from e
    if picture.width * picture.height > _MAX_PIXELS:
        picture.close()
        raise UserError(f'{name} has {picture.width}×{picture.height} pixels: more than {_MAX_PIXELS} are not decoded.')
    return picture
