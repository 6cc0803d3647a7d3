"""`jtl probe --data=URI --init=URI --workdir=DIR`: tries heads on frozen features, and writes the best into a run.

Every layer, kind of head and setting is judged on examples that it has not seen, the best is fitted again to all of
them, and then the test split is read. The folder is that of a finished run: the whole model, with the best linear head
on its final features, scaled so that its scores are logits.

Legend: N examples, D features, K classes.
"""

import dataclasses
import json
import shlex
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from jtl import describe, run, tree
from jtl.config import as_json
from jtl.errors import UserError, nearest
from jtl.files import expanded
from jtl.models.layers import FEATURES
from jtl.plan import Plan
from jtl.probe import choose, command, kinds, telling
from jtl.probe.choose import Candidate, Probe
from jtl.probe.features import Frozen, features, labels, open_source
from jtl.probe.folds import divisions
from jtl.probe.heads import Linear

PyTree = Any


class Found(NamedTuple):
    """What `probe` comes to.

    Attributes:
        candidates: all that were tried.
        joined: the layers that make up `joined`.
        chosen, test: the best of them, fitted to all examples that chose it, and its test values.
        written, written_test: likewise the best linear one on the final features.
        linear: that head for features as they come, [1, D, K] and [1, K], scaled so that its scores are logits.
        logits: those of the test split, [M, K]; None without one.
        judged_by: by which examples the choice was made, in words.
        seconds: `features` and `heads`.
    """

    candidates: list[Candidate]
    joined: list[str]
    chosen: Probe
    test: dict[str, dict[str, float]]
    written: Probe
    written_test: dict[str, dict[str, float]]
    linear: Linear
    logits: np.ndarray | None
    judged_by: str
    seconds: dict[str, float]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = command.parser('jtl probe', 'The best head on frozen features, in the folder of a run.')
    parser.set_defaults(layers='all')
    parser.add_argument('--init', metavar='URI', required=True, help='the weights: hf:…, torch:PATH, a run, …')
    parser.add_argument('--workdir', metavar='DIR', required=True, help='the folder to write')
    parser.add_argument('--heads', default=','.join(kinds.SETTINGS), help='kinds of heads (default: %(default)s)')
    parser.add_argument('--metric', default='accuracy', help=f'that chooses: {", ".join(choose.METRICS)}')
    parser.add_argument('--class-weights', choices=('balanced',), help='of examples by their class')
    parser.add_argument(
        '--folds', type=int, metavar='K', help='of cross-validation; 0 is the validation split (default: by its size)'
    )
    parser.add_argument('--json', action='store_true', help='print what probe.json says, and nothing else')
    args = parser.parse_args(arguments)
    folder = expanded(args.workdir)
    if folder.exists():
        raise UserError(f'--workdir {args.workdir}: exists already; name a new one.')
    heads = tuple(part.strip() for part in args.heads.split(',') if part.strip())
    check(heads, args.metric, args.pool, args.folds)
    config = command.sections(args.data, args.set)
    with run.lock(folder):
        start = time.perf_counter()
        of, plan = open_source(config.pop('data'), args.init, config)
        say = (lambda text: None) if args.json else print
        found = probe(
            of,
            command.chosen(of, args.layers),
            heads,
            metric=args.metric,
            weights=args.class_weights,
            number=args.folds,
            order=plan.config.data.get('order', 'random'),
            pool=args.pool,
            folder=args.cache,
            say=say,
        )
        told = telling.record(of, found, args.metric)
        words = ['jtl', 'probe', *(arguments or ())]
        write(folder, of, plan, found, told, shlex.join(words), time.perf_counter() - start)
    print(
        json.dumps(told)
        if args.json
        else '\n'.join([*telling.table(found, args.metric), *telling.closing(of, found, folder)])
    )
    return 0


def check(heads: Sequence[str], metric: str, pool: str, number: int | None) -> None:
    """Refuses names that are unknown before anything is opened."""
    for option, name, known in (
        *(('--heads', head, kinds.SETTINGS) for head in heads),
        ('--metric', metric, choose.METRICS),
    ):
        if name not in known:
            raise UserError(f'{option}: {name!r} is unknown; {nearest(name, known)}')
    if not heads:
        raise UserError(f'--heads: names none; {nearest("", kinds.SETTINGS)}')
    if not set(heads) & set(kinds.LINEAR):
        raise UserError(f'--heads: a run takes a linear one: one of {", ".join(kinds.LINEAR)} should be among them.')
    if pool == 'none':
        raise UserError("--pool none: a head takes a vector from a layer, not a map; 'mean' or 'token'.")
    if number is not None and (number < 0 or number == 1):
        raise UserError(f'--folds {number}: should be 2 or more, or 0 for the validation split.')


