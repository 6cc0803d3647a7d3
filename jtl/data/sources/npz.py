"""`npz:PATH`: arrays in a NumPy archive.

Keys are a split and a kind, in either order: `train_images`, `train_labels`, `x_test`, `y_test`; or bare `x` and `y`,
which are the training split. Inputs are images, uint8 [N, H, W] or [N, H, W, C] (or float in [0, 1]), or features,
float [N, D]. Labels are integers [N] or [N, 1], or 0/1 [N, K] for K independent labels. An optional `classes` names
them. Legend: N examples, H × W pixels, C channels, D features, K classes.
"""

import zipfile
import zlib
from dataclasses import dataclass

import numpy as np

from jtl.data import source
from jtl.data.source import Source, Split
from jtl.errors import UserError

_KINDS = {
    'images': 'x', 'image': 'x', 'x': 'x', 'data': 'x', 'features': 'x',
    'labels': 'y', 'label': 'y', 'y': 'y',
}  # fmt: skip


def read(path: str) -> Source:
    """Read every array into memory and check it."""
    path = source.require_path(path, 'a NumPy .npz archive')
    arrays, names = _load(path)
    inputs, labels = {}, {}
    for split, pair in arrays.items():
        inputs[split] = _inputs(pair['x'], f'{path}, {split} inputs')
        labels[split] = _labels(pair['y'], len(inputs[split]), f'{path}, {split} labels')
    if len({(x.ndim, x.shape[-1]) for x in inputs.values()}) > 1 or len({y.shape[1:] for y in labels.values()}) > 1:
        shapes = '; '.join(f'{split} {inputs[split].shape} {labels[split].shape}' for split in inputs)
        raise UserError(f'{path}: the splits have inputs or labels of different shapes: {shapes}.')
    classes = _classes(labels, names, path)
    splits = {split: Split(labels[split], _Row(inputs[split])) for split in inputs}
    images = inputs['train'].ndim == 4
    return Source(splits, classes, inputs['train'].shape[-1] if images else None, (path,))


@dataclass(frozen=True)
class _Row:
    """i -> one row of an array in memory. inputs: uint8 [N, H, W, C] or float32 [N, D]."""

    inputs: np.ndarray

    def __call__(self, i: int) -> dict:
        return {'image' if self.inputs.ndim == 4 else 'features': self.inputs[i]}


def _load(path: str) -> tuple[dict, tuple[str, ...] | None]:
    """({split: {'x': inputs, 'y': labels}}, class names or None)."""
    arrays = {}
    try:
        archive = np.load(path, allow_pickle=False)
        if isinstance(archive, np.ndarray):
            raise UserError(f'{path} is a single .npy array: expected an .npz archive with inputs and labels.')
        with archive:
            keys = archive.files
            for key in keys:
                if place := _split_and_kind(key):
                    split, kind = place
                    if kind in arrays.setdefault(split, {}):
                        raise UserError(f'{path} has two arrays for the same thing, one of them {key!r}.')
                    arrays[split][kind] = archive[key]
            names = tuple(str(name) for name in archive['classes']) if 'classes' in keys else None
    except (ValueError, OSError, EOFError, zipfile.BadZipFile, zlib.error) as e:
        raise UserError(f'cannot read {path}: {e} (damaged, not a .npz, or arrays of Python objects?).') from e
    for split in {'train': None, **arrays}:
        for kind, examples in (('x', f'{split}_images or x_{split}'), ('y', f'{split}_labels or y_{split}')):
            if kind not in arrays.get(split, {}):
                raise UserError(f'{path} has no {examples}; it has: {", ".join(keys) or "nothing"}.')
    return arrays, names


def _split_and_kind(key: str) -> tuple[str, str] | None:
    """'test_images' -> ('test', 'x'); 'y' -> ('train', 'y'); None for anything else."""
    parts = key.lower().split('_')
    if len(parts) == 1:
        parts = ['train', *parts]
    if len(parts) != 2:
        return None
    if parts[0] in _KINDS:
        parts.reverse()
    split, kind = source.split_name(parts[0]), _KINDS.get(parts[1])
    return (split, kind) if split and kind else None


def _inputs(x: np.ndarray, where: str) -> np.ndarray:
    """uint8 [N, H, W, C] or float32 [N, D]."""
    if x.ndim == 2 and x.dtype.kind in 'fiu':
        if not np.isfinite(x).all():
            row, column = np.argwhere(~np.isfinite(x))[0]
            raise UserError(f'{where}: row {row}, column {column} is {x[row, column]}: expected finite numbers.')
        return x.astype(np.float32)  # [N, D]
    if x.ndim == 3:
        x = x[..., None]  # [N, H, W] -> [N, H, W, 1]
    if x.ndim != 4 or x.shape[-1] not in (1, 3):
        expected = 'images [N, H, W], [N, H, W, 1 or 3] or features [N, D]'
        raise UserError(f'{where} have shape {x.shape}: expected {expected}.')
    if x.dtype.kind == 'f':
        low, high = float(np.min(x, initial=0)), float(np.max(x, initial=0))
        if not (low >= 0 and high <= 1):  # a NaN fails both
            raise UserError(f'{where} are floats in [{low:g}, {high:g}]: expected uint8, or floats in [0, 1].')
        x = np.round(x * 255).astype(np.uint8)
    if x.dtype != np.uint8:
        raise UserError(f'{where} have type {x.dtype}: expected uint8, or floats in [0, 1].')
    return x


def _labels(y: np.ndarray, n: int, where: str) -> np.ndarray:
    """int32 [N], or float32 [N, K]."""
    if len(y.shape) == 0 or len(y) != n:
        raise UserError(f'{where} have shape {y.shape}, but there are {n} inputs.')
    if n == 0:
        raise UserError(f'{where}: there are no examples.')
    if y.ndim == 2 and y.shape[1] == 1:
        y = y[:, 0]  # [N, 1] -> [N]
    if y.ndim == 2 and y.dtype.kind in 'fiub':
        if not np.isin(y, (0, 1)).all():
            raise UserError(f'{where}: several columns mean several labels each, which must be 0 or 1.')
        return y.astype(np.float32)  # [N, K]
    if y.ndim != 1 or y.dtype.kind not in 'iu':
        raise UserError(f'{where} have shape {y.shape} and type {y.dtype}: expected integers [N], or 0/1 [N, K].')
    if y.min() < 0:
        raise UserError(f'{where}: row {int(y.argmin())} is {y.min()}: labels count from 0.')
    return y.astype(np.int32)


def _classes(labels: dict, names: tuple[str, ...] | None, path: str) -> tuple[str, ...]:
    """The given names, or '0', '1', …; every class that a split has must be in the training split."""
    train = labels['train']
    if train.ndim == 2:  # [N, K]
        count = train.shape[1]
        if names and len(names) != count:
            raise UserError(f'{path}: labels have {count} columns, but there are {len(names)} classes.')
        return names or tuple(map(str, range(count)))
    count = len(names) if names else int(train.max()) + 1
    seen = set(train.tolist())
    if not names and len(seen) < count:
        missing = min(set(range(count)) - seen)
        raise UserError(f'{path}: labels go up to {count - 1}, but class {missing} has no training example.')
    for split, y in labels.items():
        if names and y.max() >= count:
            raise UserError(f'{path}: row {y.argmax()} of {split} has label {y.max()}, but classes names {count}.')
        if unseen := set(y.tolist()) - seen:
            raise UserError(f'{path}: class {min(unseen)} is in {split} but has no training example.')
    return names or tuple(map(str, range(count)))
