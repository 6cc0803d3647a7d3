"""Five classic programs in one table, from the logs of their runs: `classic_a.py` … `classic_e.py`.

    for p in a b c d e; do
      python -m jtl.main --config=experiments/classic_$p.py:shared=DIR --workdir=runs/classic/$p
    done
    python experiments/classic.py runs/classic             # what is finished so far
    python experiments/classic.py runs/classic --readme    # into README.md, with the curves of (e) in docs/

Runs are read from FOLDER/PROGRAM/ARM/seed=N. What a program has in place of the original's network and size of pictures
is told from its runs, so that with `init=resnet50.a1_in1k` the table says nothing of the kind.
"""

import argparse
import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jtl import compare, paired, report
from jtl.errors import UserError

sys.path.insert(0, str(Path(__file__).parent))
import readme  # noqa: E402


class Program(NamedTuple):
    """What the table says of a classic program, and what the original had; None is any."""

    title: str
    network: str | None = None
    size: int | None = None
    data: str | None = None


class Done(NamedTuple):
    """A finished run."""

    seed: int
    record: dict  # config.json
    model: dict  # model/model.json
    result: dict
    right: np.ndarray  # [N], how right on each test example


PROGRAMS = {
    'a': Program('frozen ResNet-50, features kept, 64 units with dropout 0.5', 'resnet50', 224),
    'b': Program('frozen ResNet-50, augmented pictures, 1,024 units', 'resnet50', 224),
    'c': Program('fine-tuning against feature extraction, flowers', 'resnet50', 224, 'tfds:oxford_flowers102'),
    'd': Program('ResNet-18, ten classes, linear head', 'resnet18', 224),
    'e': Program('ResNet on CIFAR-10, random crops and mirror images', None, 32, 'tfds:cifar10'),
}
HEAD = (
    'program', 'moves', 'what is other', 'data', 'weights', 'epochs', 'seeds', 'test accuracy, %', 'macro F1, %',
    'trained parameters', 'seconds',
)  # fmt: skip
FACTS = ('hardware', 'versions', 'version', 'commit')


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('folder', type=Path, metavar='FOLDER', help='the folder of the programs’ --workdir')
    parser.add_argument('--readme', action='store_true', help='put the table into README.md')
    args = parser.parse_args(argv)
    try:
        text = table(args.folder)
        print(text)
        if args.readme:
            write(args.folder, text)
    except UserError as e:
        print(f'classic: {e}', file=sys.stderr)
        return 2
    return 0


def write(folder: Path, text: str, root: Path = readme.ROOT) -> None:
    """The table into README.md, and beside it the curves of program (e), of its first seed."""
    file = root / 'README.md'
    run = next(iter(sorted((folder / 'e').glob('*/seed=*/result.json'))), None)
    if run is not None:
        figure = report.curves(report.read_metrics(run.with_name('metrics.jsonl')))
        report.save(figure, root / 'docs' / 'classic_e.png')
        text += '\n\n![Training and validation of program (e), seed 0](docs/classic_e.png)'
    file.write_text(readme.between(file.read_text(encoding='utf-8'), 'classic', text), encoding='utf-8')


def table(folder: Path) -> str:
    """A Markdown table, a row for each arm of each program, and what else is to be said."""
    arms = {(p, arm): runs for p in PROGRAMS for arm, runs in read(folder / p).items()}
    if not arms:
        raise UserError(f'{folder}: no finished run in it (PROGRAM/ARM/seed=N/result.json).')
    rows = [HEAD, ['---'] * len(HEAD), *(row(*key, runs) for key, runs in arms.items())]
    records = [run.record for runs in arms.values() for run in runs]
    facts = [readme.distinct(record[key] for record in records) for key in FACTS]
    notes = [
        "±: 95 % intervals by Student's t over seeds; they do not cover the choice of test examples. No rate, length "
        'or checkpoint is chosen by validation or test results; the parameters after the last step are tested. '
        'Seconds: training, mean over seeds, beside other work; the one pass for features that are kept is extra.',
        *versus(arms),
        *losses(arms),
        'Hardware: {}. Versions: {}; jtl {}, commit {}.'.format(*facts),
    ]
    return '\n'.join([*('| ' + ' | '.join(row) + ' |' for row in rows), '', '\n\n'.join(notes)])


