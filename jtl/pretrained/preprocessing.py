"""What a checkpoint's own description says of its pictures: timm's or Hugging Face's words -> those of `Preprocess`.

The descriptions are files that came with the weights, so nothing in them is taken for granted.
"""

import math
from typing import Any, NamedTuple

from jtl.errors import UserError, nearest
from jtl.models import IMAGENET_COLOURS

IMAGENET = IMAGENET_COLOURS['mean'], IMAGENET_COLOURS['std']
HALF = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
CLIP = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
PILLOW = {0: 'nearest', 1: 'lanczos', 2: 'bilinear', 3: 'bicubic'}  # the numbers of its resampling filters
LARGEST = 4096  # a side in pixels that no honest description exceeds


class Processor(NamedTuple):
    """What an image processor of Hugging Face does where its file does not say.

    Attributes:
        size: in pixels.
        square: a plain number for `size` means both sides, not the short one.
        cut: the side of the centre that is cut out, 0 if none is.
        resample: one of `PILLOW`.
        colours: mean, std.
    """

    size: int
    square: bool
    cut: int
    resample: int
    colours: tuple[tuple[float, ...], tuple[float, ...]]


PROCESSORS = {
    'ViT': Processor(224, True, 0, 2, HALF),
    'DeiT': Processor(256, True, 224, 3, HALF),
    'Bit': Processor(224, False, 224, 3, CLIP),
    'ConvNext': Processor(384, False, 0, 3, HALF),
    'MobileNetV1': Processor(256, False, 224, 2, HALF),
    'MobileNetV2': Processor(256, False, 224, 2, HALF),
}
OF_MODEL = {  # the oldest files do not name their processor
    'vit': 'ViT',
    'deit': 'DeiT',
    'bit': 'Bit',
    'dinov2': 'Bit',
    'resnet': 'ConvNext',
    'mobilenet_v1': 'MobileNetV1',
    'mobilenet_v2': 'MobileNetV2',
}


def described(config: dict, preprocessor: dict) -> dict[str, Any]:
    """The fields of `jtl.data.pipeline.Preprocess` that a checkpoint's description gives, {} if it gives none.

    Args:
        config: config.json, timm's (`architecture`, `pretrained_cfg`) or Hugging Face's; {} if there is none.
        preprocessor: Hugging Face's preprocessor_config.json; {} if there is none.

    Raises:
        UserError: it says nonsense, or something that `Preprocess` cannot do.
    """
    if is_timm(config):
        return timm(config)
    return huggingface(config, preprocessor) if preprocessor and 'vocab_size' not in config else {}


def is_timm(config: dict) -> bool:
    """Whether a config.json is timm's."""
    return 'architecture' in config and config.get('model_type') in (None, 'timm_wrapper')


def timm(config: dict) -> dict[str, Any]:
    """timm's evaluation transform: resize to floor(size / crop_pct), cut out the centre, normalise."""
    where = 'config.json: pretrained_cfg'
    said = config.get('pretrained_cfg', config)  # older files have it all on one level
    if not isinstance(said, dict):
        raise UserError(f'{where} is {said!r}, expected an object.')
    said = {key: value for key, value in said.items() if value is not None}
    channels, height, width = _whole_numbers(said.get('input_size', [3, 224, 224]), 3, f'{where}.input_size')
    _square(height, width, f'{where}.input_size')
    if said.get('crop_border_pixels'):
        raise UserError(f'{where}.crop_border_pixels={said["crop_border_pixels"]!r} is not supported.')
    modes = {'center': 'short', 'squash': 'squash'}
    return {
        'size': height,
        **_colours(said.get('mean', IMAGENET[0]), said.get('std', IMAGENET[1]), channels, where),
        'interpolation': _one_of(said.get('interpolation', 'bicubic'), PILLOW.values(), f'{where}.interpolation'),
        'crop': _fraction(said.get('crop_pct') or 0.875, height, f'{where}.crop_pct'),
        'channels': channels,
        'resize': modes[_one_of(said.get('crop_mode') or 'center', modes, f'{where}.crop_mode')],
        'centre': 'even',
    }


def huggingface(config: dict, said: dict) -> dict[str, Any]:
    """An image processor of Hugging Face: resize, cut out the centre, rescale, normalise, each of them optional."""
    where = 'preprocessor_config.json'
    said = {key: value for key, value in said.items() if value is not None}
    kind = _kind(config, said, where)
    default = PROCESSORS[kind]
    for key in ('do_pad', 'do_flip_channel_order', 'rescale_offset'):
        if said.get(key):
            raise UserError(f'{where}: {key}={said[key]!r} is not supported.')
    factor = _number(said.get('rescale_factor', 1 / 255), f'{where}: rescale_factor') if _do(said, 'rescale') else 1.0
    if factor <= 0:
        raise UserError(f'{where}: rescale_factor={factor!r} should be above 0.')
    normal = _do(said, 'normalize')
    mean, std = ((said.get(f'image_{k}', d)) for k, d in zip(('mean', 'std'), default.colours)) if normal else (0, 1)
    channels = config.get('num_channels', 3)
    return {
        **_geometry(said, kind, default, where),
        **_colours(mean, std, channels, where, 255 * factor),
        'interpolation': PILLOW[_one_of(said.get('resample', default.resample), PILLOW, f'{where}: resample')],
        'channels': channels,
        'centre': 'floor',
    }


