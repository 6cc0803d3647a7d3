"""What full fine-tuning will come to, from what ridge came to: a line through real runs, or no answer.

    logit(accuracy after fine-tuning) = a + b · logit(ridge accuracy) + error

over data sets × sources, every data set counting alike. The line is fitted by `experiments/advice.py` from logs of
plain runs. Its error is what it gets wrong on a data set that it was not fitted to: root mean square of the residuals
with each data set left out in turn, and the interval is Student's with as many degrees of freedom as data sets less
one, since runs on one data set are not independent. Outside of what was fitted there is no prediction.

Legend: R runs, G data sets.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from jtl import files
from jtl.errors import UserError

FILE = Path(__file__).with_name('calibration.json')
FORMAT = 1
FEWEST = 3  # data sets that a line is fitted to
CLIP = 0.002  # accuracies nearer to 0 or 1 count as this near: so few examples do not tell more
SLACK = {'ridge': 0.25, 'examples': np.log(1.5), 'classes': np.log(1.5)}  # beyond the range, in logits and logarithms


def fit(rows: Sequence[Mapping]) -> dict:
    """What `calibration.json` says, of runs `{'data', 'source', 'ridge', 'accuracy', 'examples', 'classes'}`.

    Returns:
        `intercept`, `slope`, `error` (logits, left-out data sets), `data_sets`, `range` of each of ridge, examples,
        classes, and `residuals` by run.

    Raises:
        UserError: fewer than three data sets, or ridge accuracies that are all the same.
    """
    names = [row['data'] for row in rows]
    sets = list(dict.fromkeys(names))
    if len(sets) < FEWEST:
        raise UserError(f'calibration: {len(sets)} data sets; a line and its error need at least {FEWEST}.')
    x, y = (logit(np.array([row[key] for row in rows])) for key in ('ridge', 'accuracy'))
    weight = np.array([1 / names.count(name) for name in names])
    own = np.array([sets.index(name) for name in names])
    residual = np.zeros(len(rows))
    for g in range(len(sets)):
        a, b = _line(x, y, weight * (own != g))
        residual[own == g] = (y - a - b * x)[own == g]
    a, b = _line(x, y, weight)
    return {
        'format': FORMAT,
        'intercept': a,
        'slope': b,
        'error': float(np.sqrt(weight @ residual**2 / weight.sum())),
        'data_sets': sets,
        'range': {key: [min(r[key] for r in rows), max(r[key] for r in rows)] for key in SLACK},
        'residuals': residual.tolist(),
    }


def read(path: Path = FILE) -> dict | None:
    """The calibration that jtl comes with; None if it has none.

    Raises:
        UserError: it is not as `experiments/advice.py` writes it.
    """
    if not path.exists():
        return None
    found = files.read_json(path)
    number = lambda value: isinstance(value, int | float) and np.isfinite(value)
    fine = found.get('format') == FORMAT and all(number(found.get(key)) for key in ('intercept', 'slope', 'error'))
    ranges = found.get('range')
    fine = fine and isinstance(found.get('data_sets'), list) and len(found['data_sets']) >= FEWEST
    fine = (
        fine
        and isinstance(ranges, dict)
        and all(
            isinstance(ranges.get(key), list) and len(ranges[key]) == 2 and all(map(number, ranges[key]))
            for key in SLACK
        )
    )
    if not fine:
        raise UserError(f'{path}: is not as experiments/advice.py writes it; delete it to go without predictions.')
    return found


def predict(
    calibration: Mapping | None, ridge: float, examples: int, classes: int, kind: str, confidence: float = 0.95
) -> dict:
    """`{'value', 'low', 'high', 'data_sets'}` of full fine-tuning, or `{'value': None, 'why'}`.

    Args:
        ridge: the accuracy of `advice.json`'s source.
        examples: for training and validation.
        kind: of the examples: `image`, `tokens` or `features`.
    """
    from scipy import stats

    if calibration is None:
        return {'value': None, 'why': 'there are no real runs to calibrate it on (experiments/advice.py)'}
    if kind != calibration.get('kind', 'image'):
        return {'value': None, 'why': f'it is calibrated on {calibration.get("kind", "image")}, not on {kind}'}
    case = {'ridge': ridge, 'examples': examples, 'classes': classes}
    for key, value in case.items():
        low, high = calibration['range'][key]
        scale = (lambda v: float(logit(v))) if key == 'ridge' else np.log
        if not scale(low) - SLACK[key] <= scale(value) <= scale(high) + SLACK[key]:
            shown = '{:.2f}' if key == 'ridge' else '{:,}'
            named = {'ridge': 'a ridge accuracy', 'examples': 'examples', 'classes': 'classes'}[key]
            low, high, value = map(shown.format, (low, high, value))
            given = f'{named} of {value}' if key == 'ridge' else f'{value} {named}'
            return {'value': None, 'why': f'{given} lies outside of what it is calibrated on ({low} to {high})'}
    middle = calibration['intercept'] + calibration['slope'] * float(logit(ridge))
    reach = stats.t.ppf((1 + confidence) / 2, len(calibration['data_sets']) - 1) * calibration['error']
    value, low, high = (float(1 / (1 + np.exp(-v))) for v in (middle, middle - reach, middle + reach))
    return {'value': value, 'low': low, 'high': high, 'data_sets': len(calibration['data_sets'])}


def logit(p: np.ndarray | float) -> np.ndarray:
    """log(p / (1 - p)), of accuracies not nearer to 0 or 1 than `CLIP`."""
    p = np.clip(p, CLIP, 1 - CLIP)
    return np.log(p / (1 - p))


def _line(x: np.ndarray, y: np.ndarray, weight: np.ndarray) -> tuple[float, float]:
    """Weighted least squares: `(intercept, slope)`."""
    mean_x, mean_y = weight @ x / weight.sum(), weight @ y / weight.sum()
    spread = weight @ (x - mean_x) ** 2
    if spread <= 1e-12:
        raise UserError('calibration: all ridge accuracies are the same; no line can be fitted.')
    slope = float(weight @ ((x - mean_x) * (y - mean_y)) / spread)
    return float(mean_y - slope * mean_x), slope
