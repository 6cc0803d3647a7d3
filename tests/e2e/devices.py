"""Measures 1 device against 8, for test_devices.py, in a process of its own that starts with 8 simulated ones.

    python devices.py float32|float64 FOLDER

writes FOLDER/result.json: what each function of `MEASURED[precision]` returned. In float64 all that jtl and flax would
compute in float32 is computed in float64, so that what is left of rounding after many steps is far below any mistake.
"""

import os
import sys

DEVICES = 8
# LLVM's own optimisations off: it compiles in half the time, and how arrays are divided is decided before it
os.environ['XLA_FLAGS'] = f'--xla_force_host_platform_device_count={DEVICES} --xla_backend_optimization_level=0'

import jax  # noqa: E402 (it reads that)
import jax.numpy as jnp  # noqa: E402

PRECISION, FOLDER = sys.argv[1:]


def attention(query, key, value):
    """As JAX's, which takes the softmax in float32 whatever it is given."""
    logits = jnp.einsum('btnd,bsnd->bnts', query, key) / query.shape[-1] ** 0.5
    return jnp.einsum('bnts,bsnd->btnd', jax.nn.softmax(logits), value)


if PRECISION == 'float64':
    jax.config.update('jax_enable_x64', True)
    jax.nn.dot_product_attention = attention
    jnp.float32 = jnp.float64  # before flax and jtl are imported, where it is a default

import collections  # noqa: E402
import contextlib  # noqa: E402
import io  # noqa: E402
import itertools  # noqa: E402
import json  # noqa: E402
import shutil  # noqa: E402
from pathlib import Path  # noqa: E402
from unittest import mock  # noqa: E402

import numpy as np  # noqa: E402
import tiny  # noqa: E402

from jtl import checkpoint, models, optim, sharding, tree  # noqa: E402
from jtl.config import override, parse  # noqa: E402
from jtl.plan import make_method, make_plan  # noqa: E402
from jtl.step import compile_init, compile_slots, compile_step  # noqa: E402
from jtl.train import Stopped, evaluate, start, train  # noqa: E402

models.DTYPES = (*models.DTYPES, 'float64')

ONE, MANY, CUT = {'devices': 1}, {'devices': DEVICES}, {'rules': 'fsdp'}
MODELS = {
    'resnet': {'name': 'resnet', 'stages': (1,), 'width': 8, 'dtype': PRECISION},
    # The class token starts at 0, so that the first LayerNorm multiplies its gradient by 1/0.02: pooled, that is 3, of
    # which float32's last places are above 1e-6. Far from the loss, in a mean of the patches, it is small.
    'vit': {'name': 'vit', 'depth': 1, 'width': 32, 'heads': 2, 'pool': 'mean', 'dtype': PRECISION},
}
PLAIN = {
    'data': {'name': 'digits', 'val': 0.1, 'augment': (('pad_crop', 1), 'flip'), 'threads': 0},
    'batch_size': 32,
    'steps': 20,
    'seed': 3,
    'optim': {'name': 'sgd', 'momentum': 0.9, 'lr': 0.1, 'weight_decay': 1e-3},
    'select': None,  # with it, a start makes an evaluation, which takes a second to compile
    'report': False,
}
EVERYTHING = {  # that draws random numbers, looks at more than one example, or has a state of its own
    'model.head.dropout': 0.3,
    'method': {'name': 'supervised', 'mixup': 0.4, 'class_weights': 'balanced', 'label_smoothing': 0.1},
    'optim.accumulate': 2,
    'optim.clip': 0.5,
    'optim.ema': 0.9,
}
ADAM = {'name': 'adamw', 'lr': 1e-2, 'weight_decay': 1e-2}
VIT_EVERYTHING = {'model.pool': 'token', 'model.dropout': 0.1, 'optim': ADAM, **EVERYTHING}


def config(model, where, everything, **more):
    plain = {**PLAIN, 'model': MODELS[model], 'sharding': where}
    rest = {'resnet': EVERYTHING, 'vit': VIT_EVERYTHING}[model] if everything else {}
    return override(plain, {**rest, **more})


