"""Wider, deeper, larger kernels: by hand, and through the layers they are for."""

import jax
import numpy as np
import pytest
import tiny
from flax import linen as nn

from jtl.errors import UserError
from jtl.morph import operations as op

RNG = np.random.default_rng(0)


def test_units_begin_with_themselves_and_are_copied_equally_often():
    assert op.units(3, 8).tolist() == [0, 1, 2, 0, 1, 2, 0, 1]
    assert op.units(3, 3, np.random.default_rng(1)).tolist() == [0, 1, 2]
    of = op.units(5, 13, np.random.default_rng(1))
    assert of[:5].tolist() == [0, 1, 2, 3, 4] and len(of) == 13
    assert sorted(np.bincount(of)) == [2, 2, 3, 3, 3]
    assert of[5:10].tolist() != [0, 1, 2, 3, 4] and sorted(of[5:10]) == [0, 1, 2, 3, 4]
    assert np.bincount(op.units(4, 12, np.random.default_rng(1))).tolist() == [3, 3, 3, 3]


def test_widen_copies_what_gives_and_divides_what_reads():
    # units a, b become a, b, a: what reads a has half of its weight twice
    before = {'kernel': np.array([[1.0, 2.0]]), 'bias': np.array([3.0, 4.0])}
    after = {'kernel': np.array([[10.0, 20.0], [30.0, 40.0]]), 'bias': np.array([5.0, 6.0])}
    wide, reads = op.widen(before, after, np.array([0, 1, 0]))
    assert wide['kernel'].tolist() == [[1, 2, 1]] and wide['bias'].tolist() == [3, 4, 3]
    assert reads['kernel'].tolist() == [[5, 10], [30, 40], [5, 10]] and reads['bias'].tolist() == [5, 6]


def test_shared_with_noise_sums_to_the_same_and_tells_copies_apart():
    x, of = RNG.normal(size=(3, 3, 4, 5)), op.units(4, 11, np.random.default_rng(1))
    wide = op.shared(x, of, noise=0.5, rng=np.random.default_rng(2))
    total = np.stack([wide[:, :, of == unit].sum(2) for unit in range(4)], 2)
    np.testing.assert_allclose(total, x, atol=1e-14)
    share = wide / x[:, :, of]
    spread = [np.ptp(share[:, :, of == unit], axis=2).min() for unit in range(4)]
    assert min(spread) > 0 and (share > 0).all()  # within a factor 1 ± noise · 2 · (1 - 1/copies), so above 0


def test_shared_splits_outputs_along_the_last_axis():
    assert op.shared(np.array([[2.0, 6.0]]), np.array([0, 1, 1, 1]), axis=-1).tolist() == [[2, 2, 2, 2]]


class Net(nn.Module):
    """Two convolutions with BatchNorm and relu, and, if `deep`, one more."""

    kernel: int = 3
    channels: int = 3
    deep: bool = False

    @nn.compact
    def __call__(self, x):
        norm = lambda name: nn.BatchNorm(use_running_average=True, epsilon=1e-5, name=name)
        x = nn.relu(norm('bn1')(nn.Conv(self.channels, (self.kernel,) * 2, 2, self.kernel // 2, name='conv1')(x)))
        if self.deep:
            x = nn.relu(norm('bn')(nn.Conv(self.channels, (5, 5), padding=2, name='conv')(x)))
        return nn.Conv(2, (3, 3), padding=1, name='conv2')(x)


def variables():
    shapes = {'conv1': (3, 3, 2, 3), 'conv2': (3, 3, 3, 2)}
    params = {k: {'kernel': RNG.normal(size=s), 'bias': RNG.normal(size=s[-1])} for k, s in shapes.items()}
    params['bn1'] = {'scale': RNG.uniform(0.5, 2, 3), 'bias': RNG.normal(size=3)}
    return params, {'mean': RNG.normal(size=3), 'var': RNG.uniform(0.5, 2, 3)}


def test_convolutions_grow_wider_deeper_and_larger_with_their_norms():
    params, statistics = variables()
    x = RNG.normal(size=(2, 7, 7, 2))

    def apply(net, params, statistics):
        with jax.enable_x64():
            return np.asarray(tiny.jit(net.apply)({'params': params, 'batch_stats': statistics}, x))

    expected = apply(Net(), params, {'bn1': statistics})

    layer = {'conv': params['conv1'], 'bn': params['bn1'], 'statistics': statistics}
    layer, reads = op.widen(layer, params['conv2'], op.units(3, 5, RNG), 0.3, RNG)
    wide = {'conv1': layer['conv'], 'bn1': layer['bn'], 'conv2': reads}
    np.testing.assert_allclose(apply(Net(channels=5), wide, {'bn1': layer['statistics']}), expected, atol=1e-12)

    norm, more = op.deepen_norm(np.array([0.5, 1.0, 2.0]), np.array([1.0, 2.0, 3.0]), 1e-5)
    deep = {**params, 'conv': op.deepen(3, (5, 5)), 'bn': norm}
    np.testing.assert_allclose(apply(Net(deep=True), deep, {'bn1': statistics, 'bn': more}), expected, atol=1e-12)

    large = {**params, 'conv1': {**params['conv1'], 'kernel': op.grow_kernel(params['conv1']['kernel'], (7, 7))}}
    np.testing.assert_allclose(apply(Net(kernel=7), large, {'bn1': statistics}), expected, atol=1e-12)


@pytest.mark.parametrize('size', [(1, 3), (4, 4), (3, 6)])
def test_grow_kernel_refuses_another_centre(size):
    with pytest.raises(UserError, match='a 3×3 kernel cannot become'):
        op.grow_kernel(np.zeros((3, 3, 1, 1)), size)
