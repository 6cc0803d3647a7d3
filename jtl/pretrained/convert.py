"""`jtl convert URI --to=…`: weights under a library's names, or as a run's folder, or what a run changed of them."""

import argparse
import dataclasses
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np

from jtl import adapters, models, run, tree
from jtl.config import Config, as_json
from jtl.data import ops_text
from jtl.errors import UserError, nearest
from jtl.files import expanded
from jtl.pretrained import adapter
from jtl.pretrained.formats import safetensors
from jtl.pretrained.into import into
from jtl.pretrained.load import Pretrained, is_run, load
from jtl.pretrained.recognise import closest, dialects
from jtl.pretrained.shapes import example, grouped, lacking, shapes
from jtl.pretrained.table import Arrays, export

FREE = ('parent', 'name', 'dtype', 'remat', 'dropout', 'drop_path', 'zero_init_residual')  # any does for prediction


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog='jtl convert', description='Weights for another library, or for jtl.')
    parser.add_argument('uri', metavar='URI', help='as for config.init: hf:OWNER/NAME, torch:PATH, a run, …')
    parser.add_argument('--to', metavar='safetensors:PATH|run:PATH|adapter:FILE', required=True, help='what to write')
    parser.add_argument(
        '--names', metavar='LIBRARY', help='whose names: torchvision, timm, huggingface, … (default: one of PyTorch)'
    )
    parser.add_argument('--labels', metavar='FILE', help='the names of the classes: a line each, or JSON')
    parser.add_argument('--ignore', metavar='REGEX', nargs='+', default=(), help='tensors that are not wanted')
    parser.add_argument('--merge', action='store_true', help='to a run: with its adapters merged into the weights')
    parser.add_argument('--base', metavar='URI', help='where the weights are now that an adapter belongs to')
    parser.add_argument('--debug', action='store_true', help='show the traceback of an error')
    args = parser.parse_args(arguments)
    kind, _, path = args.to.partition(':')
    if kind not in ('safetensors', 'run', 'adapter') or not path:
        raise UserError(f'--to={args.to}: expected safetensors:PATH or run:PATH, or of a run adapter:FILE.')
    path = expanded(path)
    if path.exists():
        raise UserError(f'--to={args.to}: exists already; name a new one.')
    if kind == 'adapter' and args.merge:
        raise UserError('--merge: a run whose adapters are merged is changed everywhere; use --to=run:PATH.')
    if kind == 'adapter':
        return to_adapter(args.uri, path, args.base)
    weights = load(args.uri, labels=args.labels, ignore=tuple(args.ignore), base=args.base)
    if kind == 'safetensors' or args.merge:
        weights = merged(weights)
    if kind == 'safetensors':
        names, silent = to_safetensors(weights, path, args.names)
        print(f'{path}: {weights.model["name"]} under the names of {names}.')
        if silent:
            print(f'The file does not say: {silent}; build the model so before you load it.')
    else:
        to_run(weights, path)
        print(f'{path}: {weights.model["name"]}, a run that jtl eval, jtl predict and config.init take.')
    return 0


def to_adapter(uri: str, path: Path, base: str | None = None) -> int:
    """Writes what a run changed of the weights that it started from; see `jtl.pretrained.adapter`."""
    if path.suffix != '.safetensors':
        raise UserError(f'--to=adapter:{path}: expected a file NAME.safetensors.')
    if not is_run(expanded(uri)):
        raise UserError(f'--to=adapter:{path}: {uri} is not the folder of a finished run, which started from weights.')
    said, leaves = adapter.write(uri, path, base), safetensors.read(path)
    numbers, size = sum(x.size for x in leaves.values()), path.stat().st_size
    print(f'{path}: {len(leaves)} leaves, {numbers:,} numbers, {size:,} bytes; belongs to {said.weights.uri}.')
    return 0


def merged(weights: Pretrained) -> Pretrained:
    """The same function with plain weights: adapters are merged into them, and the model has none any more.

    Raises:
        UserError: an adapter that does what no weights of the plain model do.
    """
    own, _ = adapters.split({key: value for key, value in weights.model.items() if key != 'head'})
    if not own:
        return weights
    model = models.build(num_classes=1, **weights.model)  # the head is not looked at
    try:
        params = jax.tree.map(np.asarray, model.merge(weights.params))
    except UserError as e:
        raise UserError(f'{weights.uri}: cannot be merged: {e}') from e
    names = {a.name for a in own}
    return weights._replace(model={key: x for key, x in weights.model.items() if key not in names}, params=params)


