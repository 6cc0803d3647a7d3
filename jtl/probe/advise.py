"""`jtl advise --data=URI --sources=URI,URI,…`: what to transfer from, from which block, and what it costs.

One cached pass a source, then numbers of its features: nothing is trained unless `--check` asks for it, and the test
split plays no part. Written into the workdir: `advice.json`, `advice.html` and its pictures.

advice.json, with {x} for a number with its interval, `{"value", "low", "high"}`:

    data        uri, classes, examples (of train and val), used (of these), fingerprint, majority
    confidence, seed, folds, lambdas, ks
    ranking     from the best: source, value, behind (the first minus this one, paired: difference, low, high, verdict)
    reasons     sentences
    sources     by URI:
      name, model, weights (a hash), preprocess, kind (image, tokens or features)
      features  read, computed: examples that came from the cache, and that this call computed
      layers    from the input to the features: name, width, ridge {x} and knn {x} with `chosen` (λ or k) and
                `optimistic` (the plain maximum over these), gain (ridge minus that of the features, paired), logme
      best      the layer of the best ridge; ridge_seconds: what fitting it took, for all λ
      ridge, knn    {x} over all layers, layer and λ or k chosen on other examples (`jtl.probe.ranking.nested`)
      scores    of the features: logme, h_score, h_score_regularised {x}; leep, nce {x}, null without a classifier
      cka       linear CKA of each layer with each, debiased
      predicted full fine-tuning {x}, or value null and why
      choice    probe, fine-tuning or either
      cost      null, or by `jtl.probe.cost`: seconds of a step; epochs, and in `total` seconds of the whole of each way
    check       null, or by `jtl.probe.trial`
    version, versions, commit, hardware, command, date
"""

import contextlib
import datetime
import functools
import hashlib
import json
import shlex
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jtl import metrics, run
from jtl.config import as_json
from jtl.errors import UserError
from jtl.files import expanded, read_json
from jtl.models.layers import FEATURES
from jtl.plan import example
from jtl.probe import advice_page, calibration, command, cost, measure, ranking, trial
from jtl.probe.cache import root
from jtl.probe.features import labels
from jtl.probe.sources import Opened, collect, open_all, own_head, splits, subsample

ASKS = ('data', 'confidence', 'seed', 'asked')  # of advice.json: what a folder is about
CKA_EXAMPLES = 1000


def main(arguments: Sequence[str] | None = None) -> int:
    args = _parse(arguments)
    say = functools.partial(print, file=sys.stderr) if args.json else print
    sources = tuple(part.strip() for part in args.sources.split(',') if part.strip())
    values = command.sections(args.data, args.set)
    values['cache'] = {**values.get('cache', {}), **({'folder': args.cache} if args.cache else {})}
    workdir = expanded(args.workdir) if args.workdir else Path('runs') / f'{datetime.date.today():%Y-%m-%d}-advice'
    opened = open_all(values, sources, args.layers, args.pool)
    if args.check and 'test' not in opened[0].plan.data.sizes:
        raise UserError(f'--check: {args.data} has no test split to compare on; --set data.test=0.15 holds one out.')
    if args.steps:
        args.epochs = args.steps * opened[0].plan.config.batch_size / opened[0].plan.data.sizes['train']
    found = about(opened, values, args)
    found['check'] = claim(workdir, found)
    advise(found, opened, values, args, say)
    write(workdir, found)
    if not args.json:
        print('\n'.join(['', ranking.table(found), '', *found['reasons'], '', f'{workdir / "advice.html"}']))
    if args.check:
        budget = {'steps': args.steps} if args.steps else {'epochs': args.epochs}
        tops = [one for row in found['ranking'][: args.top] for one in opened if one.uri == row['source']]
        (kind, length), *_ = budget.items()
        folder = workdir / 'check' / f'{kind}={length:g}'
        found['check'] = trial.check(found, tops, values, folder, budget, args.pool, say)
        write(workdir, found)
        if not args.json:
            print('\n'.join(['', trial.table(found), '', *found['check']['said']]))
    if args.json:
        print(json.dumps(metrics.finite(found), indent=1, ensure_ascii=False))
    return 0


