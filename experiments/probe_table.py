"""Which head, on which layer, of which source: the table of frozen features in README, a line of a log a cell.

    python experiments/probe_table.py --shared=DIR --log=probe.jsonl      # goes on with what the log lacks
    python experiments/probe_table.py --shared=DIR --log=quick.jsonl --quick --only=catsdogs
    python experiments/probe_table.py --log=probe.jsonl --table           # what is there so far
    python experiments/readme.py probe=probe.jsonl                        # into README.md

DIR holds `data/` and `weights/` in the layout of SOURCES and DATA below. Cells are independent, the cheap ones first;
features are kept in $JTL_CACHE, so that a second pass over the same pictures is none.

Everything is chosen without the test split: by 5-fold cross-validation where the validation split would have fewer than
200 examples, folds of neighbours in flowers17 as its neighbours look alike. CIFAR-10 with 100 and 1,000 labels is drawn
three times; the 10,000 are 9,000 to learn from and 1,000 to choose by, and the chosen head learns from all.

CIFAR-10 and PneumoniaMNIST are enlarged to 96 pixels for ImageNet's models, whole, not to their 224: five times as
fast, and 28 or 32 pixels hold no more. CIFAR's models see all pictures in 32 pixels.
"""

import argparse
import json
import re
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
from readme import probe as table

from jtl import run
from jtl.errors import UserError
from jtl.models.layers import FEATURES
from jtl.probe import choose, command, kinds
from jtl.probe.features import Frozen, ensure, features, labels, open_source
from jtl.probe.fit import probe
from jtl.probe.telling import setting

SOURCES = {  # name: (URI, side of a picture where it is not the data's choice, stages that the file has)
    'cifar_resnet20': ('torch:{}/weights/cifar10_resnets/resnet20-12fca82f.th', 32, None),
    'cifar_resnet56': ('torch:{}/weights/cifar10_resnets/resnet56-4bfd9763.th', 32, None),
    'mobilenetv1_0.75': ('npz:{}/weights/mobilenet_v1_0.75_224_imagenet/weights.npz', None, None),
    'mobilenetv2': ('npz:{}/weights/mobilenetv2_imagenet_notop/weights.npz', None, None),
    'resnet50v2_stage123': ('npz:{}/weights/resnet50v2_imagenet_stage123/weights.npz', None, 3),
}
CIFAR = {'name': 'folder:{}/data/cifar10/cifar10_10k_10k.zip'}
DATA = {  # name: (the `data` section, side for models of ImageNet, the metric that chooses, seeds)
    'catsdogs': ({'name': 'folder:{}/data/catsdogs/catsdogs.zip', 'val': 0.0}, 224, 'accuracy', 1),
    'flowers17': (
        {'name': 'folder:{}/data/flowers17/flowers17.zip', 'order': 'sequential', 'val': 0.0, 'test': 1 / 3},
        224,
        'accuracy',
        1,
    ),
    'pneumonia': ({'name': 'npz:{}/data/pneumoniamnist/pneumoniamnist.npz'}, 96, 'f1_macro', 1),
    'cifar10-100': ({**CIFAR, 'val': 0.0, 'labels_per_class': 10}, 96, 'accuracy', 3),
    'cifar10-1000': ({**CIFAR, 'val': 0.0, 'labels_per_class': 100}, 96, 'accuracy', 3),
    'cifar10-10000': ({**CIFAR, 'val': 0.1}, 96, 'accuracy', 1),
}
QUICK = ('mean', 'ridge', 'knn')


