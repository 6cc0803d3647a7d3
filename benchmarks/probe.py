"""What the heads of `jtl.probe` cost, against a PyTorch loop and scikit-learn: each in turn, in one process.

    python benchmarks/probe.py [SECTION …] [--quick] [--rounds=5] [--out=probe.json]

Sections, all of them unless some are named:

    lanes   256 linear heads by SGD (16 learning rates × 4 decays × 4 seeds) on 10,000 × 1280 features of 10 classes:
            GFLOP/s beside a plain matrix product's, and seconds beside a PyTorch loop and scikit-learn
    cache   a pass that fills the cache beside the bare forward pass, ResNet-50 on 224 px; and an epoch of training a
            head, from the cache, beside one that runs the backbone
    heads   heads in closed form and by L-BFGS, fitted and scored, beside scikit-learn

A round takes every way once; a row has the median and the range of its seconds, and of the ratio to the row's
reference in the same round. The table is printed, and saved with every single time. Needs torch.
"""

import argparse
import itertools
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from jtl.probe import discriminant, logistic, neighbours, ridge
from jtl.probe.heads import Linear
from jtl.probe.lanes import grid, train

CLASSES = 10
PACKAGES = ('jax', 'jaxlib', 'numpy', 'scikit-learn', 'torch')


def in_turn(ways: dict[str, Callable], rounds: int, warm: bool = True) -> dict[str, list[float]]:
    """Seconds of each way in each round; a round before them compiles and is not counted."""
    seconds = {name: [] for name in ways}
    for k in range(-warm, rounds):
        for name, way in ways.items():
            began = time.perf_counter()
            jax.block_until_ready(way())
            if k >= 0:
                seconds[name].append(time.perf_counter() - began)
    return seconds


def row(what: str, seconds: list[float], against: list[float] | None = None, times: float = 1, **more) -> dict:
    """A row of the table; `times` is what a part that was measured is multiplied by to stand for the whole.

    `ratio` is how many times faster than `against`, round by round.
    """
    seconds = [times * s for s in seconds]
    ratios = [a / s for a, s in zip(against, seconds)] if against else []
    return {'what': what, 'seconds': seconds, 'ratio': ratios, **more}


