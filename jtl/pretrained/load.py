"""Pretrained weights under our names: a former run's, or anyone's that `recognise` knows."""

import functools
import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jtl import models, run, tree
from jtl.errors import UserError, nearest
from jtl.files import expanded
from jtl.pretrained import source
from jtl.pretrained.formats import archive
from jtl.pretrained.recognise import Recognised, recognise
from jtl.pretrained.shapes import expected
from jtl.rules import any_matches, pairs

PyTree = Any

HEADS = ('auto', 'fresh', 'keep', 'names')


class Pretrained(NamedTuple):
    """Weights as they were read, and what must stay with them.

    Attributes:
        uri: where they are from.
        model: the `config.model` that they belong to.
        params, state: as a method has them; float32.
        classes: what the columns of their head stand for; () if nothing says so.
        preprocess: fields of `jtl.data.Preprocess`.
        sha256: of all that comes with them: numbers, classes, preprocessing, tokenizer.
        origin: by our path, the tensors it was made of; {} for a former run.
        tokenizer: files by name, for models of text.
        antialias: whether their library resizes position embeddings with antialiasing.
        files: what was read, with the commit if it is the hub's.
        multi_label: whether an example may be of several classes at once, if a former run says so.
        head, missing, fresh, copy, grow, grow_noise: what `load` was told; see there.
    """

    uri: str
    model: dict
    params: PyTree
    state: PyTree
    classes: tuple[str, ...]
    preprocess: dict
    sha256: str
    origin: Mapping[str, str] = {}
    tokenizer: Mapping[str, bytes] = {}
    antialias: bool = True
    files: tuple[str, ...] = ()
    multi_label: bool = False
    head: str = 'auto'
    missing: tuple[str, ...] = ()
    fresh: bool = False
    copy: tuple = ()
    grow: bool = False
    grow_noise: float = 0.0

    def leaves(self) -> dict[str, np.ndarray]:
        """By our path: parameters, and the model's statistics below `model/`."""
        return tree.flatten({**self.params, 'model': self.state.get('model', {})})


def load(
    uri: str,
    *,
    head: str = 'auto',
    labels: str | None = None,
    ignore: tuple[str, ...] = (),
    missing: tuple[str, ...] = (),
    fresh: bool = False,
    copy: tuple = (),
    grow: bool = False,
    grow_noise: float = 0.5,
    base: str | None = None,
) -> Pretrained:
    """Reads the weights behind a URI; see `jtl.pretrained.source`.

    Args:
        uri: `hf:…`, `torch:PATH`, …, a well-known name, or the PATH of a finished run.
        head: `fresh` leaves the head as it was initialised; `keep` takes theirs; `names` takes their columns for the
            classes whose names agree; `auto` keeps it if the classes are the same ones in the same order, and else is
            `fresh`.
        labels: a file with the names of their classes: a line each, or JSON.
        ignore: regexes of tensors that are not wanted, by their name or by ours.
        missing: regexes of our paths that may stay fresh if the weights do not have them.
        fresh: take the model, the preprocessing and the tokenizer alone, and leave all numbers as they were
            initialised: training from scratch, and nothing else is different.
        copy: `((regex of our paths, template or None), …)`: which leaf goes where, into a network of other depth or
            width. The first regex that matches a path decides: the template, as in `re.sub`, names the leaf that is
            copied, and None leaves it fresh. `((r'backbone/block1/(.*)', r'backbone/block3/\\1'), ('.*', None))`. The
            head and the statistics, `model/batch_stats/…`, are covered by rules as well.
        grow: the weights are of a smaller model of the same family, and ours begins as the same function: see
            `jtl.morph`.
        grow_noise: how unequally copies of a unit share its weights, 0 to 1. At any value the function is the same;
            at 0 copies have the same gradients, and stay copies.
        base: of `adapter:FILE`, where the weights are now that it belongs to; None is where they were when it was
            trained. See `jtl.pretrained.adapter`.

    Raises:
        UserError: nothing there, damaged, not a model that we know, or with tensors that we do not know.
    """
    check(head, ignore, missing, labels, fresh, copy, grow, grow_noise, base)
    path, adapted = expanded(uri), uri.startswith('adapter:')
    if base and not adapted:
        raise UserError(f'config.load.base: {uri} is no adapter, adapter:FILE, that belongs to other weights.')
    if adapted:
        from jtl.pretrained import adapter  # which reads the weights that it belongs to from here

        if labels or ignore:
            raise UserError(f'config.load: {uri} is an adapter, which has its own labels and all that it needs.')
        weights = adapter.read(adapter.where(uri), base)
    elif is_run(path) or (path.is_dir() and not source.has_weights(path)):
        if labels or ignore:
            raise UserError(f'config.load: {uri} is a former run, which has its own labels and all that it needs.')
        result = path / 'result.json'
        weights = _load_run(uri, result.stat().st_mtime_ns if result.exists() else 0)
    else:
        weights = _load_foreign(uri, labels, tuple(ignore), source.stamp(uri, labels))
    asked = {'copy': tuple(copy), 'grow': grow, 'grow_noise': grow_noise}
    return weights._replace(head=head, missing=tuple(missing), fresh=fresh, **asked)


def check(
    head: str = 'auto',
    ignore: tuple = (),
    missing: tuple = (),
    labels: str | None = None,
    fresh: bool = False,
    copy: tuple = (),
    grow: bool = False,
    grow_noise: float = 0.5,
    base: str | None = None,
) -> None:
    """Refuses what can be seen to be wrong before anything is opened."""
    if head not in HEADS:
        raise UserError(f'unknown config.load.head {head!r}: {nearest(head, HEADS)}')
    for key, patterns in (('ignore', ignore), ('missing', missing)):
        for pattern in patterns:
            try:
                re.compile(pattern)
            except re.error as e:
                raise UserError(f'config.load.{key}: {pattern!r} is not a regular expression: {e}.') from e
    if copy:
        _check_copy(copy)
        if grow or missing or head != 'auto':
            other = 'grow' if grow else 'missing' if missing else 'head'
            raise UserError(f'config.load.{other}: the rules of config.load.copy say what becomes of every parameter.')
    if not 0 <= grow_noise <= 1:
        raise UserError(f'config.load.grow_noise: {grow_noise} should be in [0, 1].')


