"""The runs that are averaged: read, and refused where their weights do not belong together."""

import dataclasses
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jtl import checkpoint, models, predict, run, tree
from jtl.config import differences
from jtl.data import Data, load
from jtl.errors import UserError, some
from jtl.files import expanded, read_json

FREE = ('parent', 'name', 'dtype', 'remat', 'dropout', 'drop_path', 'zero_init_residual', 'init')  # not of the function


class Ingredient(NamedTuple):
    """A finished run, and what it says of itself."""

    run: run.Run
    record: dict  # its config.json
    result: dict  # its result.json


def read(path: str | Path) -> Ingredient:
    fitted = run.read(path)
    return Ingredient(fitted, read_json(fitted.path / 'config.json'), read_json(fitted.path / 'result.json'))


def distinct(paths: Sequence[str]) -> None:
    """Refuses a run that is named twice, since it would count twice."""
    seen = {}
    for path in paths:
        where = expanded(path).resolve()
        if where in seen:
            raise UserError(f'{path}: is named twice{"" if seen[where] == path else f", as {seen[where]} as well"}.')
        seen[where] = path


def check(found: Sequence[Ingredient], same_data: bool = True) -> None:
    """Refuses runs whose parameters do not mean the same.

    Raises:
        UserError: adapters; other classes, model, shapes or preprocessing; other data, if that is asked for.
    """
    for each in found:
        no_adapters(each.run)
    first = found[0]
    for other in found[1:]:
        same_classes(first.run.path, other.run.path, *((x.run.classes, x.run.multi_label) for x in (first, other)))
        same_model(first.run, other.run)
        same_preprocess(first.run, other.run)
        if same_data:
            same_examples(first, other)


def no_adapters(fitted: run.Run) -> None:
    if adapters := [key for key, value in fitted.model.items() if isinstance(value, Mapping) and key != 'head']:
        raise UserError(
            f'{fitted.path}: has adapters ({", ".join(adapters)}), whose factors cannot be averaged one by one: the '
            'mean of products is not the product of means; --how=ensemble takes them.'
        )


def same_classes(a: Path, b: Path, ours: tuple, theirs: tuple) -> None:
    """Args: the folders of two runs, and their `(classes, multi_label)`."""
    (mine, several), (yours, many) = ours, theirs
    if several != many:
        kinds = ('one label', 'several labels')
        raise UserError(f'{a} has {kinds[several]} for each example, {b} has {kinds[many]}.')
    if mine == yours:
        return
    only = [f'{some(rest)} only in {path}' for path, rest in ((a, _less(mine, yours)), (b, _less(yours, mine))) if rest]
    told = '; '.join(only) or f'in another order: {some(mine)} in {a}; {some(yours)} in {b}'
    raise UserError(f'{a} and {b} have different classes: {told}.')


def _less(mine: tuple[str, ...], yours: tuple[str, ...]) -> list[str]:
    return [name for name in mine if name not in yours]


def same_model(a: run.Run, b: run.Run) -> None:
    """One architecture, whatever the runs say of dropout and the like."""
    ours, theirs = (models.build(num_classes=len(a.classes), **fitted.model) for fitted in (a, b))
    told = []
    for part in ('backbone', 'head'):
        x, y = getattr(ours, part), getattr(theirs, part)
        if type(x) is not type(y):
            told.append(f'{part} {type(x).__name__} and {type(y).__name__}')
            continue
        fields = [field.name for field in dataclasses.fields(x) if field.name not in FREE]
        pairs = [(name, getattr(x, name), getattr(y, name)) for name in fields]
        told += [f'{part} {name}={mine!r} and {yours!r}' for name, mine, yours in pairs if mine != yours]
    if not told:
        here, there = (_shapes(fitted) for fitted in (a, b))
        differ = sorted(path for path in {*here, *there} if here.get(path) != there.get(path))
        told = [f'{path} {here.get(path, "is not")} and {there.get(path, "is not")}' for path in differ[:3]]
    if told:
        raise UserError(f'{a.path} and {b.path} are of different models: {"; ".join(told)}. --how=ensemble takes them.')


