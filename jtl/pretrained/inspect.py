"""`jtl inspect URI`: what is in a checkpoint, what it is taken for and why, and what would be missing."""

import argparse
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax.numpy as jnp

from jtl import models
from jtl.errors import UserError
from jtl.pretrained import source
from jtl.pretrained.into import grouped, shapes
from jtl.pretrained.load import is_run, load, preprocessing
from jtl.pretrained.recognise import Recognised, recognise, unwrap


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog='jtl inspect', description='What is in a checkpoint, and what it is.')
    parser.add_argument('uri', metavar='URI', help='as for config.init: hf:OWNER/NAME, torch:PATH, a run, …')
    parser.add_argument('--labels', metavar='FILE', help='the names of its classes')
    parser.add_argument('--json', action='store_true', help='print it as JSON')
    parser.add_argument('--debug', action='store_true', help='show the traceback of an error')
    args = parser.parse_args(arguments)
    said = _run(args.uri) if is_run(Path(args.uri)) else _foreign(args.uri, args.labels)
    print(json.dumps(said, ensure_ascii=False) if args.json else _text(said))
    return 0


def _run(uri: str) -> dict:
    weights = load(uri)
    rows = [(path, x.shape, str(x.dtype), path) for path, x in weights.leaves().items()]
    return {
        'uri': uri,
        'model': weights.model,
        'why': 'a run says so itself',
        'preprocess': weights.preprocess,
        'classes': weights.classes,
        'tensors': rows,
        'left out': {},
        'unknown': {},
        'missing': [],
    }


def _foreign(uri: str, labels: str | None) -> dict:
    found = source.read(uri, labels)
    said = {'uri': uri, 'files': found.files}
    try:
        known = recognise(found.tensors, found.config, uri)
    except UserError as e:
        rows = [(name, x.shape, str(x.dtype), '') for name, x in found.tensors.items()]
        return {**said, 'model': None, 'why': str(e).removeprefix(f'{uri}: '), 'tensors': rows}
    leaves, origin = known.translation.leaves, known.translation.origin
    goes = {}
    for path, text in origin.items():
        names, _, way = text.partition(' (')
        for name in names.split(' + '):
            goes.setdefault(name, []).append(path + (f' ({way}' if way else ''))
    rows = [
        (name, x.shape, str(x.dtype), ', '.join(goes.get(name, []))) for name, x in unwrap(found.tensors)[0].items()
    ]
    preprocess = preprocessing(known, found.preprocess, leaves)
    return {
        **said,
        'model': known.model,
        'why': known.why,
        'preprocess': preprocess,
        'classes': found.classes or (leaves['head/kernel'].shape[-1] if 'head/kernel' in leaves else 0),
        'tensors': rows,
        'left out': known.translation.left,
        'unknown': known.translation.unknown,
        'missing': _missing(known, preprocess),
    }


def _missing(known: Recognised, preprocess: dict) -> list[str]:
    """What the model has and the weights have not, with its shape; a head that is not there is no loss."""
    there = {path: leaf.shape for path, leaf in known.translation.leaves.items()}
    classes = there.get('head/kernel', (1,))[-1]
    wanted = shapes(known.model, classes, example(known.model, preprocess))
    return [
        path if path not in there else f'{path} {_shape(shape)}, not {_shape(there[path])}'
        for path, shape in wanted.items()
        if there.get(path) != shape and not (path.startswith('head/') and 'head/kernel' not in there)
    ]


def example(model: dict, preprocess: dict) -> dict:
    """A batch of one that a model can take, for the shapes of its parameters."""
    if 'image' not in models.build(num_classes=1, **model).backbone.INPUTS:
        return {'tokens': jnp.zeros((1, 8), jnp.int32)}
    side = preprocess.get('size') or 32
    return {'image': jnp.zeros((1, side, side, preprocess.get('channels') or 3), jnp.float32)}


def _text(said: Mapping) -> str:
    tensors = said['tensors']
    numbers = sum(math.prod(shape) for _, shape, _, _ in tensors)
    lines = [f'{said["uri"]}: {len(tensors)} tensors, {numbers:,} numbers']
    lines += [f'read: {", ".join(said["files"])}'] if said.get('files') else []
    lines.append(f'looks like: {_model(said["model"]) if said["model"] else "nothing that jtl knows"} ({said["why"]})')
    if said['model']:
        classes = said['classes']
        named = f'{classes or "no"}, not named' if isinstance(classes, int) else f'{len(classes)}: {_some(classes)}'
        lines.append('preprocess: ' + ', '.join(f'{k} {v}' for k, v in said['preprocess'].items()))
        lines.append(f'classes: {named}')
    left, unknown = said.get('left out', {}), said.get('unknown', {})
    rows = [('tensor', 'shape', 'dtype', 'goes to')]
    for name, shape, dtype, goes in tensors:
        why = f'not needed: {left[name]}' if name in left else f'? {unknown[name]}' if name in unknown else ''
        rows.append((name, _shape(shape), dtype, goes or why))
    widths = [max(map(len, column)) for column in zip(*rows)]
    lines += ['', *('  '.join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows)]
    if said['model']:
        lines += ['', f'unknown: {len(unknown)}', f'missing: {len(said["missing"])}', *grouped(said['missing'])]
    return '\n'.join(lines)


def _model(model: dict) -> str:
    return ', '.join([model['name'], *(f'{key} {value}' for key, value in model.items() if key != 'name')])


def _shape(shape: Sequence[int]) -> str:
    return '×'.join(map(str, shape)) or 'scalar'


def _some(names: Sequence[str]) -> str:
    return ', '.join(names[:3]) + (', …' if len(names) > 3 else '')
