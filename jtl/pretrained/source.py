"""Where weights come from: what a URI names, read and described, still under the names that its authors gave.

hf:OWNER/NAME[@REVISION][:FILE]   the Hugging Face hub
torch:PATH[#KEY]                  .pth, .th, .pt, .bin, or the index of a sharded one; KEY is where in the file
safetensors:PATH                  a file, an index, or a directory with one of them
npz:PATH                          NumPy's archive, whoever named the arrays
keras:PATH                        .h5, .keras
PATH                              a directory with config.json and weights, or a file of a known suffix
NAME                              of the catalogue, such as resnet50.a1_in1k

`adapter:FILE`, which belongs to weights of one of these, and the folder of a former run are read by
`jtl.pretrained.load`.
"""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jtl.errors import UserError, nearest, printable, some
from jtl.files import expanded, read_json, read_small
from jtl.pretrained import catalogue, hub
from jtl.pretrained.formats import keras, npz, safetensors, shards, torch
from jtl.pretrained.labels import class_names, read_labels
from jtl.pretrained.preprocessing import described

READERS: dict[str, Callable[..., dict[str, np.ndarray]]] = {
    'torch': torch.read,
    'safetensors': safetensors.read,
    'npz': npz.read,
    'keras': keras.read,
}


class Found(NamedTuple):
    """The files that a URI names.

    Attributes:
        scheme: who reads the weights, a key of `READERS`.
        key: where in their file they are, '' if nobody said.
        weights: their file, or the index of several.
        files: the weights and all that belongs to them, by name.
        record: what each of them is, for the record: a path, or a file of the hub with its commit.
    """

    scheme: str
    key: str
    weights: Path
    files: dict[str, Path]
    record: tuple[str, ...]


class Foreign(NamedTuple):
    """Somebody's checkpoint, as it is.

    Attributes:
        files: what was read, paths or hub files with the commit, for the record.
        tensors: by their names, in their dtype.
        config: the config.json of Hugging Face or timm; {} if there is none. `pooling` is that of
            sentence-transformers.
        preprocess: the fields of `jtl.data.pipeline.Preprocess` that the checkpoint's own description gives.
        classes: label names in the order of the logits; () if they are not known.
        tokenizer: tokenizer files by name, {} if there are none.
    """

    files: tuple[str, ...]
    tensors: dict[str, np.ndarray]
    config: dict
    preprocess: dict
    classes: tuple[str, ...]
    tokenizer: dict[str, bytes]


def read(uri: str, labels: str | None = None) -> Foreign:
    """Reads a checkpoint and whatever describes it.

    Args:
        uri: see the top of this file.
        labels: a file with the names of the classes, if the checkpoint does not have them or has others; see
            `jtl.pretrained.labels`.

    Raises:
        UserError: nothing there, damaged, or a description that makes no sense.
    """
    names = read_labels(labels) if labels else ()
    found = find(uri)
    if found.weights.suffix == '.safetensors' and 'jtl_adapter' in safetensors.notes(found.weights):
        raise UserError(f'{uri}: is an adapter, of other weights: write adapter:{found.weights}.')
    read_one = READERS[found.scheme]
    tensors = read_one(found.weights, found.key) if found.key else read_one(found.weights)
    by_name = {Path(name).name: path for name, path in found.files.items() if name != hub.POOLING}
    config, preprocessor = (
        read_json(by_name[name]) if name in by_name else {} for name in (hub.CONFIG, hub.PREPROCESSOR)
    )
    if hub.POOLING in found.files:
        config['pooling'] = read_json(found.files[hub.POOLING])
    return Foreign(
        found.record,
        tensors,
        config,
        described(config, preprocessor),
        names or class_names(config, str(by_name.get(hub.CONFIG))),
        {name: read_small(by_name[name], _root(found.weights)) for name in hub.TOKENIZER if name in by_name},
    )


def _root(weights: Path) -> Path:
    """The folder that files beside the weights belong to: in the hub's cache they are links to its `blobs`."""
    folder = weights.parent.absolute()
    return folder.parents[1] if folder.parent.name == 'snapshots' else folder


def find(uri: str) -> Found:
    """The files behind a URI, downloaded if they are the hub's; none of the tensors is read.

    Raises:
        UserError: there are none, or several to choose from.
    """
    scheme, rest, key = resolve(uri)
    if scheme != 'hf':
        weights = locate(scheme, rest)
        files = beside(weights, expanded(rest).is_dir())
        return Found(scheme, key, weights, files, tuple(map(str, files.values())))
    got = hub.fetch(rest)
    weights = got.files[got.weights]
    if not (scheme := of_suffix(weights)):
        raise UserError(f'hf:{rest}: {weights.name} has no suffix that is known. {_known_suffixes()}')
    return Found(scheme, '', weights, got.files, tuple(f'hf:{got.repo}@{got.commit}:{name}' for name in got.files))


def stamp(uri: str, labels: str | None = None) -> tuple[tuple[str, int, int], ...]:
    """`(path, time of change in ns, size)` of each file behind a URI, and of the labels: another if they change.

    The hub is not asked: its part is ().

    Raises:
        UserError: as for `find`.
    """
    files = [] if resolve(uri)[0] == 'hf' else list(find(uri).files.values())
    files += [expanded(labels)] if labels else []
    stats = {str(file): file.stat() for file in files if file.is_file()}  # who reads them says what is missing
    return tuple((path, stat.st_mtime_ns, stat.st_size) for path, stat in stats.items())


