"""What a config may say. Sections are the keyword arguments of one function each; an unknown key is an error.

A config file has `get_config(arg=None) -> ConfigDict`, and may have `sweep(config)`, which yields
`(name, overrides)`: see `jtl.sweep`.
"""

import dataclasses
import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from jtl import metrics
from jtl.errors import UserError, check_kwargs, nearest
from jtl.rules import pairs

LEAST = {
    'steps': 1,
    'batch_size': 1,
    'log_every': 1,
    'eval_every': 1,
    'checkpoint_every': 0,
    'keep_last': 1,
    'keep_best': 1,
    'patience': 1,
    'seed': 0,
}
MAY_CHANGE = (  # when a run goes on: where and how it is computed, not what
    'config.sharding',
    'config.init',  # the path; a hash of the weights is compared
    'config.load.base',
    'config.cache.folder',
    'config.cache.use',
    'config.data.threads',
    'config.data.workers',
    'config.data.cache_mb',
    'config.keep_last',
    'config.guard',  # runs beside it
    'config.report',
    'config.tensorboard',
)


@dataclasses.dataclass(frozen=True)
class Config:
    """One run.

    Attributes:
        data: keyword arguments of `jtl.data.load`; `name` is the URI.
        model: `name`, and keyword arguments of `jtl.models.build` and of the model's own file. With `init`, these are
            changes to the model that the weights are of, unless `name` is another one.
        batch_size: examples a step.
        steps, epochs: the length of training, one or the other.
        seed: of initialisation, order, augmentation, dropout, and of which few labels are drawn.
        init: the URI of pretrained weights, `hf:timm/resnet50.a1_in1k`, `torch:PATH`, the folder of a former run, …:
            see `jtl.pretrained.source`. None is from scratch.
        load: keyword arguments of `jtl.pretrained.load.load`: what becomes of the head, and what may be missing.
        method: `name`, a file in `jtl/methods/`, and keyword arguments of the function of that name in it.
        rules: which parameters move, and how fast: a name (see `jtl.presets`), or `((regex, learning-rate multiplier or
            None), …)` (see `jtl.optim`). By default everything; of a model with adapters, all but its backbone.
        phases: `((until, rules), …, (None, rules))` in place of `rules`, until a step or a share of the run; or a name.
        optim: keyword arguments of `jtl.optim.optimiser`.
        preprocess: fields of `jtl.data.pipeline.Preprocess` that replace those of the weights or the model.
        evals: evaluators, files in `jtl/evals/`, by name or as `(name, options)`.
        select: the validation metric that chooses the checkpoint to keep; None keeps the last one. Without validation
            data, the last one is kept.
        patience: stop after this many evaluations without a better value; None trains to the end.
        eval_every: steps between evaluations; None is twenty times a run.
        checkpoint_every: steps between checkpoints; None is `eval_every`, and 0 writes none at all, so that the run
            ends with its last parameters in memory and cannot be resumed or used for prediction.
        keep_last: how many of the newest checkpoints to keep; with two, one may be damaged.
        keep_best: how many of the best by `select` to keep besides.
        log_every: steps between lines of training metrics, which are means over the steps in between.
        cache: keyword arguments of `jtl.probe.cache.caching`: whether features of a frozen backbone are kept.
        sharding: keyword arguments of `jtl.sharding.sharding`; a text is its `rules`: `fsdp`.
        guard: whether baselines are trained beside the run, to tell whether the weights of `init` helped, or keyword
            arguments of `jtl.guard.guard`. Heeded by `jtl.main`; `jtl.train.train` makes the run alone.
        report: whether pictures and `report.html` are made at the end.
        tensorboard: whether metrics are mirrored as TensorBoard event files.
    """

    data: Mapping[str, Any]
    model: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    batch_size: int = 128
    steps: int | None = None
    epochs: float | None = None
    seed: int = 0
    init: str | None = None
    load: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    method: Mapping[str, Any] = dataclasses.field(default_factory=lambda: {'name': 'supervised'})
    rules: tuple | str | None = None
    phases: tuple | str | None = None
    optim: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    preprocess: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    evals: tuple[str | tuple, ...] = ('classification',)
    select: str | None = 'accuracy'
    patience: int | None = None
    eval_every: int | None = None
    checkpoint_every: int | None = None
    keep_last: int = 2
    keep_best: int = 1
    log_every: int = 50
    cache: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    sharding: Mapping[str, Any] | str = dataclasses.field(default_factory=dict)
    guard: bool | Mapping[str, Any] = False
    report: bool = True
    tensorboard: bool = False

    @property
    def rule_phases(self) -> tuple:
        """`phases`, of which plain `rules` are a single one; spelt out once `jtl.plan` has seen the model."""
        return self.phases or ((None, self.rules or (('.*', 1.0),)),)


