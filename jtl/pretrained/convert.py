"""`jtl convert URI --to=safetensors:PATH|run:PATH`: weights under a library's names, or as a run's folder."""

import argparse
import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from jtl import checkpoint, models, run, tree
from jtl.config import Config, as_json
from jtl.data import ops_text
from jtl.errors import UserError, nearest
from jtl.files import expanded
from jtl.pretrained.formats import safetensors
from jtl.pretrained.into import into
from jtl.pretrained.load import Pretrained, load
from jtl.pretrained.recognise import closest, dialects
from jtl.pretrained.shapes import example, grouped, lacking, shapes
from jtl.pretrained.table import Arrays, export

FREE = ('parent', 'name', 'dtype', 'remat', 'dropout', 'drop_path', 'zero_init_residual')  # any does for prediction


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog='jtl convert', description='Weights for another library, or for jtl.')
    parser.add_argument('uri', metavar='URI', help='as for config.init: hf:OWNER/NAME, torch:PATH, a run, …')
    parser.add_argument('--to', metavar='safetensors:PATH|run:PATH', required=True, help='what to write')
    parser.add_argument(
        '--names', metavar='LIBRARY', help='whose names: torchvision, timm, huggingface, … (default: one of PyTorch)'
    )
    parser.add_argument('--labels', metavar='FILE', help='the names of the classes: a line each, or JSON')
    parser.add_argument('--ignore', metavar='REGEX', nargs='+', default=(), help='tensors that are not wanted')
    parser.add_argument('--debug', action='store_true', help='show the traceback of an error')
    args = parser.parse_args(arguments)
    kind, _, path = args.to.partition(':')
    if kind not in ('safetensors', 'run') or not path:
        raise UserError(f'--to={args.to}: expected safetensors:PATH or run:PATH.')
    path = expanded(path)
    if path.exists():
        raise UserError(f'--to={args.to}: exists already; name a new one.')
    weights = load(args.uri, labels=args.labels, ignore=tuple(args.ignore))
    if kind == 'safetensors':
        names, silent = to_safetensors(weights, path, args.names)
        print(f'{path}: {weights.model["name"]} under the names of {names}.')
        if silent:
            print(f'The file does not say: {silent}; build the model so before you load it.')
    else:
        to_run(weights, path)
        print(f'{path}: {weights.model["name"]}, a run that jtl eval, jtl predict and config.init take.')
    return 0


def to_safetensors(weights: Pretrained, path: Path, names: str | None = None) -> tuple[str, dict]:
    """Writes the weights under a library's names; by default those that leave the least unsaid of the model.

    Only names that are read back as the very same weights of the same kind of model are taken.

    Returns:
        The library, and what the file does not say.

    Raises:
        UserError: the weights are not complete, or no library, or not this one, has names for all of them.
    """
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
        'multi_label': False,
        'preprocess': weights.preprocess,
    }
    with run.lock(path):
        table = '\n'.join(f'{name}  {where}' for name, where in origin.items())
        run.write_start(path, record, model, table, weights.tokenizer)
        with checkpoint.Writer(path / 'checkpoints') as writer:
            writer.save(0, {'params': params, 'state': state}, {})
        total = tree.count(params)
        result = {'step': 0, 'seconds': 0.0, 'examples_per_second': None, 'params': {'total': total, 'trainable': 0}}
        run.write_json(path / 'result.json', result)
