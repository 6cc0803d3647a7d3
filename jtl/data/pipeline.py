"""Batches. The step is the data state: batch `s` is a pure function of (seed, s), so a run resumes by asking for it.

Epoch `e` visits the examples in the order of a permutation keyed by (seed, e); batches run on across epochs, so that
every batch is full. An example's augmentation is keyed by (seed, epoch, example) alone: it does not depend on the
batch size, on the other examples, or on how many workers there are.

Balanced batches go round the classes: round `r` takes one example of each, in the order of a permutation keyed by
(seed, r). So any whole number of rounds has every class equally often. A class gives its examples in the order of a
permutation keyed by (seed, class, epoch), where its own epoch ends when all its examples have been used; no class waits
for the others. The n-th use of a class is in round n, so here too a batch is found without the ones before.
"""

import dataclasses
import functools
import multiprocessing.connection
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import grain
import numpy as np
from absl import flags

from jtl.data import ops_image, ops_text
from jtl.errors import UserError


class Share(NamedTuple):
    """What one of several processes makes of every batch: its part of the rows.

    Attributes:
        part, parts: the part of the rows, of so many equal ones.
        devices: padded batches have a multiple of this many rows.
    """

    part: int = 0
    parts: int = 1
    devices: int = 1

    def of(self, rows: np.ndarray) -> np.ndarray:
        return np.split(rows, self.parts)[self.part]


class Memory:
    """`get`, remembering decoded examples up to a budget in bytes. Workers start with an empty one."""

    def __init__(self, get: Callable[[int], dict], budget: int):
        self.get, self.budget = get, budget
        self.examples: dict[int, dict] = {}
        self.used = 0

    def __call__(self, i: int) -> dict:
        example = self.examples.get(i)
        if example is None:
            example = self.get(i)
            size = sum(v.nbytes for v in example.values())
            if self.used + size <= self.budget:
                self.examples[i] = example
                self.used += size
        return example

    def __getstate__(self):
        return {'get': self.get, 'budget': self.budget, 'examples': {}, 'used': 0}


@dataclasses.dataclass(frozen=True)
class Preprocess:
    """What a model expects of a picture or a text; it belongs to the weights and is kept in a run's `model/` folder.

    Attributes:
        size: the side of the square picture in pixels; None takes pictures as they are (all of one size).
        mean, std: of pixel values in 0 … 1, one a channel or one for all: the model sees `(x/255 - mean) / std`.
        interpolation: `bicubic`, `bilinear`, `lanczos` or `nearest`, antialiased but for the last.
        crop: evaluation resizes the short side to `size / crop`, rounded down, and cuts out the centre.
        channels: 1 or 3; None takes the data's.
        resize: `short`, or `squash` for both sides to `size / crop`, which keeps the whole picture but not its shape.
        centre: `even`, or `floor`: how half a pixel is rounded where the margin is odd (see `ops_image.fit`).
        length: tokens of a text, of which longer ones lose their end; None is that of the longest training text, and
            no more than the weights were made for.
        tokenizer: of the weights; None for pictures.
    """

    size: int | None = None
    mean: tuple[float, ...] = (0.5,)
    std: tuple[float, ...] = (0.5,)
    interpolation: str = 'bicubic'
    crop: float = 1.0
    channels: int | None = None
    resize: str = 'short'  # these two have defaults that the folders of older runs mean
    centre: str = 'even'
    length: int | None = None
    tokenizer: ops_text.Tokenizer | None = dataclasses.field(default=None, repr=False)

    def __post_init__(self):
        for key, fine, expected in (
            ('size', self.size is None or self.size >= 1, 'at least 1, or None'),
            ('std', all(s > 0 for s in self.std), 'above 0'),
            ('interpolation', self.interpolation in ops_image.INTERPOLATIONS, ' or '.join(ops_image.INTERPOLATIONS)),
            ('crop', 0 < self.crop <= 1, 'above 0 and at most 1'),
            ('channels', self.channels in (None, 1, 3), '1, 3 or None'),
            ('resize', self.resize in ops_image.RESIZES, ' or '.join(ops_image.RESIZES)),
            ('length', self.length is None or self.length >= 3, 'at least 3, or None'),
            ('centre', self.centre in ops_image.CENTRES, ' or '.join(ops_image.CENTRES)),
        ):
            if not fine:
                raise UserError(f'config.preprocess.{key}: {getattr(self, key)!r} should be {expected}.')

    def fit(self, image: np.ndarray) -> np.ndarray:
        """uint8 [h, w, c] -> uint8 [size, size, channels]."""
        if self.channels:
            image = ops_image.to_channels(image, self.channels)
        if self.size is None:
            return image
        return ops_image.fit(image, self.size, self.crop, self.interpolation, self.resize, self.centre)

    def tokens(self, text: np.ndarray) -> dict[str, np.ndarray]:
        """A text or a pair of them, str [1] or [2] -> `tokens` and `token_types`, int32 [T]."""
        first, *second = ([str(part)] for part in text)
        return {name: rows[0] for name, rows in self.tokenizer(first, self.length, *second).items()}

    def normalise(self, images: Sequence[np.ndarray]) -> np.ndarray:
        """B pictures of one size -> float32 [B, H, W, C]."""
        shapes = {image.shape for image in images}
        if len(shapes) > 1:
            raise UserError(
                f'pictures differ in size ({", ".join(map(str, sorted(shapes)[:3]))}): give config.preprocess.size.'
            )
        x = np.stack(images).astype(np.float32)
        x *= np.float32(1 / 255) / np.asarray(self.std, np.float32)
        x -= np.asarray(self.mean, np.float32) / np.asarray(self.std, np.float32)
        return x


