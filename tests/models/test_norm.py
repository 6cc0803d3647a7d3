"""Frozen BatchNorm stands still: bit-identical statistics and the outputs of inference mode."""

import flax.linen as nn
import jax
import numpy as np
import pytest
from tiny import jit

from jtl import tree
from jtl.models import build
from jtl.models.norm import hold_still, is_frozen

X = np.random.default_rng(0).normal(2, 3, size=(6, 4)).astype(np.float32)


class Inner(nn.Module):
    affine: bool

    @nn.compact
    def __call__(self, x, train):
        x = nn.Dense(4, name='dense')(x)
        bn = nn.BatchNorm(momentum=0.9, use_scale=self.affine, use_bias=self.affine, name='bn')
        return nn.relu(bn(x, use_running_average=not train))


class Net(nn.Module):
    """`a`, then `b`, which may be rematerialised."""

    affine: bool = True
    remat: bool = False

    @nn.compact
    def __call__(self, x, train):
        x = Inner(self.affine, name='a')(x, train)
        inner = nn.remat(Inner, static_argnums=(2,)) if self.remat else Inner
        return inner(self.affine, name='b')(x, train)


def start(model, *args):
    """Variables that no default would give: kernels, scales and statistics are random and positive."""
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), *args))
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda leaf: rng.uniform(0.2, 1.0, leaf.shape).astype(np.float32), shapes)


def run(net, variables, frozen, train=True):
    """-> outputs, new batch_stats, gradient with respect to the parameters; jitted."""

    @jit
    def step(variables):
        def loss(params):
            with hold_still(frozen):
                y, updates = net.apply({**variables, 'params': params}, X, train, mutable=['batch_stats'])
            return (y**2).sum(), (y, updates['batch_stats'])

        (_, (y, stats)), grads = jax.value_and_grad(loss, has_aux=True)(variables['params'])
        return y, stats, grads

    return step(variables)


def frozen_where(variables, *prefixes):
    return {path: path.startswith(prefixes) for path in tree.flatten(variables['params'])}


def moved(before, after):
    """The modules whose statistics are not bit-identical."""
    before, after = tree.flatten(before), tree.flatten(after)
    assert before.keys() == after.keys()
    return {path.rpartition('/')[0] for path in before if (before[path] != np.asarray(after[path])).any()}


@pytest.mark.parametrize('remat', [False, True])
@pytest.mark.parametrize('affine', [True, False])
def test_hold_still_under_jit_grad_and_remat(affine, remat):
    """With `affine=False` the BatchNorm has no parameters, and the Dense beside it decides."""
    net = Net(affine, remat)
    variables = start(net, X, False)
    for frozen, expected in (((), {'a/bn', 'b/bn'}), (('b/',), {'a/bn'})):
        _, stats, _ = run(net, variables, frozen_where(variables, *frozen))
        assert moved(variables['batch_stats'], stats) == expected


def test_hold_still_gives_the_output_and_gradient_of_inference():
    net = Net()
    variables = start(net, X, False)
    y, stats, grads = run(net, variables, frozen_where(variables, 'a/', 'b/'))
    y_eval, _, grads_eval = run(net, variables, {}, train=False)
    y_train, _, _ = run(net, variables, {})
    assert moved(variables['batch_stats'], stats) == set()
    np.testing.assert_array_equal(y, y_eval)
    jax.tree.map(np.testing.assert_array_equal, grads, grads_eval)
    assert np.abs(y - y_train).max() > 0.1


def test_hold_still_leaves_a_batchnorm_that_trains_only_its_bias():
    net = Net()
    variables = start(net, X, False)
    frozen = {path: path != 'a/bn/bias' for path in tree.flatten(variables['params'])}
    y, stats, _ = run(net, variables, frozen)
    assert moved(variables['batch_stats'], stats) == {'a/bn'}


def test_hold_still_frozen_batchnorm_in_a_trained_module():
    net = Net()
    variables = start(net, X, False)
    _, stats, _ = run(net, variables, frozen_where(variables, 'a/bn/'))
    assert moved(variables['batch_stats'], stats) == {'b/bn'}


def test_hold_still_ends_with_its_context():
    net = Net()
    variables = start(net, X, False)
    with hold_still(frozen_where(variables, 'a/', 'b/')):
        pass
    _, updates = net.apply(variables, X, True, mutable=['batch_stats'])
    assert moved(variables['batch_stats'], updates['batch_stats']) == {'a/bn', 'b/bn'}


def test_hold_still_refuses_a_constructor_argument_that_it_cannot_override():
    frozen = {'scale': True, 'bias': True}
    net = nn.BatchNorm(use_running_average=False)
    with hold_still(frozen), pytest.raises(ValueError, match='at the call'):
        net.apply(start(net, X), X, mutable=['batch_stats'])
    still = nn.BatchNorm(use_running_average=True)
    with hold_still(frozen):
        still.apply(start(still, X), X)


def test_is_frozen_looks_at_whole_names_and_then_outwards():
    paths = {'a/bn1/scale': True, 'a/bn10/scale': False, 'b/w': True}
    assert is_frozen(('a', 'bn1'), paths) and not is_frozen(('a', 'bn10'), paths)
    assert not is_frozen(('a', 'free'), paths)  # no parameters: a decides, and is not all frozen
    assert is_frozen(('b', 'c', 'free'), paths)  # b/c has none either: b decides
    assert not is_frozen(('free',), paths) and not is_frozen((), {})


def test_hold_still_in_resnet_with_a_frozen_stage():
    model = build('resnet', 3, stages=(1, 1), width=4, shortcut='projection')
    batch = {'image': np.random.default_rng(0).normal(size=(4, 8, 8, 3)).astype(np.float32)}
    variables = start(model, batch, False)
    frozen = frozen_where(variables, 'backbone/stem/', 'backbone/stage1/', 'backbone/stage2/block0/shortcut/')

    @jit
    def step(variables):
        with hold_still(frozen):
            return model.apply(variables, batch, train=True, mutable=['batch_stats'])[1]['batch_stats']

    expected = {f'backbone/stage2/block0/{bn}' for bn in ('bn1', 'bn2')}
    assert moved(variables['batch_stats'], step(variables)) == expected
