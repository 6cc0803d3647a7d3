"""`jtl compare`: ways to fine-tune, compared at equal budget."""

import argparse
import runpy
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from jtl import main as runner
from jtl.errors import UserError, exit_status, nearest
from jtl.recipes import RECIPES, Recipe, table

LIST = ('list', 'help')
BASELINE = 'finetune'


def main(arguments: Sequence[str] | None = None) -> int:
    """`jtl compare …`"""
    return compare(arguments, {**RECIPES})


def ablation(recipes: Mapping[str, Recipe], baseline: str, labels: str | None = None) -> int:
    """The command of an experiment with recipes of its own: `python experiments/FILE.py --config=… --workdir=…`."""
    return exit_status(lambda: compare(None, recipes, list(recipes), baseline, labels), '--debug' in sys.argv)


def compare(
    arguments: Sequence[str] | None,
    recipes: dict[str, Recipe],
    methods: Sequence[str] = (),
    baseline: str | None = None,
    labels: str | None = None,
) -> int:
    """Runs the comparison that the arguments ask for; `methods`, `baseline`, `labels` stand where they do not say."""
    args, rest = _parser().parse_known_args(arguments)
    if args.recipes:
        own = load_recipes(Path(args.recipes))
        recipes, methods = {**recipes, **own}, methods or list(own)
    methods = args.methods.split(',') if args.methods else list(methods)
    if methods and methods[0] in LIST:
        print(table(recipes))
        return 0
    for name in methods:
        if name not in recipes:
            raise UserError(f'--methods: {name!r} is unknown; {nearest(name, recipes)}')
    if not methods or len(set(methods)) < len(methods):
        raise UserError('--methods: name different ones, separated by commas; --methods=list shows those there are.')
    baseline = args.baseline or baseline or (BASELINE if BASELINE in methods else methods[0])
    _, config, path, workdir = runner.parse_command(rest)
    if workdir is None:
        raise UserError('--workdir: name the folder of the comparison; the same command goes on with it.')
    stop = runner.on_signal()
    from jtl import comparison  # JAX is imported only now
    from jtl.config import plain

    request = comparison.Request(
        config=plain(config),
        methods={name: recipes[name] for name in methods},
        labels=_labels(args.labels or labels, config),
        seeds=args.seeds,
        grid_seeds=args.seeds if args.grid_seeds is None else args.grid_seeds,
        baseline=baseline,
        metric=args.metric,
    )
    try:
        print(comparison.comparison(request, workdir, stop=stop, workers=args.workers, title=args.title))
    except comparison.Interrupted as e:
        print(e, file=sys.stderr)
        raise KeyboardInterrupt from e
    return 0


def load_recipes(path: Path) -> dict[str, Recipe]:
    """`RECIPES` of a Python file."""
    if not path.is_file():
        raise UserError(f'--recipes: {path} does not exist.')
    found = runner.told(path, runpy.run_path, str(path)).get('RECIPES')
    if not isinstance(found, dict) or not all(isinstance(recipe, Recipe) for recipe in found.values()):
        raise UserError(f'{path}: RECIPES should be {{name: jtl.recipes.Recipe(…)}}.')
    return found


def _labels(given: str | None, config: Mapping) -> tuple[int | str, ...]:
    """Of `--labels`, or the config's one number."""
    if given is None:
        return (config.get('data', {}).get('labels_per_class') or 'all',)
    try:
        return tuple('all' if text == 'all' else int(text) for text in given.split(','))
    except ValueError as e:
        raise UserError(f'--labels={given}: expected numbers of labels a class, or all, separated by commas.') from e


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog='jtl compare',
        description='Trains every method at equal budget, each at the points of its small grid, of which validation '
        'chooses, and writes RESULTS.md, results.png and results.jsonl. The same command goes on where it stopped.',
        usage='jtl compare --config=configs/FILE.py[:ARG] --methods=NAME,NAME,… --workdir=DIR [--config.KEY=VALUE …]',
        allow_abbrev=False,
    )
    add = parser.add_argument
    add('--methods', metavar='NAME,NAME', help='recipes, by name; --methods=list shows them')
    add('--recipes', metavar='FILE.py', help='a file with further RECIPES; without --methods they are compared')
    add('--baseline', metavar='NAME', help=f'what the others are held against (default: {BASELINE}, or the first)')
    add('--labels', metavar='N,N', help="labels a class; 'all' is all of them (default: as the config says)")
    add('--seeds', type=int, default=5, metavar='N', help='from config.seed up (default: 5)')
    add('--grid-seeds', type=int, metavar='N', help='the first so many alone choose the rate, for fewer runs')
    add('--metric', default='accuracy', help='a test metric of config.evals, e.g. f1_macro (default: accuracy)')
    add('--workers', type=int, default=1, metavar='N', help='runs at a time, each in a process (default: 1)')
    add('--title', default='', help='of RESULTS.md')
    return parser
