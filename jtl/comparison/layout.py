"""What a comparison runs: every method at every point of its grid, at equal budget, checked before anything trains.

WORKDIR/METHOD/labels=…/lr=…/seed=…    a plain run (`jtl.train.train`)
WORKDIR/METHOD/step.json               what one training step of the method holds and computes
WORKDIR/comparison.json                what is compared, so that a later call is known to go on with it
"""

import dataclasses
import itertools
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jtl import compare, files, optim, run
from jtl.config import as_json, differences, essential, override, parse, plain
from jtl.errors import UserError, nearest
from jtl.plan import Plan, check_model, check_sections, make_plan
from jtl.recipes import Recipe

ALL = 'all'  # as a number of labels a class
MAY_DIFFER = ('method', 'model', 'rules', 'phases', 'optim', 'load', 'init', 'data.augment', 'data.sampling')
NAME = re.compile(r'[A-Za-z0-9_.:+-]+')
TAKEN = ('.', '..', 'lock', 'workers', 'comparison.json', 'results.jsonl', 'results.png', 'labels.png', 'RESULTS.md')


class Request(NamedTuple):
    """What is to be compared.

    Attributes:
        config: of every run, before a recipe changes it.
        methods: by name.
        labels: labels a class, or `all`.
        seeds: how many, from config.seed up.
        grid_seeds: how many of them choose the point of the grid.
    """

    config: Mapping[str, Any]
    methods: Mapping[str, Recipe]
    labels: tuple[int | str, ...]
    seeds: int
    grid_seeds: int
    baseline: str
    metric: str

    @property
    def all_seeds(self) -> range:
        first = self.config.get('seed', 0)
        return range(first, first + self.seeds)

    @property
    def first_seeds(self) -> range:
        return self.all_seeds[: self.grid_seeds]


class Run(NamedTuple):
    """One run: its name is its folder below WORKDIR."""

    method: str
    labels: int | str
    point: int  # of the method's grid
    seed: int
    name: str
    values: dict  # its config


class Known(NamedTuple):
    """What of a method's plan is compared, and kept: a plan holds weights, and there may be many."""

    steps: int
    batch_size: int
    data: str  # fingerprint
    splits: frozenset[str]
    weights: str | None  # sha256


def runs(request: Request, seeds: Sequence[int], only: Mapping[tuple, int] | None = None) -> list[Run]:
    """Every run with these seeds, those of a method together, so that they share what is compiled.

    Args:
        only: the point of the grid by `(method, labels)`; None is all points.
    """
    found = []
    for (method, recipe), labels in itertools.product(request.methods.items(), request.labels):
        for i, point in enumerate(points(recipe, request.config)):
            if only is not None and only[method, labels] != i:
                continue
            for seed in seeds:
                name = '/'.join([method, f'labels={labels}', *settings(point), f'seed={seed}'])
                found.append(Run(method, labels, i, seed, name, values(request.config, recipe, labels, point, seed)))
    return found


def points(recipe: Recipe, config: Mapping) -> list[dict[str, Any]]:
    """The grid: overrides by dotted key, ascending as declared."""
    default = optim.optimiser.__kwdefaults__['lr']
    lr = config.get('optim', {}).get('lr', default)
    rates = sorted({lr if times == 1 else float(f'{times * lr:g}') for times in recipe.times})
    grid = {'optim.lr': rates, **recipe.grid}
    return [dict(zip(grid, point)) for point in itertools.product(*grid.values())]


def settings(point: Mapping[str, Any]) -> list[str]:
    """`['lr=0.01', 'rank=8']`"""
    return [f'{key.split(".")[-1]}={value:g}' if type(value) is float else f'{key.split(".")[-1]}={value}'
            for key, value in point.items()]  # fmt: skip


def values(config: Mapping, recipe: Recipe, labels: int | str, point: Mapping, seed: int) -> dict:
    """The config of one run."""
    config, given = {'report': False, **plain(config)}, {}
    if {'rules', 'phases'} & recipe.overrides.keys():
        config = {key: value for key, value in config.items() if key not in ('rules', 'phases')}
    for key, value in recipe.overrides.items():
        given[key.removesuffix('+')] = (*_at(config, key[:-1]), *value) if key.endswith('+') else value
    if labels != ALL:
        given['data.labels_per_class'] = labels
    return override(config, {**given, **point, 'seed': seed})


def _at(config: Mapping, dotted: str) -> tuple:
    for key in dotted.split('.'):
        config = config.get(key, {})
    return tuple(config)


# Checks, before anything trains.


def check(request: Request) -> dict[str, Known]:
    """Plans every method; refuses what cannot be run, or would be no comparison of equals.

    Raises:
        UserError: it names the method at fault.
    """
    _check_request(request)
    plans = {}
    for method, recipe in request.methods.items():
        check_recipe(method, recipe)
        try:
            plans[method] = _known(_plan(request, recipe))
        except UserError as e:
            raise UserError(f'--methods: {method} cannot be compared here: {e}') from e
        _check_equal(method, plans[method], next(iter(plans.values())))
    for labels in request.labels[1:]:
        make_plan(parse(values(request.config, request.methods[request.baseline], labels, {}, request.all_seeds[0])))
    _check_splits(request, plans[request.baseline])
    return plans


