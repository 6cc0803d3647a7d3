"""Ways to fine-tune on several data sets in one table, from the folders that `jtl compare` left.

    python experiments/methods_table.py runs/finetuning             # what is finished so far
    python experiments/methods_table.py runs/finetuning --readme    # into README.md

Every folder FOLDER/DATA with a results.jsonl gives a column for each number of labels: see `experiments/finetuning.py`.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from jtl.errors import UserError

sys.path.insert(0, str(Path(__file__).parent))
import readme  # noqa: E402

MARKS = {'helps': ' ↑', 'hurts': ' ↓', 'open': ''}
COSTS = (('trained', 'trained parameters', 1), ('bytes', 'memory of a step, MB', 1e6), ('flops', 'GFLOP a step', 1e9))


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('folder', metavar='FOLDER', type=Path)
    parser.add_argument('--readme', action='store_true', help='put the table into README.md')
    args = parser.parse_args(argv)
    try:
        text = table(args.folder)
    except UserError as e:
        print(f'methods_table: {e}', file=sys.stderr)
        return 2
    if args.readme:
        file = readme.ROOT / 'README.md'
        file.write_text(readme.between(file.read_text(encoding='utf-8'), 'finetuning', text), encoding='utf-8')
    print(text)
    return 0


def table(folder: Path) -> str:
    """Markdown: a row a method, a column a data set and number of labels, then what a step costs, then the notes."""
    columns = {}
    for path in sorted(folder.glob('*/results.jsonl')):
        for line in map(json.loads, path.read_text().splitlines()):
            name = path.parent.name + ('' if line['across'] == 'all' else f', {line["across"]} labels a class')
            columns.setdefault(name, {})[line['method']] = line
    if not columns:
        raise UserError(f'{folder}: no DATA/results.jsonl below it; jtl compare writes them.')
    methods = list(dict.fromkeys(method for lines in columns.values() for method in lines))
    costs = {method: next(lines[method] for lines in columns.values() if method in lines) for method in methods}
    head = ['method', *columns, *(title for _, title, _ in COSTS)]
    rows = [
        [method, *(cell(lines.get(method)) for lines in columns.values())]
        + [f'{costs[method][key] / scale:,.3g}' if scale > 1 else f'{costs[method][key]:,}' for key, _, scale in COSTS]
        for method in methods
    ]
    marked = [' | '.join(row) for row in (head, ['---'] * len(head), *rows)]
    return '\n'.join(f'| {row} |' for row in marked) + '\n\n' + notes(folder)


def cell(line: dict | None) -> str:
    """Mean ± half of its interval, and whether the paired difference to the baseline lies on one side of 0."""
    if line is None or line['mean'] is None:
        return '–'
    half = '' if line['half'] is None else f' ± {100 * line["half"]:.1f}'
    return f'{100 * line["mean"]:.1f}{half}{"*" * line["edge"]}{MARKS.get(line.get("verdict"), "")}'


def notes(folder: Path) -> str:
    """What the numbers are, and which runs, machines and commits they come from."""
    said = [
        "Mean of the test metric in percent ± 95 % interval by Student's t over seeds. ↑, ↓: better or worse than the "
        'baseline of the comparison, by the paired interval over seeds. *: the chosen rate is the smallest or the '
        'largest of those tried. Costs are those of the first column that has the method.'
    ]
    for path in sorted(folder.glob('*/RESULTS.md')):
        facts = [line.removeprefix('- ') for line in path.read_text(encoding='utf-8').splitlines()]
        wanted = [line for line in facts if line.startswith(('command:', 'commit:', 'hardware:'))]
        said.append(f'{path.parent.name}: ' + '; '.join(wanted))
    return '\n\n'.join(readme.relative(text) for text in said)


if __name__ == '__main__':
    sys.exit(main())
