"""Sources that advice is about: opened and fitted to the data before any work, and their features of its examples.

Legend: N examples, D features, K classes.
"""

import re
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from jtl.config import override
from jtl.errors import UserError
from jtl.models.layers import FEATURES
from jtl.plan import Plan
from jtl.probe import command, measure
from jtl.probe.features import Frozen, ensure, labels, open_source

RESERVED = ('init', 'rules', 'phases', 'steps', 'epochs')  # decided by the advice, not by --set
SUFFIXES = r'\.(npz|pth|pt|th|bin|safetensors|h5|keras|weights\.h5)$'


class Opened(NamedTuple):
    """A source that fits the data.

    Attributes:
        uri: as it was given, with what it says after a `?`.
        name: in tables.
        values: the config that it is used with.
    """

    uri: str
    name: str
    values: dict
    frozen: Frozen
    plan: Plan
    layers: tuple[str, ...]


def open_all(values: Mapping, sources: Sequence[str], layers: str, pool: str) -> list[Opened]:
    """Every source read and fitted to the data, before any work starts.

    Args:
        sources: `URI` or, with changes to the config of its own, `URI?model.depth=3&preprocess.size=96`.

    Raises:
        UserError: naming the source that cannot be read, or does not fit.
    """
    if not sources:
        raise UserError('--sources: names none; expected URIs of weights, separated by commas.')
    if twice := [uri for uri in sources if sources.count(uri) > 1]:
        raise UserError(f'--sources: {twice[0]} is there twice.')
    if pool == 'none':
        raise UserError("--pool none: heads need features [N, D] of each layer; 'mean' or 'token'.")
    if reserved := [key for key in RESERVED if key in values]:
        raise UserError(f'--set {reserved[0]}: not here, jtl advise decides it; for --check, --epochs or --steps.')
    data, opened, names = values['data'], [], name_all(sources)
    for source in sources:
        uri, mark, own = source.partition('?')
        config = override(values, command.values(own.split('&'), f'--sources: {uri}?') if mark else {})
        try:
            rest = {key: value for key, value in config.items() if key != 'data'}
            frozen, plan = open_source(data, uri, rest)
            chosen = command.chosen(frozen, layers)
        except UserError as e:
            raise UserError(str(e) if uri in str(e) else f'--sources: {uri}: {e}') from e
        chosen += (FEATURES,) * (FEATURES not in chosen)
        opened.append(Opened(source, names[source], {**config, 'init': uri}, frozen, plan, chosen))
    given = opened[0].plan.data
    y = np.concatenate([labels(given, split) for split in splits(given.sizes)])
    measure.check_labels(y, given.classes, data['name'])
    return opened


def collect(
    one: Opened, rows: np.ndarray, pool: str, folder: str | None, say: Callable[[str], None]
) -> tuple[dict[str, np.ndarray], dict[str, int]]:
    """Features by layer, [N, D], of `rows` of the training and validation examples put together; how they came."""
    data, start, parts, counts = one.plan.data, 0, [], {'read': 0, 'computed': 0}
    for split in splits(data.sizes):
        where, index = data.parts[split]
        wanted = index[rows[(rows >= start) & (rows < start + len(index))] - start]
        start += len(index)
        if len(wanted):
            quiet = not sys.stderr.isatty()
            entry, counted = ensure(
                one.frozen, where, wanted, one.layers, pool=pool, folder=folder, say=say, quiet=quiet
            )
            counts = {key: counts[key] + getattr(counted, key) for key in counts}
            parts.append({layer: entry.read(layer)[wanted] for layer in one.layers})
    return {layer: np.concatenate([part[layer] for part in parts]) for layer in one.layers}, counts


def subsample(y: np.ndarray, most: int, seed: int) -> np.ndarray:
    """At most so many examples, ascending; of each class its share, and two at least."""
    if len(y) <= most:
        return np.arange(len(y))
    rng, key = np.random.default_rng(seed), np.zeros(len(y))
    for k in np.unique(y):
        mine = np.flatnonzero(y == k)
        place = rng.permutation(len(mine))
        key[mine] = np.where(place < 2, -1, (place + 0.5) / len(mine))
    return np.sort(np.lexsort((rng.random(len(y)), key))[:most])


def own_head(plan: Plan) -> Mapping[str, np.ndarray] | None:
    """The source's classifier, if it is linear and its backbone is used as it is."""
    same = lambda model: {k: v for k, v in model.items() if k not in ('head', 'remat', 'dtype')}
    linear = (plan.weights.model.get('head') or {}).get('name', 'linear') == 'linear'
    return plan.weights.params.get('head') if linear and same(plan.weights.model) == same(plan.config.model) else None


def name_all(sources: Sequence[str]) -> dict[str, str]:
    """What sources are called in tables: the end of the URI, without what does not tell them apart."""
    ends = {}
    for uri in sources:
        place = uri.partition('?')[0]
        parts = [part for part in re.split(r'[/#]', place.partition(':')[2] or place) if part] or [uri]
        plain = [re.sub(SUFFIXES, '', part) for part in parts]
        general = plain[-1] in ('weights', 'model', 'pytorch_model') and len(plain) > 1
        ends[uri] = plain[-2] if general else plain[-1]
    return {uri: end if list(ends.values()).count(end) == 1 else uri for uri, end in ends.items()}


def splits(sizes: Mapping[str, int]) -> list[str]:
    """Those that advice may look at."""
    return [split for split in ('train', 'val') if split in sizes]
