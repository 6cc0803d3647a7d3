"""Which batches arrive? `load` turns a URI into a `Data`.

URIs: `tfds:NAME`, `folder:PATH` (a directory or .zip of class folders), `npz:PATH`, `csv:PATH`, and the bundled
`letters` and `digits`. Each scheme is a file in `jtl/data/sources/` with a function `read(path) -> Source`.
"""

import dataclasses
import functools
import hashlib
import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jtl import names
from jtl.data import content, ops_image
from jtl.data.ops_text import Tokenizer
from jtl.data.pipeline import Inputs, Memory, PlainBatch, Preprocess, Share, TrainBatch, stream
from jtl.data.source import Source
from jtl.data.splits import Division, divide, to_sample
from jtl.errors import UserError

WHOLE = Share()


class Data(NamedTuple):
    """A data set ready to train on.

    Attributes:
        classes: names; label i is `classes[i]`.
        sizes: number of examples by split: `train`, and `val` and `test` where they exist.
        preprocess: with size and channels filled in.
        fingerprint: a hash of the classes, all labels, which examples are where, and the pixels of 256 of them.
        multi_label: whether a label is K zeros and ones instead of one number.
        majority: the share that the commonest training class has of each split, for single labels.
        train: `(start, stop[, share])` -> an iterator of the training batches of the steps `start` … `stop - 1`.
        plain: `split[, share]` -> an iterator of one pass in order, not augmented, padded with rows of mask 0.
        picture: (split, index) -> uint8 [H, W, C], or None where examples are not pictures.
        augment: what is done to training pictures, in order.
        parts: by split, the split of the source that its examples are in, and which ones.
        labels: by split of the source, those of all its examples.
        order: step -> `(examples, epochs)`, [B], of a training batch.
        inputs: `(examples [B] of a split of the source, epochs [B] or None)` -> inputs of a model, by that split.
        content: a folder to remember it in -> a hash of every byte that the data is read from.
        serve: `(train, plain)` -> the same data with other inputs: `train` for training batches, and for passes over a
            split what `plain`, a mapping, has for it.
    """

    classes: tuple[str, ...]
    sizes: dict[str, int]
    preprocess: Preprocess
    fingerprint: str
    multi_label: bool
    majority: dict[str, float]
    train: Callable[..., Iterator[dict]]
    plain: Callable[..., Iterator[dict]]
    picture: Callable[[str, int], np.ndarray | None]
    augment: tuple
    parts: Division
    labels: dict[str, np.ndarray]
    order: Callable[[int], tuple[np.ndarray, np.ndarray]]
    inputs: dict[str, Callable[..., dict]]
    content: Callable[[Path | None], str]
    serve: Callable[..., 'Data']


