"""Every way to fine-tune, on every kind of model: what is frozen keeps its bits, and what is trained moves."""

import jax
import numpy as np
import pytest
import tiny

from jtl import optim, step, tree
from jtl.comparison.layout import values
from jtl.config import parse
from jtl.errors import UserError
from jtl.models import norm
from jtl.plan import make_plan
from jtl.recipes import RECIPES
from jtl.train import enter, start, train

MODELS = {
    'resnet': {'name': 'resnet', 'stages': (1, 1), 'width': 8},
    'vit': {'name': 'vit', 'patch': 4, 'width': 16, 'depth': 2, 'heads': 2},
    'mlp': {'name': 'mlp', 'hidden': (12, 9)},
}
CONFIG = {
    'data': {'name': 'digits', 'labels_per_class': 2, 'threads': 0},
    'batch_size': 8,
    'steps': 12,
    'select': None,
    'optim': {'lr': 0.01, 'weight_decay': 0.01},
    'report': False,
}
OPTIONS = {'focal', 'logit_adjustment', 'weighted', 'balanced', 'smoothing', 'ema', 'mixup', 'cutmix', 'randaugment'}
OPTIONS |= {'mlp_head', 'cosine_head'}
CANNOT = {('prompts', 'resnet'), ('prompts', 'mlp'), ('norms', 'mlp'), ('gradual', 'mlp')}


@pytest.fixture(scope='module')
def sources(tmp_path_factory):
    folder, config = tmp_path_factory.mktemp('sources'), {**CONFIG, 'steps': 1}
    for name, model in MODELS.items():
        train({**config, 'model': model}, folder / name, quiet=True)
    return folder


@pytest.fixture(autouse=True)
def compiled_fast(monkeypatch):
    monkeypatch.setattr(step, '_keep_remat', lambda: tiny.FAST)
    yield
    step.compile_step.cache_clear()


def plan_of(method, model, sources):
    config = {**CONFIG, 'init': str(sources / model)}
    return make_plan(parse(values(config, RECIPES[method], 'all', {}, 0)))


def case(method, model):
    """What is an option of the loss, the data or the head knows nothing of the model: one model does for all."""
    slow = method in OPTIONS and model != 'mlp'
    return pytest.param(method, model, marks=[pytest.mark.slow] if slow else [], id=f'{method}-{model}')


@pytest.mark.parametrize(('method', 'model'), [case(method, model) for method in RECIPES for model in MODELS])
def test_two_steps_move_what_they_should_and_nothing_else(method, model, sources):
    if (method, model) in CANNOT:
        with pytest.raises(UserError, match=r'config\.(model|rules|phases)'):
            plan_of(method, model, sources)
        return
    plan = plan_of(method, model, sources)
    ts, _ = start(plan)
    batches = plan.data.train(0, plan.steps)
    for phase in plan.phases:
        ts = enter(plan, ts, phase)
        before = jax.device_get((ts.params, ts.state.get('model', {})))
        update = step.compile_step(plan.method, phase, plan.optim, plan.layout)
        for _ in range(2):
            ts, measured = update(ts, next(batches), plan.rates)
        assert all(np.isfinite(value) for value in jax.device_get(measured).values())
        check(phase, before, jax.device_get((ts.params, ts.state.get('model', {}))))


def check(phase, before, after):
    frozen = optim.frozen_paths(before[0], phase)
    old, new = map(tree.flatten, (before[0], after[0]))
    for path, still in frozen.items():
        assert np.array_equal(old[path], new[path]) == still, f'{path} is {"frozen" if still else "trained"}'
    old, new = map(tree.flatten, (before[1], after[1]))
    for path in old:  # batch_stats/backbone/stem/bn/mean
        still = norm.is_frozen(tuple(path.split('/')[1:-1]), frozen)
        assert np.array_equal(old[path], new[path]) == still, path