def features(n: int, d: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Classes of unequal size whose means overlap, in correlated features of about unit variance."""
    rng = np.random.default_rng(0)
    means, mix = rng.normal(size=(CLASSES, d)), rng.normal(size=(d, d)) / d**0.5
    rng = np.random.default_rng(seed)
    y = rng.choice(CLASSES, n, p=np.linspace(1, 2, CLASSES) / np.linspace(1, 2, CLASSES).sum())
    x = 0.06 * means[y] + rng.normal(size=(n, d)) @ (0.5 * mix + 0.8 * np.eye(d))
    return x.astype(np.float32), y


# Lanes.


def torch_loop(fit, val, lanes: list[tuple[float, float, int]], batch_size: int, epochs: int) -> list[float]:
    """What one would write: a linear head after the other, the best validation accuracy of each."""
    import torch

    x, y, x_val, y_val = (torch.from_numpy(a) for a in (*fit, *val))
    best = []
    for lr, decay, seed in lanes:
        torch.manual_seed(seed)
        head = torch.nn.Linear(x.shape[1], CLASSES)
        optimiser = torch.optim.SGD(head.parameters(), lr=lr, momentum=0.9, weight_decay=decay)
        accuracy = []
        for _ in range(epochs):
            for rows in torch.randperm(len(x)).split(batch_size):
                loss = torch.nn.functional.cross_entropy(head(x[rows]), y[rows])
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
            with torch.no_grad():
                accuracy.append((head(x_val).argmax(1) == y_val).float().mean().item())
        best.append(max(accuracy))
    return best


def sklearn_loop(fit, lanes: list[tuple[float, float, int]], epochs: int) -> None:
    from sklearn.linear_model import SGDClassifier

    for lr, decay, seed in lanes:
        SGDClassifier(
            'log_loss',
            alpha=max(decay, 1e-12),
            learning_rate='constant',
            eta0=lr / 256,
            max_iter=epochs,
            tol=None,
            random_state=seed,
        ).fit(*fit)


def lanes_section(quick: bool, rounds: int) -> list[dict]:
    """One call of `train`, from arrays to heads; the plain products take as many flops as its own products do."""
    n, m, d, epochs = (2_000, 500, 256, 4) if quick else (10_000, 1_000, 1280, 10)
    rates = np.geomspace(1e-3, 1, 4 if quick else 16).tolist()
    lanes = grid(lr=rates, decay=(0.0, 1e-4, 1e-3, 1e-2), seed=range(4))
    L, few = len(lanes.lr), 4
    fit, val = features(n, d, 1), features(m, d, 2)
    wide, tall = jnp.zeros((d, L * CLASSES)), jnp.zeros((n, L * CLASSES))
    square, x = jnp.ones((2048, 2048)), jnp.asarray(fit[0])
    product = jax.jit(partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST))
    flops = 2 * d * L * CLASSES * (2 * n + m) * epochs  # forward and gradient, and validation
    chosen = np.linspace(0, L - 1, few + 2).astype(int)[1:-1]
    some = [(float(lanes.lr[i]), float(lanes.decay[i]), int(lanes.seed[i])) for i in chosen]
    rows = []
    for batch_size in (256, 1024):
        how = dict(batch_size=batch_size, epochs=epochs, patience=epochs)
        found, best = [], []
        ways = {
            'forward': lambda: product(x, wide),
            'gradient': lambda: product(x.T, tall),
            'square': lambda: [product(square, square) for _ in range(5)],
            'lanes': lambda how=how, found=found: (
                found.append(train(lanes, fit, val, CLASSES, **how)) or found[-1].heads
            ),
            'torch': lambda b=batch_size, best=best: best.append(torch_loop(fit, val, some, b, epochs)),
        }
        seconds = in_turn(ways, rounds)
        work = {'forward': 2 * n * d * L * CLASSES, 'square': 10 * 2048**3, 'lanes': flops}
        work['gradient'] = work['forward']
        names = {'forward': f'[{n}, {d}] @ [{d}, {L * CLASSES}]', 'square': '[2048, 2048] @ [2048, 2048]'}
        names['gradient'] = f'[{d}, {n}] @ [{n}, {L * CLASSES}]'
        speed = {name: [work[name] / s / 1e9 for s in seconds[name]] for name in work}
        for name in ('forward', 'gradient', 'square'):
            fraction = [a / b for a, b in zip(speed['lanes'], speed[name])]
            rows.append(row(f'plain product {names[name]}', seconds[name], gflops=speed[name], fraction=fraction))
        torch_all = [s * L / few for s in seconds['torch']]
        note = f'{L} linear heads, batch {batch_size}, {epochs} epochs'
        rows.append(row(f'lanes: {note}', seconds['lanes'], torch_all, gflops=speed['lanes']))
        rows.append(row(f'torch loop: {note}; {few} measured, × {L // few}', seconds['torch'], times=L / few))
        ours, theirs = found[-1].best[chosen], best[-1]
        rows[-1]['note'] = f'validation accuracy of these {few}: lanes {np.round(ours, 3)}, torch {np.round(theirs, 3)}'
    alone = in_turn({'sgd': lambda: sklearn_loop(fit, some[:1], epochs)}, 1, warm=False)['sgd']
    rows.append(
        row(f'SGDClassifier: {L} heads, {epochs} epochs, example by example; 1 measured, × {L}', alone, times=L)
    )
    return rows


# Heads.


def predictions(head, x: np.ndarray) -> np.ndarray:
    """[H, M]"""
    return np.asarray(head.scores(x).argmax(-1))


def chosen(found: ridge.Ridge) -> Linear:
    i = ridge.best(found)
    return Linear(found.head.kernel[i : i + 1], found.head.bias[i : i + 1])


def heads_section(quick: bool, rounds: int) -> list[dict]:
    """Fitted to features and labels, and M others classified, for all values of the hyperparameter."""
    from sklearn import discriminant_analysis, linear_model, neighbors

    n, m, d = (2_000, 500, 64) if quick else (10_000, 1_000, 1280)
    (x, y), (x_new, _) = features(n, d, 1), features(m, d, 2)
    lambdas, shrinkages, regs, ks = (1.0, 10.0, 100.0, 1000.0), (0.05, 0.2, 0.5), (0.1, 0.5), (1, 5, 20)
    qda = partial(discriminant_analysis.QuadraticDiscriminantAnalysis, solver='eigen')  # the other needs n_k > d
    lda = partial(discriminant_analysis.LinearDiscriminantAnalysis, solver='lsqr')
    nearest = partial(neighbors.KNeighborsClassifier, algorithm='brute')
    regression = partial(linear_model.LogisticRegression, tol=1e-5, max_iter=2000)
    given, penalties = (x, y, CLASSES), tuple(10.0**k for k in range(-2, 5))
    pairs = {
        'ridge and its penalty by leave-one-out (theirs by squared error)': (
            lambda: chosen(ridge.ridge(*given, penalties, loo=False)),
            lambda v: linear_model.RidgeClassifierCV(v),
            (penalties,),
        ),
        'logistic': (lambda: logistic.logistic(*given, lambdas)[0], lambda v: regression(C=1 / v), lambdas),
        'LDA': (lambda: discriminant.lda(*given, shrinkages), lambda v: lda(shrinkage=v), shrinkages),
        'QDA': (lambda: discriminant.qda(*given, regs, towards='mean'), lambda v: qda(shrinkage=v), regs),
        'nearest mean': (lambda: discriminant.nearest_mean(*given), lambda v: neighbors.NearestCentroid(), (None,)),
        'k-NN, cosine': (lambda: neighbours.neighbours(*given, ks), lambda v: nearest(v, metric='cosine'), ks),
        'k-NN, euclid': (lambda: neighbours.neighbours(*given, ks, metric='euclid'), lambda v: nearest(v), ks),
    }
    rows = []
    for name, (fit, make, values) in pairs.items():
        kept = {}

        def ours(fit=fit, kept=kept):
            kept['ours'] = predictions(fit(), x_new)

        def theirs(make=make, values=values, kept=kept):
            kept['theirs'] = np.stack([make(v).fit(x, y).predict(x_new) for v in values])

        seconds = in_turn({'ours': ours, 'theirs': theirs}, min(rounds, 3))
        other = int((kept['ours'] != kept['theirs']).sum())
        tight = ' (tol=1e-5)' if name == 'logistic' else ''  # with its 1e-4 predictions differ by its own doing
        note = f'{other} of {kept["ours"].size} predictions differ'
        rows.append(row(f'{name}: {len(values)} at once', seconds['ours'], seconds['theirs'], note=note))
        rows.append(row(f'scikit-learn{tight}, {name}: {len(values)} in turn', seconds['theirs']))
    return rows


# The cache.


def cache_section(quick: bool, rounds: int) -> list[dict]:
    """Pictures are in memory, as they come from a folder; the bare pass has its batches ready."""
    from jtl.config import parse
    from jtl.models.layers import FEATURES
    from jtl.plan import make_plan
    from jtl.probe import attach
    from jtl.probe import features as passes
    from jtl.start import loaded
    from jtl.step import TrainState, compile_slots, compile_step

    n, model, size = (128, 'resnet20', 32) if quick else (256, 'resnet50', 224)
    rng, folder = np.random.default_rng(0), Path(tempfile.mkdtemp())
    np.savez(
        folder / 'pictures.npz',
        train_images=rng.integers(0, 256, (n, size, size, 3), dtype=np.uint8),
        train_labels=np.arange(n) % CLASSES,
    )
    plan = make_plan(
        parse(
            {
                'data': {'name': f'npz:{folder / "pictures.npz"}', 'val': 0.0, 'test': 0.0},
                'model': {'name': model},
                'batch_size': passes.BATCH,
                'epochs': 1.0,
                'rules': passes.HEAD_ONLY,
                'cache': {'folder': str(folder / 'epochs')},
            }
        )
    )
    params, state, _ = loaded(plan, jax.random.key(0))
    of = passes.frozen(plan, params, state)
    ready = [{'image': batch['image']} for batch in plan.data.plain('train')]
    forward, fresh = passes._compiled(of.model, (FEATURES,), 'mean'), itertools.count()
    quietly = dict(say=lambda text: None, quiet=True)

    def fill():
        passes.ensure(of, 'train', np.arange(n), folder=str(folder / str(next(fresh))), **quietly)

    def epoch(plan, times=1):
        update = compile_step(plan.method, plan.phases[0], plan.optim, plan.layout)
        ts = TrainState(jnp.int32(0), jax.random.key(0), *jax.tree.map(jnp.copy, (params, state)), *slots(params))
        for _ in range(times):
            for batch in plan.data.train(0, n // passes.BATCH):
                ts, measured = update(ts, batch, plan.rates)
        return measured

    slots = compile_slots(plan.phases[0], plan.optim, plan.layout)
    kept, many = attach.cached(plan, params, state, **quietly), 50
    ways = {
        'forward': lambda: [forward(of.variables, batch) for batch in ready],
        'pass': fill,
        'backbone': lambda: epoch(plan),
        'cached': lambda: epoch(kept, many),
    }
    seconds = in_turn(ways, min(rounds, 3))
    shutil.rmtree(folder)
    note = f'{n} pictures of {size} px, {model}'
    cached = [s / many for s in seconds['cached']]
    return [
        row(f'bare forward pass: {note}', seconds['forward']),
        row('the same, read, normalised, computed, checked and written', seconds['pass'], seconds['forward']),
        row(f'an epoch of the head, through the backbone: {note}', seconds['backbone']),
        row(f'an epoch of the head, from the cache; mean of {many}', cached, seconds['backbone']),
    ]


SECTIONS = {'lanes': lanes_section, 'heads': heads_section, 'cache': cache_section}


# The table.


def machine() -> dict:
    git = lambda *args: subprocess.run(['git', *args], capture_output=True, text=True, cwd=Path(__file__).parent).stdout
    try:
        info = Path('/proc/cpuinfo').read_text()
        model = next(line.split(':')[1].strip() for line in info.splitlines() if line.startswith('model name'))
    except (OSError, StopIteration):
        model = platform.processor()
    return {
        'cpu': f'{model}, {os.cpu_count()} cores {platform.machine()}',
        'device': jax.devices()[0].device_kind,
        'python': platform.python_version(),
        **{package: version(package) for package in PACKAGES},
        'commit': git('rev-parse', '--short', 'HEAD').strip() + ('+' if git('status', '--porcelain').strip() else ''),
        'load': os.getloadavg()[0],
    }


def spread(values: list[float], digits: str = '.3g') -> str:
    """Median (least–most)."""
    if not values:
        return ''
    middle = f'{statistics.median(values):{digits}}'
    return f'{middle} ({min(values):{digits}}–{max(values):{digits}})' if len(values) > 1 else middle


def table(rows: list[dict]) -> str:
    head = ('what', 'seconds', 'times faster', 'GFLOP/s', 'lanes’ share of it', 'note')
    lines = [
        (
            r['what'],
            spread(r['seconds']),
            spread(r['ratio']),
            spread(r.get('gflops', []), '.0f'),
            spread(r.get('fraction', []), '.2f'),
            r.get('note', ''),
        )
        for r in rows
    ]
    return '\n'.join('| ' + ' | '.join(line) + ' |' for line in (head, ('---',) * len(head), *lines))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('sections', nargs='*', metavar='SECTION', help=f'of {", ".join(SECTIONS)}')
    parser.add_argument('--quick', action='store_true', help='smaller sizes')
    parser.add_argument('--rounds', type=int, default=5)
    parser.add_argument('--out', type=Path, default=Path('probe.json'))
    args = parser.parse_args()
    for name in args.sections:
        if name not in SECTIONS:
            parser.error(f'no section {name!r}; there are {", ".join(SECTIONS)}')
    where, found = machine(), {}
    print(', '.join(f'{key} {value}' for key, value in where.items()))
    for name in args.sections or SECTIONS:
        found[name] = SECTIONS[name](args.quick, args.rounds)
        print(f'\n{name}, medians of {args.rounds} rounds (least–most):\n\n{table(found[name])}', flush=True)
        args.out.write_text(json.dumps({'machine': where, 'quick': args.quick, 'sections': found}, indent=1))
    return 0


if __name__ == '__main__':
    sys.exit(main())