def load(
    name: str,
    *,
    preprocess: Preprocess,
    batch_size: int,
    seed: int,
    val: float = 0.1,
    test: float = 0.15,
    order: str = 'random',
    split_seed: int = 0,
    labels_per_class: int | None = None,
    test_per_class: int | None = None,
    sampling: str = 'uniform',
    augment: tuple = (),
    eval_batch_size: int | None = None,
    threads: int | None = None,
    workers: int = 0,
    cache_mb: int = 1024,
) -> Data:
    """Opens `name`, divides it, and checks all that can be checked before training starts.

    Args:
        name: the URI.
        preprocess: what the model expects of a picture.
        batch_size: examples a step.
        seed: the run's: draws the few labels, the order and the augmentation.
        val, test, order, split_seed, labels_per_class, test_per_class: see `jtl.data.splits.divide`.
        sampling: `uniform` shows every training example once an epoch; `balanced` shows every class equally often, so
            the examples of small ones more often. Runs are as long as they would be, since `epochs` counts examples.
        augment: image operations for training, in order, by name or as `(name, argument, …)`; see `ops_image`.
        eval_batch_size: examples a batch when evaluating; None is `batch_size`.
        threads: that decode and augment ahead of the step; None is one a core, and none at all when every example is
            in memory and nothing is augmented.
        workers: processes that do it instead, for many cores.
        cache_mb: decoded examples are kept in memory up to this size. A set that fits is decoded before training
            starts, so that a broken picture is found at once.

    Raises:
        UserError: whatever is wrong, naming the file, the class or the key.
    """
    given = {'eval_batch_size': eval_batch_size, 'threads': threads, 'workers': workers, 'cache_mb': cache_mb}
    for key, value in {**given, 'split_seed': split_seed}.items():
        if value is not None and value < (least := int(key == 'eval_batch_size')):
            raise UserError(f'config.data.{key}: {value} should be at least {least}.')
    augment = tuple(op if isinstance(op, str) else tuple(op) for op in augment)
    ops_image.check_ops(augment, preprocess.size)
    source, stamp = _opened(name, cache_mb << 20)
    if augment and source.channels is None:
        kind = 'texts' if 'text' in source.splits['train'].get(0) else 'features'
        raise UserError(f'config.data.augment: {name} holds {kind}, not pictures.')
    parts = divide(
        source,
        val=val,
        test=test,
        order=order,
        split_seed=split_seed,
        labels_per_class=labels_per_class,
        test_per_class=test_per_class,
        seed=seed,
    )
    classes = to_sample(sampling, source, parts)
    in_memory = _decode_ahead(source, parts, cache_mb << 20)
    preprocess = _complete(preprocess, name, source, parts)
    if threads is None:
        threads = 0 if in_memory and not augment else os.cpu_count() or 1

    inputs = {split: Inputs(s.get, preprocess, augment, seed) for split, s in source.splits.items()}

    def picture(split: str, index: int) -> np.ndarray | None:
        return source.splits[parts[split][0]].get(index).get('image')

    def serve(train_inputs: Callable, plain_inputs: Mapping[str, Callable], threads: int, workers: int) -> Data:
        def batches(share: Share) -> TrainBatch:
            where, index = parts['train']
            return TrainBatch(train_inputs, source.splits[where].labels, index, batch_size, seed, share, classes)

        def train(start: int, stop: int, share: Share = WHOLE) -> Iterator[dict]:
            return stream(batches(share), start, stop, threads, workers)

        def plain(split: str, share: Share = WHOLE) -> Iterator[dict]:
            where, index = parts[split]
            labels, size = source.splits[where].labels, eval_batch_size or batch_size
            make = PlainBatch(plain_inputs.get(split, inputs[where]), labels, index, size, share)
            return stream(make, 0, len(make), threads, 0)

        return Data(
            classes=source.classes,
            sizes={split: len(index) for split, (_, index) in parts.items()},
            preprocess=preprocess,
            fingerprint=fingerprint,
            multi_label=source.splits['train'].labels.ndim > 1,
            majority=majority,
            train=train,
            plain=plain,
            picture=picture,
            augment=augment,
            parts=parts,
            labels={split: s.labels for split, s in source.splits.items()},
            order=batches(WHOLE).order,
            inputs=inputs,
            content=functools.partial(_content, name, source, stamp),
            serve=functools.partial(serve, threads=0, workers=0),
        )

    fingerprint, majority = _fingerprint(source, parts), _majority(source, parts)
    return serve(inputs[parts['train'][0]], {}, threads, workers)


def read(name: str) -> Source:
    """The source behind a URI."""
    scheme, _, path = name.partition(':')
    bundled = scheme in ('letters', 'digits')
    if bundled == bool(path):
        hint = ''
        if not bundled and os.path.exists(name):
            suffix = Path(name).suffix
            hint = f' Did you mean {suffix[1:] if suffix in (".csv", ".npz") else "folder"}:{name}?'
        raise UserError(
            f'config.data.name: {name!r} is not a URI: expected tfds:NAME, folder:PATH, npz:PATH, csv:PATH, '
            f'letters or digits.{hint}'
        )
    return names.module('jtl.data.sources', scheme, f'config.data.name: data scheme of {name!r}').read(path)


def _opened(name: str, budget: int) -> tuple[Source, str]:
    """`(the source behind a URI, the stamp of its files)`; a process opens it once, until a file changes."""
    source, then = open_source(name, _folders(name), budget)
    try:
        if content.stamp(source.files) == then:
            return source, then
    except OSError:  # one is gone
        pass
    open_source.cache_clear()
    return open_source(name, _folders(name), budget)


