"""The guard against negative transfer: did the weights help, or would the model have been better off without them?

WORKDIR                            the run itself: what it is without the guard, to the same bits
WORKDIR/guard/transfer/seed=S      the same with further seeds
WORKDIR/guard/scratch/lr=R/seed=S  from scratch (config.load.fresh): everything trained from random parameters; model,
                                   preprocessing and tokenizer stay those of the weights
WORKDIR/guard/probe/lr=R/seed=S    the frozen probe: the same weights, of which the head alone is trained
WORKDIR/guard.json                 what came out

All are plain runs (`jtl.train.train`) of equal budget, so that what was cut short goes on and what is finished is not
run again. They are compared example by example on the test split.

Shapes: S seeds, N examples, K classes.
"""

import dataclasses
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jtl import compare, hosts, metrics, optim, predict, run
from jtl.config import override, parse, plain
from jtl.data import load
from jtl.errors import UserError, check_kwargs, check_type
from jtl.evals import collect
from jtl.paired import HELPED, HURT, OPEN, commonest, right, versus
from jtl.plan import Plan, check_model, check_sections, make_plan
from jtl.train import Diverged, train

RULES = {'scratch': (('.*', 1.0),), 'probe': (('head/.*', 1.0), ('.*', None))}
ANCHORED = ('l2sp', 'delta', 'lpft')  # around the method: they hold on to a source, and from scratch there is none
MAY_DIFFER = ('optim', 'method')  # sections in which a baseline may; the rest is what makes the comparison one


class Run(NamedTuple):
    """One of the runs that are compared."""

    kind: str  # transfer, scratch, probe
    lr: float
    seed: int
    folder: Path
    values: dict  # its config


def guard(
    config: Mapping,
    workdir: str | Path,
    *,
    stop: Callable[[], bool] = lambda: False,
    seeds: int = 3,
    rates: tuple[float, ...] = (1.0, 3.0, 10.0),
    scratch: Mapping[str, Any] = {},  # noqa: B006 (never changed)
    probe: Mapping[str, Any] = {},  # noqa: B006
    confidence: float = 0.95,
) -> tuple[dict, dict]:
    """Trains a run and its baselines, and says whether transfer helped: `(the run's result, what guard.json says)`.

    Equal budget means: the same steps, batches, data, augmentation, method, optimiser and schedule. The learning rate
    is another matter: one that is good to fine-tune with is mostly too low to train from scratch with, and a baseline
    held back like that would make any weights look helpful. So each baseline is trained at `rates` times the run's
    rate, and the one with the best validation accuracy (the mean over seeds) is compared. The run has its one rate:
    what is judged is the run as it was configured, against what else could have been done. What holds on to the source
    (`l2sp`, `delta`, `lpft` around the method) is left out from scratch. Without validation data
    there is nothing to choose by, and the run's own rate is taken.

    The verdict, of transfer against scratch, is that of `jtl.paired.versus`. One seed tells two trained models apart,
    not what another seed would give. Of small networks from scratch that differed in nothing but the seed (digits, 797
    test examples, accuracies spread by 1.9 points), two were told apart 41 times in a hundred, two groups of 3 14 times
    and two groups of 5 twice. Hence 3 are the default, 5 are better, and 1 is for runs too dear for more.

    Args:
        config, workdir, stop: as of `jtl.train.train`; `config.guard` is not looked at.
        seeds: how many, from config.seed up; each trains the run and every baseline once more.
        rates: multiples of config.optim.lr that the baselines are trained at.
        scratch, probe: what differs in a baseline's config: `{'optim': {'lr': 0.1}}`, which is then the only rate.
            Nothing outside `optim` and `method` may differ.
        confidence: of the intervals; 1 - confidence is the level of the test.

    Raises:
        UserError: something given is wrong, raised before anything is written; a baseline diverged at all rates.
    """
    values, workdir = plain(config), Path(workdir)
    plan = make_plan(parse({**values, 'guard': True}))
    differ = {'scratch': _dotted(scratch), 'probe': _dotted(probe)}
    check(plan, seeds, rates, differ, confidence)
    runs = lay_out(values, plan, workdir, seeds, rates, differ)
    say = print if hosts.is_first() else lambda text: None
    say(announcement(runs, plan.steps, seeds))
    results = {}
    for each in runs:
        own = each.folder == workdir
        try:
            results[each.folder] = train(each.values, each.folder, stop=stop, quiet=not own)
        except Diverged as e:
            if each.kind == 'transfer':
                raise
            say(f'guard: {each.folder}: {e}')
            continue
        if not own:
            say(f'guard: {each.folder}: {_ended(results[each.folder])}')
    compared = choose(runs, results)
    found = hosts.told(lambda: judge(plan, runs, compared, results, confidence))
    if hosts.is_first():
        run.write_json(workdir / 'guard.json', metrics.finite(found))
    return results[workdir], found


