"""Adapters: model -> model. A few parameters are added to a pretrained classifier, which itself may stay frozen.

An adapter is a file in this folder with a function of its name, `NAME(**options) -> Adapter`: five values and pure
functions, found by its name. What it adds is one more key of the parameters, beside `backbone` and `head` and laid out
as they are: `lora/backbone/block0/attn/query/a`. It sees every call of a layer of the backbone and decides what becomes
of it, so no architecture knows of adapters.

Several adapters wrap each other in alphabetical order, the first outermost: `bottleneck(ia3(lora(prompts(layer))))`.
"""

import dataclasses
import functools
import importlib
import json
import re
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from jtl import names, tree
from jtl.errors import UserError, check_kwargs, nearest

PyTree = Any
Flat = dict[str, jax.Array]  # by path
ROOT = 'backbone/'


class Site(NamedTuple):
    """A layer that an adapter may sit on.

    Attributes:
        kind: the name of its class: `Dense`, `Conv`, `Block`, …
        inputs, outputs: shapes of its first argument and of what it gives, B included; () of what is no array.
        kernel: the shape of its kernel, [I, O] or [kh, kw, I/groups, O].
        groups: into which a convolution splits its channels.
    """

    kind: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    kernel: tuple[int, ...] | None
    groups: int


class Layer(NamedTuple):
    """A layer as it is called: its path, `backbone/block0/attn/query`, its bound module, and what it is part of."""

    path: str
    module: nn.Module
    backbone: nn.Module
    train: bool


class Adapter(NamedTuple):
    """What is added to a model, and what it does there. `own` is its parameters by path, without its name in front.

    Attributes:
        name: of the file, of its section of the config and of its parameters.
        init: `(rng, sites) -> own`, for the layers by path.
        around: `(own, layer, call, args, kwargs) -> output`, what becomes of a layer's `call(*args, **kwargs)`.
        merge: `(own, params) -> params` by path, with which the plain model computes the same; a UserError if none do.
    """

    name: str
    init: Callable[[jax.Array, Mapping[str, Site]], Flat]
    around: Callable[..., Any]
    merge: Callable[[Flat, Flat], Flat]


@dataclasses.dataclass(frozen=True)
class Adapted:
    """A classifier with adapters, to be used as the classifier itself: equal ones are equal, and can be hashed.

    model = Adapted(build('vit_s16', 10), (lora(rank=8),))
    variables = model.init(rng, batch, train=False)  # params: {'backbone': …, 'head': …, 'lora': …}
    outputs = model.apply(variables, batch, train=False)
    plain = model.model.apply({'params': model.merge(variables['params'])}, batch, train=False)  # equal outputs
    """

    model: nn.Module
    adapters: tuple[Adapter, ...]

    @property
    def backbone(self) -> nn.Module:
        """The plain one."""
        return self.model.backbone

    @property
    def head(self) -> nn.Module:
        """The plain one."""
        return self.model.head

    @property
    def names(self) -> tuple[str, ...]:
        """The keys of the parameters beside those of the plain model, the outermost first."""
        return tuple(adapter.name for adapter in self.adapters)

    def clone(self, **changes) -> 'Adapted':
        """With other attributes of the classifier: `model.clone(backbone=…)`."""
        return dataclasses.replace(self, model=self.model.clone(**changes))

    def init(self, rngs: jax.Array | Mapping[str, jax.Array], batch: Mapping[str, Any], train: bool = False) -> PyTree:
        """The variables: those of the plain model, bit for bit, and the adapters'.

        Raises:
            UserError: an adapter does not fit this model; tracing is enough to see it.
        """
        variables = self.model.init(rngs, batch, train=train)
        rng = rngs['params'] if isinstance(rngs, Mapping) else rngs
        sites = find_sites(self.model, batch)
        if self.adapters and 'backbone' not in sites:
            raise UserError(f'config.model.{self.names[0]}: an adapter needs its backbone, not cached features of it.')
        own = {a.name: tree.unflatten(a.init(named_key(rng, a.name), sites)) for a in self.adapters}
        return {**variables, 'params': {**variables['params'], **own}}

    def apply(self, variables: PyTree, inputs: Any, train: bool, *, method: str | None = None, **kwargs) -> Any:
        """As Linen's `apply` on the classifier: `rngs`, `mutable`, `method='features'` and the like."""
        params = dict(variables['params'])
        own = [tree.flatten(params.pop(name)) for name in self.names]
        parts = [(adapter.around, flat) for adapter, flat in zip(self.adapters, own)]

        def intercept(call, args, kwargs, context):
            path = '/'.join(context.module.path)
            if context.method_name != '__call__' or not path.startswith(ROOT):
                return call(*args, **kwargs)
            layer = Layer(path, context.module, self.backbone, train)
            for around, flat in reversed(parts):  # the innermost first
                call = functools.partial(_wrapped, around, flat, layer, call)
            return call(*args, **kwargs)

        with nn.intercept_methods(intercept):
            return self.model.apply({**variables, 'params': params}, inputs, train, method=method, **kwargs)

    def merge(self, params: PyTree) -> PyTree:
        """The parameters of the plain model, `self.model`, with which it computes the same.

        Raises:
            UserError: there are none, since an adapter does what no weights of the plain model do.
        """
        flat = tree.flatten({key: value for key, value in params.items() if key not in self.names})
        for adapter in reversed(self.adapters):  # the innermost first
            flat = adapter.merge(tree.flatten(params[adapter.name]), flat)
        return tree.unflatten(flat)


def _wrapped(around, own, layer, call, *args, **kwargs):
    return around(own, layer, call, args, kwargs)


# From a config.


