"""`tfds:NAME[/CONFIG][:VERSION]`: a data set prepared by TensorFlow Datasets, read without TensorFlow.

It must be prepared as array_record (`jtl prepare tfds:NAME`), in `TFDS_DATA_DIR` or `~/tensorflow_datasets`. Records
are read as bytes and parsed here: a pass over the labels takes 4 µs an example, 20 µs through TFDS's own decoding.
"""

import contextlib
import io
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image
from tensorflow_datasets.proto import tf_example_pb2

from jtl.data import source
from jtl.data.source import Source, Split
from jtl.errors import UserError, nearest

_CHUNK = 1024  # records in memory at once while labels are read


def read(path: str) -> Source:
    """Train, validation and test splits, whichever exist; a split without labels (all of them -1) is left out."""
    folder = _find(path)
    builder = tfds.builder_from_directory(folder)
    features = builder.info.features
    _check_features(features, path)
    channels = 1 if features['image'].shape[-1] == 1 else 3
    splits = {}
    for name in builder.info.splits:
        split = source.split_name(name)
        if split is None:
            continue
        records = builder.as_data_source(name, deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES).data_source
        labels = _read_labels(records)
        if not (labels == -1).all():
            splits[split] = Split(labels, _Picture(records, f'tfds:{path} {name}', channels))
    if 'train' not in splits:
        raise UserError(f'tfds:{path} has no split train, only: {", ".join(builder.info.splits)}.')
    files = tuple(sorted(str(file) for file in Path(folder).iterdir() if file.is_file()))
    return Source(splits, tuple(features['label'].names), channels, files)


@dataclass(frozen=True)
class _Picture:
    """i -> the decoded picture. `records` opens its files lazily, once per process, and can be pickled."""

    records: Any  # i -> bytes of a tf.Example
    name: str
    channels: int

    def __call__(self, i: int) -> dict:
        feature = _parse(self.records[i])['image']
        return {'image': source.decode_image(feature.bytes_list.value[0], f'{self.name} record {i}', self.channels)}


def _parse(record: bytes) -> Any:
    return tf_example_pb2.Example.FromString(record).features.feature


def _read_labels(records: Any) -> np.ndarray:
    """int32 [N], in one pass over the encoded records."""
    labels = np.empty(len(records), np.int32)
    for start in range(0, len(records), _CHUNK):
        chunk = records.__getitems__(range(start, min(start + _CHUNK, len(records))))
        labels[start : start + len(chunk)] = [_parse(record)['label'].int64_list.value[0] for record in chunk]
    return labels


def _check_features(features: Any, path: str) -> None:
    kinds = {'image': tfds.features.Image, 'label': tfds.features.ClassLabel}
    for name, kind in kinds.items():
        if name not in features or not isinstance(features[name], kind):
            found = ', '.join(f'{key} ({type(value).__name__})' for key, value in features.items())
            raise UserError(f'tfds:{path} has no feature {name} of type {kind.__name__}; it has: {found}.')


def data_dir() -> str:
    """Where prepared data sets are: looked up at each call, as TFDS itself only reads the variable when imported."""
    return os.path.expanduser(os.environ.get('TFDS_DATA_DIR') or '~/tensorflow_datasets')


def _find(path: str) -> str:
    """The folder of a prepared data set, its newest version unless one is given."""
    name, _, version = path.partition(':')
    name, _, config = name.partition('/')
    folder = os.path.join(data_dir(), name, config) if config else os.path.join(data_dir(), name)
    versions = _versions(folder)
    if not versions and not config:
        configs = [c for c in _subfolders(folder) if _versions(os.path.join(folder, c))]
        if len(configs) > 1:
            raise UserError(f'tfds:{path} is prepared in configs {", ".join(configs)}: say tfds:{name}/CONFIG.')
        folder = os.path.join(folder, *configs)
        versions = _versions(folder)
    if not versions:
        refuse_unknown(name)
        raise UserError(f'tfds:{path} is not prepared in {data_dir()}: run `jtl prepare tfds:{path}` first.')
    if version and version not in versions:
        raise UserError(f'tfds:{path}: no version {version} in {folder}: {nearest(version, versions)}')
    folder = os.path.join(folder, version or versions[-1])
    check_array_record(folder, path)
    return folder


def check_array_record(folder: str, path: str) -> None:
    """Refuse a data set in TFDS's other formats, which TensorFlow alone reads at random or not at all."""
    if not any('.array_record' in file for file in os.listdir(folder)):
        raise UserError(
            f'tfds:{path} is prepared in {folder}, but not as array_record: delete that folder and run '
            f'`jtl prepare tfds:{path}`, or keep it, run `jtl prepare tfds:{path} --data-dir DIR` '
            'and set TFDS_DATA_DIR=DIR.'
        )


def _subfolders(folder: str) -> list[str]:
    return sorted(entry.name for entry in os.scandir(folder) if entry.is_dir()) if os.path.isdir(folder) else []


def _versions(folder: str) -> list[str]:
    """The prepared versions in a folder, oldest first."""
    found = [v for v in _subfolders(folder) if os.path.exists(os.path.join(folder, v, 'features.json'))]
    return sorted((v for v in found if v.replace('.', '').isdecimal()), key=lambda v: [int(n) for n in v.split('.')])


def refuse_unknown(name: str) -> None:
    """Suggest the nearest name in the catalogue or among what is prepared."""
    known = set(tfds.list_builders(with_community_datasets=False)) | set(_subfolders(data_dir()))
    if name not in known:
        raise UserError(f'there is no data set tfds:{name}: {_short(nearest(name, known))}')


def _short(hint: str, length: int = 300) -> str:
    """The catalogue has hundreds of names: the suggestion and the first few will do."""
    return hint if len(hint) <= length else hint[:length].rsplit(',', 1)[0] + ', …'


def prepare_bundled(builder_class: type) -> None:
    """Prepare a data set that comes with jtl, unless it is there.

    It is written to a folder of its own and then renamed, so another process sees all of it or nothing; when two
    prepare it at once, the second to finish throws its copy away.
    """
    version = str(builder_class.VERSION)
    final = os.path.join(data_dir(), builder_class.name, version)
    if os.path.exists(final):
        return
    try:
        os.makedirs(os.path.dirname(final), exist_ok=True)
        scratch = tempfile.mkdtemp(prefix=f'.{builder_class.name}-', dir=data_dir())
    except OSError as e:
        raise UserError(f'cannot prepare {builder_class.name} in {data_dir()} ({e}): set TFDS_DATA_DIR.') from e
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):  # progress bars
            builder_class(data_dir=scratch, file_format='array_record').download_and_prepare()
        os.rename(os.path.join(scratch, builder_class.name, version), final)
    except OSError as e:
        if not os.path.exists(final):
            raise UserError(f'cannot prepare {builder_class.name} in {data_dir()}: {e}.') from e
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def encode_png(image: np.ndarray) -> bytes:
    """uint8 [H, W] -> PNG. Builders that give bytes are prepared without TensorFlow."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, 'png')
    return buffer.getvalue()
