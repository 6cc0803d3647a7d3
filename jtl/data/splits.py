"""Which examples are for training, which choose, which are reported: seeded, stratified, nobody's label twice."""

from collections.abc import Sequence

import numpy as np

from jtl.data.source import Source
from jtl.errors import UserError, nearest

SAMPLINGS = ('uniform', 'balanced')

Division = dict[str, tuple[str, np.ndarray]]
"""What a run calls `train`, `val` and `test`: the split of the source, and the indices of its examples, ascending."""


def divide(
    source: Source,
    *,
    val: float,
    test: float,
    order: str,
    split_seed: int,
    labels_per_class: int | None,
    test_per_class: int | None,
    seed: int,
) -> Division:
    """Splits the data came with stay as they are; what is missing is held out from `train`, class by class.

    Args:
        val: the share of `train` held out to choose by, where the data has no validation split; 0 is none.
        test: the share held out to report on, where the data has neither a test nor a validation split.
        order: `random`, or `sequential`, which holds out the last examples of each class (for sets whose neighbours
            look alike).
        split_seed: draws the held-out examples. Not the run's seed: all runs are tested on the same examples.
        labels_per_class: keep this many training examples of each class, drawn by `seed`, and at most as many for
            validation, since whoever has few labels has few to validate with.
        test_per_class: report on at most this many test examples of each class, drawn by `split_seed`.
    """
    if order not in ('random', 'sequential'):
        raise UserError(f'config.data.order: {order!r} should be "random" or "sequential".')
    for key, share in (('val', val), ('test', test)):
        if not 0 <= share < 1:
            raise UserError(f'config.data.{key}: {share} should be a share from 0 up to, but not including, 1.')
    parts: Division = {name: (name, np.arange(len(split.labels))) for name, split in source.splits.items()}
    rng = np.random.default_rng(split_seed)
    if 'test' not in parts and 'val' not in parts and test:
        parts['test'] = _hold_out(parts, source, test, order, rng)
    if 'val' not in parts and val:
        parts['val'] = _hold_out(parts, source, val, order, rng)
    if labels_per_class is not None:
        _few(parts, source, labels_per_class, seed)
    if test_per_class is not None and 'test' in parts:
        parts['test'] = _fewer(parts['test'], source, test_per_class, np.random.default_rng((split_seed, 2)))
    return {name: (split, index) for name, (split, index) in parts.items() if len(index)}


def to_sample(sampling: str, source: Source, parts: Division) -> tuple[np.ndarray, ...]:
    """The training examples of each class that has any, for `balanced` batches; nothing for `uniform` ones."""
    if sampling not in SAMPLINGS:
        raise UserError(f'config.data.sampling: {sampling!r} is unknown; {nearest(sampling, SAMPLINGS)}')
    if sampling == 'uniform':
        return ()
    split, index = parts['train']
    labels = source.splits[split].labels
    if labels.ndim > 1:
        raise UserError('config.data.sampling: examples here have several labels each, so no class can be sampled.')
    return tuple(by_class(labels, index))


def _hold_out(parts: Division, source: Source, share: float, order: str, rng) -> tuple[str, np.ndarray]:
    """Takes `share` of each class out of `train`, at least one where a class can spare it."""
    _, index = parts['train']
    taken = []
    for members in by_class(source.splits['train'].labels, index):
        members = rng.permutation(members) if order == 'random' else members
        n = min(max(round(share * len(members)), 1), len(members) - 1)
        taken.append(members[len(members) - n :])
    taken = np.sort(np.concatenate(taken))
    parts['train'] = ('train', np.setdiff1d(index, taken))
    return 'train', taken


def _few(parts: Division, source: Source, n: int, seed: int) -> None:
    if source.splits['train'].labels.ndim > 1:
        raise UserError(
            'config.data.labels_per_class: examples here have several labels each, so none counts by class.'
        )
    if n < 1:
        raise UserError(f'config.data.labels_per_class: {n} should be at least 1, or None for all.')
    for name in ('train', 'val'):
        if name not in parts:
            continue
        split, index = parts[name]
        rng = np.random.default_rng((seed, name == 'val'))
        kept = []
        for label, members in enumerate(by_class(source.splits[split].labels, index, len(source.classes))):
            if name == 'train' and len(members) < n:
                raise UserError(
                    f'config.data.labels_per_class: {n} asked for, but class {source.classes[label]!r} has '
                    f'{len(members)} training examples; the most is {_smallest(source, parts)} '
                    '(fewer held out by config.data.val and .test leave more).'
                )
            kept.append(rng.permutation(members)[:n])
        parts[name] = (split, np.sort(np.concatenate(kept)))


def _fewer(part: tuple[str, np.ndarray], source: Source, n: int, rng) -> tuple[str, np.ndarray]:
    split, index = part
    labels = source.splits[split].labels
    if n < 1 or labels.ndim > 1:
        raise UserError(f'config.data.test_per_class: {n} should be at least 1, of examples with one label each.')
    return split, np.sort(np.concatenate([rng.permutation(members)[:n] for members in by_class(labels, index)]))


def _smallest(source: Source, parts: Division) -> int:
    split, index = parts['train']
    return min(len(m) for m in by_class(source.splits[split].labels, index, len(source.classes)))


def by_class(labels: np.ndarray, index: np.ndarray, classes: int | None = None) -> Sequence[np.ndarray]:
    """The indices of each class; of examples with several labels, all as one class."""
    if labels.ndim > 1:
        return [index]
    values = range(classes) if classes else np.unique(labels[index])
    return [index[labels[index] == value] for value in values]