def probe(
    of: Frozen,
    layers: Sequence[str],
    heads: Sequence[str] = tuple(kinds.SETTINGS),
    *,
    metric: str = 'accuracy',
    weights: str | Sequence[float] | None = None,
    number: int | None = None,
    order: str = 'random',
    pool: str = 'mean',
    folder: str | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> Found:
    """Chooses by training and validation examples, and then looks at the test split.

    Args:
        of: backbone and data.
        layers: to try; and, of several, the last of each width joined.
        heads, metric, weights: see `choose.candidates`.
        number, order: see `folds.divisions`.
        pool, folder: see `features`.

    Raises:
        UserError: no head can be fitted, or none that is linear to the final features.
    """
    if len(of.data.classes) < 2 and not of.data.multi_label:
        raise UserError(f'{of.where[0]}: has one class, so there is nothing to choose by.')
    start = time.perf_counter()
    y, val = labels(of.data, 'train'), 0
    layers = [
        FEATURES,
        *(layer for layer in reversed(layers) if layer != FEATURES),
    ]  # of equals the last, which is cut least
    given = {'layers': layers, 'pool': pool, 'folder': folder, 'say': say}
    parts = features(of, splits=[split for split in ('train', 'val') if split in of.data.sizes], **given)
    if 'val' in parts:
        val, y = of.data.sizes['val'], np.concatenate([y, labels(of.data, 'val')])
    x = {layer: np.concatenate([part[layer] for part in parts.values()]) for layer in layers}
    del parts
    joined = choose.ends({layer: x[layer].shape[1] for layer in reversed(layers)})
    if len(joined) > 1:
        x[choose.JOINED] = choose.join(x, joined)
    seconds = {'features': time.perf_counter() - start}

    start, classes = time.perf_counter(), of.data.classes
    by = divisions(y, val, number, order)
    judged_by = (
        f'{val} validation examples' if len(by) == 1 else f'{len(by)}-fold cross-validation over {len(y)} examples'
    )
    found = choose.candidates(
        x, y, classes, by, heads, metric=metric, weights=weights, say=lambda kind: say(f'Trying {kind} …')
    )
    first = choose.best(found)
    second = choose.best(found, kinds.LINEAR, FEATURES)
    chosen = choose.refit(first, x[first.layer], y, classes, weights)
    learnt = len(y) - val  # who goes on from the run has validation examples that it has not seen
    written = choose.refit(second, x[FEATURES][:learnt], y[:learnt], classes, weights)
    rows, scores = choose.held_out(second, x[FEATURES], y, classes, by, weights)
    linear = choose.scaled(written.head.linear(), choose.temperature(scores, y[rows]))
    seconds['heads'] = time.perf_counter() - start
    test, written_test, logits = {}, {}, None
    if 'test' in of.data.sizes:
        start, target = time.perf_counter(), labels(of.data, 'test')
        needed = list(dict.fromkeys([*(joined if first.layer == choose.JOINED else [first.layer]), FEATURES]))
        seen = features(of, needed, splits=['test'], pool=pool, folder=folder, say=say)['test']
        seconds['features'] += time.perf_counter() - start
        if first.layer == choose.JOINED:
            seen[choose.JOINED] = choose.join(seen, joined)
        logits = np.asarray(linear.scores(seen[FEATURES])[0])
        test = choose.measured(chosen.scores(seen[first.layer]), target, classes)
        written_test = choose.measured(logits, target, classes)
    return Found(found, joined, chosen, test, written, written_test, linear, logits, judged_by, seconds)


# The run.


def write(folder: Path, of: Frozen, plan: Plan, found: Found, told: dict, words: str, seconds: float) -> None:
    """The folder of a finished run: the backbone and the linear head; the caller holds its lock."""
    variables = jax.tree.map(np.asarray, of.variables)
    kernel, bias = (np.asarray(value[0], np.float32) for value in found.linear)
    params = {**variables.pop('params'), 'head': {'kernel': kernel, 'bias': bias}}
    state = {'model': variables} if variables else {}
    expected = {path: leaf.shape for path, leaf in tree.flatten(plan.shapes[0]).items()}
    if expected != {path: leaf.shape for path, leaf in tree.flatten(params).items()}:
        raise UserError(f'config.method: {plan.config.method["name"]} has more parameters than backbone and head.')
    origin = {path: plan.config.init for path in tree.flatten({**params, 'model': variables})}
    origin |= {f'head/{name}': f'jtl probe: {telling.said(found.written.candidate)}' for name in params['head']}
    weights, config = plan.weights, as_json(dataclasses.replace(plan.config, report=False))
    start = run.record(config, plan.data.fingerprint, weights.sha256, weights.files)
    rows = describe.parameters(params, variables, plan.phases, origin, ())
    model = run.model_record(config, plan.data)
    predictions = None
    if found.logits is not None:
        where, index = plan.data.parts['test']
        predictions = {'index': index, 'label': plan.data.labels[where][index], 'logits': found.logits}
    result = {
        **(
            {'test': {name: value['value'] for name, value in found.written_test.items()}} if found.written_test else {}
        ),
        'step': 0,
        'seconds': seconds,
        'examples_per_second': None,
        'params': describe.sizes(params, plan.phases),
    }
    if 'test' in result:
        result['test']['majority'] = plan.data.majority.get('test')
    run.write_json(folder / 'probe.json', told)
    record = {**start, 'command': words}
    run.write_finished(folder, record, model, rows, weights.tokenizer, params, state, result, predictions)
