"""How good are the predictions: loss, accuracy, precision and recall, ranking, calibration.

Everything is computed on the host in float64 from one confusion matrix and a few sorts: an evaluation of 800
examples takes about a millisecond, because comparisons call it hundreds of times.

Shapes: N examples, K classes.
"""

from collections.abc import Iterator

import numpy as np

from jtl.errors import UserError
from jtl.evals import Seen


def run(seen: Seen) -> Iterator[tuple[str, float | np.ndarray]]:
    """Yield the scalars, then the arrays per class, for single-label (label [N]) or multi-label ([N, K]) outputs.

    Macro averages are over the classes that occur in the split's labels, so that a class without a test example
    neither counts as 0 nor as 1. A ratio with nothing below the line (precision of a class that is never
    predicted) is 0. Logits with a NaN or +inf give a NaN loss and count as a wrong prediction of no class.

    Raises:
        UserError: a label is outside 0 … K - 1, or the labels' shape fits neither kind.
    """
    logits, label = np.asarray(seen.outputs['logits'], np.float64), np.asarray(seen.outputs['label'])
    if logits.ndim != 2 or label.shape not in (logits.shape, logits.shape[:1]):
        raise UserError(f'classification needs logits [N, K] and labels [N] or [N, K]: {logits.shape}, {label.shape}.')
    with np.errstate(all='ignore'):
        yield from (_multi_label if label.ndim == 2 else _single_label)(logits, label)


def _single_label(logits: np.ndarray, label: np.ndarray) -> Iterator[tuple[str, float | np.ndarray]]:
    N, K = logits.shape
    label = label.astype(np.int64)
    if N and not 0 <= label.min() <= label.max() < K:
        raise UserError(f'labels run from {label.min()} to {label.max()}, but the model has {K} classes: 0 to {K - 1}.')
    sound = ~(np.isnan(logits) | np.isposinf(logits)).any(1)  # [N]
    log_p = logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)  # [N, K]
    predicted = logits.argmax(1)  # [N]
    correct = sound & (predicted == label)

    yield 'loss', float(-log_p[np.arange(N), label].mean())
    yield 'accuracy', float(correct.mean())
    if K > 5:
        true = logits[np.arange(N), label][:, None]  # [N, 1]
        ahead = (logits > true) | ((logits == true) & (np.arange(K) < label[:, None]))  # ties in argmax's order
        yield 'top5', float((sound & (ahead.sum(1) < 5)).mean())
    pairs = label[sound] * K + predicted[sound]
    confusion = np.bincount(pairs, minlength=K * K).reshape(K, K)  # rows: true, columns: predicted
    support = np.bincount(label, minlength=K)  # [K]
    per_class = scores(np.diag(confusion), confusion.sum(0), support)
    yield from _macro(per_class, support)
    if K == 2:
        yield 'auroc', auroc(log_p[:, 1] - log_p[:, 0], label == 1)
    yield 'ece', calibration_error(np.exp(log_p.max(1)), correct)
    yield from per_class.items()
    yield 'support', support
    yield 'confusion', confusion


def _multi_label(logits: np.ndarray, label: np.ndarray) -> Iterator[tuple[str, float | np.ndarray]]:
    K = logits.shape[1]
    truth, predicted = label > 0.5, logits > 0  # [N, K]; a logit of 0 is a probability of 0.5
    correct = (truth == predicted) & ~np.isnan(logits)
    p = 1 / (1 + np.exp(-logits))

    yield 'loss', float((np.logaddexp(0, logits) - label * logits).mean())
    yield 'accuracy', float(correct.mean())
    yield 'exact_match', float(correct.all(1).mean())
    support = truth.sum(0)  # [K]
    per_class = scores((truth & predicted).sum(0), predicted.sum(0), support)
    yield from _macro(per_class, support)
    both = [k for k in range(K) if 0 < support[k] < len(label)]
    yield 'auroc', _mean([auroc(logits[:, k], truth[:, k]) for k in both])
    yield 'map', _mean([average_precision(logits[:, k], truth[:, k]) for k in range(K) if support[k]])
    yield 'ece', calibration_error(np.maximum(p, 1 - p).ravel(), correct.ravel())
    yield from per_class.items()
    yield 'support', support


def scores(hits: np.ndarray, predicted: np.ndarray, support: np.ndarray) -> dict[str, np.ndarray]:
    """Precision TP / (TP + FP), recall TP / (TP + FN) and their harmonic mean 2 TP / (2 TP + FP + FN), each [K].

    Args:
        hits, predicted, support: how often each class was right (TP), predicted (TP + FP), true (TP + FN).
    """
    ratio = lambda above, below: above / np.maximum(below, 1)  # noqa: E731 (0 / 0 = 0)
    return {
        'precision': ratio(hits, predicted),
        'recall': ratio(hits, support),
        'f1': ratio(2 * hits, predicted + support),
    }


def auroc(score: np.ndarray, positive: np.ndarray) -> float:
    """The chance that a positive scores above a negative, ties counting half (Mann and Whitney, 1947).

        AUROC = (sum of the positives' ranks - P (P + 1) / 2) / (P (N - P)),  ties sharing their mean rank

    Args:
        score: [N]. positive: bool [N], P of them true. NaN where a class is empty or a score is NaN.
    """
    P, N = int(positive.sum()), len(score)
    if P in (0, N) or np.isnan(score).any():
        return float('nan')
    _, group, count = np.unique(score, return_inverse=True, return_counts=True)
    rank = np.cumsum(count) - (count - 1) / 2  # mean rank of each group of equal scores, from 1
    return float((rank[group][positive].sum() - P * (P + 1) / 2) / (P * (N - P)))


def average_precision(score: np.ndarray, positive: np.ndarray) -> float:
    """The area under precision against recall, without interpolation: AP = Σ (R_i - R_(i-1)) P_i.

    The sum is over the distinct scores, from the highest, so that the order among equal scores is of no matter.

    Args:
        score: [N]. positive: bool [N]. NaN where there is no positive or a score is NaN.
    """
    if not positive.any() or np.isnan(score).any():
        return float('nan')
    order = np.argsort(-score, kind='stable')
    ends = np.append(np.flatnonzero(np.diff(score[order])), len(score) - 1)  # the last of each group of equals
    hits = np.cumsum(positive[order])[ends]
    return float((np.diff(hits, prepend=0) / hits[-1] * hits / (ends + 1)).sum())


def calibration_error(confidence: np.ndarray, correct: np.ndarray, bins: int = 15) -> float:
    """Expected calibration error: how far confidence is from accuracy, averaged over bins of equal confidence.

        ECE = Σ_b |B_b| / N · |accuracy(B_b) - confidence(B_b)|,  B_b = ((b - 1) / bins, b / bins]

    Guo et al., "On Calibration of Modern Neural Networks", 2017. Confidence is the probability of the decision
    that was made: the largest of a softmax; max(p, 1 - p) for each label of a multi-label problem.

    Args:
        confidence, correct: [N]. NaN if a confidence is.
    """
    if np.isnan(confidence).any():
        return float('nan')
    which = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    gaps = np.bincount(which, weights=correct - confidence, minlength=bins)
    return float(np.abs(gaps).sum() / len(confidence))


def _macro(per_class: dict[str, np.ndarray], support: np.ndarray) -> Iterator[tuple[str, float]]:
    for name, values in per_class.items():
        yield f'{name}_macro', _mean(values[support > 0])


def _mean(values) -> float:
    return float(np.mean(values)) if len(values) else float('nan')