def parse(config: Mapping | ConfigDict) -> Config:
    """Checks the top level; the sections are checked by the functions that take them.

    Raises:
        UserError: an unknown or missing key, a value of the wrong type, both or neither of `steps` and `epochs`.
    """
    values = plain(config)
    check_kwargs(Config, values, 'config')
    parsed = Config(**values)
    sharding = {'rules': parsed.sharding} if isinstance(parsed.sharding, str) else parsed.sharding
    parsed = dataclasses.replace(parsed, method={'name': 'supervised', **parsed.method}, sharding=sharding)
    for section, needed in (('data', True), ('model', not parsed.init)):
        if needed and 'name' not in getattr(parsed, section):
            raise UserError(f'missing key config.{section}.name.')
    if (parsed.steps is None) == (parsed.epochs is None):
        raise UserError('config: give one of config.steps and config.epochs (=None leaves the other out).')
    if parsed.phases and parsed.rules is not None:
        raise UserError('config: give one of config.rules and config.phases.')
    for key, least in LEAST.items():
        if getattr(parsed, key) is not None and getattr(parsed, key) < least:
            raise UserError(f'config.{key}: {getattr(parsed, key)} should be at least {least}.')
    if parsed.epochs is not None and not 0 < parsed.epochs < math.inf:
        raise UserError(f'config.epochs: {parsed.epochs} should be above 0.')
    if parsed.seed >= 1 << 32:
        raise UserError(f'config.seed: {parsed.seed} should be below 2**32.')
    if parsed.load and not parsed.init:
        raise UserError('config.load: says how weights are loaded, but config.init names none.')
    if parsed.guard is not False and not parsed.init:
        raise UserError('config.guard: config.init names no weights, so there is no transfer to judge.')
    _check_rules(parsed)
    if parsed.tensorboard:
        metrics.check_tensorboard()
    return parsed


def _check_rules(config: Config) -> None:
    """Their shape; names are known to `jtl.presets`."""
    if isinstance(config.phases, str):
        return
    try:
        fits = all(_whole(until) and _rules(rules) for until, rules in config.rule_phases)
    except (TypeError, ValueError):  # not pairs
        fits = False
    if not fits:
        key = 'phases' if config.phases else 'rules'
        shape = '((until, rules), …, (None, rules))' if config.phases else "a name, or (('regex', multiplier), …)"
        raise UserError(f'config.{key}: expected {shape}, got {getattr(config, key)!r}.')


def _whole(until: Any) -> bool:
    """The end of a phase: a step, a share of the run, or the run's end."""
    share = isinstance(until, float) and 0 < until < 1
    return until is None or share or (isinstance(until, int) and not isinstance(until, bool))


def _rules(rules: Any) -> bool:
    number = lambda multiplier: isinstance(multiplier, int | float | None)
    return isinstance(rules, str) or (pairs(rules) and all(number(multiplier) for _, multiplier in rules))


def plain(value: Any) -> Any:
    """ConfigDicts, lists and NumPy scalars as dicts, tuples and numbers, so that equal configs are equal values."""
    if isinstance(value, ConfigDict):
        value = value.to_dict()
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return tuple(plain(v) for v in value)
    return value.item() if isinstance(value, np.generic) else value


def as_json(config: Config | Mapping) -> dict:
    """With every default filled in, and tuples as lists, as it is read back from `config.json`."""
    values = dataclasses.asdict(config) if isinstance(config, Config) else plain(config)
    try:
        return json.loads(json.dumps(values))
    except TypeError as e:
        raise UserError(f'config: only numbers, text, None, tuples and dicts can be kept in config.json: {e}.') from e


def essential(config: Mapping, prefix: str = 'config') -> dict:
    """A config without what may change when a run goes on."""
    kept = {key: value for key, value in config.items() if f'{prefix}.{key}' not in MAY_CHANGE}
    kept = {k: essential(v, f'{prefix}.{k}') if isinstance(v, Mapping) else v for k, v in kept.items()}
    return {k: v for k, v in kept.items() if k != 'cache' or v}  # runs of before there was one have none


def differences(old: Mapping, new: Mapping, prefix: str = 'config') -> list[str]:
    """`key: old -> new` for every value that differs."""
    found = []
    for key in sorted({*old, *new}):
        a, b = old.get(key), new.get(key)
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            found += differences(a, b, f'{prefix}.{key}')
        elif a != b:
            found.append(f'{prefix}.{key}: {a!r} -> {b!r}')
    return found


def override(config: Mapping, overrides: Mapping[str, Any]) -> dict:
    """A copy with values replaced by dotted key: `{'optim.lr': 0.1, 'seed': 3}`. A mapping replaces a whole section."""
    values = plain(config)
    for dotted, value in overrides.items():
        *parents, last = dotted.split('.')
        node = values
        for i, key in enumerate(parents, 1):
            node = node.setdefault(key, {})
            if not isinstance(node, dict):
                raise UserError(f'config.{dotted}: config.{".".join(parents[:i])} is {node!r}, not a section.')
        node[last] = plain(value)
    return values


_FLAGS = {'true': True, '1': True, 'false': False, '0': False}


def parse_arg(arg: str | None, **defaults: Any) -> ConfigDict:
    """The part of `--config=FILE.py:ARG` after the colon: `key=value` pairs and flags, separated by commas.

    `parse_arg('model=vit_ti16,smoke', model='resnet20', smoke=False)` has `.model == 'vit_ti16'` and `.smoke is True`.
    A value takes the type of its default.
    """
    values = dict(defaults)
    for item in filter(None, (arg or '').split(',')):
        key, given, text = item.partition('=')
        if key not in defaults:
            raise UserError(f'config argument {key!r} is unknown: {nearest(key, defaults)}')
        kind = type(defaults[key])
        try:
            values[key] = _FLAGS[(text or 'true').lower()] if kind is bool else kind(text)
        except (KeyError, ValueError) as e:
            raise UserError(f'config argument {item!r}: expected {kind.__name__} after "=".') from e
        if kind is not bool and not given:
            raise UserError(f'config argument {key!r}: expected {key}=VALUE.')
    return ConfigDict(values)
