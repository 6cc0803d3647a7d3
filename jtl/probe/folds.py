"""Which examples a head learns from and which judge it, when a choice is to be made between heads.

Legend: N examples, K folds.
"""

import numpy as np

from jtl.errors import UserError

ENOUGH = 200  # examples of a validation split that can choose: of 0.9, the standard error is 0.02
FOLDS = 5

Division = tuple[np.ndarray, np.ndarray]  # rows to learn from, rows to judge by


def divisions(y: np.ndarray, val: int, number: int | None = None, order: str = 'random') -> list[Division]:
    """How heads are judged: on the validation split, or by cross-validation over that and the training examples.

    A split of a few examples says next to nothing about which of a hundred heads is best, and those few are worth more
    when all take turns.

    Args:
        y: labels [N] or [N, K], the last `val` of them those of the validation split.
        val: its size.
        number: of folds; 0 is the validation split; None is that too if it has `ENOUGH` examples, and else `FOLDS`.
        order: `random`, or `sequential`, which takes a class's neighbours into one fold, as `config.data.order`.

    Raises:
        UserError: 0 without a validation split, or nothing to judge by.
    """
    if number is None:
        number = 0 if val >= ENOUGH else FOLDS
    if number == 0 and not val:
        raise UserError(
            'there is no validation split to judge by: config.data.val holds one out, or take 2 folds or more.'
        )
    if number == 0:
        return [(np.arange(len(y) - val), np.arange(len(y) - val, len(y)))]
    return folds(y, number, order)


def folds(y: np.ndarray, number: int, order: str = 'random', seed: int = 0) -> list[Division]:
    """K-fold division, class by class; folds differ by one example at most, and so do their shares of any class.

    A class's only example is always learnt from, and judges nothing.

    Returns:
        As many rows to learn from in every fold, so that one compiled function serves all: where a fold could have one
        more, an example of its commonest class is left out.

    Raises:
        UserError: no class has two examples.
    """
    group = y if y.ndim == 1 else np.zeros(len(y), int)
    rng, fold, next_one = np.random.default_rng(seed), np.full(len(y), -1), 0
    for k in np.unique(group):
        members = np.flatnonzero(group == k)
        if len(members) < 2:
            continue
        turns = (next_one + np.arange(len(members))) % number
        next_one += len(members)
        fold[members] = rng.permutation(turns) if order == 'random' else np.sort(turns)
    judged = [np.flatnonzero(fold == k) for k in range(number) if (fold == k).any()]
    if not judged:
        raise UserError(f'each class has one example ({len(y)} in all), so that none is left to judge a head by.')
    least = len(y) - max(map(len, judged))
    return [(_all_but(rows, group, least), rows) for rows in judged]


def _all_but(rows: np.ndarray, group: np.ndarray, number: int) -> np.ndarray:
    left = np.setdiff1d(np.arange(len(group)), rows)
    for _ in range(len(left) - number):
        _, where, count = np.unique(group[left], return_index=True, return_counts=True)
        left = np.delete(left, where[count.argmax()])
    return left
