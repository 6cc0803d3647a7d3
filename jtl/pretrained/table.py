"""Name tables: what a tensor is called in someone's checkpoint, and what it is here.

A row pairs two templates and says how the numbers change between them:

    Row('layer{stage}.{block}.conv{i}.weight', 'backbone/stage{stage}/block{block}/conv{i}/kernel', CONV)

`{stage}` is a whole number that both sides share, `{stage-1}` or `{3*block+2}` one that is made from it, and
`{part:key|value}` one of some words. `{net=0}`, a number that the other side does not have, is written as 0. What is in
`[brackets]` may be missing there and is written on export. Where one tensor there is several here, or the other way
round, a side is a tuple of templates. Rows are tried in order and the first that fits has the tensor; the same rows,
read backwards, name our parameters for export.

Our paths are those of the parameters, `backbone/…` and `head/…`, and of the statistics, `model/batch_stats/…`.
"""

import functools
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

from jtl.errors import UserError, some

Arrays = Mapping[str, np.ndarray]


class Way(NamedTuple):
    """How the numbers change: functions of as many arrays as their side of a row has names, views where they can be.

    Attributes:
        name: for `params.txt`; empty if nothing changes.
        here: theirs -> ours.
        there: ours -> theirs, so that `there(here(x))` has the bits of x.
    """

    name: str
    here: Callable
    there: Callable


SAME = Way('', lambda x: x, lambda x: x)
DENSE = Way('transposed', lambda x: _rank(x, 2).T, lambda x: x.T)  # [out, in] <-> [in, out]
CONV = Way(  # also a depthwise one, [C, 1, h, w] <-> [h, w, 1, C]
    'OIHW to HWIO', lambda x: _rank(x, 4).transpose(2, 3, 1, 0), lambda x: x.transpose(3, 2, 0, 1)
)
OIHW_DENSE = Way(  # a linear layer that is a 1×1 convolution there, [K, D, 1, 1] <-> [D, K]
    'reshaped and transposed', lambda x: _one(x, slice(2, 4))[:, :, 0, 0].T, lambda x: x.T[:, :, None, None]
)
HWIO_DENSE = Way('reshaped', lambda x: _one(x, slice(0, 2))[0, 0], lambda x: x[None, None])  # [1, 1, D, K] <-> [D, K]


class Row(NamedTuple):
    """`theirs` <-> `ours`, each a template or a tuple of them. No `ours`: it is left out, and `way.name` says why."""

    theirs: str | tuple[str, ...]
    ours: str | tuple[str, ...] = ()
    way: Way = SAME


def left_out(theirs: str, why: str) -> Row:
    """A tensor that is known and not needed."""
    return Row(theirs, (), Way(why, lambda x: (), lambda: ()))


def dense(theirs: str, ours: str) -> tuple[Row, ...]:
    """The rows of a linear layer in PyTorch."""
    return Row(f'{theirs}.weight', f'{ours}/kernel', DENSE), Row(f'{theirs}.bias', f'{ours}/bias')


def norm(theirs: str, ours: str, scale: str = '.weight', bias: str = '.bias') -> tuple[Row, ...]:
    """The rows of a LayerNorm or a GroupNorm; `scale` and `bias` are how their names end, in PyTorch unless told."""
    return Row(theirs + scale, f'{ours}/scale'), Row(theirs + bias, f'{ours}/bias')


PYTORCH_ENDS = ('.weight', '.bias', '.running_mean', '.running_var')
GLUON_ENDS = ('_gamma', '_beta', '_running_mean', '_running_var')
KERAS_ENDS = ('/gamma', '/beta', '/moving_mean', '/moving_variance')