def split(options: Mapping[str, Any]) -> tuple[tuple[Adapter, ...], dict[str, Any]]:
    """The keyword arguments of a model -> `(adapters, what is not theirs)`.

    `{'lora': {'rank': 4}, 'width': 64}` -> `((lora(rank=4),), {'width': 64})`; `{'lora': None}` is none.

    Raises:
        UserError: unknown adapters, or options that they do not have.
    """
    known = names.known('jtl.adapters')
    found, rest = {}, {}
    for key, value in options.items():
        if key in known and not isinstance(value, Mapping | None):
            raise UserError(f'config.model.{key}: {value!r} should be a mapping of its options; {{}} for the defaults.')
        if key not in known and isinstance(value, Mapping):
            raise UserError(f'unknown key config.model.{key}: {nearest(key, known)}')
        (found if key in known else rest)[key] = value
    given = [(key, value) for key, value in sorted(found.items()) if value is not None]
    return tuple(make(key, json.dumps(dict(value), sort_keys=True)) for key, value in given), rest


@functools.lru_cache(maxsize=64)
def make(name: str, options: str) -> Adapter:
    """An adapter from its options as JSON, so that equal ones are one, and models with it equal."""
    build = getattr(importlib.import_module(f'jtl.adapters.{name}'), name)
    kwargs = json.loads(options)
    check_kwargs(build, kwargs, f'config.model.{name}')
    return build(**kwargs)


# What adapters share.


def find_sites(model: nn.Module, batch: Mapping[str, Any]) -> dict[str, Site]:
    """The layers of a classifier's backbone by path, in the order in which they end; nothing is computed."""
    found = {}

    def intercept(call, args, kwargs, context):
        outputs = call(*args, **kwargs)
        module, path = context.module, '/'.join(context.module.path)
        if context.method_name == '__call__' and f'{path}/'.startswith(ROOT):
            kernel = module.get_variable('params', 'kernel')
            shape = lambda x: tuple(getattr(x, 'shape', ()))
            groups = getattr(module, 'feature_group_count', 1)
            kernel = None if kernel is None else shape(kernel)
            found[path] = Site(type(module).__name__, shape(args[0]) if args else (), shape(outputs), kernel, groups)
        return outputs

    model = without_remat(model)
    with nn.intercept_methods(intercept):
        jax.eval_shape(lambda batch: model.init(jax.random.key(0), batch, train=False), dict(batch))
    return found


def without_remat(model: Any) -> Any:
    """A classifier, adapted or not, whose blocks hide nothing that is within; its parameters are the same."""
    return model.clone(backbone=model.backbone.clone(remat=False)) if getattr(model.backbone, 'remat', False) else model


def named_key(rng: jax.Array, name: str) -> jax.Array:
    """A key of its own for each name."""
    return jax.random.fold_in(rng, zlib.crc32(name.encode()))


def is_linear(site: Site) -> bool:
    """Whether a layer is x · W + b: a Dense layer or a convolution."""
    return site.kind in ('Dense', 'Conv')


def check_layers(layers: str | Sequence[str] | None, where: str) -> None:
    """Refuses what is not a regular expression."""
    for regex in _regexes(layers):
        try:
            re.compile(regex)
        except re.error as e:
            raise UserError(f'{where}: {regex!r} is not a regular expression: {e}') from e


def choose(
    sites: Mapping[str, Site], layers: str | Sequence[str], where: str, fits: Callable[[Site], bool] = is_linear
) -> list[str]:
    """The paths that match one of the regexes below the backbone: `.*attn/(query|value)` -> `backbone/block0/attn/…`.

    Raises:
        UserError: one of them matches no layer that fits.
    """
    known = _below(sites, fits)
    for regex in _regexes(layers):
        if not any(re.fullmatch(regex, name) for name in known):
            outline = {re.sub(r'\d+(?=/|$)', '.*', name) if '/' in name else name for name in known}
            raise UserError(f'{where}: {regex!r} matches no layer of the backbone. {nearest(regex, outline)}')
    return [path for name, path in known.items() if any(re.fullmatch(regex, name) for regex in _regexes(layers))]


def choose_default(
    sites: Mapping[str, Site], alternatives: Sequence[str], where: str, fits: Callable[[Site], bool] = is_linear
) -> list[str]:
    """The paths that match the first of the regexes that matches any.

    Raises:
        UserError: none does.
    """
    known = _below(sites, fits)
    for regex in alternatives:
        if any(re.fullmatch(regex, name) for name in known):
            return choose(sites, regex, where, fits)
    kinds = sorted({site.kind for path, site in sites.items() if path.startswith(ROOT)})
    raise UserError(
        f'{where}: no layer of this model can carry it, of {", ".join(kinds) or "none"}; '
        f'expected one that matches {" or ".join(map(repr, alternatives))}.'
    )


def _below(sites: Mapping[str, Site], fits: Callable[[Site], bool]) -> dict[str, str]:
    return {path.removeprefix(ROOT): path for path, site in sites.items() if path.startswith(ROOT) and fits(site)}


def _regexes(layers: str | Sequence[str] | None) -> tuple[str, ...]:
    return (layers,) if isinstance(layers, str) else tuple(layers or ())


def dropped(x: jax.Array, rate: float, layer: Layer) -> jax.Array:
    """Dropout in training; asks for the rng `dropout` only then."""
    if not (rate and layer.train):
        return x
    kept = jax.random.bernoulli(layer.module.make_rng('dropout'), 1 - rate, x.shape)
    return jnp.where(kept, x / (1 - rate), 0)


def check_rate(rate: float, where: str) -> None:
    """Refuses a rate outside [0, 1)."""
    if not 0 <= rate < 1:
        raise UserError(f'{where}: {rate} should be in [0, 1).')
