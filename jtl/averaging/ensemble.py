"""An ensemble: the mean of what several runs answer, which may be of different models.

Legend: n runs, N examples, K classes.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from jtl import run
from jtl.averaging import ingredients
from jtl.errors import UserError
from jtl.files import read_json


def read(paths: Sequence[str]) -> tuple[list[dict], dict, np.ndarray]:
    """`(facts of each run, {index [N], label [N] or [N, K]}, logits [n, N, K])` of the same test examples.

    The predictions that the runs left are taken, so that neither data nor weights are needed.

    Raises:
        UserError: not finished, no test split, other classes, or other examples.
    """
    found = [_facts(run.finished(path)) for path in paths]
    first = found[0]
    for each in found:
        ingredients.same_classes(first['run'], each['run'], first['classes'], each['classes'])
        _same_examples(first, each)
    rows = {name: first['predictions'][name] for name in ('index', 'label')}
    return found, rows, np.stack([each['predictions']['logits'] for each in found])


def _facts(path: Path) -> dict:
    model = read_json(path / 'model' / 'model.json')
    predictions = ingredients.predictions(path)
    if predictions is None:
        raise UserError(f'{path}: has no predictions.npz: its data has no test split (config.data.test).')
    try:
        classes = tuple(model['classes']), bool(model['multi_label'])
        data = read_json(path / 'config.json')['config']['data']
    except (KeyError, TypeError) as e:
        raise UserError(f'{path}: config.json or model/model.json is not as it was written ({e}).') from e
    result = read_json(path / 'result.json')
    return {'run': path, 'classes': classes, 'data': data, 'predictions': predictions, 'result': result}


def _same_examples(a: dict, b: dict) -> None:
    """One data set, and the same examples of it, in one order."""
    mine, yours = (each['predictions'] for each in (a, b))
    names = [each['data'].get('name') for each in (a, b)]
    alike = all(np.array_equal(mine[key], yours[key]) for key in ('index', 'label'))
    if names[0] != names[1] or not alike or mine['logits'].shape != yours['logits'].shape:
        why = f' (config.data.name {names[0]!r} and {names[1]!r})' if names[0] != names[1] else ''
        raise UserError(f'{a["run"]} and {b["run"]} were tested on different examples{why}.')


def logits(each: np.ndarray) -> np.ndarray:
    """1/n Σ_i z_i: [n, N, K] -> [N, K], the logit ensemble.

    Its probabilities are the normalised geometric means of the runs'; what is added to all logits of an example does
    not matter. It is what a soup of weights stands in for, to first order (Wortsman et al. 2022, section 4), and what
    the paper compares with; the mean of probabilities is another, and mostly close.
    """
    return each.astype(np.float64).mean(0).astype(np.float32)
