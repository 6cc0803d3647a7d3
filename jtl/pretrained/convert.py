"""`jtl convert URI --to=safetensors:PATH|run:PATH`: weights under PyTorch's names, or as a run's folder."""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from jtl import checkpoint, run, tree
from jtl.config import Config, as_json
from jtl.errors import UserError, nearest
from jtl.pretrained.formats import safetensors
from jtl.pretrained.inspect import example
from jtl.pretrained.into import into, shapes
from jtl.pretrained.load import Pretrained, load
from jtl.pretrained.recognise import closest, dialects, recognise
from jtl.pretrained.table import Arrays, export

FREE = ('head', 'dtype', 'remat', 'dropout', 'drop_path', 'zero_init_residual')  # the weights are the same with any


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog='jtl convert', description='Weights for PyTorch, or for jtl.')
    parser.add_argument('uri', metavar='URI', help='as for config.init: hf:OWNER/NAME, torch:PATH, a run, …')
    parser.add_argument('--to', metavar='safetensors:PATH|run:PATH', required=True, help='what to write')
    parser.add_argument('--names', metavar='LIBRARY', help='whose names: torchvision, timm, huggingface, …')
    parser.add_argument('--labels', metavar='FILE', help='the names of the classes: a line each, or JSON')
    parser.add_argument('--debug', action='store_true', help='show the traceback of an error')
    args = parser.parse_args(arguments)
    kind, _, path = args.to.partition(':')
    if kind not in ('safetensors', 'run') or not path:
        raise UserError(f'--to={args.to}: expected safetensors:PATH or run:PATH.')
    if Path(path).exists():
        raise UserError(f'--to={args.to}: exists already; name a new one.')
    weights = load(args.uri, labels=args.labels)
    if kind == 'safetensors':
        names = to_safetensors(weights, Path(path), args.names)
        print(f'{path}: {weights.model["name"]} under the names of {names}.')
        if silent := unsaid(weights, Path(path)):
            print(f'The file does not say: {silent}; build the model so before you load it.')
    else:
        to_run(weights, Path(path))
        print(f'{path}: {weights.model["name"]}, a run that jtl eval, jtl predict and config.init take.')
    return 0


def to_safetensors(weights: Pretrained, path: Path, names: str | None = None) -> str:
    """Writes the weights under a library's names; by default those of the first that has names for all of them.

    Only names that are read back as the very same weights are taken.

    Returns:
        The library.

    Raises:
        UserError: no library, or not this one, has names for all of the weights.
    """
    leaves, able = weights.leaves(), {}
    for _, dialect in dialects():
        try:
            tensors = export(leaves, dialect)
        except (UserError, ValueError):
            continue
        if _equal(closest(tensors)[2].leaves, leaves):
            able.setdefault(dialect.name, tensors)
    if not able:
        raise UserError(f'{weights.uri}: no library that jtl knows has names for all parameters of {weights.model}.')
    names = names or next(iter(able))
    if names not in able:
        raise UserError(f'--names={names}: has no names for {weights.model["name"]}; {nearest(names, able)}')
    safetensors.write(path, able[names], {'format': 'pt'})
    return names


def _equal(some: Arrays, others: Arrays) -> bool:
    return some.keys() == others.keys() and all(np.array_equal(some[path], others[path]) for path in some)


def unsaid(weights: Pretrained, path: Path) -> dict:
    """What of the model a file of weights does not say, so that whoever loads it must build it so."""
    try:
        taken_for = recognise(safetensors.read(path), {}, str(path)).model
    except UserError:  # not even the number of heads
        taken_for = {}
    given = {key: value for key, value in weights.model.items() if key not in ('name', *FREE)}
    return {key: value for key, value in given.items() if taken_for.get(key) != value}


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
    blank = tree.unflatten({p: np.zeros(s, np.float32) for p, s in shapes(weights.model, count, batch).items()})
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