# What is run.


def options(config: Mapping) -> dict | None:
    """The keyword arguments in `config.guard`, checked; None without a guard."""
    given = parse(config).guard
    if given is False:
        return None
    given = {} if given is True else dict(given)
    check_kwargs(guard, given, 'config.guard', ignore=('config', 'workdir', 'stop'))
    return given


def check(plan: Plan, seeds: int, rates: tuple, overrides: Mapping[str, Mapping], confidence: float) -> None:
    """Refuses what would fail later, or would not be a comparison of equals."""
    config = plan.config
    if not 1 <= seeds <= (1 << 32) - config.seed:
        raise UserError(f'config.guard.seeds: {seeds} should be at least 1, and config.seed + seeds at most 2**32.')
    if not rates or not all(0 < rate < np.inf for rate in rates):
        raise UserError(f'config.guard.rates: {rates!r} should be multiples of config.optim.lr above 0.')
    if not 0.5 < confidence < 1:
        raise UserError(f'config.guard.confidence: {confidence} should be between 0.5 and 1, like 0.95.')
    for kind, given in overrides.items():
        for key in given:
            if key.split('.')[0] not in MAY_DIFFER or '.' not in key:
                raise UserError(
                    f'config.guard.{kind}: {key!r} may not differ, or it would be no baseline of equal budget; keys of '
                    "optim and method may, such as 'optim.lr'."
                )
    if 'classification' not in config.evals:
        raise UserError("config.guard: compares accuracies, so config.evals needs 'classification'.")
    if 'test' in plan.data.sizes:
        return
    if 'val' not in plan.data.sizes:
        raise UserError('config.guard: the data has neither a test nor a validation split to compare on.')
    if plan.save_every == 0:
        raise UserError(
            'config.guard: there is no test split, and on the validation split it cannot compare runs without '
            'checkpoints (config.checkpoint_every = 0).'
        )
    if seeds > 1 and config.data.get('labels_per_class') is not None:
        raise UserError(
            'config.guard.seeds: there is no test split, and config.data.labels_per_class gives each seed other '
            'validation examples, which cannot be compared by example.'
        )


def lay_out(
    values: Mapping, plan: Plan, workdir: Path, seeds: int, rates: tuple, overrides: Mapping[str, Mapping]
) -> list[Run]:
    """All runs, each config checked; the first is the run itself."""
    first, lr = plan.config.seed, float(plan.rates.lr)
    every, runs = range(first, first + seeds), []
    base = {**values, 'guard': False}
    runs.append(Run('transfer', lr, first, workdir, {**values, 'seed': first}))
    without = {**values.get('load', {}), 'fresh': True}
    method = {key: value for key, value in values.get('method', {}).items() if key not in ANCHORED}
    scratch = {**base, 'load': without, 'cache': {}, 'method': method}  # what is not frozen is not cached
    kinds = {'scratch': scratch, 'probe': base}
    for kind, start in kinds.items():
        start = {k: v for k, v in start.items() if k != 'phases'} | {'rules': RULES[kind], 'report': False}
        start = override(start | {'tensorboard': False}, overrides[kind])
        for rate in _rates(plan, kind, rates, overrides[kind]):
            for seed in every:
                folder = workdir / 'guard' / kind / f'lr={rate:g}' / f'seed={seed}'
                runs.append(Run(kind, rate, seed, folder, override(start, {'optim.lr': rate, 'seed': seed})))
    for seed in every[1:]:
        folder = workdir / 'guard' / 'transfer' / f'seed={seed}'
        runs.append(Run('transfer', lr, seed, folder, {**base, 'seed': seed, 'report': False, 'tensorboard': False}))
    for each in runs[1:]:
        _check_config(each, plan)
    return runs