def resolve(uri: str) -> tuple[str, str, str]:
    """A URI -> (scheme, what follows it, KEY or ''); catalogue names and bare paths are given their scheme.

    Raises:
        UserError: no scheme, name or file that is known, with the nearest one.
    """
    scheme, colon, rest = uri.partition(':')
    if colon and scheme == 'hf':
        return scheme, rest, ''
    if colon and scheme in READERS:
        if not rest:
            raise UserError(f'{uri} names no file; expected {scheme}:PATH.')
        path, _, key = rest.rpartition('#') if scheme == 'torch' and not expanded(rest).exists() else (rest, '', '')
        return scheme, path or rest, key if path else ''
    path = expanded(uri)
    if uri and path.is_dir():
        return of_suffix(weights_in(path)) or '', uri, ''
    if uri and path.exists():
        if not (scheme := of_suffix(path)):
            raise UserError(f'{uri}: no suffix that is known. {_known_suffixes()}')
        return scheme, uri, ''
    if uri in catalogue.KNOWN:
        return 'hf', catalogue.KNOWN[uri].removeprefix('hf:'), ''
    raise UserError(_unknown(uri))


def _unknown(uri: str) -> str:
    """What to say of a URI that is nothing that is known."""
    scheme, colon, rest = uri.partition(':')
    if scheme in ('http', 'https'):
        parts = rest.strip('/').split('/')
        if parts[0] in ('huggingface.co', 'hf.co', 'www.huggingface.co') and len(parts) >= 3:
            revision, file = (parts[4:5], parts[5:]) if parts[3:4] in (['blob'], ['resolve'], ['tree']) else ([], [])
            revision = [] if revision == ['main'] else revision
            name = '@'.join(['/'.join(parts[1:3]), *revision]) + (f':{"/".join(file)}' if file else '')
            return f'{uri} is an address; for the hub write hf:{name.partition("?")[0]}.'
        return f'{uri} is an address: download it, then give its path, such as torch:PATH.'
    if colon and '/' not in scheme and '.' not in scheme:
        return f'{uri}: unknown scheme {scheme!r}: {nearest(scheme, ["hf", "adapter", *READERS])}'
    path = expanded(uri)
    expected = 'the folder of a former run, weights, or a well-known name'
    if path.suffix in hub.SUFFIXES or ('/' in uri and path.parent.is_dir()):
        return f'{uri!r} does not exist; expected {expected}. {_nearest_file(path)}'
    repo = uri.count('/') == 1 and not uri.startswith(('.', '~', '/'))
    hint = f'For the Hugging Face hub write hf:{uri}. ' if repo else ''
    names = [name for name in catalogue.KNOWN if ('/' in name) == repo]
    if uri and (whole := [name for name in names if name.startswith(uri)]):
        return f'{uri!r} is not a whole name. Did you mean {", ".join(whole)}?'
    return f'{uri!r} does not exist; expected {expected}. {hint}{_capital(nearest(uri, names))}'


def locate(scheme: str, rest: str) -> Path:
    """The file behind `scheme:rest`; for a directory the weights in it.

    Raises:
        UserError: it is not there, and what is.
    """
    path = expanded(rest)
    if path.is_dir() and scheme == 'keras':
        raise UserError(f'keras:{rest} is a directory; expected a file, .h5 or .keras.')
    if path.is_dir():
        weights = weights_in(path, scheme)
        if of_suffix(weights) != scheme:
            raise UserError(f'{scheme}:{rest} has {printable(weights.name)}: write {of_suffix(weights)}:{rest}.')
        return weights
    if not path.exists():
        raise UserError(f'{scheme}:{rest} does not exist. {_nearest_file(path)}')
    return path


def has_weights(folder: Path) -> bool:
    """Whether any file of a directory looks like weights."""
    return any(of_suffix(path) for path in folder.iterdir())


def weights_in(folder: Path, scheme: str = '') -> Path:
    """The weights of a directory: those of Hugging Face's names first, else the only one of a known suffix."""
    named = [folder / name for name in hub.WEIGHTS if (folder / name).is_file()]
    if wanted := [path for path in named if not scheme or of_suffix(path) == scheme]:
        return wanted[0]
    others = named or sorted(path for path in folder.iterdir() if path.is_file() and of_suffix(path))
    if len(others) != 1:
        names = sorted(path.name for path in folder.iterdir())
        what = f'several: name one of {some(map(str, others), 8)}' if others else f'only {some(names, 8) or "nothing"}'
        raise UserError(f'{folder}: expected {" or ".join(hub.WEIGHTS)} or one file of weights, found {what}.')
    return others[0]


def beside(weights: Path, whole: bool) -> dict[str, Path]:
    """The weights, with the files beside them that describe them.

    Args:
        whole: all that lies there belongs together; else that is so of files that bear one of Hugging Face's names.
    """
    names = (hub.CONFIG, hub.PREPROCESSOR, hub.POOLING, *hub.TOKENIZER) if whole or weights.name in hub.WEIGHTS else ()
    parts = shards.files(weights) if weights.name.endswith('.index.json') else []
    found = {name: weights.parent / name for name in names if (weights.parent / name).is_file()}
    return {**found, weights.name: weights, **{part: weights.parent / part for part in parts}}


def of_suffix(path: Path) -> str | None:
    """The scheme that reads a file, by its name; an index is read as what it lists."""
    return hub.SUFFIXES.get(Path(path.name.removesuffix('.index.json')).suffix.lower())


def _nearest_file(path: Path) -> str:
    if not path.parent.is_dir():
        return f'There is no directory {path.parent}.'
    there = sorted(p.name for p in path.parent.iterdir())
    likely = [name for name in there if of_suffix(Path(name))] or there
    return _capital(nearest(path.name, likely[:30]))


def _capital(sentence: str) -> str:
    return sentence[:1].upper() + sentence[1:]


def _known_suffixes() -> str:
    return f'Known: {", ".join(hub.SUFFIXES)}. Or say what it is: {", ".join(f"{name}:PATH" for name in READERS)}.'
