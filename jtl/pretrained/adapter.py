"""A saved adapter: what a run changed of the weights that it started from, in one safetensors file.

The tensors are the leaves under our paths, parameters and, below `model/`, statistics: every one that the run trained
or that is not, bit for bit, as it is in the weights; a head and a BatchNorm that moved included, and nothing else. A
note, JSON under `jtl_adapter`, says what the whole is, `Said`, and names the weights that the rest comes from, `Base`.

    whole = leaves of the file + those leaves of the weights that the model has besides

Other weights are refused: a hash of every leaf that comes from them is in the note.
"""

import hashlib
import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jtl import run, tree
from jtl.data.pipeline import Preprocess
from jtl.errors import UserError, check_kwargs, printable, some
from jtl.files import expanded, parse_json, read_json
from jtl.pretrained.formats import archive, safetensors
from jtl.pretrained.load import Pretrained, hashed, is_run, load
from jtl.pretrained.shapes import example, shapes
from jtl.rules import match

SCHEME, NOTE, VERSION = 'adapter:', 'jtl_adapter', 1
SMALL = 50_000_000  # numbers, which no harm can be done with
Leaves = Mapping[str, np.ndarray]


class Base(NamedTuple):
    """The weights that an adapter belongs to.

    Attributes:
        uri: where they were when the run started.
        sha256: of all of them as they were read, `Pretrained.sha256`.
        ignore: the `config.load.ignore` that they were read with.
        leaves: the sha256 of those leaves that the adapter leaves as they are, and of the tokenizer; see `digest`.
    """

    uri: str
    sha256: str
    ignore: tuple[str, ...]
    leaves: str


class Said(NamedTuple):
    """What an adapter's file says of itself, as in a run's `model/model.json`.

    Attributes:
        version: of this format.
        phases: the rules that it was trained by, `((until, rules), …)`.
    """

    version: int
    model: dict
    method: dict
    classes: tuple[str, ...]
    multi_label: bool
    preprocess: dict
    phases: tuple
    weights: Base


def write(folder: str, path: Path, base: str | None = None) -> Said:
    """Writes what a finished run changed of the weights that it started from, and says what was written.

    Args:
        folder: the run's.
        path: the file.
        base: where the weights of `config.init` are now; None is where they were.

    Raises:
        UserError: the run started from no weights, they are not the same any more, or it trained what no model has.
    """
    fitted = run.read(folder)
    uri, options = fitted.config.get('init'), fitted.config.get('load', {})
    if not uri or options.get('fresh'):
        raise UserError(f'{folder}: started from no weights that an adapter could belong to; use --to=run:PATH.')
    weights, ignore = start(uri, options, base)
    recorded = read_json(fitted.path / 'config.json').get('weights')
    if weights.sha256 != recorded:
        raise UserError(
            f'{folder}: started from {uri} with the hash {recorded}; {base or uri} has the hash {weights.sha256}. '
            'They are other weights, classes or preprocessing; --base=URI says where the right ones are.'
        )
    if is_adapter(uri):  # what it changed is in this file, too
        former = said(where(uri))
        uri, ignore = former.weights.uri, former.weights.ignore
        weights, _ = start(base or options.get('base') or uri, {'ignore': ignore})
    whole = tree.flatten({**fitted.params, 'model': fitted.state.get('model', {})})
    if strange := set(whole) - set(shapes(fitted.model, len(fitted.classes), example(fitted.model, fitted.preprocess))):
        raise UserError(f'{folder}: {some(sorted(strange))}: of the method, and no part of a model that starts anew.')
    phases = fitted.config.get('phases') or ((None, fitted.config.get('rules')),)
    theirs, moved = weights.leaves(), trained(phases, tree.flatten(fitted.params))
    own = {p: np.asarray(x) for p, x in whole.items() if p in moved or p not in theirs or not same(x, theirs[p])}
    if not own:
        raise UserError(f'{folder}: has nothing that {uri} has not; nothing was trained.')
    if wrong := [p for p, x in own.items() if not np.isfinite(x).all()]:
        raise UserError(f'{folder}: {some(wrong)} has numbers that are not finite.')
    kept = {p: theirs[p] for p in whole.keys() - own.keys()}
    says = Said(
        version=VERSION,
        model=fitted.model,
        method=fitted.method,
        classes=fitted.classes,
        multi_label=fitted.multi_label,
        preprocess=fitted.preprocess,
        phases=phases,
        weights=Base(uri, weights.sha256, tuple(ignore), digest(kept, weights.tokenizer)),
    )
    note = json.dumps({**says._asdict(), 'weights': says.weights._asdict()})
    safetensors.write(path, own, {NOTE: note})
    return says