def batch_norm(theirs: str, ours: str, ends: tuple[str, str, str, str] = PYTORCH_ENDS) -> tuple[Row, ...]:
    """The rows of a BatchNorm: two parameters, two statistics, and in PyTorch a count that nothing reads."""
    scale, bias, mean, var = ends
    return (
        *norm(theirs, ours, scale, bias),
        Row(theirs + mean, f'model/batch_stats/{ours}/mean'),
        Row(theirs + var, f'model/batch_stats/{ours}/var'),
        *([left_out(f'{theirs}.num_batches_tracked', 'a count of batches')] if ends == PYTORCH_ENDS else []),
    )


class Dialect(NamedTuple):
    """One library's way to write a family's weights.

    Attributes:
        name: `torchvision`, `huggingface`, `keras`, …; PyTorch's come first in a family.
        rows: the table.
        settings: (tensors by their names, the checkpoint's config.json or {}) -> keyword arguments of the model that no
            shape shows, such as `eps`, `heads` or the padding; raises UserError for what we do not build.
        preprocess: (the same) -> what the weights expect of a picture where their own description does not say; {} if
            it is what the model's file says.
        antialias: how position embeddings are resized. True: timm's way, False: Hugging Face's.
    """

    name: str
    rows: tuple[Row, ...]
    settings: Callable[[Arrays, dict], dict] = lambda tensors, config: {}
    preprocess: Callable[[Arrays, dict], dict] = lambda tensors, config: {}
    antialias: bool = True


class Translation(NamedTuple):
    """Tensors under our names.

    Attributes:
        leaves: by our path; views of the tensors where that is possible, in their dtype.
        origin: by our path, the tensors that it was made of and how.
        left: by their name, the tensors that are not needed and why.
        unknown: by their name, the tensors that no row knows and what is odd about them.
    """

    leaves: dict[str, np.ndarray]
    origin: dict[str, str]
    left: dict[str, str]
    unknown: dict[str, str]


def translate(tensors: Arrays, dialect: Dialect) -> Translation:
    """Tensors by their names -> by ours."""
    sides = tuple((as_tuple(row.theirs), as_tuple(row.ours)) for row in dialect.rows)
    made, unknown = _convert(tensors, sides, [row.way.here for row in dialect.rows])
    leaves, origin, left = {}, {}, {}
    for row, theirs, ours, arrays in made:
        way = dialect.rows[row].way.name
        if not ours:
            left.update(dict.fromkeys(theirs, way))
        leaves.update(zip(ours, arrays))
        origin.update(dict.fromkeys(ours, ' + '.join(theirs) + (f' ({way})' if way else '')))
    return Translation(leaves, origin, left, unknown)


def export(leaves: Arrays, dialect: Dialect) -> dict[str, np.ndarray]:
    """Parameters and statistics by our paths -> by their names, C-contiguous and in their dtype.

    Raises:
        UserError: the table has no name for some of them.
    """
    rows = [row for row in dialect.rows if row.ours]
    sides = tuple((as_tuple(row.ours), as_tuple(row.theirs)) for row in rows)
    made, unknown = _convert(leaves, sides, [row.way.there for row in rows])
    if unknown:
        said = [f'{path}{why and f" ({why})"}' for path, why in unknown.items()]
        raise UserError(f'the names of {dialect.name} have no place for {some(said)}.')
    return {name: np.asarray(x, order='C') for _, _, names, arrays in made for name, x in zip(names, arrays)}


def _convert(tensors: Arrays, sides: tuple, ways: list[Callable]) -> tuple[list[tuple], dict[str, str]]:
    """`[(row, names before, names after, arrays after), …]` and what no row took, with what was odd about it."""
    free, made, taken = dict.fromkeys(tensors, ''), [], set()
    for row, (before, after) in enumerate(sides):
        words = _words(before + after)
        first, *others = (template(text, words) for text in before)
        matches = [(name, values) for name in free if (values := first.match(name)) is not None]
        for name, values in matches:
            names = [name, *(other.among(free, values) for other in others)]
            if None in names:
                continue
            target = tuple(template(text, words).write(values) for text in after)
            try:
                arrays = ways[row](*(tensors[name] for name in names))
            except ValueError as e:
                free.update(dict.fromkeys(names, str(e)))
                continue
            if clash := taken.intersection(target):
                free.update(dict.fromkeys(names, f'{min(clash)} is taken already'))
                continue
            taken.update(target)
            made.append((row, tuple(names), target, arrays if len(target) != 1 else (arrays,)))
            for name in names:
                del free[name]
    return made, free