def about(opened: Sequence[Opened], values: Mapping, args: Any) -> dict:
    """What the advice is on, before there is any."""
    plan = opened[0].plan
    record = run.record(as_json(plan.config), plan.data.fingerprint, None)
    sizes = {split: plan.data.sizes[split] for split in splits(plan.data.sizes)}
    examples = sum(sizes.values())
    if args.most < 2 * len(plan.data.classes):
        least = 2 * len(plan.data.classes)
        raise UserError(f'--most {args.most}: should be at least {least}, two examples of each class.')
    data = {'uri': values['data']['name'], 'classes': list(plan.data.classes), 'examples': examples}
    data |= {'used': min(examples, args.most), 'fingerprint': plan.data.fingerprint}
    data |= {'majority': plan.data.majority.get('train')}
    asked = {'sources': [one.uri for one in opened], 'weights': [one.plan.weights.sha256 for one in opened]}
    asked |= {'layers': [list(one.layers) for one in opened], 'pool': args.pool}
    asked |= {'set': json.loads(json.dumps({key: value for key, value in values.items() if key != 'cache'}))}
    return {
        'data': data,
        'confidence': args.confidence,
        'seed': plan.config.seed,
        'asked': asked,
        'folds': ranking.FOLDS,
        'lambdas': list(measure.LAMBDAS),
        'ks': list(measure.KS),
        'check': None,
        **{key: record[key] for key in ('version', 'versions', 'commit', 'hardware')},
        'command': shlex.join(['jtl', 'advise', *sys.argv[2:]]),
        'date': datetime.datetime.now(datetime.UTC).isoformat(timespec='seconds'),
    }


def claim(workdir: Path, found: Mapping) -> dict | None:
    """Refuses a folder that holds something else; a check that was made in it before, if any."""
    file = workdir / 'advice.json'
    if not workdir.exists() or (workdir.is_dir() and not any(workdir.iterdir())):
        return None
    if not file.is_file():
        raise UserError(f'--workdir {workdir}: is not empty and holds no advice; name a new one.')
    old = read_json(file)
    flat = lambda of: {**of, **(of.get('asked') or {})}
    keys = [*(key for key in ASKS if key != 'asked'), *found['asked']]
    if differ := [key for key in keys if flat(old).get(key) != flat(found)[key]]:
        raise UserError(
            f'--workdir {workdir}: holds advice on something else; it differs in {", ".join(differ)}. '
            'Name another --workdir, or delete this one.'
        )
    return old.get('check')


def advise(found: dict, opened: Sequence[Opened], values: Mapping, args: Any, say: Callable[[str], None]) -> dict:
    """Fills in what `advice.json` says of the sources, and their ranking."""
    known = calibration.read()
    given, seed = opened[0].plan.data, found['seed']
    y = np.concatenate([labels(given, split) for split in splits(given.sizes)])
    rows = subsample(y, args.most, seed)
    fold, right, found['sources'] = ranking.folds(len(rows), seed), {}, {}
    for one in opened:
        x, counted = collect(one, rows, args.pool, args.cache, say)
        say(f'{one.name}: {counted["computed"]} examples computed, {counted["read"]} came from the cache.')
        source, right[one.uri] = remembered(one, x, y[rows], fold, found, root(args.cache))
        source |= {'name': one.name, 'features': counted, 'cost': None}
        if args.cost:
            step = cost.measured(one.values, root(args.cache), say)
            total = cost.total(step, given.sizes['train'], args.epochs, source['ridge_seconds'])
            source['cost'] = step | {'epochs': args.epochs, 'total': total}
        case = source['ridge']['value'], len(y), len(given.classes), source['kind']
        source['predicted'] = calibration.predict(known, *case, found['confidence'])
        source['choice'] = ranking.choice(source)
        found['sources'][one.uri] = source
    found['ranking'] = ranking.rank(right, found['confidence'])
    found['reasons'] = ranking.reasons(found['ranking'], found['sources'], {one.uri: one.name for one in opened})
    return found


