"""`jtl average RUN [RUN …] --to=DIR --how=…`: averages of finished runs, written as a finished run.

uniform    the mean of the parameters of several runs of one model (Wortsman et al., "Model soups", 2022)
greedy     the same, of those runs alone with which it is no worse on the validation split
wise       a point on the line between two runs, before fine-tuning and after it (Wortsman et al., "Robust fine-tuning
           of zero-shot models", 2022)
swa        the mean of the checkpoints that one run kept (Izmailov et al., "Averaging Weights Leads to Wider Optima and
           Better Generalization", 2018)
ensemble   the mean of the logits of several runs, of any models: predictions, and no run

Validation chooses; the test split is read once, for what was chosen (and for the two ends of `wise`).
"""

import argparse
import hashlib
import json
import shlex
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jtl import metrics, run, tree
from jtl.averaging import ensemble, ingredients, telling, weights
from jtl.averaging.ingredients import Ingredient
from jtl.averaging.weights import Bench, Candidate
from jtl.data import Data
from jtl.errors import UserError, nearest
from jtl.files import expanded
from jtl.models import statistics

HOWS = ('uniform', 'greedy', 'wise', 'swa', 'ensemble')


class Made(NamedTuple):
    """An average, and how it and its ingredients did.

    Attributes:
        base: the ingredient whose config, model and preprocessing it has.
        fitted: it.
        of: what it is, in words.
        shares: of each ingredient in it; None of a run whose checkpoints were averaged.
        alone: the validation scalars of each; {} of what is not known.
        val, test: of the average; None without such a split.
        tests: `index`, `label` and `logits` of each ingredient's test split; None of what is not known.
        more: what else average.json says.
    """

    base: Ingredient
    fitted: run.Run
    of: str
    shares: list[float | None]
    alone: list[Mapping]
    val: Candidate | None
    test: Candidate | None
    tests: list[dict | None]
    more: dict


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog='jtl average', description='Averages of finished runs.', allow_abbrev=False)
    parser.add_argument('runs', metavar='RUN', nargs='+', help='folders of finished runs; for wise before and after')
    parser.add_argument('--to', metavar='DIR', required=True, help='the folder to write')
    parser.add_argument('--how', default='uniform', help=f'{", ".join(HOWS)} (default: %(default)s)')
    parser.add_argument('--metric', default='accuracy', help='that chooses and is shown (default: %(default)s)')
    parser.add_argument('--from', dest='start', type=int, metavar='STEP', help='swa: the first checkpoint to average')
    parser.add_argument('--json', action='store_true', help='print what average.json says, and nothing else')
    parser.add_argument('--debug', action='store_true', help='show the traceback of an error')
    args = parser.parse_args(arguments)
    folder = expanded(args.to)
    if folder.exists():
        raise UserError(f'--to={args.to}: exists already; name a new one.')
    check(args.how, args.runs, args.start)
    say = (lambda text: None) if args.json else print
    with run.lock(folder):
        words = shlex.join(['jtl', 'average', *(arguments or ())])
        if args.how == 'ensemble':
            told = write_ensemble(folder, args.runs, args.metric, words)
        else:
            told = write_average(folder, args.how, args.runs, args.metric, args.start, words, say)
    print(json.dumps(told) if args.json else '\n'.join([*telling.table(told), telling.closing(told, folder)]))
    return 0


def check(how: str, paths: Sequence[str], start: int | None) -> None:
    """Refuses what can be seen to be wrong before anything is read."""
    if how not in HOWS:
        raise UserError(f'--how={how}: unknown; {nearest(how, HOWS)}')
    wanted = {'wise': 2, 'swa': 1}.get(how)
    if wanted and len(paths) != wanted:
        what = {'wise': 'two runs, the one before fine-tuning and the one after it', 'swa': 'one run'}[how]
        raise UserError(f'--how={how}: takes {what}; {len(paths)} given.')
    if not wanted and len(paths) < 2:
        raise UserError(f'--how={how}: takes two runs at least; --how=swa averages the checkpoints of one.')
    if start is not None and how != 'swa':
        raise UserError(f'--from={start}: is for --how=swa, which averages checkpoints.')
    ingredients.distinct(paths)


# Averages of weights.


