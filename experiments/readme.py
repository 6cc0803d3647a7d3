"""Fills the results in README.md from the logs of runs, so that no number there is typed by hand.

    python experiments/readme.py quickstart=runs/quickstart cifar=runs/cifar
    python experiments/readme.py --check quickstart=runs/quickstart     # a diff, and exit status 1 if README differs

What stands between `<!-- results:NAME -->` and `<!-- end -->` is replaced. `quickstart` is the folder of a sweep, whose
RESULTS.md and results.png `jtl.compare` wrote; `parity` is the file that tests/parity wrote, `probe` the log of
experiments/probe_table.py; any other NAME is a folder of plain runs, a table row each. Of paths only the last part is
shown.
"""

import argparse
import difflib
import json
import math
import re
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from jtl.errors import UserError

ROOT = Path(__file__).parents[1]
Z = 1.959964  # the 97.5 % point of the normal distribution
HEAD = (
    'run', 'data', 'labels a class', 'rules', 'init', 'updates', 'test accuracy, %', 'trained parameters', 'minutes'
)  # fmt: skip
PROBE = (
    'data', 'source', 'best head', 'layer', 'test accuracy, %', 'ridge on features, %', 'pass, s', 'heads, s'
)  # fmt: skip
DATA = ('catsdogs', 'flowers17', 'pneumonia', 'cifar10-100', 'cifar10-1000', 'cifar10-10000')


def main(argv: Sequence[str] | None = None, root: Path = ROOT) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('results', metavar='NAME=FOLDER', nargs='+')
    parser.add_argument('--check', action='store_true', help='change nothing; print what would change')
    args = parser.parse_args(argv)
    try:
        return update(root, args.results, args.check)
    except UserError as e:
        print(f'readme: {e}', file=sys.stderr)
        return 2


def update(root: Path, results: Sequence[str], check: bool = False) -> int:
    """Fills README.md and docs/; returns 1 if `check` and something there is not as the logs say, else 0."""
    readme, old, pictures = root / 'README.md', (root / 'README.md').read_text(encoding='utf-8'), {}
    new = old
    for given in results:
        name, _, folder = given.partition('=')
        if not name or not folder:
            raise UserError(f'{given!r}: expected NAME=FOLDER, e.g. quickstart=runs/quickstart.')
        folder = Path(folder)
        if name in FILES:
            new = between(new, name, FILES[name](folder))
            continue
        if not folder.is_dir():
            raise UserError(f'{folder}: no such folder (for {name}).')
        if name == 'quickstart':
            new = between(new, name, summary(folder, f'docs/{name}.png'))
            pictures[root / 'docs' / f'{name}.png'] = (folder / 'results.png').read_bytes()
        else:
            new = between(new, name, table(folder))
    stale = [path for path, content in pictures.items() if not path.exists() or path.read_bytes() != content]
    if check:
        lines = difflib.unified_diff(old.splitlines(), new.splitlines(), 'README.md', 'by the logs', lineterm='')
        print('\n'.join([*lines, *(f'{path.relative_to(root)} differs' for path in stale)]))
        return int(old != new or bool(stale))
    readme.write_text(new, encoding='utf-8')
    for path in stale:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(pictures[path])
    return 0


def between(text: str, name: str, content: str) -> str:
    """`text` with `content` between the markers of `name`."""
    start, end = f'<!-- results:{name} -->', '<!-- end -->'
    before, found, rest = text.partition(start)
    if not found:
        raise UserError(f'README.md: no marker {start}.')
    old, found, after = rest.partition(end)
    if not found or '<!-- results:' in old:
        raise UserError(f'README.md: no {end} after {start}.')
    return f'{before}{start}\n{content.strip()}\n{end}{after}'


def summary(folder: Path, picture: str) -> str:
    """RESULTS.md of a sweep without its title, its picture where README has it."""
    for file in ('RESULTS.md', 'results.png'):
        if not (folder / file).is_file():
            raise UserError(f'{folder}: has no {file}; expected the --workdir of a finished sweep.')
    text = (folder / 'RESULTS.md').read_text(encoding='utf-8')
    text = re.sub(r'\A# .*\n', '', text).replace('![](results.png)', f'![Test accuracy by number of labels]({picture})')
    return relative(text)


