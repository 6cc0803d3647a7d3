"""Rules and phases by name, for any model: `config.rules = 'last:2'`.

| rules | what moves |
|---|---|
| `all` | everything |
| `head` | the head alone: feature extraction, a linear probe |
| `adapters` | everything but the backbone: adapters, the head, what a method adds |
| `discriminative:F` | the backbone at F times the rate |
| `layer_decay:F` | every layer at F times the rate of the one above it: see `jtl.optim.layer_decay` |
| `last:N` | the last N blocks, what comes after them, and the head |
| `biases` | biases and the head: BitFit (Ben Zaken et al., ACL 2022) |
| `norms` | scales and biases of normalisation layers, and the head (Frankle et al., ICLR 2021) |

| phases | what moves when |
|---|---|
| `lpft:S` | the head for a share S of the run, then everything: LP-FT (Kumar et al., ICLR 2022) |
| `gradual:N` | gradual unfreezing in N equal phases: the head, …, everything (ULMFiT, Howard and Ruder, ACL 2018) |

A name stands wherever rules do, in `config.phases` too: `((0.2, 'head'), (None, 'layer_decay:0.7'))`. What a name comes
to for a model is in the run's `config.json`.
"""

from collections.abc import Callable, Sequence

from jtl.errors import UserError, nearest
from jtl.models.order import Order
from jtl.optim import Rules, layer_decay

BACKBONE, REST = 'backbone/.*', '(?!backbone/).*'
HEAD: Rules = (('head/.*', 1.0), ('.*', None))
ALL: Rules = (('.*', 1.0),)


def _top(order: Order) -> str:
    """Everything after the last block."""
    return f'{order.above}|{REST}' if order.above else REST


def last(order: Order, n: int) -> Rules:
    if n > len(order.blocks):
        raise UserError(f'last:{n}, but the backbone has {len(order.blocks)} blocks.')
    return (*((regex, 1.0) for regex in (*order.blocks[len(order.blocks) - n :], _top(order))), ('.*', None))


def decayed(order: Order, factor: float) -> Rules:
    below = [order.below] if order.below else []
    return tuple(layer_decay([*below, *order.blocks, _top(order)], factor))


def biases(order: Order) -> Rules:
    return (REST, 1.0), ('.*/bias', 1.0), ('.*', None)


def norms(order: Order) -> Rules:
    if order.norms is None:
        raise UserError('norms, but the backbone has no normalisation layers.')
    return (REST, 1.0), (order.norms, 1.0), ('.*', None)


RULES: dict[str, tuple[Callable, Callable | None, str]] = {  # name: (rules, type of its argument, what it may be)
    'all': (lambda order: ALL, None, ''),
    'head': (lambda order: HEAD, None, ''),
    'adapters': (lambda order: ((REST, 1.0), (BACKBONE, None)), None, ''),
    'discriminative': (lambda order, factor: ((REST, 1.0), (BACKBONE, factor)), float, 'F, a factor above 0'),
    'layer_decay': (decayed, float, 'F, a factor above 0'),
    'last': (last, int, 'N, a number of blocks from 1'),
    'biases': (biases, None, ''),
    'norms': (norms, None, ''),
}


def lpft(order: Order, share: float) -> tuple:
    if share >= 1:
        raise UserError(f'lpft:{share:g}, but a share of the run is below 1.')
    return (share, HEAD), (None, ALL)


def gradual(order: Order, n: int) -> tuple:
    layers = [*([order.below] if order.below else []), *order.blocks]  # what is above them is always trained
    if not 1 < n <= len(layers) + 1:
        raise UserError(f'gradual:{n}, but the model can be thawed in 2 to {len(layers) + 1} phases.')
    phases = []
    for i in range(n):
        k = round(i * len(layers) / (n - 1))  # thawed layers, from the top
        moving = [(regex, 1.0) for regex in (*layers[len(layers) - k :], _top(order))]
        phases.append(((i + 1) / n if i < n - 1 else None, (*moving, ('.*', None)) if k < len(layers) else ALL))
    return tuple(phases)


PHASES: dict[str, tuple[Callable, Callable, str]] = {
    'lpft': (lpft, float, 'S, a share of the run below 1'),
    'gradual': (gradual, int, 'N, a number of phases from 2'),
}


def check(rules: str, phases: bool = False) -> None:
    """Refuses a name that is unknown, or whose argument is wrong, before anything is opened."""
    _parse(rules, PHASES if phases else RULES, 'config.phases' if phases else 'config.rules')


def named_rules(rules: str | Rules, order: Callable[[], Order], what: str = 'config.rules') -> Rules:
    """The rules of a name; rules that are spelt out stay as they are."""
    return _made(rules, RULES, order, what)


def named_phases(phases: str | Sequence, order: Callable[[], Order], steps: int) -> tuple:
    """The phases of a name, each with its rules and its end in steps."""
    phases = _made(phases, PHASES, order, 'config.phases')
    ends = [max(round(until * steps), 1) if isinstance(until, float) else until for until, _ in phases]
    return tuple(
        (end, named_rules(rules, order, f'config.phases[{i}]')) for i, (end, (_, rules)) in enumerate(zip(ends, phases))
    )


def _made(name, known: dict, order: Callable[[], Order], what: str):
    if not isinstance(name, str):
        return name
    make, argument = _parse(name, known, what)
    try:
        return make(order(), *argument)
    except UserError as e:
        raise UserError(f'{what}: {e}') from e


def _parse(given: str, known: dict, what: str) -> tuple[Callable, list]:
    name, colon, text = given.partition(':')
    if name not in known:
        raise UserError(f'{what}: {given!r} is unknown; {nearest(name, known)}')
    make, kind, expected = known[name]
    if kind is None and not colon:
        return make, []
    if kind is None:
        raise UserError(f'{what}: {given!r}: {name!r} takes nothing after it.')
    try:
        value = kind(text)
        if not 0 < value < float('inf'):
            raise ValueError
    except ValueError as e:
        raise UserError(f'{what}: {given!r}: expected {name}:{expected}.') from e
    return make, [value]