def _rates(plan: Plan, kind: str, rates: tuple, overrides: Mapping) -> list[float]:
    """The learning rates of a baseline; multiples are rounded to what its folder's name says."""
    if 'optim.lr' in overrides:
        check_type(f'config.guard.{kind}.optim.lr', overrides['optim.lr'], float)
        return [float(overrides['optim.lr'])]
    lr, multiples = float(plan.rates.lr), rates if 'val' in plan.data.sizes else (1.0,)
    return sorted({lr if multiple == 1 else float(f'{multiple * lr:g}') for multiple in multiples})


def _check_config(each: Run, plan: Plan) -> None:
    """Of one run, what can be checked without opening anything again."""
    try:
        parsed = parse(each.values)
        check_sections(parsed)
        check_model(dataclasses.replace(parsed, model=plan.config.model))
        optim.optimiser(plan.steps, **parsed.optim)
    except UserError as e:
        raise UserError(f'config.guard: {each.kind}: {e}') from e


# What came out.


def choose(runs: list[Run], results: Mapping[Path, dict]) -> dict[str, list[Run]]:
    """The runs to compare, by kind and in the order of their seeds: baselines at the rate that validation chose."""
    done = [each for each in runs if each.folder in results]
    rows = [{'method': r.kind, 'lr': r.lr, 'seed': r.seed, 'val': results[r.folder].get('val')} for r in done]
    chosen = {kind: lr for (kind, _), lr in compare.choose(rows).items()}
    compared = {}
    for kind in ('transfer', *RULES):
        wanted = [r for r in runs if r.kind == kind and r.lr == chosen.get(kind)]
        if not wanted or any(r.folder not in results for r in wanted):
            tried = ', '.join(f'{lr:g}' for lr in _tried(runs, kind))
            raise UserError(
                f'config.guard: {kind} diverged at every learning rate tried ({tried}), with some seed at least; '
                f'config.guard.rates or config.guard.{kind}.optim.lr gives others.'
            )
        compared[kind] = sorted(wanted, key=lambda r: r.seed)
    return compared


def judge(
    plan: Plan, runs: list[Run], compared: dict[str, list[Run]], results: Mapping[Path, dict], confidence: float
) -> dict:
    """What guard.json says, from the predictions of the runs."""
    split = 'test' if 'test' in plan.data.sizes else 'val'
    outcomes = {kind: [predictions(each, split) for each in some] for kind, some in compared.items()}
    index, label, _ = outcomes['transfer'][0]
    for kind, seen in outcomes.items():
        for each, (i, y, _) in zip(compared[kind], seen):
            if not (np.array_equal(i, index) and np.array_equal(y, label)):
                raise UserError(f'{each.folder}: was not evaluated on the examples of the run itself.')
    hits = {kind: np.stack([right(logits, label) for *_, logits in seen]) for kind, seen in outcomes.items()}  # [S, N]
    hits['majority'] = np.tile(commonest(label, plan.data.majority.get(split)), (len(hits['transfer']), 1))
    about = lambda kind: {'accuracy': float(hits[kind].mean()), 'by_seed': hits[kind].mean(1).tolist()}
    found = {
        'split': split,
        'examples': len(label),
        'seeds': [each.seed for each in compared['transfer']],
        'confidence': confidence,
        'transfer': about('transfer'),
    }
    for kind in ('scratch', 'probe', 'majority'):
        found[kind] = about(kind) | versus(hits['transfer'], hits[kind], confidence)
    for kind in RULES:
        lr, tried = compared[kind][0].lr, _tried(runs, kind)
        rates = [{'lr': x, 'val': _validation(runs, results, kind, x)} for x in tried]
        found[kind] |= {'lr': lr, 'rates': rates, 'edge': len(tried) > 1 and lr in (tried[0], tried[-1])}
    verdict = found['scratch']['verdict']
    return {'verdict': verdict, 'line': line(verdict, found), **found}