def main(argv=None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--shared', metavar='DIR', help='the folder of data/ and weights/')
    parser.add_argument('--log', metavar='FILE', type=Path, required=True, help='JSON lines; begun or gone on with')
    parser.add_argument('--only', metavar='REGEX', default='', help='cells whose name, SOURCE/DATA/SEED, has it')
    parser.add_argument('--quick', action='store_true', help=f'only {", ".join(QUICK)} on the final features')
    parser.add_argument('--table', action='store_true', help='print what the log holds, and do nothing else')
    args = parser.parse_args(argv)
    try:
        if not args.table:
            if not args.shared:
                raise UserError('--shared: the folder of data/ and weights/ is needed.')
            fill(args.shared, args.log, args.only, args.quick)
        print(table(args.log))
    except UserError as e:
        print(f'probe_table: {e}', file=sys.stderr)
        return 2
    return 0


def cells() -> Iterator[tuple[str, str, str, int]]:
    """`(name, source, data, seed)`, cheap ones first."""
    for data, (*_, seeds) in DATA.items():
        for source in SOURCES:
            for seed in range(seeds):
                yield f'{source}/{data}/{seed}', source, data, seed


def fill(shared: str, log: Path, only: str = '', quick: bool = False) -> None:
    """Computes the cells that the log lacks, and adds a line for each."""
    wanted = [cell for cell in cells() if re.search(only, cell[0])]
    for i, (name, source, data, seed) in enumerate(wanted, 1):
        if name in done(log):  # looked up anew: several of these may share the work
            continue
        start = time.perf_counter()
        found = measure(shared, source, data, seed, quick)
        with log.open('a') as f:
            f.write(json.dumps({'cell': name, 'source': source, 'data': data, 'seed': seed, **found}) + '\n')
        accuracy = found['test']['accuracy']['value']
        print(f'{i}/{len(wanted)} {name}: {accuracy:.4f}, {time.perf_counter() - start:.0f} s', flush=True)


def done(log: Path) -> set[str]:
    """The cells of a log."""
    return {json.loads(line)['cell'] for line in log.read_text().splitlines()} if log.exists() else set()


def measure(shared: str, source: str, data: str, seed: int, quick: bool) -> dict:
    """One cell: what was chosen, its test values, and those of the plain reference, ridge on the final features."""
    (uri, side, depth), (options, imagenet, metric, _) = SOURCES[source], DATA[data]
    options = {**options, 'name': options['name'].format(shared)}
    size = side or imagenet
    config = {'preprocess': {'size': size, **({'crop': 1.0} if size == 96 else {})}, 'seed': seed}
    config['model'] = {'depth': depth} if depth else {}
    of, _ = open_source(options, uri.format(shared), config)
    layers = [FEATURES] if quick else command.chosen(of, 'all')
    heads = QUICK if quick else tuple(kinds.SETTINGS)
    passed = {'examples': 0, 'seconds': 0.0}
    for split in of.data.sizes:
        start = time.perf_counter()
        _, counted = ensure(of, *of.data.parts[split], layers, say=quiet, quiet=True)
        if counted.computed:
            passed['examples'] += counted.computed
            passed['seconds'] += time.perf_counter() - start
    found = probe(of, layers, heads, metric=metric, order=options.get('order', 'random'), say=quiet)
    chosen, ridge = found.chosen.candidate, choose.best(found.candidates, ['ridge'], FEATURES)
    machine = run.record({}, '', None)
    return {
        'size': size,
        'sizes': of.data.sizes,
        'metric': metric,
        'judged_by': found.judged_by,
        'chosen': {**chosen._asdict(), 'said': setting(chosen)},
        'test': found.test,
        'linear': {**found.written.candidate._asdict(), 'test': found.written_test},
        'ridge': {**ridge._asdict(), 'test': tested(of, ridge)},
        'kinds': {head: choose.best(found.candidates, [head])._asdict() for head in able(found.candidates)},
        'tried': sum(not c.reason for c in found.candidates),
        'computed': passed,
        'seconds': found.seconds,
        'quick': quick,
        **{key: machine[key] for key in ('hardware', 'versions', 'version', 'commit')},
    }


def able(found: list[choose.Candidate]) -> list[str]:
    return list(dict.fromkeys(c.head for c in found if not c.reason))


def tested(of: Frozen, candidate: choose.Candidate) -> Mapping:
    """Test values of a candidate on the final features."""
    x = {split: part[FEATURES] for split, part in features(of, say=quiet).items()}
    y = {split: labels(of.data, split) for split in x}
    learn = [split for split in ('train', 'val') if split in x]
    fitted = choose.refit(candidate, *(np.concatenate([part[s] for s in learn]) for part in (x, y)), of.data.classes)
    return choose.measured(fitted.scores(x['test']), y['test'], of.data.classes)


def quiet(text: str) -> None:
    pass


if __name__ == '__main__':
    sys.exit(main())