def _shapes(fitted: run.Run) -> dict[str, tuple[int, ...]]:
    whole = {**fitted.params, 'model': fitted.state.get('model', {})}
    return {path: x.shape for path, x in tree.flatten(whole).items()}


def same_preprocess(a: run.Run, b: run.Run) -> None:
    if told := differences(_as_lists(a.preprocess), _as_lists(b.preprocess), 'preprocess'):
        raise UserError(f'{a.path} and {b.path} have different preprocessing: {"; ".join(told)}.')
    if a.tokenizer != b.tokenizer:
        raise UserError(f'{a.path} and {b.path} have different tokenizers.')


def _as_lists(fields: Mapping) -> dict:
    return {key: list(value) if isinstance(value, tuple) else value for key, value in fields.items()}


def same_examples(a: Ingredient, b: Ingredient) -> None:
    """The same training, validation and test examples: else one has trained on what the other is judged by."""
    if a.record.get('data') == b.record.get('data'):
        return
    told = differences(*(each.run.config['data'] for each in (a, b)), 'config.data')
    if a.run.config['data'].get('labels_per_class') is not None and a.run.config['seed'] != b.run.config['seed']:
        told.append('with labels_per_class each config.seed draws examples of its own')
    raise UserError(
        f'{a.run.path} and {b.run.path} were trained on different data or splits'
        f'{": " + "; ".join(told) if told else ""}. One may have learnt what the other is judged by.'
    )


def open_data(of: Ingredient) -> Data:
    """The data of a run, not augmented.

    Raises:
        UserError: it has none, or it has changed since.
    """
    options, fitted = of.run.config['data'], of.run
    if not options['name']:
        raise UserError(f'{fitted.path}: was made by jtl convert and has no data of its own to judge by.')
    data = load(
        **{**options, 'augment': ()},
        preprocess=predict.preprocessing(fitted),
        batch_size=fitted.config['batch_size'],
        seed=fitted.config['seed'],
    )
    if data.fingerprint != of.record.get('data'):
        raise UserError(f'{fitted.path}: {options["name"]} is not the data that it was trained on; has it changed?')
    return data


def snapshots(of: Ingredient, start: int | None) -> tuple[list[int], list[run.Run]]:
    """The checkpoints that a run kept, `(steps, runs with these weights)`: its newest ones, or those from a step on.

    Without `start` they are the newest `config.keep_last`; one that was kept because it was the best is none of them.

    Raises:
        UserError: fewer than two.
    """
    folder, config = of.run.path / 'checkpoints', of.run.config
    there = checkpoint.steps(folder)
    steps = there[-config['keep_last'] :] if start is None else [step for step in there if step >= start]
    if len(steps) < 2:
        which = (
            f'its newest {config["keep_last"]} (config.keep_last)' if start is None else f'those from step {start} on'
        )
        raise UserError(
            f'{of.run.path}: an average takes two checkpoints at least, and of the {len(there)} here, of steps '
            f'{some(map(str, there), 8)}, {which} are {len(steps)}. Train with '
            'config.keep_last=10 and config.checkpoint_every=N (an epoch, say) to keep more of them, and with '
            "config.optim.schedule='constant' (a rate that falls to nothing leaves them all alike)."
        )
    runs = []
    for step in steps:
        parts, _ = checkpoint.load(folder, step, ('params', 'state'))
        runs.append(of.run._replace(params=parts['params'], state=parts['state']))
    return steps, runs


def predictions(path: Path) -> dict[str, np.ndarray] | None:
    """`index`, `label` and `logits` of a run's test split; None if it has none."""
    file = path / 'predictions.npz'
    if not file.exists():
        return None
    try:
        with np.load(file) as found:
            return {name: found[name] for name in ('index', 'label', 'logits')}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as e:
        raise UserError(f'{file}: cannot be read ({e}).') from e
