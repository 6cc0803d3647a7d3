"""`csv:PATH`: a table with a header row.

`label` is the class name, or several joined by `|` (then every row has a 0/1 per class). `split` is optional: train,
val or test. Inputs are a column `image` of paths relative to the table; or a column `text` of sentences, with `text2`
if they come in pairs; or all the other columns, which must be numbers. Columns are separated by commas, semicolons or
tabs.
"""

import csv
import os
from dataclasses import dataclass

import numpy as np

from jtl.data import source
from jtl.data.source import Source, Split
from jtl.errors import UserError, nearest


def read(path: str) -> Source:
    """Read and check every row; rows keep their order within a split."""
    path = source.require_path(path, 'a .csv table')
    header, rows, lines = _load(path)
    columns = {name: [row[i] for row in rows] for i, name in enumerate(header)}
    splits = _splits(columns.pop('split', None), lines, path)
    classes, labels = _labels(columns.pop('label'), splits, lines, path)
    files = []
    if 'image' in columns:
        files = _files(columns['image'], lines, path)
        channels = source.count_channels((files[i], files[i]) for i in _sample(labels['train'], splits['train']))
        get = {s: _Picture(tuple(files[i] for i in rows), channels) for s, rows in splits.items()}
    elif 'text' in columns:
        texts, channels = [columns[name] for name in ('text', 'text2') if name in columns], None
        get = {s: _Text(tuple(tuple(column[i] for column in texts) for i in rows)) for s, rows in splits.items()}
    else:
        features, channels = _features(columns, lines, path), None
        get = {s: _Features(features[rows]) for s, rows in splits.items()}
    return Source({s: Split(labels[s], get[s]) for s in splits}, classes, channels, (path, *files))


@dataclass(frozen=True)
class _Picture:
    """i -> the decoded picture."""

    files: tuple[str, ...]
    channels: int

    def __call__(self, i: int) -> dict:
        return {'image': source.decode_image(self.files[i], self.files[i], self.channels)}


@dataclass(frozen=True)
class _Text:
    """i -> one text, or a pair of them."""

    texts: tuple[tuple[str, ...], ...]

    def __call__(self, i: int) -> dict:
        return {'text': np.array(self.texts[i])}


@dataclass(frozen=True)
class _Features:
    """i -> one row of float32 [N, D]."""

    features: np.ndarray

    def __call__(self, i: int) -> dict:
        return {'features': self.features[i]}


def _load(path: str) -> tuple[list[str], list[list[str]], list[int]]:
    """(column names, rows of cells, the line each row ends on)."""
    rows, lines = [], []
    try:
        with open(path, encoding='utf-8-sig', newline='') as f:
            first = f.readline()
            f.seek(0)
            reader = csv.reader(f, delimiter=max(',;\t', key=first.count), strict=True)
            header = [name.strip() for name in next(reader, [])]
            for row in reader:
                if not row:
                    continue  # a blank line
                if len(row) != len(header):
                    where = f'{path}, row {reader.line_num}'
                    raise UserError(f'{where}: {len(row)} cells, but the header has {len(header)}.')
                rows.append([cell.strip() for cell in row])
                lines.append(reader.line_num)
    except (UnicodeDecodeError, csv.Error, OSError) as e:
        raise UserError(f'cannot read {path} as a UTF-8 table: {e}.') from e
    if 'label' not in header:
        raise UserError(f'{path} has no column label: {nearest("label", header)}')
    if len(set(header)) < len(header):
        twice = next(name for name in header if header.count(name) > 1)
        raise UserError(f'{path} has two columns called {twice!r}.')
    if not rows:
        raise UserError(f'{path} has a header but no rows.')
    return header, rows, lines


def _splits(cells: list[str] | None, lines: list[int], path: str) -> dict[str, list[int]]:
    """Split -> the rows in it; all of them in train without a column."""
    if cells is None:
        return {'train': list(range(len(lines)))}
    splits = {}
    for i, cell in enumerate(cells):
        split = source.split_name(cell)
        if split is None:
            known = nearest(cell, ('train', 'val', 'test'))
            raise UserError(f'{path}, row {lines[i]}, column split: unknown split {cell!r}: {known}')
        splits.setdefault(split, []).append(i)
    if 'train' not in splits:
        raise UserError(f'{path}: column split never says train, only: {", ".join(sorted(splits))}.')
    return splits


def _labels(cells: list[str], splits: dict, lines: list[int], path: str) -> tuple[tuple[str, ...], dict]:
    """(classes, split -> int32 [N], or float32 [N, K] if any cell has a `|`)."""
    if not any('|' in cell for cell in cells):
        for line, cell in zip(lines, cells):
            if not cell:
                raise UserError(f'{path}, row {line}, column label: empty.')
        return source.index_classes({s: [cells[i] for i in rows] for s, rows in splits.items()}, path)
    # A cell may then be empty, which is an example with none of the labels.
    sets = [[name.strip() for name in cell.split('|') if name.strip()] for cell in cells]
    flat = {s: [name for i in rows for name in sets[i]] for s, rows in splits.items()}
    classes, _ = source.index_classes(flat, path)
    index = {name: i for i, name in enumerate(classes)}
    labels = {}
    for split, rows in splits.items():
        labels[split] = np.zeros((len(rows), len(classes)), np.float32)
        for n, i in enumerate(rows):
            labels[split][n, [index[name] for name in sets[i]]] = 1
    return classes, labels


def _sample(labels: np.ndarray, rows: list[int]) -> list[int]:
    """Rows whose pictures tell the number of channels. labels: [N] or [N, K]."""
    return [rows[i] for i in (source.first_of_each(labels) if labels.ndim == 1 else range(min(len(rows), 100)))]


def _files(cells: list[str], lines: list[int], path: str) -> list[str]:
    """The paths of the pictures, all of which exist."""
    files = [os.path.join(os.path.dirname(path), cell) for cell in cells]
    for line, cell, file in zip(lines, cells, files):
        if not cell or not os.path.isfile(file):
            raise UserError(f'{path}, row {line}, column image: there is no file {file!r}.')
    return files


def _features(columns: dict[str, list[str]], lines: list[int], path: str) -> np.ndarray:
    """float32 [N, D]."""
    if not columns:
        raise UserError(f'{path} has no inputs: expected a column image or text, or columns of numbers.')
    try:
        features = np.array(list(columns.values()), np.float32).T.copy()  # [D, N] -> [N, D]
        if np.isfinite(features).all():
            return features
    except ValueError:
        pass
    for name, cells in columns.items():  # something is wrong: find out where
        for line, cell in zip(lines, cells):
            if not _is_number(cell):
                raise UserError(
                    f'{path}, row {line}, column {name}: {cell!r} is not a finite number '
                    '(without a column image or text, every column but label and split must be numbers).'
                )
    raise AssertionError('unreachable')


def _is_number(cell: str) -> bool:
    try:
        return bool(np.isfinite(np.float32(cell)))
    except ValueError:
        return False
