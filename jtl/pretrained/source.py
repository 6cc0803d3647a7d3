"""Where weights come from: what a URI names, read and described, still under the names that its authors gave.

hf:OWNER/NAME[@REVISION][:FILE]   the Hugging Face hub
torch:PATH[#KEY]                  .pth, .th, .pt, .bin, or the index of a sharded one; KEY is where in the file
safetensors:PATH                  a file, an index, or a directory with one of them
npz:PATH                          NumPy's archive, whoever named the arrays
keras:PATH                        .h5, .keras
PATH                              a directory with config.json and weights, or a file of a known suffix
NAME                              of the catalogue, such as resnet50.a1_in1k
"""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jtl.errors import UserError, nearest
from jtl.pretrained import catalogue, hub
from jtl.pretrained.formats import keras, npz, safetensors, torch
from jtl.pretrained.labels import class_names, read_labels
from jtl.pretrained.preprocessing import described

READERS: dict[str, Callable[..., dict[str, np.ndarray]]] = {
    'torch': torch.read,
    'safetensors': safetensors.read,
    'npz': npz.read,
    'keras': keras.read,
}
SUFFIXES = {
    **dict.fromkeys(('.pth', '.th', '.pt', '.bin', '.ckpt', '.tar'), 'torch'),
    '.safetensors': 'safetensors',
    '.npz': 'npz',
    **dict.fromkeys(('.h5', '.hdf5', '.keras'), 'keras'),
}


class Foreign(NamedTuple):
    """Somebody's checkpoint, as it is.

    Attributes:
        uri: as it was given.
        files: what was read, paths or hub files with the commit, for the record.
        tensors: by their names, in their dtype.
        config: the config.json of Hugging Face or timm; {} if there is none. `pooling` is that of
            sentence-transformers.
        preprocess: the fields of `jtl.data.pipeline.Preprocess` that the checkpoint's own description gives.
        classes: label names in the order of the logits; () if they are not known.
        tokenizer: tokenizer files by name, {} if there are none.
    """

    uri: str
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
    scheme, rest, key = resolve(uri)
    if scheme == 'hf':
        got = hub.fetch(rest)
        files, weights = got.files, got.files[got.weights]
        record = {name: f'hf:{got.repo}@{got.commit}:{name}' for name in files}
        scheme = of_suffix(weights) or ''
        if not scheme:
            raise UserError(f'hf:{rest}: {weights.name} has no suffix that is known. {_known_suffixes()}')
    else:
        weights = locate(scheme, rest)
        files = beside(weights, _path(rest).is_dir())
        record = {name: str(path) for name, path in files.items()}
    tensors = READERS[scheme](weights, key) if key else READERS[scheme](weights)
    by_name = {Path(name).name: path for name, path in files.items() if name != hub.POOLING}
    config, preprocessor = (
        hub.read_json(by_name[name]) if name in by_name else {} for name in (hub.CONFIG, hub.PREPROCESSOR)
    )
    if hub.POOLING in files:
        config['pooling'] = hub.read_json(files[hub.POOLING])
    return Foreign(
        uri,
        tuple(record.values()),
        tensors,
        config,
        described(config, preprocessor),
        names or class_names(config, str(by_name.get(hub.CONFIG))),
        {name: by_name[name].read_bytes() for name in hub.TOKENIZER if name in by_name},
    )


def resolve(uri: str) -> tuple[str, str, str]:
    """A URI -> (scheme, what follows it, KEY or ''); catalogue names and bare paths are given their scheme.

    Raises:
        UserError: no scheme, name or file that is known, with the nearest one.
    """
    scheme, colon, rest = uri.partition(':')
    if colon and scheme == 'hf':
        return scheme, rest, ''
    if colon and scheme in READERS:
        path, _, key = rest.rpartition('#') if scheme == 'torch' and not _path(rest).exists() else (rest, '', '')
        return scheme, path or rest, key if path else ''
    path = _path(uri)
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
        return f'{uri}: unknown scheme {scheme!r}: {nearest(scheme, ["hf", *READERS])}'
    path = _path(uri)
    expected = 'the folder of a former run, weights, or a well-known name'
    if path.suffix in SUFFIXES or ('/' in uri and path.parent.is_dir()):
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
    path = _path(rest)
    if path.is_dir() and scheme == 'keras':
        raise UserError(f'keras:{rest} is a directory; expected a file, .h5 or .keras.')
    if path.is_dir():
        weights = weights_in(path, scheme)
        if of_suffix(weights) != scheme:
            raise UserError(f'{scheme}:{rest} has {weights.name}: write {of_suffix(weights)}:{rest}.')
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
        what = f'several: name one of {", ".join(map(str, others[:8]))}' if others else f'only {_some(folder)}'
        raise UserError(f'{folder}: expected {" or ".join(hub.WEIGHTS)} or one file of weights, found {what}.')
    return others[0]


def beside(weights: Path, whole: bool) -> dict[str, Path]:
    """The weights, with the files beside them that describe them.

    Args:
        whole: all that lies there belongs together; else that is so of files that bear one of Hugging Face's names.
    """
    names = (hub.CONFIG, hub.PREPROCESSOR, hub.POOLING, *hub.TOKENIZER) if whole or weights.name in hub.WEIGHTS else ()
    shards = hub.shards(weights) if weights.name.endswith('.index.json') else []
    found = {name: weights.parent / name for name in names if (weights.parent / name).is_file()}
    return {**found, weights.name: weights, **{shard: weights.parent / shard for shard in shards}}


def of_suffix(path: Path) -> str | None:
    """The scheme that reads a file, by its name; an index is read as what it lists."""
    return SUFFIXES.get(Path(path.name.removesuffix('.index.json')).suffix.lower())


def _path(text: str) -> Path:
    try:
        return Path(text).expanduser()
    except RuntimeError as e:  # ~nobody
        raise UserError(f'{text}: {e}') from e


def _nearest_file(path: Path) -> str:
    if not path.parent.is_dir():
        return f'There is no directory {path.parent}.'
    there = sorted(p.name for p in path.parent.iterdir())
    likely = [name for name in there if of_suffix(Path(name))] or there
    return _capital(nearest(path.name, likely[:30]))


def _capital(sentence: str) -> str:
    return sentence[:1].upper() + sentence[1:]


def _known_suffixes() -> str:
    return f'Known: {", ".join(SUFFIXES)}. Or say what it is: {", ".join(f"{name}:PATH" for name in READERS)}.'


def _some(folder: Path) -> str:
    return ', '.join(sorted(p.name for p in folder.iterdir())[:8]) or 'nothing'
