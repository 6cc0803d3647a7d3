"""From a config to the things it names: data, weights, method, optimiser. All checks that need no training are here."""

import dataclasses
import functools
import inspect
import json
import math
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from jtl import data, evals, morph, names, optim, presets, sharding
from jtl.config import Config, as_json
from jtl.data import ops_text
from jtl.errors import UserError, check_kwargs, nearest
from jtl.method import Method
from jtl.models import build, preprocess
from jtl.models.order import Order
from jtl.models.order import order as find_order
from jtl.pretrained import load as pretrained
from jtl.probe.cache import caching

PyTree = Any


class Plan(NamedTuple):
    """A config made concrete, with everything in it checked."""

    config: Config
    data: data.Data
    weights: pretrained.Pretrained | None
    method: Method
    optim: optim.Optim
    rates: optim.Rates
    shapes: tuple[PyTree, PyTree]  # of params and state as initialised
    phases: tuple[optim.Phase, ...]
    share: data.Share  # of every batch, that this process makes
    layout: sharding.Layout
    steps: int
    eval_every: int
    save_every: int  # 0: never


def make_plan(config: Config) -> Plan:
    """Opens data and weights, builds model and method.

    Raises:
        UserError: whatever is wrong or does not fit together; unknown keys before anything is opened.
    """
    check_sections(config)
    weights = pretrained.load(config.init, **config.load) if config.init else None
    if weights and config.model.get('name', weights.model['name']) == weights.model['name']:
        config = dataclasses.replace(config, model={**weights.model, **config.model})
        check_model(config)
    if weights and weights.grow and not weights.fresh:
        morph.check(weights.model, config.model)
    known = weights.preprocess if weights else preprocess(config.model['name'])
    if channels := config.preprocess.get('channels'):
        known = pretrained.for_channels(known, channels)
    tokenizer = ops_text.tokenizer(weights.tokenizer) if weights and weights.tokenizer else None
    wanted = data.Preprocess(**{**known, **config.preprocess}, tokenizer=tokenizer)
    loaded = data.load(**config.data, preprocess=wanted, batch_size=config.batch_size, seed=config.seed)
    if loaded.preprocess.tokenizer:
        check_tokenizer(loaded.preprocess, config.model)
    method = make_method(*_as_keys(config), len(loaded.classes), json.dumps(normalisation(loaded.preprocess)))
    steps = config.steps or max(math.ceil(config.epochs * loaded.sizes['train'] / config.batch_size), 1)
    static, rates = optim.optimiser(steps, **config.optim)
    if config.batch_size % static.accumulate:
        raise UserError(f'config.batch_size: {config.batch_size} does not divide into {static.accumulate} equal parts.')
    placed = sharding.sharding(**config.sharding)
    sharding.check_batch(config.batch_size, static.accumulate, placed)
    shapes = _init(method).eval_shape(jax.random.key(0), example(loaded))
    config = spelt_out(config, shapes, example(loaded), steps)
    for until, _ in config.rule_phases[:-1]:
        if until is not None and until >= steps:
            raise UserError(f'config.phases: a phase ends at step {until}, but the run has {steps} steps.')
    eval_every = config.eval_every or max(steps // 20, 1)
    return Plan(
        config=config,
        data=loaded,
        weights=weights,
        method=method,
        optim=static,
        rates=rates,
        shapes=shapes,
        phases=optim.make_phases(shapes[0], config.rule_phases, static.decay_rules),
        share=placed.share,
        layout=placed.layout(shapes[0]),
        steps=steps,
        eval_every=eval_every,
        save_every=eval_every if config.checkpoint_every is None else config.checkpoint_every,
    )


def check_tokenizer(preprocess: data.Preprocess, model: dict) -> None:
    """Refuses a model of text that the tokenizer does not belong to."""
    backbone, tokenizer = build(num_classes=1, **model).backbone, preprocess.tokenizer
    if not any('tokens' in keys for keys in backbone.INPUTS):
        raise UserError(f'config.model: the data holds texts, and {model["name"]} does not read them.')
    for ours, theirs, what in (
        (backbone.vocab >= tokenizer.size, tokenizer.size, f'words, vocab is {backbone.vocab}'),
        (backbone.pad == tokenizer.pad, tokenizer.pad, f'for padding, pad is {backbone.pad}'),
        (
            backbone.positions >= preprocess.length,
            preprocess.length,
            f'tokens a text, positions is {backbone.positions}',
        ),
    ):
        if not ours:
            raise UserError(f'config.model: does not fit the tokenizer and its texts: {theirs} {what}.')


def spelt_out(config: Config, shapes: tuple[PyTree, PyTree], batch: dict, steps: int) -> Config:
    """`config` with the rules and phases that its names stand for on this model."""
    params, state = shapes

    @functools.cache
    def order() -> Order:
        return find_order(build(num_classes=2, **config.model), {'params': params, **state.get('model', {})}, batch)

    if config.phases:
        return dataclasses.replace(config, rules=presets.ALL, phases=presets.named_phases(config.phases, order, steps))
    adapted = any(config.model.get(name) is not None for name in names.known('jtl.adapters'))
    rules = config.rules or ('adapters' if adapted else 'all')
    return dataclasses.replace(config, rules=presets.named_rules(rules, order))


def example(loaded: data.Data) -> dict:
    """A batch of one, to initialise with."""
    return {name: value[:1] for name, value in next(loaded.plain('train')).items()}


@functools.lru_cache(maxsize=32)
def _init(method: Method) -> Callable:
    """For its shapes; `jit` remembers them."""
    return jax.jit(method.init)


def check_sections(config: Config) -> None:
    """Every key and name that can be checked without opening anything."""
    check_kwargs(data.load, config.data, 'config.data', ignore=('preprocess', 'batch_size', 'seed'))
    check_kwargs(data.Preprocess, config.preprocess, 'config.preprocess', ignore=('tokenizer',))
    check_kwargs(pretrained.load, config.load, 'config.load', ignore=('uri',))
    pretrained.check(**config.load)
    check_kwargs(optim.optimiser, config.optim, 'config.optim', ignore=('steps',))
    check_kwargs(caching, config.cache, 'config.cache')
    caching(**config.cache)
    check_kwargs(sharding.sharding, config.sharding, 'config.sharding')
    sharding.sharding(**config.sharding)
    optim.optimiser(config.steps or sys.maxsize, **config.optim)
    for rules in (config.rules, *(rules for _, rules in (config.phases if isinstance(config.phases, tuple) else ()))):
        if isinstance(rules, str):
            presets.check(rules)
    if isinstance(config.phases, str):
        presets.check(config.phases, phases=True)
    if 'name' in config.model:  # else it is the model that the weights are of
        check_model(config)
    evals.check(config.evals)


def check_model(config: Config) -> None:
    """The model and the method on it."""
    check_kwargs(build, config.model, 'config.model', ignore=('num_classes',))
    make_method(*_as_keys(config), 2)


def normalisation(preprocess: data.Preprocess) -> dict[str, tuple[float, ...]]:
    """What methods and evaluators may know of how inputs were made: `mean` and `std` of pixels in [0, 1]."""
    return {key: tuple(getattr(preprocess, key)) for key in ('mean', 'std')}


def _as_keys(config: Config) -> tuple[str, str]:
    return json.dumps(as_json(config.model)), json.dumps(as_json(config.method))


@functools.lru_cache(maxsize=32)
def make_method(model: str, method: str, num_classes: int, preprocess: str = '{}') -> Method:
    """The method on its model. From JSON, so that equal configs share one Method, and with it its compiled steps.

    A key of `method` whose value is a mapping, `sam: {rho: 0.05}`, is another method around it, a function of that
    name that takes a method, and these options; `sam: None` is none. What it wants of `model` and `preprocess` it names
    as a parameter. They are put on in the order of their names, whatever that of the config.
    """
    options, known = json.loads(method), names.known('jtl.methods')
    wrappers = {key: options.pop(key) for key in sorted(options) if key in known or isinstance(options[key], dict)}
    wrappers = {key: value for key, value in wrappers.items() if value is not None}
    for key, value in wrappers.items():
        if not isinstance(value, dict):
            raise UserError(
                f'config.method.{key}: {value!r} should be a mapping of its options; {{}} for the defaults.'
            )
    name, classifier = options.pop('name', 'supervised'), build(num_classes=num_classes, **json.loads(model))
    make = _method(name, 'config.method.name', wrapping=False)
    check_kwargs(make, options, 'config.method', ignore=('model',))
    made = make(classifier, **options)
    context = {'model': classifier, 'preprocess': json.loads(preprocess)}
    for name, options in wrappers.items():
        wrap = _method(name, 'config.method', wrapping=True)
        check_kwargs(wrap, options, f'config.method.{name}', ignore=('method', *context))
        wanted = {key: context[key] for key in context if key in inspect.signature(wrap).parameters}
        made = wrap(made, **wanted, **options)
    return made


def _method(name: str, what: str, wrapping: bool) -> Callable:
    """The function of a file in `jtl/methods`: of one that wraps a method, or of one that makes it."""
    function = lambda name: getattr(names.module('jtl.methods', name, f'{what}: {name!r}'), name)
    wraps = lambda function: 'method' in inspect.signature(function).parameters
    found = function(name)
    if wraps(found) == wrapping:
        return found
    others = [other for other in names.known('jtl.methods') if wraps(function(other)) == wrapping]
    said = f'no method around another: config.method.name={name} takes it'
    if not wrapping:
        said = f'a method around another: config.method.{name}={{…}} puts it there'
    raise UserError(f'{what}: {name!r} is {said}. {nearest(name, others)}')
