"""What a frozen backbone gives for every example: one pass, kept on disk, and read from there ever after.

    data, weights -> open_source -> Frozen -> features: {split: {layer: [N, D]}}

Legend: B batch, N examples, D features.
"""

import functools
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from tqdm import tqdm

from jtl import models, tree
from jtl.config import parse
from jtl.data import Data
from jtl.data.pipeline import Preprocess, stream
from jtl.errors import UserError, some
from jtl.models import layers as taps
from jtl.models.layers import FEATURES
from jtl.plan import Plan, example, make_plan
from jtl.probe import cache
from jtl.sharding import Layout
from jtl.start import loaded

PyTree = Any

BATCH = 64  # examples of a pass; one shape, one compilation
HEAD_ONLY = (('head/.*', 1.0), ('.*', None))


class Frozen(NamedTuple):
    """A backbone that stays as it is, and data for it.

    Attributes:
        data: the examples.
        model: the classifier that the backbone is part of.
        variables: the backbone's parameters and statistics, as Linen takes them.
        what: all that decides its features but the examples: weights, model, preprocessing.
        layout: the devices.
        where: URIs of data and weights, to say what has changed.
    """

    data: Data
    model: models.classifier.Classifier
    variables: PyTree
    what: dict
    layout: Layout
    where: tuple[str, str]


def frozen(plan: Plan, params: PyTree, state: PyTree) -> Frozen:
    """The backbone of a run."""
    kept = lambda tree_: {key: value for key, value in tree_.items() if key != 'head'}  # adapters as well
    statistics = {name: kept(values) for name, values in state.get('model', {}).items()}
    variables = {'params': kept(params), **{name: values for name, values in statistics.items() if values}}
    config = plan.config
    what = {
        'weights': _hash(variables),
        'model': {key: value for key, value in config.model.items() if key not in ('head', 'remat')},
        'preprocess': _preprocess(plan.data.preprocess),
    }
    model = models.build(num_classes=len(plan.data.classes), **config.model)
    return Frozen(plan.data, model, variables, what, plan.layout, (config.data['name'], str(config.init)))


def open_source(data: Mapping, init: str, config: Mapping | None = None) -> tuple[Frozen, Plan]:
    """The backbone behind a URI of weights, made ready for data.

    Args:
        data: the `data` section of a config.
        init: the URI of the weights.
        config: other sections: `model`, `preprocess`, `load`.
    """
    config = {'rules': HEAD_ONLY, 'steps': 1, **(config or {})}
    model = {'head': {}, **config.get('model', {})}  # a linear one, whatever the source's was
    values = {**config, 'model': model, 'data': dict(data), 'init': init}
    plan = make_plan(parse(values))
    params, state, _ = loaded(plan, jax.random.key(plan.config.seed))
    return frozen(plan, params, state), plan


def features(
    of: Frozen,
    layers: Sequence[str] = (FEATURES,),
    *,
    splits: Sequence[str] | None = None,
    pool: str = 'mean',
    folder: str | None = None,
    say: Callable[[str], None] = print,
    quiet: bool = False,
) -> dict[str, dict[str, np.ndarray]]:
    """`{split: {layer: float32 [N, …]}}` of `splits` (None is all), in the order of the examples of each split."""
    found = {}
    for split in splits or of.data.sizes:
        where, index = of.data.parts[split]
        entry, _ = ensure(of, where, index, layers, pool=pool, folder=folder, say=say, quiet=quiet)
        found[split] = {layer: entry.read(layer)[index] for layer in layers}
    return found


def labels(data: Data, split: str) -> np.ndarray:
    """int32 [N], or float32 [N, K] of several labels, of a split's examples."""
    where, index = data.parts[split]
    return data.labels[where][index]