def _kind(config: dict, said: dict, where: str) -> str:
    """The key of `PROCESSORS`."""
    name = said.get('image_processor_type') or said.get('feature_extractor_type')
    if name is None:
        model = config.get('model_type')
        if not isinstance(model, str) or model not in OF_MODEL:
            raise UserError(
                f'{where} does not say its image_processor_type, nor does model_type={model!r} of config.json: '
                f'{nearest(str(model), OF_MODEL)}'
            )
        return OF_MODEL[model]
    kind = str(name)
    for end in ('Fast', 'Pil', 'ImageProcessor', 'FeatureExtractor'):
        kind = kind.removesuffix(end)
    if kind not in PROCESSORS:
        raise UserError(f'{where}: the image processor {name!r} is not supported: {nearest(kind, PROCESSORS)}')
    return kind


def _geometry(said: dict, kind: str, default: Processor, where: str) -> dict[str, Any]:
    """`size`, `crop` and `resize`."""
    cuts = _do(said, 'center_crop', default.cut > 0)
    if not _do(said, 'resize'):
        if cuts:
            raise UserError(f'{where}: do_center_crop without do_resize is not supported.')
        return {'size': None, 'crop': 1.0, 'resize': 'short'}
    side, squash = _side(said.get('size', default.size), default.square, f'{where}: size')
    if kind == 'ConvNext':  # it has its own way: small ones are cut, large ones squashed
        if cuts or squash:
            raise UserError(f'{where}: a ConvNext processor with a crop or with two sides is not supported.')
        crop = _fraction(said.get('crop_pct', 224 / 256), side, f'{where}: crop_pct') if side < 384 else 1.0
        return {'size': side, 'crop': crop, 'resize': 'short' if side < 384 else 'squash'}
    if cuts:
        cut, _ = _side(said.get('crop_size', default.cut or 224), True, f'{where}: crop_size')
    elif squash:
        cut = side
    else:
        raise UserError(
            f'{where}: the short side becomes {side} and nothing is cut, so that pictures keep their shapes; '
            'expected square ones: do_center_crop, or a size with a height and a width.'
        )
    if cut > side:
        raise UserError(f'{where}: crop_size {cut} is larger than size {side}, expected at most that.')
    return {'size': cut, 'crop': fraction(cut, side), 'resize': 'squash' if squash else 'short'}


def _side(size: Any, square: bool, where: str) -> tuple[int, bool]:
    """A size as it is written -> pixels, and whether both sides get them rather than the short one."""
    if isinstance(size, dict) and set(size) == {'shortest_edge'}:
        size, square = size['shortest_edge'], False
    elif isinstance(size, dict) and set(size) == {'height', 'width'}:
        size = [size['height'], size['width']]
    elif isinstance(size, dict):
        raise UserError(f'{where}={size!r} is not supported, only a height and a width, or the shortest_edge.')
    if isinstance(size, list):
        height, width = _whole_numbers(size, 2, where)
        _square(height, width, where)
        return height, True
    return _whole_numbers([size], 1, where)[0], square


def fraction(size: int, side: int) -> float:
    """The `crop` for which floor(size / crop) is `side`, which size / side misses for some."""
    crop = size / side
    while math.floor(size / crop) < side:
        crop = math.nextafter(crop, 0)
    return crop


def _colours(mean: Any, std: Any, channels: Any, where: str, scale: float = 1.0) -> dict[str, Any]:
    """`mean` and `std` of pixels in 0 … 1; `scale` is what white is in theirs."""
    if channels not in (1, 3) or isinstance(channels, bool):
        raise UserError(f'{where}: pictures of {channels!r} channels are not supported, only of 1 or 3.')
    both = {}
    for key, values in (('mean', mean), ('std', std)):
        values = values if isinstance(values, list | tuple) else [values]
        if len(values) not in (1, channels):
            raise UserError(f'{where}: {key} has {len(values)} values, expected 1 or {channels}.')
        both[key] = tuple(_number(v, f'{where}: {key}') / scale for v in values)
    if min(both['std']) <= 0:
        raise UserError(f'{where}: std {both["std"]} should be above 0.')
    return both


def _do(said: dict, what: str, default: bool = True) -> bool:
    """A switch such as `do_resize`."""
    value = said.get(f'do_{what}', default)
    if not isinstance(value, bool):
        raise UserError(f'preprocessor_config.json: do_{what}={value!r} should be true or false.')
    return value


def _number(value: Any, where: str) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool) or not abs(value) < 1e9:
        raise UserError(f'{where}: {value!r} should be a number.')
    return float(value)


def _fraction(value: Any, size: int, where: str) -> float:
    """A `crop` for pictures of that size."""
    if not size / LARGEST <= _number(value, where) <= 1:
        raise UserError(f'{where}={value!r} should be at most 1, and {size} / {LARGEST} at least.')
    return float(value)


def _whole_numbers(values: Any, count: int, where: str) -> list[int]:
    fine = isinstance(values, list) and len(values) == count
    if not fine or not all(type(v) is int and 0 < v <= LARGEST for v in values):
        raise UserError(f'{where}={values!r} should be {count} whole number{"s" * (count > 1)} in 1 … {LARGEST}.')
    return values


def _square(height: int, width: int, where: str) -> None:
    if height != width:
        raise UserError(f'{where}: pictures of {height} × {width} are not supported, only square ones.')


def _one_of(value: Any, known: Any, where: str) -> Any:
    if not isinstance(value, str | int) or isinstance(value, bool) or value not in known:
        raise UserError(f'{where}={value!r} is not supported: {nearest(str(value), map(str, known))}')
    return value
