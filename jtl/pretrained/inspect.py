"""`jtl inspect URI`: what is in a checkpoint, what it is taken for and why, and what would be missing."""

import argparse
import json
import math
from collections.abc import Mapping, Sequence

import numpy as np

from jtl.errors import UserError, printable, some
from jtl.files import expanded
from jtl.pretrained import adapter, source
from jtl.pretrained.load import check, expected_input, is_run, load
from jtl.pretrained.recognise import MOST, closest, recognise
from jtl.pretrained.shapes import grouped, lacking
from jtl.rules import any_matches

WIDEST = 80  # characters of a column; longer cells stick out


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog='jtl inspect', description='What is in a checkpoint, and what it is.')
    parser.add_argument('uri', metavar='URI', help='as for config.init: hf:OWNER/NAME, torch:PATH, a run, …')
    parser.add_argument('--labels', metavar='FILE', help='the names of its classes')
    parser.add_argument('--ignore', metavar='REGEX', nargs='+', default=(), help='tensors that are not wanted')
    parser.add_argument('--json', action='store_true', help='print it as JSON')
    parser.add_argument('--debug', action='store_true', help='show the traceback of an error')
    args = parser.parse_args(arguments)
    check(ignore=args.ignore)
    if adapter.is_adapter(args.uri):
        said = _adapter(args.uri)
    else:
        said = _run(args.uri) if is_run(expanded(args.uri)) else _foreign(args.uri, args.labels, args.ignore)
    text = json.dumps(said) if args.json else _text(said)
    print('\n'.join(printable(line, len(line)) for line in text.split('\n')))
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
        'missing': [],
    }


def _adapter(uri: str) -> dict:
    """What its file says; the weights that it belongs to are not looked for."""
    path = adapter.where(uri)
    says = adapter.said(path)
    return {
        'uri': uri,
        'model': says.model,
        'why': f'an adapter, which says so itself, of {says.weights.uri}',
        'preprocess': says.preprocess,
        'classes': says.classes,
        'tensors': [(name, x.shape, str(x.dtype), name) for name, x in adapter.leaves(path).items()],
        'missing': [],
    }


def _foreign(uri: str, labels: str | None, ignore: Sequence[str]) -> dict:
    found = source.read(uri, labels)
    tensors = {name: x for name, x in found.tensors.items() if not any_matches(ignore, name)}
    said = {'uri': uri, 'files': found.files, 'model': None, 'tokenizer': sorted(found.tokenizer)}
    try:
        known = recognise(tensors, found.config, uri)
        tensors, translation = known.tensors, known.translation
        preprocess = expected_input(known, found.preprocess, translation.leaves)
        missing = lacking(known.model, translation.leaves, preprocess)
        said |= {'model': known.model, 'why': known.why, 'preprocess': preprocess, 'missing': missing}
    except UserError as e:
        said['why'] = str(e).removeprefix(f'{uri}: ')
        if len(tensors) > MOST:
            return {**said, 'tensors': []}
        _, _, tensors, _, translation = closest(tensors)
    leaves, goes = translation.leaves, {}
    for path, text in translation.origin.items():
        names, _, way = text.partition(' (')
        for name in names.split(' + '):
            goes.setdefault(name, []).append(path + (f' ({way}' if way else ''))
    return {
        **said,
        'classes': found.classes or ((0, *leaves['head/kernel'].shape)[-1] if 'head/kernel' in leaves else 0),
        'tensors': [(name, x.shape, str(x.dtype), ', '.join(goes.get(name, []))) for name, x in tensors.items()],
        'left out': translation.left,
        'unknown': translation.unknown,
        'not finite': [name for name, x in tensors.items() if not _finite(x)],
    }


def _finite(x: np.ndarray) -> bool:
    return x.dtype.kind in 'biu' or bool(np.isfinite(x.astype(np.float32) if x.dtype.kind == 'V' else x).all())


def _text(said: Mapping) -> str:
    tensors = said['tensors']
    numbers = sum(math.prod(shape) for _, shape, _, _ in tensors)
    lines = [f'{said["uri"]}: {len(tensors)} tensors, {numbers:,} numbers']
    lines += [f'read: {", ".join(said["files"])}'] if said.get('files') else []
    lines.append(f'looks like: {_model(said["model"]) if said["model"] else "nothing that jtl knows"} ({said["why"]})')
    if said['model']:
        classes = said['classes']
        named = f'{classes or "no"}, not named' if isinstance(classes, int) else f'{len(classes)}: {some(classes)}'
        if said.get('tokenizer'):
            lines.append(f'tokenizer: {", ".join(said["tokenizer"])}')
        else:
            lines.append('preprocess: ' + ', '.join(f'{k} {v}' for k, v in said['preprocess'].items()))
        lines.append(f'classes: {named}')
    left, unknown = said.get('left out', {}), said.get('unknown', {})
    rows = [('tensor', 'shape', 'dtype', 'goes to')]
    for name, shape, dtype, goes in tensors:
        why = f'not needed: {left[name]}' if name in left else f'? {unknown[name]}' if name in unknown else ''
        rows.append((printable(name), _shape(shape), dtype, goes or why))
    widths = [min(max(map(len, column)), WIDEST) for column in zip(*rows)]
    lines += ['', *('  '.join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows)]
    lines.append('')
    if wrong := said.get('not finite'):
        lines.append(f'with numbers that are not finite: {len(wrong)} ({some(wrong)})')
    if said['model']:
        lines += [f'unknown: {len(unknown)}', f'missing: {len(said["missing"])}', *grouped(said['missing'])]
    return '\n'.join(lines)


def _model(model: dict) -> str:
    return ', '.join([model['name'], *(f'{key} {value}' for key, value in model.items() if key != 'name')])


def _shape(shape: Sequence[int]) -> str:
    return '×'.join(map(str, shape)) or 'scalar'