def parity(file: Path) -> str:
    """A Markdown table, a row a family and a column a library, of the largest difference to its models."""
    try:
        rows = [json.loads(line) for line in file.read_text(encoding='utf-8').splitlines()]
    except (OSError, ValueError) as e:
        raise UserError(f'{file}: expected the file that JTL_PARITY named ({e}).') from e
    worst: dict[tuple[str, str], float] = {}
    for r in rows:
        key = r['family'], r['names'].partition('-')[0]  # huggingface-deit is Hugging Face's
        worst[key] = max(worst.get(key, 0.0), r['difference'])
    families, libraries = sorted({f for f, _ in worst}), sorted({n for _, n in worst})
    cells = [[f, *(f'{worst[f, n]:.0e}' if (f, n) in worst else '' for n in libraries)] for f in families]
    lines = [['', *libraries], ['---'] * (1 + len(libraries)), *cells]
    counted = f'{len(rows)} comparisons in {len({r["test"] for r in rows})} tests.'
    return '\n'.join([*('| ' + ' | '.join(line) + ' |' for line in lines), '', counted])


def probe(file: Path) -> str:
    """A Markdown table, a row a data set and source, of the log that experiments/probe_table.py wrote."""
    try:
        cells = [json.loads(line) for line in file.read_text(encoding='utf-8').splitlines()]
    except (OSError, ValueError) as e:
        raise UserError(f'{file}: expected the log of experiments/probe_table.py ({e}).') from e
    groups: dict[tuple[str, str], list[dict]] = {}
    for cell in sorted(cells, key=lambda cell: (DATA.index(cell['data']), cell['seed'])):
        groups.setdefault((cell['data'], cell['source']), []).append(cell)
    rows = [PROBE, ['---'] * len(PROBE), *(probe_row(*names, group) for names, group in groups.items())]
    facts = [distinct(cell[key] for cell in cells) for key in ('hardware', 'versions', 'version', 'commit')]
    notes = [
        'Head, setting and layer are chosen without the test split. In brackets: 95 % intervals for the number of test '
        'examples (Wilson), or, of several draws of the labels, lowest and highest. Ridge is that on the final '
        'features, its penalty chosen likewise. Seconds: one pass over all pictures for all layers; trying all heads. '
        '`joined` is the last layer of each width, together. The CIFAR ResNets were trained on CIFAR-10, with all its '
        'labels: their rows there are no transfer. ImageNet has cats and dogs among its classes.',
        *(pneumonia(source, group[0]) for (data, source), group in groups.items() if data == 'pneumonia'),
        'Hardware: {}. Versions: {}; jtl {}, commit {}.'.format(*facts),
    ]
    return '\n'.join([*('| ' + ' | '.join(map(str, row)) + ' |' for row in rows), '', '\n\n'.join(notes)])


def probe_row(data: str, source: str, cells: list[dict]) -> list[str]:
    """The cells of one data set and source, over the draws of the labels."""
    chosen = distinct(f'{c["chosen"]["head"]} ({c["chosen"]["said"]})' for c in cells)
    passed = sum(c['computed']['seconds'] for c in cells)
    return [
        data,
        f'{source}, {cells[0]["size"]} px',
        chosen,
        distinct(c['chosen']['layer'] for c in cells),
        spread([c['test'] for c in cells]),
        spread([c['ridge']['test'] for c in cells]),
        f'{passed:.0f}' if passed else '–',
        f'{sum(c["seconds"]["heads"] for c in cells) / len(cells):.0f}',
    ]


def spread(tests: list[dict]) -> str:
    """Accuracy in percent: one with its interval, or the mean of several with the lowest and the highest."""
    values = [test['accuracy']['value'] for test in tests]
    low, high = (
        (tests[0]['accuracy'][key] for key in ('low', 'high')) if len(tests) == 1 else (min(values), max(values))
    )
    return f'{100 * np.mean(values):.1f} [{100 * low:.1f}, {100 * high:.1f}]'


def pneumonia(source: str, cell: dict) -> str:
    """What else there is to say where one class is rare."""
    said = [f'{what} {cell["test"][key]["value"]:.3f} [{cell["test"][key]["low"]:.3f}, {cell["test"][key]["high"]:.3f}]'
            for key, what in (('f1_macro', 'macro-F1'), ('auroc', 'AUROC'))]  # fmt: skip
    return f'PneumoniaMNIST, {source}: ' + ', '.join(said) + '.'


def relative(text: str) -> str:
    """Absolute paths cut to their last part."""
    return re.sub(r'(?<![\w./~<)*\]+?])~?/(?:[\w.+@-]+/)+([\w.+@-]+)', r'\1', text)