def remembered(
    one: Opened, x: Mapping[str, np.ndarray], y: np.ndarray, fold: np.ndarray, found: Mapping, cache: Path
) -> tuple[dict, np.ndarray]:
    """`look`, from the cache if the same was asked before: of these features and labels, by this code."""
    digest = hashlib.sha256(repr((one.plan.weights.sha256, one.frozen.what, one.plan.data.classes)).encode())
    digest.update(repr((found['confidence'], found['seed'], own_head(one.plan) is None)).encode())
    for array in (y, fold, *x.values()):
        digest.update(f'{array.shape} {array.dtype}'.encode())
        digest.update(np.ascontiguousarray(array))
    for file in sorted(Path(__file__).parent.glob('*.py')):
        digest.update(file.read_bytes())
    file = cache / 'advice' / f'{digest.hexdigest()[:24]}.json'
    with contextlib.suppress(UserError, KeyError, TypeError):  # none, or damaged
        kept = read_json(file)
        return dict(kept['source']), np.array(kept['right'], np.float64)
    source, right = look(one, x, y, fold, found)
    file.parent.mkdir(parents=True, exist_ok=True)
    run.write_json(file, metrics.finite({'source': source, 'right': right.tolist()}))
    return source, right


def look(
    one: Opened, x: Mapping[str, np.ndarray], y: np.ndarray, fold: np.ndarray, found: Mapping
) -> tuple[dict, np.ndarray]:
    """What a source's features say, and how right its ridge is on each example, [N]."""
    classes, seed, confidence = one.plan.data.classes, found['seed'], found['confidence']
    layers, right = measure.layer_numbers(x, y, classes, fold, confidence, one.uri)
    best = measure.best_layer(layers)
    p = measure.predictions(x[FEATURES], own_head(one.plan))
    plan = one.plan
    said = {
        'model': plan.weights.model['name'],
        'weights': plan.weights.sha256,
        'preprocess': run.model_record(as_json(plan.config), plan.data)['preprocess'],
        'kind': next(key for key in ('image', 'tokens', 'features') if key in example(plan.data)),
        'layers': layers,
        'best': best,
        'ridge_seconds': _ridge_seconds(x[best], y, len(classes)),
        **{head: measure.accuracy(hits, confidence) for head, hits in right.items()},
        'scores': measure.score_intervals(x[FEATURES], p, y, len(classes), seed, confidence),
        'cka': measure.alike(x, CKA_EXAMPLES, seed),
    }
    return said, right['ridge']


def write(workdir: Path, found: Mapping) -> None:
    """advice.json, and the page with its pictures."""
    workdir.mkdir(parents=True, exist_ok=True)
    run.write_json(workdir / 'advice.json', metrics.finite(found))
    advice_page.write(workdir, found)


def _ridge_seconds(x: np.ndarray, y: np.ndarray, classes: int) -> float:
    """One layer, all λ, compiled before."""
    before = time.perf_counter()
    measure.leave_one_out(x, y, classes)
    return time.perf_counter() - before


def _parse(arguments: Sequence[str] | None) -> Any:
    parser = command.parser('jtl advise', 'Which source to transfer from, which block of it, and what it costs.')
    parser.set_defaults(layers='all')
    parser.add_argument(
        '--sources',
        metavar='URI,URI',
        required=True,
        help='weights, as config.init names them; URI?model.depth=3&preprocess.size=96 changes the config of one',
    )
    parser.add_argument('--workdir', metavar='DIR', help='where the advice is written (default: runs/DATE-advice)')
    parser.add_argument(
        '--most',
        type=int,
        default=5000,
        metavar='N',
        help='examples to look at, at most, drawn by the seed (default: 5000)',
    )
    parser.add_argument('--confidence', type=float, default=0.95, help='of the intervals (default: 0.95)')
    parser.add_argument('--no-cost', dest='cost', action='store_false', help='do not time steps of training')
    parser.add_argument('--check', action='store_true', help='train with the top sources, and compare with the advice')
    parser.add_argument('--top', type=int, default=2, metavar='N', help='so many sources for --check (default: 2)')
    budget = parser.add_mutually_exclusive_group()
    budget.add_argument('--epochs', type=float, default=5.0, help='of fine-tuning: costs, and --check (default: 5)')
    budget.add_argument('--steps', type=int, help='of each run of --check, in place of epochs')
    parser.add_argument('--json', action='store_true', help='print advice.json instead of the table')
    args = parser.parse_args(arguments)
    for key, fine, expected in (
        ('confidence', 0.5 < args.confidence < 1, 'between 0.5 and 1'),
        ('epochs', 0 < args.epochs < float('inf'), 'above 0'),
        ('steps', args.steps is None or args.steps >= 1, 'at least 1'),
        ('top', args.top >= 1, 'at least 1'),
    ):
        if not fine:
            raise UserError(f'--{key} {getattr(args, key)}: should be {expected}.')
    return args