def run(config, steps, change=lambda batch: batch):
    """`train.fit` without what it writes: the plan, and the state after so many steps."""
    plan = make_plan(parse(config))
    ts, _ = start(plan)
    for batch in plan.data.train(0, steps, plan.share):
        update = compile_step(plan.method, plan.phases[0], plan.optim, plan.layout)
        ts, _ = update(ts, plan.layout.batch(change(batch)), plan.rates)
    return plan, ts


def host(ts):
    """`{part: {path: array}}` of a state."""
    parts = {part: tree.flatten(getattr(ts, part)) for part in ('params', 'state', 'opt_state', 'ema')}
    return {part: {path: np.asarray(x) for path, x in leaves.items()} for part, leaves in parts.items() if leaves}


def apart(a, b):
    """The largest difference in each part."""
    assert {part: a[part].keys() for part in a} == {part: b[part].keys() for part in b}
    far = lambda x, y: np.abs(x.astype(np.float64) - y).max()
    return {part: float(np.max([far(x, b[part][path]) for path, x in leaves.items()])) for part, leaves in a.items()}


def held(state):
    """The most bytes of it that one device holds."""
    count = collections.Counter()
    for x in jax.tree.leaves(state):
        for shard in x.addressable_shards:
            count[shard.device] += shard.data.nbytes
    return max(count.values())


def placed(plan, ts):
    """What of a state each device holds, as a part of the whole; and what is not where the layout says."""
    arrays = (ts.params, ts.opt_state, ts.ema)
    where = zip(tree.flatten(arrays).items(), jax.tree.leaves(plan.layout.of(arrays)))
    moved = [path for (path, x), place in where if not x.sharding.is_equivalent_to(place, x.ndim)]
    return {'part': held(arrays) / tree.nbytes(arrays), 'moved': moved}


def small_models_are_cut():
    return mock.patch.object(sharding, 'SMALL', 1)


# What is measured.


def steps(count, cases):
    """So many steps on one device, data parallel and in FSDP, for `(model, everything)`."""
    found = {}
    for model, everything in cases:
        one = host(run(config(model, ONE, everything), count)[1])
        for name, where in (('data parallel', MANY), ('fsdp', CUT)):
            with small_models_are_cut():
                plan, ts = run(config(model, where, everything), count)
            case = f'{model}, {"everything" if everything else "plain"}, {name}'
            found[case] = {'apart': apart(one, host(ts)), **placed(plan, ts)}
    return found


def parts_alone():
    """The mean of what 8 devices reach that do not tell each other of their rows, against one step of them all.

    A step of SGD is linear in the gradient, so they are the same but for BatchNorm.
    """
    found = {}
    for model in MODELS:
        _, ts = run(config(model, MANY, False), 1)
        cut = lambda i: lambda batch: {k: v[4 * i : 4 * i + 4] for k, v in batch.items()}  # 32 rows / 8 devices
        alone = [host(run(config(model, ONE, False), 1, change=cut(i))[1]) for i in range(DEVICES)]
        mean = jax.tree.map(lambda *values: np.mean(values, 0), *alone)
        found[model] = apart(host(ts), mean)
    return found


def rows_moved():
    """The rows of each device given to the next, where every row has a random mask of its own to be dropped by."""
    found = {}
    for model in MODELS:
        _, ts = run(config(model, MANY, True), 1)
        _, other = run(config(model, MANY, True), 1, change=lambda b: {k: np.roll(v, 4, 0) for k, v in b.items()})
        found[model] = apart(host(ts), host(other))
    return found


def evaluations():
    """What is said of a split on 8 devices, against a single batch of all of it on one."""
    found = []
    for split, size in make_plan(parse(config('resnet', ONE, False))).data.sizes.items():
        if split == 'train':
            continue
        seen = []
        for where, batch_size in ((ONE, size), (MANY, 61), (CUT, 30)):
            with small_models_are_cut():
                plan, ts = run(config('resnet', where, False, **{'data.eval_batch_size': batch_size}), 1)
            values, outputs = evaluate(plan, ts, split)
            seen.append({k: np.asarray(v) for k, v in {**values, **outputs}.items()})
        whole, *others = seen
        for other in others:
            differ = [k for k in whole if not np.array_equal(whole[k], other[k])]
            far = {k: float(np.abs(whole[k] - other[k]).max()) for k in ('logits', 'loss')}
            found.append({'split': split, 'examples': size, 'differ': differ, **far})
    return found