def write_average(
    folder: Path, how: str, paths: Sequence[str], metric: str, start: int | None, words: str, say: Callable
) -> dict:
    """Makes the average and writes it; what average.json says."""
    began = time.perf_counter()
    found = [ingredients.read(path) for path in paths]
    ingredients.check(found, same_data=how != 'wise')
    base = found[-1] if how == 'wise' else found[0]
    weights.check_metric(metric, len(base.run.classes), base.run.multi_label)
    kept = ingredients.snapshots(base, start) if how == 'swa' else None
    data = ingredients.open_data(base)
    if how in ('greedy', 'wise') and 'val' not in data.sizes:
        raise UserError(f'--how={how}: chooses by validation examples, and {base.run.path} has none (config.data.val).')
    config = base.run.config
    batch_size = max(config['batch_size'] // config['optim'].get('accumulate', 1), 1)
    bench = Bench(data, metric, batch_size, config['seed'])
    for note in notes(how, found):
        say(note)
    if how == 'uniform':
        made = uniform(bench, found)
    elif how == 'greedy':
        made = greedy(bench, found, say)
    elif how == 'wise':
        made = wise(bench, *found)
    else:
        made = swa(bench, base, *kept)
    told = record_of(how, found, made, bench)
    if how == 'wise':
        telling.plot(told, folder / 'wise.png')
    run.write_json(folder / 'average.json', told)
    write(folder, made, data, tuple(map(str, paths)), words, time.perf_counter() - began)
    return told


def notes(how: str, found: Sequence[Ingredient]) -> list[str]:
    """What is allowed, and mostly a mistake."""
    said, starts = [], {each.record.get('weights') for each in found}
    if how in ('uniform', 'greedy') and (None in starts or len(starts) > 1):
        said.append(
            'Note: these runs did not all start from the same pretrained weights; the mean of parameters that were '
            'trained from different ones is seldom of use.'
        )
    if how == 'wise' and found[0].record.get('data') != found[1].record.get('data'):
        before, after = (each.run.path for each in found)
        said.append(f'Note: {before} was trained on other data; the line is judged on that of {after}.')
    return said


def uniform(bench: Bench, found: Sequence[Ingredient]) -> Made:
    fitted = weights.mixed(bench, [each.run for each in found], [1] * len(found))
    val, test = looked(bench, fitted)
    alone = [each.result.get('val') or {} for each in found]
    tests = [ingredients.predictions(each.run.path) for each in found]
    shares = [1 / len(found)] * len(found)
    return Made(found[0], fitted, f'mean of {len(found)} runs', shares, alone, val, test, tests, {})


def greedy(bench: Bench, found: Sequence[Ingredient], say: Callable) -> Made:
    kept, alone, soup = weights.greedy(bench, [each.run for each in found], say)
    _, test = looked(bench, soup.run, val=False)
    shares = [1 / len(kept) if i in kept else 0.0 for i in range(len(found))]
    tests = [ingredients.predictions(each.run.path) for each in found]
    values = [metrics.scalars(each.values) for each in alone]
    of = f'mean of {len(kept)} of {len(found)} runs'
    return Made(found[kept[0]], soup.run, of, shares, values, soup, test, tests, {})


def wise(bench: Bench, a: Ingredient, b: Ingredient) -> Made:
    rows, chosen, best = weights.curve(bench, a.run, b.run)
    _, test = looked(bench, best.run, val=False)
    ends = [looked(bench, each.run, val=False)[1] for each in (a, b)]
    alpha = weights.ALPHAS[chosen]
    line = [{'alpha': x, 'val': row} for x, row in zip(weights.ALPHAS, rows)]
    of, shares = f'alpha = {alpha:.1f} between 2 runs', [round(1 - alpha, 1), alpha]
    tests = [end and end.outputs for end in ends]
    more = {'alpha': alpha, 'curve': line}
    return Made(b, best.run, of, shares, [rows[0], rows[-1]], best, test, tests, more)


def swa(bench: Bench, base: Ingredient, steps: list[int], runs: list[run.Run]) -> Made:
    fitted = weights.mixed(bench, runs, [1] * len(runs))
    val, test = looked(bench, fitted)
    tests = [ingredients.predictions(base.run.path)]
    alone, of = [base.result.get('val') or {}], f'mean of {len(steps)} checkpoints'
    return Made(base, fitted, of, [None], alone, val, test, tests, {'steps': steps})


def looked(bench: Bench, fitted: run.Run, val: bool = True) -> tuple[Candidate | None, Candidate | None]:
    """On the validation and on the test split, where they exist."""
    wanted = {'val': val, 'test': True}
    return tuple(
        weights.judged(bench, fitted, split) if wanted[split] and split in bench.data.sizes else None
        for split in ('val', 'test')
    )


# What is written.


def record_of(how: str, found: Sequence[Ingredient], made: Made, bench: Bench) -> dict:
    """What average.json says of an average of weights."""
    before, after = (x.state.get('model', {}).get('batch_stats', {}) for x in (made.base.run, made.fitted))
    renewed = bool(statistics.moved([before, after]))
    rows = zip([str(each.run.path) for each in found], made.shares, made.alone, made.tests)
    told = {
        'how': how,
        'metric': bench.metric,
        'of': made.of,
        'examples': {split: n for split, n in bench.data.sizes.items()},
        'statistics': f'computed anew from {bench.data.sizes["train"]} training examples' if renewed else None,
        **made.more,
        'val': made.val and metrics.scalars(made.val.values),
        'test': made.test and metrics.scalars(made.test.values),
        'runs': telling.compared(rows, made.test and made.test.outputs, bench.metric, made.base.run.classes),
    }
    return metrics.finite(told)


def write(folder: Path, made: Made, data: Data, paths: tuple[str, ...], words: str, seconds: float) -> None:
    """The folder of a finished run; the caller holds its lock."""
    base, fitted = made.base, made.fitted
    whole = tree.flatten({**fitted.params, 'model': fitted.state.get('model', {})})
    digest = hashlib.sha256()
    for path, leaf in whole.items():
        digest.update(path.encode() + np.ascontiguousarray(leaf).tobytes())
    config = {**base.run.config, 'report': False, 'guard': False}
    record = run.record(config, data.fingerprint, digest.hexdigest()[:16], paths) | {'command': words}
    model = {
        'model': base.run.model,
        'method': base.run.method,
        'classes': base.run.classes,
        'multi_label': base.run.multi_label,
        'preprocess': base.run.preprocess,
    }
    rows = [f'{path}  {"×".join(map(str, leaf.shape)) or "scalar"}  {made.of}' for path, leaf in whole.items()]
    splits = {'val': made.val, 'test': made.test}
    lists = lambda values: {name: np.asarray(value).tolist() for name, value in values.items()}
    result = {
        **{
            split: {**lists(found.values), 'majority': data.majority.get(split)}
            for split, found in splits.items()
            if found is not None
        },
        'step': 0,
        'seconds': seconds,
        'examples_per_second': None,
        'params': {**(base.result.get('params') or {}), 'total': tree.count(fitted.params)},
    }
    table, predictions = '\n'.join(rows), made.test and made.test.outputs
    run.write_finished(
        folder, record, model, table, base.run.tokenizer, fitted.params, fitted.state, result, predictions
    )


def write_ensemble(folder: Path, paths: Sequence[str], metric: str, words: str) -> dict:
    """predictions.npz and average.json, and no run: an ensemble has no weights of its own."""
    found, rows, each = ensemble.read(paths)
    classes, multi_label = found[0]['classes']
    weights.check_metric(metric, len(classes), multi_label)
    outputs = {**rows, 'logits': ensemble.logits(each)}
    alone = [one['result'].get('val') or {} for one in found]
    named = zip(
        [str(one['run']) for one in found], [1 / len(found)] * len(found), alone, [x['predictions'] for x in found]
    )
    told = metrics.finite(
        {
            'how': 'ensemble',
            'metric': metric,
            'of': f'mean of the logits of {len(found)} runs',
            'command': words,
            'classes': classes,
            'examples': {'test': len(rows['label'])},
            'val': None,
            'test': metrics.scalars(weights.values(outputs, classes)),
            'runs': telling.compared(named, outputs, metric, classes),
        }
    )
    np.savez(folder / 'predictions.npz', **outputs)
    run.write_json(folder / 'average.json', told)
    return told
