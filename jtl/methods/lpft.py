"""LP-FT: the head is solved for on frozen features before anything is fine-tuned.

Legend: B batch, N examples, D features, K classes.
"""

import functools
from collections.abc import Callable, Iterable

import flax.linen as nn
import jax
import numpy as np

from jtl.errors import UserError, nearest
from jtl.method import Batch, Method
from jtl.models.classifier import Linear

HEADS = ('logistic', 'ridge')


def lpft(method: Method, *, model: nn.Module, head: str = 'logistic') -> Method:
    """Starts `method` with the best linear head on the features as they are, and leaves the rest to the rules.

        head⁰ = argmin_{W, b} Σ_n CE(f(x_n) W + b, y_n) + λ/2 ‖W‖²,  then fine-tuning from (backbone⁰, head⁰)

    Kumar et al., "Fine-Tuning can Distort Pretrained Features and Underperform Out-of-Distribution", ICLR 2022: while a
    random head is learnt, its gradients turn the features towards itself; one that fits already leaves them be. There
    the head is trained; here it is solved, by `jtl.probe`: on unaugmented features, standardised, with λ chosen by
    5-fold cross-validation. With rules `all` this is LP-FT in one run; with `head`, a linear probe trained further.

    The scores are scaled to logits by one factor, that with the least cross-entropy on the examples held out and one
    that is counted as wrong, so that ridge regression will do as well, and no head is so sure that its loss has no
    gradient left; decisions stay as they are. Classes are weighted as `class_weights` of the loss.

    Args:
        head: how it is solved: `logistic` regression, or `ridge` regression on ±1, which is faster.

    Raises:
        UserError: the model's head is not linear; when `prepare` runs, examples that nothing can be chosen by, e.g. one
            of each class.
    """
    if head not in HEADS:
        raise UserError(f'config.method.lpft.head: {head!r} is unknown; {nearest(head, HEADS)}')
    if not isinstance(model.head, Linear):
        name = type(model.head).__name__
        raise UserError(f'config.method.lpft: solves for a linear head, and this one is {name}: config.model.head.')

    def prepare(params, state, batches, rng):
        params, state = method.prepare(params, state, batches, rng)
        x, y = frozen_features(method, params, state, batches)
        kernel, bias = solve(x, y, params['head']['bias'].shape[0], head, state.get('class_weight'))
        return {**params, 'head': {**params['head'], 'kernel': kernel, 'bias': bias}}, state

    return method._replace(prepare=prepare)


def frozen_features(method: Method, params, state, batches: Iterable[Batch]) -> tuple[np.ndarray, np.ndarray]:
    """The features [N, D] and the labels of one pass."""
    features, labels = [], []
    for batch in batches:
        real = np.asarray(batch.get('mask', np.ones(len(batch['label'])))) > 0
        outputs = _predict(method)(params, state, batch)
        features.append(np.asarray(outputs['features'], np.float32)[real])
        labels.append(np.asarray(batch['label'])[real])
    return np.concatenate(features), np.concatenate(labels)


@functools.lru_cache(maxsize=8)
def _predict(method: Method) -> Callable:
    return jax.jit(method.predict)


def solve(
    x: np.ndarray, y: np.ndarray, K: int, head: str = 'logistic', class_weight: Iterable[float] | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """The kernel [D, K] and the bias [K] of a linear head whose scores are logits, its penalty by cross-validation.

    Args:
        x: features [N, D]. y: labels [N], or [N, K] of zeros and ones.
        class_weight: [K]; of several labels an example there are none.
    """
    from jtl.probe import choose  # which imports much; methods are imported to read their signatures
    from jtl.probe.folds import divisions

    x = without_idle(x)
    classes, layers = tuple(map(str, range(K))), {'features': x}
    weights = None if class_weight is None or y.ndim == 2 else np.asarray(class_weight).tolist()
    try:
        by = divisions(y, val=0)
        found = choose.best(choose.candidates(layers, y, classes, by, (head,), weights=weights))
    except UserError as e:
        raise UserError(f'config.method.lpft: {e}') from e
    rows, scores = choose.held_out(found, x, y, classes, by, weights)
    fitted = choose.refit(found, x, y, classes, weights).head.linear()
    kernel, bias = choose.scaled(fitted, choose.temperature(scores, y[rows]))
    return np.asarray(kernel[0], np.float32), np.asarray(bias[0], np.float32)


def without_idle(x: np.ndarray) -> np.ndarray:
    """Features [N, D], zero where one varies by less than a hundredth of what the middle one does.

    A relu that hardly ever fires would, standardised, be given an enormous weight, and with it every gradient.
    """
    spread = x.std(0)
    return np.where(spread < 0.01 * np.median(spread), 0, x)