def bytes_of_vit():
    """ViT-S/16 at 224 px with its slots in AdamW: what there is, and the most that one of 8 devices holds in FSDP."""
    method = make_method(json.dumps({'name': 'vit_s16'}), '{"name": "supervised"}', 10)
    example = {'image': np.zeros((1, 224, 224, 3), np.float32), 'label': np.zeros(1, np.int32)}
    shapes, _ = jax.eval_shape(method.init, jax.random.key(0), example)
    static, _ = optim.optimiser(10, name='adamw')
    (phase,) = optim.make_phases(shapes, ((None, (('.*', 1.0),)),), static.decay_rules)
    layout = sharding.sharding(rules='fsdp').layout(shapes)
    params, _ = compile_init(method, layout)(jax.random.key(0), example)
    state = params, compile_slots(phase, static, layout)(params)
    return {'numbers': tree.count(params), 'whole': tree.nbytes(state), 'held': held(state)}


RUN = {
    'steps': 8,
    'eval_every': 3,
    'log_every': 2,
    'checkpoint_every': 3,
    'select': 'loss',
    'data.eval_batch_size': 100,  # of 100 and of 797 examples: all batches have one shape
}


@small_models_are_cut()
def runs_resumed():
    """Runs begun on so many devices and ended on others, against one on a single device that was not stopped."""
    folder = Path(FOLDER)
    begin = lambda where, run, **kw: train(config('resnet', where, True, **RUN), folder / run, quiet=True, **kw)
    begin(ONE, 'whole')
    found, whole = {}, outcome(folder / 'whole')
    for begun, ends in ((MANY, ({'devices': 2}, {'devices': 4}, ONE)), (ONE, (MANY, CUT)), (CUT, (ONE,))):
        asked = itertools.count(1)
        stopped = ''
        try:
            begin(begun, f'{begun}', stop=lambda: next(asked) == 5)  # noqa: B023 (asked at once)
        except Stopped as e:
            stopped = str(e)
        for end in ends:
            name = f'{begun} -> {end}'
            shutil.copytree(folder / f'{begun}', folder / name)
            said = io.StringIO()
            with contextlib.redirect_stdout(said):
                train(config('resnet', end, True, **RUN), folder / name)
            here = outcome(folder / name)
            numbers = [(a[k], b[k]) for a, b in zip(whole['rows'], here['rows']) for k in a if k != 'split']
            found[name] = {
                'stopped': stopped,
                'said': said.getvalue(),
                'apart': apart(whole['parts'], here['parts']),
                'rows': [(row['step'], row['split']) for row in here['rows']],
                'same rows': [list(row) for row in here['rows']] == [list(row) for row in whole['rows']],
                'metrics': float(np.max([abs(a - b) for a, b in numbers])),
                'same best': whole['best'] == here['best'],
                'same index': np.array_equal(whole['index'], here['index']),
                'logits': float(np.abs(whole['logits'] - here['logits']).max()),
            }
    return found


def outcome(run):
    parts, progress = checkpoint.load(run / 'checkpoints', RUN['steps'])
    parts = {part: tree.flatten(leaves) for part, leaves in parts.items()}
    with np.load(run / 'predictions.npz') as predictions:
        seen = {name: predictions[name] for name in ('index', 'logits')}
    return {'parts': parts, 'rows': tiny.rows(run), 'best': [step for step, _ in progress['best']], **seen}


MEASURED = {
    'float32': {
        'steps': lambda: steps(1, [('resnet', False), ('vit', False), ('resnet', True)]),
        'parts alone': parts_alone,
        'evaluations': evaluations,
        'bytes': bytes_of_vit,
    },
    'float64': {
        'steps': lambda: steps(20, [('resnet', True), ('vit', True)]),
        'rows moved': rows_moved,
        'runs resumed': runs_resumed,
    },
}

if __name__ == '__main__':
    result = {name: measure() for name, measure in MEASURED[PRECISION].items()}
    Path(FOLDER, 'result.json').write_text(json.dumps(result, indent=1))