def _check_copy(rules: tuple) -> None:
    if not pairs(rules) or not all(isinstance(template, str | None) for _, template in rules):
        raise UserError(f"config.load.copy: expected (('regex', 'template' or None), …), got {rules!r}.")
    for regex, template in rules:
        try:
            re.sub(regex, template or '', '')
        except re.error as e:
            raise UserError(f'config.load.copy: {regex!r} to {template!r} cannot be: {e}.') from e


def is_run(path: Path) -> bool:
    """Whether a folder is a run's, finished or not."""
    return any((path / name).exists() for name in ('result.json', 'params.txt', 'model/model.json', 'metrics.jsonl'))


@functools.lru_cache(maxsize=1)  # the runs of a sweep mostly start from the same one
def _load_run(uri: str, stamp: int) -> Pretrained:
    former = run.read(expanded(uri))
    weights = Pretrained(
        uri,
        former.model,
        former.params,
        former.state,
        former.classes,
        former.preprocess,
        sha256='',
        tokenizer=former.tokenizer,
        multi_label=former.multi_label,
    )
    return hashed(weights)


@functools.lru_cache(maxsize=1)
def _load_foreign(uri: str, labels: str | None, ignore: tuple[str, ...], stamp: tuple) -> Pretrained:
    found = source.read(uri, labels)
    unwanted = functools.partial(any_matches, ignore)
    known = recognise({name: x for name, x in found.tensors.items() if not unwanted(name)}, found.config, uri)
    if unknown := {name: why for name, why in known.translation.unknown.items() if not unwanted(name)}:
        listed = '\n'.join(f'  {name}{why and f": {why}"}' for name, why in unknown.items())
        raise UserError(
            f'{uri}: {known.why}; {len(unknown)} have no place in {known.model}:\n{listed}\n'
            'config.load.ignore, a list of regexes, says which of them are not wanted.'
        )
    leaves = {path: _float32(uri, path, x) for path, x in known.translation.leaves.items() if not unwanted(path)}
    pictures = expected_input(known, found.preprocess, leaves)
    expected(known.model, leaves, pictures)  # or it is refused; what is missing may be cut off, or be allowed to
    whole = tree.unflatten(leaves)
    statistics = whole.pop('model', {})
    weights = Pretrained(
        uri,
        known.model,
        whole,
        {'model': statistics} if statistics else {},
        _classes(uri, found.classes, leaves, labels),
        pictures,
        '',
        known.translation.origin,
        found.tokenizer,
        known.dialect.antialias,
        found.files,
    )
    return hashed(weights)


def expected_input(known: Recognised, described: dict, leaves: Mapping[str, np.ndarray]) -> dict:
    """What weights expect of a picture: by the model, by whose weights they are, by their own description."""
    said = {**models.preprocess(known.model['name']), **known.preprocess, **described}
    first = next((x for path, x in leaves.items() if is_first_convolution(path)), None)
    said = said if first is None else for_channels(said, first.shape[2])
    for key, most in (('size', 2048), ('channels', 64)):  # a tiny file could ask for any
        if (said.get(key) or 0) > most:
            raise UserError(f'the weights are for pictures of {key} {said[key]:,}; at most {most:,} is taken.')
    return said


def for_channels(preprocess: dict, channels: int) -> dict:
    """The same for pictures of other channels: their mean and standard deviation are the averages of the old ones."""
    fits = lambda values: values if len(values) in (1, channels) else (float(np.mean(values)),)
    return {**preprocess, **{key: fits(preprocess[key]) for key in ('mean', 'std')}, 'channels': channels}


def is_first_convolution(path: str) -> bool:
    return path in ('backbone/stem/conv/kernel', 'backbone/patch/kernel')


def _float32(uri: str, path: str, leaf: np.ndarray) -> np.ndarray:
    if not np.issubdtype(leaf.dtype, np.floating) and leaf.dtype.kind != 'V':  # V: bfloat16 and the like
        raise UserError(f'{uri}: {path} is of {leaf.dtype}, not of real numbers; quantised weights cannot be used.')
    leaf = archive.fresh(leaf)  # a copy: the file may change from here on
    if not np.isfinite(leaf).all():
        raise UserError(f'{uri}: {path} has numbers that are not finite.')
    return leaf


def _classes(uri: str, classes: tuple[str, ...], leaves: Mapping, labels: str | None) -> tuple[str, ...]:
    """The names, if they are as many as the head has columns."""
    columns = leaves['head/kernel'].shape[-1] if 'head/kernel' in leaves else 0
    if labels and len(classes) != columns:
        raise UserError(f'{labels}: {len(classes)} class names, but the head of {uri} has {columns} classes.')
    return classes if len(classes) == columns else ()


def hashed(weights: Pretrained) -> Pretrained:
    """The same with their `sha256`."""
    digest = hashlib.sha256(repr((weights.classes, sorted(weights.preprocess.items()))).encode())
    for name, content in sorted(weights.tokenizer.items()):
        digest.update(name.encode() + content)
    for path, leaf in sorted(weights.leaves().items()):
        digest.update(f'{path} {leaf.shape}'.encode())
        digest.update(np.ascontiguousarray(leaf))
    return weights._replace(sha256=digest.hexdigest()[:16])