@functools.lru_cache(maxsize=8)
def open_source(name: str, folders: tuple, budget: int) -> tuple[Source, str]:
    """`(read(name) with decoded examples kept, the stamp of its files)`."""
    source = read(name)
    stamp = content.stamp(source.files)
    total = sum(len(s.labels) for s in source.splits.values())
    splits = {
        split: s._replace(get=Memory(s.get, budget * len(s.labels) // max(total, 1)))
        for split, s in source.splits.items()
    }
    return source._replace(splits=splits), stamp


def _folders(name: str) -> tuple:
    """Changes when files behind a URI come or go."""
    path = Path(name.partition(':')[2])
    if not path.parts or not path.exists():
        return ()
    folders = [p for p in path.glob('*') if p.is_dir()] if path.is_dir() else []
    folders += [p for folder in folders for p in folder.glob('*') if p.is_dir()]
    return tuple((str(p), p.stat().st_mtime_ns, p.stat().st_size) for p in [path, *sorted(folders)])


def _content(name: str, source: Source, then: str, memory: Path | None = None) -> str:
    """The hash of what was opened, not of what may lie there by now.

    Of a source that names no files, it is that of its examples.
    """
    if not source.files:
        return content.examples(split.get(i) for split in source.splits.values() for i in range(len(split.labels)))
    found = content.content(source.files, memory)
    if content.stamp(source.files) != then:
        raise UserError(f'{name}: files changed since they were opened; start again once they stay as they are.')
    return found


def _decode_ahead(source: Source, parts: Division, budget: int) -> bool:
    """Decodes the examples that will be used, if a sample of them says that they fit in memory; whether they did."""
    needed = [(source.splits[split].get, int(i)) for split, index in parts.values() for i in index]
    sample = needed[:: max(len(needed) // 16, 1)]
    size = sum(value.nbytes for get, i in sample for value in get(i).values()) / len(sample)
    if size * len(needed) > budget:
        return False
    missing = [(get, i) for get, i in needed if i not in get.examples]
    if missing:
        with ThreadPoolExecutor() as pool:
            list(pool.map(lambda job: job[0](job[1]), missing))
    return all(i in get.examples for get, i in needed)


def _complete(preprocess: Preprocess, name: str, source: Source, parts: Division) -> Preprocess:
    """Size and channels, or the length of texts, that were left to the data."""
    if source.channels is None:
        split, index = parts['train']
        get = source.splits[split].get
        if 'text' not in get(int(index[0])):
            return dataclasses.replace(preprocess, tokenizer=None)
        if preprocess.tokenizer is None:
            raise UserError(f'{name} holds texts: they need a model of text with its tokenizer, by config.init.')
        length = preprocess.length or _longest((get(int(i))['text'] for i in index), preprocess.tokenizer)
        return dataclasses.replace(preprocess, length=length)
    preprocess = dataclasses.replace(preprocess, tokenizer=None)
    channels = preprocess.channels or source.channels
    for key in ('mean', 'std'):
        if len(getattr(preprocess, key)) not in (1, channels):
            counts = ' or '.join(map(str, sorted({1, channels})))
            raise UserError(f'config.preprocess.{key}: {getattr(preprocess, key)} should have {counts} values.')
    if preprocess.size is None:
        split, index = parts['train']
        h, w, _ = source.splits[split].get(int(index[0]))['image'].shape
        return dataclasses.replace(preprocess, channels=channels, size=h if h == w else None)
    return dataclasses.replace(preprocess, channels=channels)


def _longest(texts: Iterable[np.ndarray], tokenizer: Tokenizer) -> int:
    """Tokens of the longest text, rounded up to a multiple of 8, and no more than the tokenizer's weights take."""
    most, found = tokenizer.length or 512, 1
    texts = iter(texts)
    while part := list(itertools.islice(texts, 1024)):
        first, *second = (list(map(str, column)) for column in zip(*part))
        found = max(found, tokenizer(first, most, *second, fixed=False)['tokens'].shape[1])
    return min(-(-found // 8) * 8, most)


def _majority(source: Source, parts: Division) -> dict[str, float]:
    split, index = parts['train']
    if source.splits[split].labels.ndim > 1:
        return {}
    commonest = np.bincount(source.splits[split].labels[index]).argmax()
    return {name: float(np.mean(source.splits[s].labels[i] == commonest)) for name, (s, i) in parts.items()}


def _fingerprint(source: Source, parts: Division) -> str:
    digest = hashlib.sha256(repr(source.classes).encode())
    for name, (split, index) in sorted(parts.items()):
        digest.update(f'{name} {split} {source.splits[split].labels.shape}'.encode())
        digest.update(index.astype(np.int64).tobytes())
        digest.update(np.ascontiguousarray(source.splits[split].labels[index]).tobytes())
        for i in index[:: max(len(index) // 256, 1)]:
            for value in source.splits[split].get(int(i)).values():
                digest.update(value.tobytes())
    return digest.hexdigest()[:16]