def _check_request(request: Request) -> None:
    if request.baseline not in request.methods:
        raise UserError(
            f'--baseline {request.baseline!r}: is not among the methods; {nearest(request.baseline, request.methods)}'
        )
    if request.seeds < 1 or request.all_seeds[-1] >= 1 << 32:
        raise UserError(f'--seeds {request.seeds}: should be at least 1, and config.seed + seeds at most 2**32.')
    if not 1 <= request.grid_seeds <= request.seeds:
        raise UserError(f'--grid-seeds {request.grid_seeds}: should be from 1 to --seeds, {request.seeds}.')
    if not request.labels or len(set(request.labels)) < len(request.labels):
        raise UserError(f'--labels {request.labels}: should be different numbers of labels a class.')
    for labels in request.labels:
        if labels != ALL and labels < 1:
            raise UserError(f'--labels {labels}: should be at least 1.')
    if request.config.get('guard', False) is not False:
        raise UserError('config.guard: guards a single run; a comparison has a baseline of its own.')
    compare.check_metric(request.metric)


def check_recipe(method: str, recipe: Recipe) -> None:
    """Refuses a recipe that changes the budget or the data."""
    if not isinstance(method, str) or not NAME.fullmatch(method) or method in TAKEN:
        raise UserError(
            f'method {method!r}: a name becomes a folder; letters, digits and _ . : + - may be in it, and it should be '
            f'none of {" ".join(TAKEN)}.'
        )
    times, grid = recipe.times, recipe.grid
    number = lambda x: isinstance(x, int | float) and 0 < x < float('inf')
    if not isinstance(times, tuple | list) or not times or not all(map(number, times)):
        raise UserError(f'method {method}: times {times!r} should be multiples of config.optim.lr above 0, (0.3, 1.0).')
    if not isinstance(recipe.overrides, Mapping) or not isinstance(grid, Mapping):
        raise UserError(f'method {method}: overrides and grid should be dicts by dotted key.')
    short = ['lr', 'labels', 'seed', *(key.split('.')[-1] for key in grid)]
    if len(set(short)) < len(short):
        raise UserError(f'method {method}: two keys of its grid, {", ".join(grid)}, would have one name.')
    for key, tried in grid.items():
        folders = [settings({key: value})[0] for value in tried] if isinstance(tried, tuple | list) else []
        if not folders or len(set(folders)) < len(folders):
            raise UserError(f'method {method}: grid: {key}={tried!r} should be several different values, (1, 2).')
    for key in (*recipe.overrides, *grid):
        if not any(f'{key.removesuffix("+")}.'.startswith(f'{allowed}.') for allowed in MAY_DIFFER):
            raise UserError(
                f'method {method}: {key!r} may not differ, or methods would not be compared at equal budget on the '
                f'same data; what may: {", ".join(MAY_DIFFER)}.'
            )
        if key == 'optim.lr' or key == 'optim' and key in grid:  # which would replace the rate
            raise UserError(f'method {method}: learning rates are given as times, multiples of config.optim.lr.')


def _plan(request: Request, recipe: Recipe) -> Plan:
    """That of the first point; of the others what the rate, or a setting, could make wrong."""
    plan = None
    for point in points(recipe, request.config):
        parsed = parse(values(request.config, recipe, request.labels[0], point, request.all_seeds[0]))
        check_sections(parsed)
        if plan is None or recipe.grid:
            plan = make_plan(parsed)
        check_model(dataclasses.replace(parsed, model=plan.config.model))
        optim.optimiser(plan.steps, **parsed.optim)
    return plan


def _known(plan: Plan) -> Known:
    weights = plan.weights.sha256 if plan.weights else None
    return Known(plan.steps, plan.config.batch_size, plan.data.fingerprint, frozenset(plan.data.sizes), weights)


def _check_equal(method: str, plan: Known, first: Known) -> None:
    if plan[:4] != first[:4]:
        raise UserError(f'method {method}: steps, batch size or data are not those of the others.')


def _check_splits(request: Request, plan: Known) -> None:
    if 'test' not in plan.splits:
        raise UserError('config.data: has no test split to compare on; config.data.test=0.2 holds one out.')
    tuned = [name for name, recipe in request.methods.items() if len(points(recipe, request.config)) > 1]
    if tuned and 'val' not in plan.splits:
        raise UserError(
            f'config.data: has no validation split for {tuned[0]} to choose its learning rate by; config.data.val=0.2 '
            'holds one out.'
        )


# Going on.


def record(request: Request, plans: Mapping[str, Known], command: str) -> dict:
    """What comparison.json says."""
    return {  # `parse` fills in every default, so that a later version with another one is told apart
        'config': as_json(parse(override(request.config, {'seed': request.all_seeds[0]}))),
        'methods': {name: as_json(recipe.overrides) for name, recipe in request.methods.items()},
        'data': {str(request.labels[0]): plans[request.baseline].data},
        'weights': {name: plan.weights for name, plan in plans.items()},
        'command': command,
    }


def claim(workdir: Path, new: dict) -> None:
    """Writes comparison.json, or refuses a folder whose runs are of another comparison.

    Methods, numbers of labels, seeds and points of a grid may come and go: what is finished of the rest is kept.
    """
    path = workdir / 'comparison.json'
    if path.exists():
        old = files.read_json(path)
        if missing := sorted(key for key, value in new.items() if not isinstance(old.get(key), type(value))):
            raise UserError(f'{path}: is not as it was written: it has no {", ".join(sorted(missing))}.')
        changed = differences(essential(old['config']), essential(new['config']))
        for key in ('methods', 'data', 'weights'):
            both = old[key].keys() & new[key].keys()
            changed += [f'{name}: the {key} behind it' if key != 'methods' else f'what {name} is'
                        for name in sorted(both) if old[key][name] != new[key][name]]  # fmt: skip
            new[key] = {**old[key], **new[key]}
        if changed:
            raise UserError(
                f'--workdir {workdir}: holds another comparison; it differs in {"; ".join(changed)}. Name another '
                '--workdir, or delete this one.'
            )
    elif any(p.name != 'lock' for p in workdir.iterdir()):
        raise UserError(f'--workdir {workdir}: is not empty and not the folder of a comparison; name a new one.')
    run.write_json(path, new)