def start(uri: str, options: Mapping[str, Any], base: str | None = None) -> tuple[Pretrained, tuple[str, ...]]:
    """The weights of a `config.init` as they were read, with the parts of `config.load` that reading depends on."""
    ignore = tuple(options.get('ignore', ()))
    if is_adapter(uri):
        return read(where(uri), base or options.get('base')), ignore
    return load(base or uri, labels=options.get('labels'), ignore=ignore), ignore


def trained(phases: Any, paths: Any) -> set[str]:
    """The parameters that a run's rules trained in any phase; none of a folder that was put together, without rules."""
    rates = [match(rules, paths, 'config.rules', '') for _, rules in phases if rules]
    return {path for rate in rates for path, multiplier in rate.items() if multiplier is not None}


def read(path: Path, base: str | None = None) -> Pretrained:
    """The weights with what an adapter makes of them.

    Args:
        path: the adapter's file.
        base: where the weights are now; None is where they were when it was trained.

    Raises:
        UserError: damaged or made to do harm; no weights, or not those that it belongs to.
    """
    says, own = said(path), leaves(path)
    place = base or says.weights.uri
    weights = _base(path, says, place)
    theirs = weights.leaves()
    wanted = _wanted(path, says, own, theirs)
    if strange := own.keys() - wanted:
        raise UserError(f'{path}: {some(sorted(strange))} has no place in {_short(says.model)}.')
    kept = {name: theirs[name] for name in wanted - own.keys() if name in theirs}
    if lacking := wanted - own.keys() - kept.keys():
        raise _other(path, says, place, f'it has no {some(sorted(lacking))}')
    if digest(kept, weights.tokenizer) != says.weights.leaves:
        raise _other(path, says, place, f'its numbers{" or its tokenizer" if weights.tokenizer else ""} are others')
    params = tree.unflatten({**kept, **own})
    statistics = params.pop('model', {})
    return hashed(
        weights._replace(
            uri=f'{SCHEME}{path}',
            model=says.model,
            params=params,
            state={'model': statistics} if statistics else {},
            classes=says.classes,
            preprocess=says.preprocess,
            origin={},
            files=(str(path), *weights.files),
            multi_label=says.multi_label,
        )
    )


def _base(path: Path, says: Said, place: str) -> Pretrained:
    """The weights that a file names, or those that are said to be them."""
    if is_adapter(place):
        raise UserError(f'{path}: {printable(place)} is an adapter, and an adapter belongs to whole weights.')
    try:
        return load(place, ignore=() if is_run(expanded(place)) else says.weights.ignore)
    except UserError as e:
        raise UserError(
            f'{path}: belongs to {printable(says.weights.uri)} (hash {printable(says.weights.sha256)}). '
            f'{e} config.load.base=URI (of a command, --base=URI) says where they are now.'
        ) from e


def _other(path: Path, says: Said, place: str, why: str) -> UserError:
    return UserError(
        f'{path}: belongs to {printable(says.weights.uri)} (hash {printable(says.weights.sha256)}); '
        f'{printable(place)} is not the same: {printable(why)}. config.load.base=URI says where the right weights are.'
    )


def _wanted(path: Path, says: Said, own: Leaves, theirs: Leaves) -> set[str]:
    """The paths of the model's leaves; a model out of proportion to the numbers that are there is never built."""
    given = {**theirs, **own}
    most = max(256, len(given), *(n for x in given.values() for n in x.shape))
    if large := _above(most, {k: v for k, v in says.model.items() if not isinstance(v, dict)}):
        raise UserError(f'{path}: {large} in {_short(says.model)}, where nothing has more than {most:,}.')
    if given.get('head/kernel', np.zeros(0)).shape[-1:] != (len(says.classes),):
        raise UserError(f'{path}: {len(says.classes)} class names, but its head has another number of columns.')
    try:
        found = shapes(says.model, len(says.classes), example(says.model, says.preprocess))
    except Exception as e:  # whatever a model of a stranger's numbers may raise
        why = printable((str(e).splitlines() or [repr(e)])[0])
        raise UserError(f'{path}: its model {_short(says.model)} cannot be: {why}') from e
    asked, there = sum(map(math.prod, found.values())), sum(x.size for x in given.values())
    if asked > 10 * there + SMALL:
        raise UserError(f'{path}: {_short(says.model)} has {asked:,} numbers, the file and its weights {there:,}.')
    return set(found)


