"""What features of one source say of the data: scores, leave-one-out accuracies, layers compared. Features in, numbers
out; nothing is trained by gradient descent, and no test example is looked at.

Legend: N examples, D features, K classes, Z source classes, P layers, L values of λ, H of k.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from jtl import paired
from jtl.errors import UserError
from jtl.probe import bootstrap, scores
from jtl.probe.cka import cka_matrix
from jtl.probe.heads import check, standard
from jtl.probe.neighbours import neighbours
from jtl.probe.ranking import difference, interval, nested
from jtl.probe.ridge import ridge

LAMBDAS = tuple(float(x) for x in 10.0 ** np.arange(5, -2.5, -0.5))  # of standardised features; the largest first
KS = (50, 20, 10, 5, 3, 1)
GROUPS = 10  # of the jackknife


def layer_numbers(
    x: Mapping[str, np.ndarray], y: np.ndarray, classes: Sequence[str], fold: np.ndarray, confidence: float, where: str
) -> tuple[list[dict], dict[str, np.ndarray]]:
    """Rows of `advice.json`'s `layers`, and how right each example came out over all layers, by `ridge` and `knn`.

    k-NN is by cosine. For the ridge, features are standardised by all N examples, the one that is left out included;
    its label is not used. Each row's interval is of the layer with λ, or k, chosen on other examples: `ranking.nested`.

    Args:
        x: by layer, from the input to the features, [N, D].
        fold: [N]; see `ranking.folds`.
        where: what the source is called in a message.
    """
    hits = {name: _hits(features, y, classes, f'{where}, {name}') for name, features in x.items()}
    right = {  # of equals the last layer, the largest λ, the largest k
        head: nested(np.concatenate([h[head] for h in reversed(hits.values())]), fold) for head in ('ridge', 'knn')
    }
    own = {name: {head: nested(h[head], fold) for head in right} for name, h in hits.items()}
    last = list(x)[-1]
    rows = []
    for name, features in x.items():
        row = {'name': name, 'width': features.shape[1]}
        for head, options in (('ridge', LAMBDAS), ('knn', _ks(len(y)))):
            means = hits[name][head].mean(1)
            row[head] = accuracy(own[name][head], confidence) | {
                'chosen': options[int(means.argmax())],
                'optimistic': float(means.max()),
            }
        row['gain'] = difference(own[name]['ridge'], own[last]['ridge'], confidence)
        rows.append(row | {'logme': scores.logme(_padded(features), y, len(classes))})
    return rows, right


def best_layer(rows: Sequence[Mapping]) -> str:
    """The layer whose ridge does best; of equals the last."""
    return max(reversed(rows), key=lambda row: row['ridge']['value'])['name']


def score_intervals(
    x: np.ndarray, p: np.ndarray | None, y: np.ndarray, classes: int, seed: int, confidence: float
) -> dict[str, dict | None]:
    """The transferability scores of the features [N, D] and of the source's probabilities [N, Z], with intervals.

    LEEP and NCE: bootstrap. LogME and the H-scores: delete-a-group jackknife, for the reasons in `bootstrap`.
    """
    found = {}
    for name, score in _OF_FEATURES.items():
        of = lambda w, score=score: score(x, y, classes, w)
        found[name] = bootstrap.jackknife(of, len(y), groups=GROUPS, seed=seed, confidence=confidence, strata=y)
    for name, score in (('leep', scores.leep), ('nce', scores.nce)):
        of = lambda w, score=score: score(p, y, classes, w)
        found[name] = None if p is None else bootstrap.interval(of, len(y), seed=seed, confidence=confidence)
    return {name: x and {key: float(v) for key, v in x._asdict().items()} for name, x in found.items()}


def alike(x: Mapping[str, np.ndarray], most: int, seed: int) -> list[list[float]]:
    """Linear CKA of each layer with each, [P, P], debiased, of at most so many examples."""
    N = len(next(iter(x.values())))
    rows = np.sort(np.random.default_rng(seed).permutation(N)[:most])
    return cka_matrix([_padded(features[rows]) for features in x.values()], debiased=True).tolist()


def accuracy(right: np.ndarray, confidence: float) -> dict:
    """The mean and its bootstrap interval; Wilson's where all are right, or none, since a resample never differs."""
    if len(np.unique(right)) > 1:
        return interval(right, confidence)
    return {key: float(v) for key, v in bootstrap.wilson(right, confidence)._asdict().items()}


def predictions(features: np.ndarray, head: Mapping[str, np.ndarray] | None) -> np.ndarray | None:
    """What the source's own classifier makes of its features: softmax(x W + b), [N, Z]; None without one."""
    if not head or 'kernel' not in head or head['kernel'].shape[0] != features.shape[1] or head['kernel'].shape[1] < 2:
        return None
    logits = features.astype(np.float64) @ np.asarray(head['kernel'], np.float64) + head.get('bias', 0.0)
    p = np.exp(logits - logits.max(1, keepdims=True))
    return p / p.sum(1, keepdims=True)


def check_labels(y: np.ndarray, classes: Sequence[str], data: str) -> None:
    """Refuses labels that the scores have no meaning for.

    Raises:
        UserError: several labels an example, fewer than two classes, or a class with fewer than two examples.
    """
    if y.ndim == 2:
        raise UserError(f'--data {data}: its examples have several labels each; advice is for one of K classes.')
    if len(classes) < 2:
        raise UserError(f'--data {data}: has one class ({classes[0]!r}); there is nothing to tell apart.')
    check(np.arange(2 * len(y), dtype=np.float64).reshape(-1, 2), y, classes, f'--data {data}', least=2)


def _hits(x: np.ndarray, y: np.ndarray, classes: Sequence[str], where: str) -> dict[str, np.ndarray]:
    """Which examples come out right when they are left out: `ridge` [L, N], `knn` [H, N]."""
    check(x, y, classes, where)
    by_ridge = leave_one_out(x, y, len(classes))  # [L, N, K]
    by_neighbours = np.asarray(neighbours(_padded(x), y, len(classes), _ks(len(y))).leave_one_out())  # [H, N, K]
    return {'ridge': by_ridge.argmax(-1) == y, 'knn': by_neighbours.argmax(-1) == y}


def _padded(x: np.ndarray) -> np.ndarray:
    """With columns of zeros up to 64, 128, 256, …: no inner product changes, and layers share compiled programs."""
    D = x.shape[1]
    width = D if D > 512 else max(64, 1 << (D - 1).bit_length())
    return np.pad(x, ((0, 0), (0, width - D)))


def _ks(N: int) -> tuple[int, ...]:
    return tuple(k for k in KS if k < N)


def leave_one_out(x: np.ndarray, y: np.ndarray, classes: int) -> np.ndarray:
    """Scores of ridge on standardised features, for each of `LAMBDAS`: [L, N, K]."""
    return np.asarray(ridge(_padded(standard(x)(x)), y, classes, LAMBDAS).loo)


def right_on(
    x: np.ndarray, y: np.ndarray, test_x: np.ndarray, test_y: np.ndarray, classes: int, lambda_: float
) -> np.ndarray:
    """Which test examples a ridge, fitted to all of x, gets right: [M]."""
    by = standard(x)
    fitted = ridge(by(x), y, classes, [lambda_], loo=False)
    return paired.right(np.asarray(fitted.head.scores(by(test_x))[0]), test_y)


_OF_FEATURES = {'logme': scores.logme, 'h_score': scores.h_score, 'h_score_regularised': scores.h_score_regularised}
