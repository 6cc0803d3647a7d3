"""`jtl features --data=URI --init=URI`: computes the features of a data set, or says where they are."""

import ast
from collections.abc import Sequence

from jtl.errors import UserError, nearest
from jtl.probe import command
from jtl.probe.features import ensure, open_source


def main(arguments: Sequence[str] | None = None) -> int:
    parser = command.parser('jtl features', 'Features of a frozen backbone, computed once and kept as NumPy arrays.')
    parser.add_argument('--init', metavar='URI', required=True, help='the weights: hf:…, torch:PATH, a run, …')
    parser.add_argument('--split', help='of the data (default: all there are)')
    parser.add_argument(
        '--views', type=int, metavar='K', help='K augmented views of each training example; see --augment'
    )
    parser.add_argument(
        '--augment',
        default="('random_resized_crop', 'flip')",
        help='as config.data.augment (default: %(default)s); only with --views',
    )
    parser.add_argument('--seed', type=int, default=0, help='of the views (default: 0)')
    args = parser.parse_args(arguments)
    if args.views is not None and args.views < 1:
        raise UserError(f'--views {args.views}: should be at least 1.')
    values = command.sections(args.data, args.set, taken=('seed', 'cache', 'init'))
    values['data'] = {'val': 0.0, 'test': 0.0, **values['data']}  # whole splits as they came
    if args.views:
        values['data']['augment'] = _literal(args.augment)
    frozen, _ = open_source(values.pop('data'), args.init, {**values, 'seed': args.seed})
    splits = [args.split] if args.split else list(frozen.data.sizes)
    if unknown := set(splits) - set(frozen.data.sizes):
        raise UserError(
            f'--split {args.split}: {args.data} has no such split; {nearest(unknown.pop(), frozen.data.sizes)}'
        )
    layers = command.chosen(frozen, args.layers)
    for split in splits:
        where, index = frozen.data.parts[split]
        views = range(args.views) if args.views and split == 'train' else [None]
        for epoch in views:
            entry, counted = ensure(frozen, where, index, layers, pool=args.pool, epoch=epoch, folder=args.cache)
            view = '' if epoch is None else f', view {epoch + 1} of {args.views}'
            print(f'{split}{view}: {counted.computed} computed, {counted.read} were there: {entry.folder}')
            for layer in layers:
                shape = '×'.join(map(str, (entry.size, *entry.shapes[layer])))
                print(f'  {layer:16} {shape}  {entry.file(layer).name}')
    return 0


def _literal(text: str) -> tuple:
    named = lambda op: isinstance(op, str) or isinstance(op, tuple | list) and op[:1] and isinstance(op[0], str)
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        value = None
    value = (value,) if isinstance(value, str) else value
    if not isinstance(value, tuple | list) or not all(map(named, value)):
        raise UserError(f"--augment {text}: expected what config.data.augment has, e.g. (('pad_crop', 4), 'flip').")
    return tuple(value)