def predictions(each: Run, split: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """`(index [N], label [N] or [N, K], logits [N, K])` of a finished run, in the order of the split.

    Those of the test split are in its folder; of the validation split they are made again.
    """
    if split == 'test':
        try:
            with np.load(each.folder / 'predictions.npz') as found:
                return found['index'], found['label'], found['logits']
        except (OSError, ValueError, KeyError, zipfile.BadZipFile) as e:
            raise UserError(f'{each.folder}/predictions.npz: cannot be read ({e}).') from e
    fitted = run.read(each.folder)
    data = load(
        **{**fitted.config['data'], 'augment': ()},
        preprocess=predict.preprocessing(fitted),
        batch_size=fitted.config['batch_size'],
        seed=each.seed,
    )
    outputs = collect(predict.predictor(fitted), data.plain(split))
    return outputs['index'], outputs['label'], outputs['logits']


def line(verdict: str, found: Mapping) -> str:
    """All of it in one line."""
    percent = lambda kind: f'{100 * found[kind]["accuracy"]:.1f} %'
    points = lambda x: f'{100 * x["difference"]:+.1f} points [{100 * x["low"]:.1f}, {100 * x["high"]:.1f}]'
    scratch, probe, majority = (found[kind] for kind in ('scratch', 'probe', 'majority'))
    said = 'whether transfer helped cannot be told' if verdict == OPEN else f'transfer {verdict}'
    split = {'test': 'test', 'val': 'validation'}[found['split']]
    basis = [points(scratch), f'{found["examples"]} {split} examples', _many(len(found['seeds']), 'seed')]
    basis += _mcnemar(scratch['mcnemar'], 1 - found['confidence'])
    parts = [f'{said}: {percent("transfer")} against {percent("scratch")} from scratch ({", ".join(basis)})']
    did = {HELPED: 'did worse', HURT: 'did better', OPEN: 'did as well, for all that can be told'}[probe['verdict']]
    parts.append(f'a frozen probe {did}: {percent("probe")} ({points(probe)})')
    beaten = '' if majority['verdict'] == HELPED else ', which the run is not shown to beat'
    parts.append(f'majority class {percent("majority")}{beaten}')
    if verdict != HURT and scratch['edge']:
        tried = ', '.join(f'{x["lr"]:g}' for x in scratch['rates'])
        parts.append(f'scratch may do better still, its best learning rate being {scratch["lr"]:g} of {tried}')
    if verdict != HURT and all(x['val'] is None for x in scratch['rates']):
        parts.append('scratch may do better, there being no validation data to choose its learning rate by')
    if len(found['seeds']) == 1:
        parts.append('one seed tells two models apart, not what others would give')
    if found['split'] == 'val':
        parts.append('there is no test split, and validation also chose checkpoints and rates')
    return f'guard: {"; ".join(parts)}.'


def announcement(runs: list[Run], steps: int, seeds: int) -> str:
    """What it will cost."""
    scratch, probe = (_many(len(_tried(runs, kind)), 'learning rate') for kind in ('scratch', 'probe'))
    what = f'this one, from scratch at {scratch}, a frozen probe at {probe}; {_many(seeds, "seed")}'
    return f'guard: {len(runs)} runs of {_many(steps, "step")}: {what}.'


def _tried(runs: list[Run], kind: str) -> list[float]:
    return sorted({each.lr for each in runs if each.kind == kind})


def _validation(runs: list[Run], results: Mapping[Path, dict], kind: str, lr: float) -> float | None:
    """The mean accuracy over seeds; None where there is none, or one diverged."""
    values = [results.get(r.folder, {}).get('val', {}).get('accuracy') for r in runs if (r.kind, r.lr) == (kind, lr)]
    return None if None in values else float(np.mean(values))


def _mcnemar(p: list[float] | None, alpha: float) -> list[str]:
    if p is None:
        return []
    if len(p) == 1:
        return [f'McNemar p = {p[0]:.2g}']
    return [f'McNemar p < {alpha:.2g} in {sum(x < alpha for x in p)} of them']


def _ended(result: Mapping) -> str:
    accuracy = (result.get('val') or {}).get('accuracy')
    return f'step {result["step"]}' + ('' if accuracy is None else f', val accuracy {100 * accuracy:.2f} %')


def _dotted(given: Mapping, prefix: str = '') -> dict[str, Any]:
    """`{'optim': {'lr': 0.1}}` as `{'optim.lr': 0.1}`, which it may be already."""
    flat = {}
    for key, value in given.items():
        flat |= _dotted(value, f'{prefix}{key}.') if isinstance(value, Mapping) else {f'{prefix}{key}': value}
    return flat


def _many(n: int, what: str) -> str:
    return f'{n} {what}{"s" * (n != 1)}'