@dataclasses.dataclass(frozen=True, eq=False, repr=False)  # grain prints what it maps, and these hold arrays
class Inputs:
    """Examples of a split, by their numbers, as the inputs of a model: `image`, `tokens`, or `features`, each [B, …].

    Of an epoch, pictures are augmented as in training, keyed by (seed, epoch, example); of None, they are not.
    """

    get: Callable[[int], dict]
    preprocess: Preprocess
    augment: tuple = ()
    seed: int = 0

    def __call__(self, index: np.ndarray, epoch: np.ndarray | None = None) -> dict[str, np.ndarray]:
        if epoch is None or not self.augment:
            return stack([_fitted(self.get(int(i)), self.preprocess) for i in index], self.preprocess)
        return stack([self.augmented(int(i), int(e)) for i, e in zip(index, epoch)], self.preprocess)

    def augmented(self, i: int, epoch: int) -> dict:
        example = self.get(i)
        if 'image' not in example:
            return _fitted(example, self.preprocess)
        rng = np.random.Generator(np.random.Philox(key=np.array([self.seed << 32 | epoch, i], np.uint64)))
        image = example['image']
        if self.preprocess.channels:
            image = ops_image.to_channels(image, self.preprocess.channels)
        if not ops_image.takes_any_size(self.augment[0]):  # random_resized_crop cuts from the whole picture
            image = self.preprocess.fit(image)
        size, interpolation = self.preprocess.size, self.preprocess.interpolation
        return {'image': ops_image.augment(rng, image, self.augment, size, interpolation)}


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class TrainBatch:
    """step -> this process's share of the batch of `batch_size` examples, in the order that the seed gives."""

    inputs: Callable[[np.ndarray, np.ndarray], dict]  # (examples [B], epochs [B]) -> arrays [B, …]; see `Inputs`
    labels: np.ndarray  # of the whole source split
    index: np.ndarray  # the examples of it to train on
    batch_size: int
    seed: int
    share: Share = Share()
    classes: tuple[np.ndarray, ...] = ()  # the examples of each class, to take as many of each; empty: as they come

    def __call__(self, step: int) -> dict[str, np.ndarray]:
        return _labelled(self.inputs, self.labels, *self.order(step))

    def order(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """`(examples, epochs)` of the batch, [B / parts]; the epoch is how often an example has been used before."""
        position = self.share.of(np.arange(step * self.batch_size, (step + 1) * self.batch_size))
        if self.classes:
            return self._balanced(position)
        epoch, place = np.divmod(position, len(self.index))
        chosen = np.array([_permutation(self.seed, int(e), len(self.index))[p] for e, p in zip(epoch, place)])
        return self.index[chosen], epoch

    def _balanced(self, position: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        sizes = np.array([len(members) for members in self.classes])
        around, turn = np.divmod(position, len(sizes))
        orders = [_permutation(self.seed, int(r), len(sizes), stream=1) for r in around]
        k = np.array([order[t] for order, t in zip(orders, turn)])  # the class of each row
        epoch, place = np.divmod(around, sizes[k])
        examples = np.empty_like(position)
        for one, e in set(zip(k.tolist(), epoch.tolist())):  # all rows of a permutation at once: it may be a long one
            here = (k == one) & (epoch == e)
            examples[here] = self.classes[one][_permutation(self.seed, e, int(sizes[one]), stream=2 + one)[place[here]]]
        return examples, epoch


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class PlainBatch:
    """k -> the k-th batch of a pass in order, not augmented.

    The last one is filled up with rows of mask 0 to a power of two, so that splits of all sizes share a few shapes and
    a small one is not mostly padding; and every one to a multiple of the devices.
    """

    inputs: Callable[[np.ndarray, None], dict]
    labels: np.ndarray
    index: np.ndarray
    batch_size: int
    share: Share = Share()

    def __call__(self, k: int) -> dict[str, np.ndarray]:
        index = self.index[k * self.batch_size : (k + 1) * self.batch_size]
        size = min(self.batch_size, 1 << (len(index) - 1).bit_length())
        padding = size + -size % self.share.devices - len(index)
        mask = self.share.of(np.r_[np.ones(len(index), np.float32), np.zeros(padding, np.float32)])
        index = self.share.of(np.r_[index, np.repeat(index[-1:], padding)])
        return {**_labelled(self.inputs, self.labels, index, None), 'mask': mask}

    def __len__(self) -> int:
        return -(-len(self.index) // self.batch_size)


def _labelled(inputs: Callable, labels: np.ndarray, index: np.ndarray, epoch: np.ndarray | None) -> dict:
    return {**inputs(index, epoch), 'label': labels[index], 'index': index.astype(np.int32)}


def stream(batch: Callable[[int], dict], start: int, stop: int, threads: int, workers: int) -> Iterator[dict]:
    """`batch(start)`, …, `batch(stop - 1)`, made ahead of time by threads or, if `workers`, by processes.

    Decoding and resizing release the interpreter lock, so threads serve up to a few cores.
    """
    ds = grain.MapDataset.range(start, stop).map(batch)
    ds = ds.to_iter_dataset(grain.ReadOptions(num_threads=threads, prefetch_buffer_size=2 * threads if threads else 0))
    if workers:
        if not flags.FLAGS.is_parsed():  # grain reads its own flags when it starts processes
            flags.FLAGS.mark_as_parsed()
        options = grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=2)
        ds = ds.mp_prefetch(options, worker_init_fn=_live_with_the_run)
    return iter(ds)


def _live_with_the_run(worker: int, workers: int) -> None:
    """A worker's life: as long as the run's, and no shorter.

    Ctrl-C and a scheduler's SIGTERM reach it too, but it is needed until the run has saved. And a run that is killed
    cannot end it.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)

    def end_with(sentinel: int) -> None:
        multiprocessing.connection.wait([sentinel])
        os._exit(1)

    parent = multiprocessing.parent_process()
    threading.Thread(target=end_with, args=(parent.sentinel,), daemon=True).start()


@functools.lru_cache(maxsize=8)
def _permutation(seed: int, epoch: int, n: int, stream: int = 0) -> np.ndarray:
    key = np.array([seed, stream << 32 | epoch], np.uint64)  # where streams begin, no example has a number
    return np.random.Generator(np.random.Philox(key=key)).permutation(n)


def _fitted(example: dict, preprocess: Preprocess) -> dict:
    if 'text' in example:
        return preprocess.tokens(example['text'])
    return {'image': preprocess.fit(example['image'])} if 'image' in example else example


def stack(examples: Sequence[dict], preprocess: Preprocess) -> dict:
    """B examples of one size as the inputs of a model: `image`, `tokens` and `token_types`, or `features`."""
    if 'image' in examples[0]:
        return {'image': preprocess.normalise([e['image'] for e in examples])}
    return {name: np.stack([e[name] for e in examples]) for name in examples[0]}