def ensure(
    of: Frozen,
    split: str,
    rows: np.ndarray,
    layers: Sequence[str] = (FEATURES,),
    *,
    pool: str = 'mean',
    epoch: int | None = None,
    folder: str | None = None,
    say: Callable[[str], None] = print,
    quiet: bool = False,
    pulse: Callable[[], None] = lambda: None,
) -> tuple[cache.Entry, cache.Counted]:
    """The entry of a split of the source, in which `rows` are there and whole.

    Args:
        epoch: the augmentation of this epoch of training; None is without. With no augmentation they are the same.
        quiet: show no progress.
        pulse: see `cache.ensure`.

    Raises:
        UserError: no such layer; features that are not finite; files that change meanwhile; a full disk.
    """
    place = cache.root(folder)
    memory = place / 'content'
    epoch = epoch if of.data.augment else None
    batch = example(of.data)
    shapes = taps.shapes(of.model, of.variables, batch, pool)
    unknown = [name for name in layers if name not in shapes]
    if unknown:
        taps.extract(of.model, of.variables, batch, unknown, pool)  # says what there is
    view = None if epoch is None else {'augment': of.data.augment, 'seed': of.data.inputs[split].seed, 'epoch': epoch}
    what = {
        **of.what,
        'data': of.data.content(memory),
        'split': split,
        'pool': pool,
        'view': view,
        'from': [os.getcwd(), *of.where, split],
    }
    size = len(of.data.labels[split])
    entry = cache.entry(place, json.loads(json.dumps(what)), size, {name: shapes[name] for name in layers})
    if not entry.folder.exists():
        for changed in cache.others(place, entry):
            say(f'Features of {of.where[changed == "weights"]}: the {changed} changed since they were computed; again.')

    def compute(wanted: np.ndarray) -> Iterator[tuple[np.ndarray, dict[str, np.ndarray]]]:
        yield from _compute(of, split, tuple(layers), pool, epoch, quiet, wanted)
        try:
            of.data.content(memory)
        except UserError as e:  # some pictures may be other ones than those that the entry is named by
            raise cache.Spoilt(str(e)) from e

    return entry, cache.ensure(entry, rows, compute, say, pulse)


def _compute(
    of: Frozen, split: str, layers: tuple[str, ...], pool: str, epoch: int | None, quiet: bool, rows: np.ndarray
) -> Iterator[tuple[np.ndarray, dict[str, np.ndarray]]]:
    """Pieces of one pass over `rows`: the device works on one while the host writes the last and makes the next."""
    devices = of.layout.mesh.size if of.layout.mesh else 1
    size = BATCH + -BATCH % devices
    parts = [rows[i : i + size] for i in range(0, len(rows), size)]
    run = functools.partial(_compiled(of.model, layers, pool), of.layout.place(of.variables))
    inputs = of.data.inputs[split]

    def make(k: int) -> dict:
        index = np.r_[parts[k], np.repeat(parts[k][-1:], size - len(parts[k]))]  # one shape
        return inputs(index, None if epoch is None else np.full(len(index), epoch))

    def fetch(k: int, values: dict) -> tuple[np.ndarray, dict]:
        part = parts[k]
        found = {name: np.asarray(value)[: len(part)] for name, value in values.items()}
        for name, value in found.items():
            if not np.isfinite(value).all():
                bad = part[~np.isfinite(value).reshape(len(part), -1).all(1)]
                what = f'layer {name} of {of.where[1]} on {of.where[0]}'
                raise UserError(f'{what}: not finite for example {some(map(str, bad))} of split {split!r}.')
        return part, found

    flying = None
    with tqdm(total=len(rows), desc='features', unit='', delay=2, disable=quiet, leave=False) as bar:
        for k, batch in enumerate(stream(make, 0, len(parts), os.cpu_count() or 1, 0)):
            launched = run(of.layout.batch(batch))
            if flying is not None:
                yield fetch(k - 1, flying)
                bar.update(size)
            flying = launched
        yield fetch(len(parts) - 1, flying)


@functools.lru_cache(maxsize=16)
def _compiled(model: models.classifier.Classifier, layers: tuple[str, ...], pool: str) -> Callable:
    return jax.jit(lambda variables, batch: taps.extract(model, variables, batch, layers, pool))


def _hash(variables: PyTree) -> str:
    digest = hashlib.sha256()
    for path, leaf in sorted(tree.flatten(variables).items()):
        digest.update(f'{path} {leaf.shape} {leaf.dtype}'.encode())
        digest.update(np.ascontiguousarray(leaf))
    return digest.hexdigest()


def _preprocess(preprocess: Preprocess) -> dict:
    values = {name: getattr(preprocess, name) for name in preprocess.__dataclass_fields__}
    if preprocess.tokenizer:
        values['tokenizer'] = hashlib.sha256(repr(preprocess.tokenizer).encode()).hexdigest()
    return values