def read(folder: Path) -> dict[str, list[Done]]:
    """The finished runs of a program, by arm and in the order of their seeds."""
    arms = defaultdict(list)
    for file in folder.glob('*/seed=*/result.json'):
        run = file.parent
        with np.load(run / 'predictions.npz') as arrays:
            right = paired.right(arrays['logits'], arrays['label'])
        found = [readme.read(run / name) for name in ('config.json', 'model/model.json', 'result.json')]
        arms[run.parent.name].append(Done(int(run.name.removeprefix('seed=')), *found, right))
    return {arm: sorted(arms[arm], key=lambda run: run.seed) for arm in sorted(arms)}


def row(program: str, arm: str, runs: list[Done]) -> list[str]:
    """The cells of one arm of a program."""
    one, config = runs[0], runs[0].record['config']
    params = one.result['params']
    return [
        f'({program}) {PROGRAMS[program].title}',
        arm,
        differs(PROGRAMS[program], one),
        f'{readme.last(config["data"]["name"])}, {len(one.right):,} to test',
        weights(config['init']),
        f'{config["epochs"]:g}' if config['epochs'] else f'{config["steps"]:,} steps',
        str(len(runs)),
        spread(run.result['test']['accuracy'] for run in runs),
        spread(run.result['test']['f1_macro'] for run in runs),
        f'{params["trainable"]:,} of {params["total"]:,}',
        f'{np.mean([run.result["seconds"] for run in runs]):,.0f}',
    ]


def differs(program: Program, run: Done) -> str:
    """What the run has where the original had something else: `resnetv2_50, stages 1–3, for resnet50`."""
    model, size, data = run.model['model'], run.model['preprocess']['size'], run.record['config']['data']['name']
    network = model['name'] + (f', stages 1–{model["depth"]},' if model.get('depth') else '')
    said = []
    if program.network is None:
        said.append(f'the network is {network}'.rstrip(','))
    elif network != program.network:
        said.append(f'{network} for {program.network}')
    if program.size not in (None, size):
        said.append(f'{size} px for {program.size}')
    if program.data not in (None, data):
        said.append(f'{readme.last(data)} for {program.data}')
    return '; '.join(said) or '–'


def weights(uri: str | None) -> str:
    """The end of a URI; of a file called `weights`, its folder."""
    path = Path(uri or 'none')
    return path.parent.name if path.stem == 'weights' else readme.last(str(path))


def spread(values) -> str:
    """Percent: the mean and half of its interval over seeds."""
    mean, half = compare.interval(values)
    return f'{100 * mean:.1f}' + ('' if np.isnan(half) else f' ± {100 * half:.1f}')


def versus(arms: dict[tuple[str, str], list[Done]]) -> list[str]:
    """(c): fine-tuning minus each other arm, over the seeds that both have."""
    by_seed = {arm: {run.seed: run.right for run in runs} for (program, arm), runs in arms.items() if program == 'c'}
    tuned, said = by_seed.pop('all', {}), []
    for arm, other in by_seed.items():
        if seeds := sorted(tuned.keys() & other.keys()):
            found = paired.versus(*(np.stack([of[s] for s in seeds]) for of in (tuned, other)), confidence=0.95)
            points = [f'{100 * found[key]:+.1f}' for key in ('difference', 'low', 'high')]
            said.append(
                '(c) All minus {}, points: {} [{}, {}] (95 %, {} seeds, resampling seeds and test pictures): '
                'fine-tuning {}.'.format(arm, *points, len(seeds), found['verdict'])
            )
    return said


def losses(arms: dict[tuple[str, str], list[Done]]) -> list[str]:
    """(e): the test loss, which the original prints as well."""
    said = []
    for (program, arm), runs in arms.items():
        if program == 'e':
            mean, half = compare.interval(run.result['test']['loss'] for run in runs)
            said.append(f'(e) Test loss, {arm}: {mean:.3f}' + ('.' if np.isnan(half) else f' ± {half:.3f}.'))
    return said


if __name__ == '__main__':
    sys.exit(main())
