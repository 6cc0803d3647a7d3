"""Where the weights are among the rest of a training checkpoint, and their names without nesting."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jtl.errors import UserError, nearest, printable

WRAPPERS = (  # where well-known training scripts put a network's weights
    *('state_dict', 'model', 'model_state', 'model_state_dict', 'model_weights', 'module', 'net', 'network'),
    *('params', 'params_ema', 'weights', 'checkpoint', 'teacher', 'student', 'generator', 'discriminator'),
    *('ema', 'model_ema', 'ema_model', 'ema_state_dict', 'state_dict_ema', 'model_ema_state_dict'),
)


def pick(path: Path, top: Any, key: str | None, tensor: type) -> dict[str, Any]:
    """The tensors of the one network that a checkpoint holds, by their names joined with dots.

    The weights are what `key` says; otherwise the top mapping if it holds tensors itself, otherwise the one mapping
    within it that is known to hold weights, such as `state_dict` or `model`, or that alone holds tensors. What is not a
    tensor, like an epoch, is left out.

    Args:
        top: the value of the file.
        key: the keys on the way to the weights, joined with dots; '' is the top mapping.
        tensor: the type of a tensor.

    Raises:
        UserError: there is none, or there are several to choose from.
    """
    if type(top) is not dict:
        kind = 'one tensor without a name' if type(top) is tensor else f'a value of type {type(top).__name__}'
        raise UserError(f"{path}: holds {kind}, expected a mapping of names to tensors, as a model's state_dict() is.")
    holding = _holding(top, tensor)
    if key is not None:
        found = _at(path, top, key, holding)
    elif id(top) not in holding:
        keys = ', '.join(repr(k)[:40] for k in list(top)[:8]) or 'nothing'
        raise UserError(f'{path}: holds no tensors; its keys are {keys}.')
    else:
        found = _weights(path, top, holding, tensor)
    tensors = {}
    for name, value in _flat(path, found, '', tensor, set()):
        if name in tensors:
            raise UserError(f'{path}: two tensors have the name {name!r} once the mappings are joined.')
        tensors[name] = value
    return tensors


def _weights(path: Path, top: dict, holding: set[int], tensor: type) -> dict:
    trail = ''
    for _ in range(8):
        inner = {key: value for key, value in top.items() if type(value) is dict and id(value) in holding}
        known = [key for key in inner if type(key) is str and key.lower() in WRAPPERS]
        if any(type(value) is tensor and (not known or _is_weight(value)) for value in top.values()):
            return top
        choices = known or list(inner)
        if len(choices) > 1 and (known or not trail):
            listed = ', '.join(f'torch:{path}#{trail}{printable(str(key), 60)}' for key in choices[:8])
            raise UserError(f'{path}: holds tensors at {len(choices)} keys: pick one with {listed}.')
        if not known and trail:
            return top
        trail += f'{printable(str(choices[0]), 60)}.'
        top = inner[choices[0]]
    return top


def _is_weight(tensor: Any) -> bool:
    """Not the best accuracy so far, or the state of a random generator, as they lie beside the weights."""
    return len(tensor.shape) > 0 and tensor.dtype.kind not in 'biu'


def _at(path: Path, top: dict, key: str, holding: set[int]) -> dict:
    found, rest = top, key
    while rest:
        names = [k for k in found if type(k) is str and (rest == k or rest.startswith(k + '.'))]
        if not names:
            known = [printable(k, 60) for k, value in found.items() if type(k) is str and id(value) in holding][:100]
            raise UserError(f'{path}: no mapping with tensors at {key!r}: {nearest(rest, known)}')
        name = max(names, key=len)
        found, rest = found[name], rest[len(name) + 1 :]
        if id(found) not in holding:
            raise UserError(f'{path}: {key!r} is no mapping with tensors.')
    return found


def _holding(top: dict, tensor: type) -> set[int]:
    """The ids of the mappings that hold tensors, at any depth: each mapping is looked at once, however often shared."""
    within, direct, todo = {id(top): []}, [], [top]  # by mapping, those that it is in
    while todo:
        mapping = todo.pop()
        for value in mapping.values():
            if type(value) is tensor:
                direct.append(id(mapping))
            elif type(value) is dict:
                if id(value) not in within:
                    within[id(value)] = []
                    todo.append(value)
                within[id(value)].append(id(mapping))
    holding, todo = set(), direct
    while todo:
        mapping = todo.pop()
        if mapping not in holding:
            holding.add(mapping)
            todo += within[mapping]
    return holding


def _flat(path: Path, mapping: dict, prefix: str, tensor: type, seen: set[int]) -> Iterator[tuple[str, Any]]:
    if id(mapping) in seen or prefix.count('.') > 64:  # else shared mappings have names without end
        raise UserError(f'{path}: a mapping at {prefix[:100]!r} holds itself, or is in the file at two places.')
    seen.add(id(mapping))
    for key, value in mapping.items():
        if type(value) not in (tensor, dict) or type(key) not in (str, int):
            continue
        name = f'{prefix}{key}'
        if len(name) > 1000 or not name.isprintable():
            raise UserError(f'{path}: {ascii(name[:100])} is no name for a tensor.')
        if type(value) is tensor:
            yield name, value
        else:
            yield from _flat(path, value, f'{name}.', tensor, seen)