def to_safetensors(weights: Pretrained, path: Path, names: str | None = None) -> tuple[str, dict]:
    """Writes the weights under a library's names; by default those that leave the least unsaid of the model.

    Only names that are read back as the very same weights of the same kind of model are taken.

    Returns:
        The library, and what the file does not say.

    Raises:
        UserError: the weights are not complete, or no library, or not this one, has names for all of them.
    """
    if (head := (weights.model.get('head') or {}).get('name', 'linear')) != 'linear':
        raise UserError(f'{weights.uri}: other libraries have no names for a head {head!r}; --to=run:PATH keeps it.')
    leaves, able = weights.leaves(), {}
    if missing := lacking(weights.model, leaves, weights.preprocess):
        raise UserError('\n'.join([f'{weights.uri}: {len(missing)} missing:', *grouped(missing)]))
    for _, dialect in dialects():
        try:
            tensors = export(leaves, dialect)
        except (UserError, ValueError):
            continue
        if (silent := unsaid(weights, tensors)) is not None:
            able.setdefault(dialect.name, (silent, tensors))
    if not able:
        raise UserError(f'{weights.uri}: no library that jtl knows has names for all parameters of {weights.model}.')
    names = names or min(able, key=lambda name: len(able[name][0]))  # the first of equals
    if names not in able:
        raise UserError(f'--names={names}: has no names for {weights.model["name"]}; {nearest(names, able)}')
    silent, tensors = able[names]
    safetensors.write(path, tensors)
    return names, silent


def unsaid(weights: Pretrained, tensors: Arrays) -> dict | None:
    """What of the model its tensors do not say, so that whoever loads them must build it so.

    None if they would be taken for another model.
    """
    family, dialect, _, _, translation = closest(tensors)
    leaves = weights.leaves()
    if translation.leaves.keys() != leaves.keys() or any(
        not np.array_equal(translation.leaves[path], leaf) for path, leaf in leaves.items()
    ):
        return None
    shaped = {path: leaf.shape for path, leaf in leaves.items()}
    try:
        model = family.model(shaped, dialect.settings(tensors, {}))
    except UserError:  # not even the number of heads
        model = {'name': weights.model['name']}
    ours, theirs = (models.build(num_classes=1, **known).backbone for known in (weights.model, model))
    if type(ours) is not type(theirs):
        return None
    fields = [field.name for field in dataclasses.fields(ours) if field.name not in FREE]
    return {name: getattr(ours, name) for name in fields if getattr(ours, name) != getattr(theirs, name)}


def to_run(weights: Pretrained, path: Path) -> None:
    """Writes the weights as the folder of a finished run.

    Raises:
        UserError: they are not complete, or have no head.
    """
    if 'head' not in weights.params:
        raise UserError(
            f'{weights.uri}: has no head, so there is nothing to predict with; config.init takes it as it is.'
        )
    count = tree.flatten(weights.params)['head/kernel'].shape[-1]
    classes = weights.classes or tuple(f'class {i}' for i in range(count))
    batch = example(weights.model, weights.preprocess)
    if weights.tokenizer:
        ops_text.tokenizer(weights.tokenizer)  # an error now rather than when it is used
    shaped = shapes(weights.model, count, batch).items()
    blank = tree.unflatten({path: np.broadcast_to(np.float32(0), shape) for path, shape in shaped})  # no memory yet
    statistics = blank.pop('model', {})
    state = {'model': statistics} if statistics else {}
    whole = weights._replace(classes=classes, head='keep')
    params, state, origin = into(blank, state, whole, classes, weights.model, batch)

    config = as_json(Config(data={'name': ''}, model=weights.model, steps=1, init=weights.uri))
    record = run.record(config, '', weights.sha256)
    model = {
        'model': config['model'],
        'method': config['method'],
        'classes': classes,
        'multi_label': weights.multi_label,
        'preprocess': weights.preprocess,
    }
    with run.lock(path):
        table = '\n'.join(f'{name}  {where}' for name, where in origin.items())
        total = tree.count(params)
        result = {'step': 0, 'seconds': 0.0, 'examples_per_second': None, 'params': {'total': total, 'trainable': 0}}
        run.write_finished(path, record, model, table, weights.tokenizer, params, state, result)