class Hole(NamedTuple):
    """A placeholder: the number `factor · value + offset`, or a word if `factor` is 0."""

    name: str
    factor: int
    offset: int
    default: int | None


class Template(NamedTuple):
    """A template taken apart: literal texts, `[text]` as a tuple of one, and holes."""

    parts: tuple[str | tuple[str] | Hole, ...]
    pattern: re.Pattern

    def match(self, name: str) -> dict[str, Any] | None:
        """The values of the holes for which the template reads `name`, or None."""
        found = self.pattern.fullmatch(name)
        if found is None:
            return None
        values = {}
        for hole in (part for part in self.parts if isinstance(part, Hole)):
            text = found[hole.name]
            number, rest = divmod(int(text) - hole.offset, hole.factor) if hole.factor else (text, 0)
            if rest or (hole.factor and number < 0):
                return None
            values[hole.name] = number
        return values

    def write(self, values: Mapping[str, Any], optional: bool = True) -> str:
        """The name for some values, with or without what is in brackets."""
        spelt = ''
        for part in self.parts:
            if isinstance(part, Hole):
                value = values.get(part.name, part.default)
                spelt += str(part.factor * value + part.offset) if part.factor else value
            elif isinstance(part, str):
                spelt += part
            elif optional:
                spelt += part[0]
        return spelt

    def among(self, names: Iterable[str], values: Mapping[str, Any]) -> str | None:
        """The name for some values that is there."""
        return next((name for name in (self.write(values), self.write(values, False)) if name in names), None)


_PART = re.compile(
    r'\[(?P<optional>[^]]*)\]'
    r'|\{(?:(?P<factor>\d+)\*)?(?P<name>[a-z_]+)(?P<offset>[+-]\d+)?(?:=(?P<default>\d+))?(?::[^}]*)?\}'
)


def _words(templates: tuple[str, ...]) -> tuple[tuple[str, str], ...]:
    """The holes that stand for words, and their alternatives; one side of a row gives them for both."""
    return tuple(found for text in templates for found in re.findall(r'\{([a-z_]+):([^}]*)\}', text))


@functools.cache  # there are as many as there are rows
def template(text: str, words: tuple[tuple[str, str], ...] = ()) -> Template:
    """Takes a template apart."""
    parts, pattern, end = [], '', 0
    for found in _PART.finditer(text):
        if literal := text[end : found.start()]:
            parts.append(literal)
        pattern += re.escape(literal)
        end = found.end()
        if found['name'] is None:
            parts.append((found['optional'],))
            pattern += f'(?:{re.escape(found["optional"])})?'
        elif alternatives := dict(words).get(found['name']):
            parts.append(Hole(found['name'], 0, 0, None))
            pattern += f'(?P<{found["name"]}>{alternatives})'
        else:
            default = found['default'] and int(found['default'])
            parts.append(Hole(found['name'], int(found['factor'] or 1), int(found['offset'] or 0), default))
            pattern += f'(?P<{found["name"]}>0|[1-9][0-9]{{0,5}})'
    return Template((*parts, text[end:]), re.compile(pattern + re.escape(text[end:])))


def _rank(x: np.ndarray, rank: int) -> np.ndarray:
    if x.ndim != rank:
        raise ValueError(f'of shape {x.shape}, expected {rank} axes')
    return x


def _one(x: np.ndarray, axes: slice) -> np.ndarray:
    if x.ndim != 4 or x.shape[axes] != (1, 1):
        raise ValueError(f'of shape {x.shape}, expected a convolution of 1×1')
    return x


def as_tuple(side: str | tuple[str, ...]) -> tuple[str, ...]:
    return (side,) if isinstance(side, str) else side