def _above(most: int, value: Any) -> str:
    """What of a model's arguments is a number, or a list, of a size that could not be built; '' if nothing."""
    if isinstance(value, str):
        return next((n for n in re.findall(r'\d+', value) if len(n) > 9 or int(n) > most), '')
    if isinstance(value, dict | list | tuple):
        if len(value) > most:
            return f'{len(value):,} values'
        return next(filter(None, (_above(most, x) for x in (value.values() if isinstance(value, dict) else value))), '')
    return printable(str(value)) if isinstance(value, int) and abs(value) > most else ''


def _short(model: Mapping) -> str:
    return printable(str(model))


# The file.


def is_adapter(uri: str) -> bool:
    return uri.startswith(SCHEME)


def where(uri: str) -> Path:
    """The file of `adapter:FILE`."""
    if not uri.removeprefix(SCHEME):
        raise UserError(f'{uri} names no file; expected {SCHEME}FILE, which jtl convert RUN --to={SCHEME}FILE writes.')
    return expanded(uri.removeprefix(SCHEME))


def said(path: Path) -> Said:
    """The note of an adapter's file, checked; its weights are not looked for.

    Raises:
        UserError: no safetensors file, none of an adapter, or one that is not as it was written.
    """
    note = safetensors.notes(path).get(NOTE)
    if note is None:
        raise UserError(f'{path}: is no adapter, which has a note {NOTE!r}; for weights write safetensors:{path}.')
    what = f'{path}: {NOTE}'
    given = parse_json(note.encode(), what)
    if given.get('version') != VERSION:
        version = printable(repr(given.get('version')))
        raise UserError(f'{what}.version is {version}; this jtl reads {VERSION}.')
    try:
        check_kwargs(Said, {**given, 'weights': Base('', '', (), '')}, NOTE)
        check_kwargs(Base, dict(given['weights']), f'{NOTE}.weights')
        check_kwargs(Preprocess, given['preprocess'], f'{NOTE}.preprocess', ignore=('tokenizer',))
        Preprocess(**given['preprocess'])
        large = _above(2**24, given['model']) or _above(2048, given['preprocess'].get('size'))
        if large or not isinstance(given['model']['name'], str):
            raise ValueError(f'{large} in model or preprocess.size' if large else 'model.name is no text')
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError, UserError) as e:
        raise UserError(f'{path}: is not as it was written: {printable(str(e))}') from e
    base = Base(**{**given['weights'], 'ignore': tuple(given['weights']['ignore'])})
    return Said(**{**given, 'classes': tuple(given['classes']), 'weights': base})


def leaves(path: Path) -> dict[str, np.ndarray]:
    """The leaves of an adapter's file, copied: the file may change from here on."""
    found = {}
    for name, x in safetensors.read(path).items():
        if x.dtype != np.float32:
            raise UserError(f'{path}: {name!r} is of {x.dtype}; the leaves of an adapter are float32.')
        found[name] = archive.fresh(x)
        if not np.isfinite(x).all():
            raise UserError(f'{path}: {name!r} has numbers that are not finite.')
    return found


def same(x: np.ndarray, y: np.ndarray) -> bool:
    """Whether two arrays are the same, bit for bit."""
    x, y = np.asarray(x), np.asarray(y)
    return (x.shape, x.dtype) == (y.shape, y.dtype) and x.tobytes() == y.tobytes()


def digest(leaves: Leaves, tokenizer: Mapping[str, bytes]) -> str:
    """sha256 of the leaves, in the order of their paths: path, shape and bytes of each; and of a tokenizer's files."""
    found = hashlib.sha256()
    for name, content in sorted(tokenizer.items()):
        found.update(f'{name} {len(content)} '.encode() + content)
    for path, leaf in sorted(leaves.items()):
        found.update(f'{path} {leaf.shape} '.encode())
        found.update(np.ascontiguousarray(leaf))
    return found.hexdigest()