def table(folder: Path) -> str:
    """A Markdown table, a row for each finished run below `folder`, and a line on where they ran."""
    paths = sorted(path.parent for path in folder.rglob('result.json'))
    if not paths:
        raise UserError(f'{folder}: no finished run in it (RUN/result.json).')
    runs = [(path.relative_to(folder).as_posix(), path, read(path / 'config.json')) for path in paths]
    rows = [HEAD, ['---'] * len(HEAD), *(row(name, path, record['config']) for name, path, record in runs)]
    lines = ['| ' + ' | '.join(cells) + ' |' for cells in rows]
    facts = [distinct(record[key] for _, _, record in runs) for key in ('hardware', 'versions', 'version', 'commit')]
    where = 'Hardware: {}. Versions: {}; jtl {}, commit {}.'.format(*facts)
    how = 'In brackets: 95 % intervals (Wilson) for the number of test examples; they do not cover the choice of seed.'
    return relative('\n'.join([*lines, '', f'{how} {where}']))


def row(name: str, run: Path, config: dict) -> list[str]:
    """The cells of one run."""
    result = read(run / 'result.json')
    if 'test' not in result:
        raise UserError(f'{run}: this run has no test split.')
    accuracy, n = result['test']['accuracy'], examples(run)
    low, high = wilson(accuracy, n)
    return [
        name,
        last(config['data']['name']),
        str(config['data'].get('labels_per_class') or 'all'),
        moves(config),
        last(config['init']) if config['init'] else '–',
        f'{updates(run):,}',
        f'{100 * accuracy:.1f} [{100 * low:.1f}, {100 * high:.1f}]',
        f'{result["params"]["trainable"]:,} of {result["params"]["total"]:,}',
        f'{result["seconds"] / 60:.1f}',
    ]


def wilson(p: float, n: int) -> tuple[float, float]:
    """The 95 % interval of a share p of n examples (Wilson 1927):

    (p + z²/2n ± z √(p (1 - p)/n + z²/4n²)) / (1 + z²/n)
    """
    middle, half = p + Z**2 / (2 * n), Z * math.sqrt(p * (1 - p) / n + Z**2 / (4 * n**2))
    return (middle - half) / (1 + Z**2 / n), (middle + half) / (1 + Z**2 / n)


def examples(run: Path) -> int:
    """The size of the test split."""
    if not (run / 'predictions.npz').is_file():
        raise UserError(f'{run}: has no predictions.npz, which tells the number of test examples.')
    with np.load(run / 'predictions.npz') as arrays:
        label = arrays['label']
    if label.ndim > 1:
        raise UserError(f'{run}: examples have several labels each; the interval is for one.')
    return len(label)


def updates(run: Path) -> int:
    """How many updates were made; result.json has the step of the selected checkpoint instead."""
    lines = (run / 'metrics.jsonl').read_text().splitlines()
    return max(json.loads(line)['step'] for line in lines)


def moves(config: dict) -> str:
    """Rules, or phases one after the other: `head/.*` ×1, `.*` frozen."""
    phases = config['phases'] or [[None, config['rules']]]
    said = []
    for until, rules in phases:
        text = ', '.join(f'`{escape(regex)}` ' + ('frozen' if m is None else f'×{m:g}') for regex, m in rules)
        said.append(f'to step {until:,}: {text}' if until else f'then {text}' if said else text)
    return '; '.join(said)


def escape(cell: str) -> str:
    """A `|` would end the table's cell, even between backticks."""
    return cell.replace('|', '\\|')


def last(uri: str) -> str:
    """`folder:/home/me/cats.zip` -> `folder:cats.zip`."""
    scheme, colon, path = uri.rpartition(':')
    return escape(f'{scheme}{colon}{Path(path).name if scheme != "tfds" else path}')


def distinct(values) -> str:
    """The different ones, in order of appearance."""
    flat = (', '.join(f'{k} {v}' for k, v in x.items()) if isinstance(x, dict) else str(x or 'unknown') for x in values)
    return '; '.join(dict.fromkeys(flat))


def read(path: Path) -> dict:
    try:
        return json.loads(path.read_text(encoding='utf-8'))
    except (OSError, ValueError) as e:
        raise UserError(f'{path}: cannot be read ({e}).') from e


FILES = {'parity': parity, 'probe': probe}  # by NAME: logs that are one file


if __name__ == '__main__':
    sys.exit(main())
