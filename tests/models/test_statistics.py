"""Statistics of BatchNorm computed anew: a NumPy reference in float64, two layers deep."""

import flax.linen as nn
import numpy as np
import pytest

from jtl import tree
from jtl.models import statistics

EPS = 1e-5
BOTH = frozenset({'a/bn', 'b/bn'})


class Layer(nn.Module):
    width: int
    momentum: float

    @nn.compact
    def __call__(self, x, train):
        x = nn.Dense(self.width, name='dense')(x)
        x = nn.BatchNorm(momentum=self.momentum, epsilon=EPS, name='bn')(x, use_running_average=not train)
        return nn.Dropout(0.5, deterministic=not train)(nn.relu(x))  # there is no rng for it


class Net(nn.Module):
    remat: bool = False

    @nn.compact
    def __call__(self, batch, train):
        make = nn.remat(Layer, static_argnums=(2,)) if self.remat else Layer
        return make(3, 0.99, name='b')(Layer(4, 0.8, name='a')(batch['features'], train), train)


@pytest.fixture(scope='module')
def variables():
    """Nothing in it is 0 or 1, so that it matters what is used."""
    rng = np.random.default_rng(1)
    shapes = {'a': (5, 4), 'b': (4, 3)}
    layer = lambda i, o: {
        'dense': {'kernel': rng.normal(size=(i, o)), 'bias': rng.normal(size=o)},
        'bn': {'scale': rng.uniform(0.5, 2, o), 'bias': rng.normal(size=o)},
    }
    stats = lambda o: {'bn': {'mean': rng.normal(size=o), 'var': rng.uniform(0.5, 2, o)}}
    params = {name: layer(*shape) for name, shape in shapes.items()}
    return tree.map_paths(
        lambda path, x: x.astype(np.float32),
        {'params': params, 'batch_stats': {name: stats(o) for name, (_, o) in shapes.items()}},
    )


def batches(sizes=(6, 5, 2)):
    """Of means that differ, the rows of padding far from all the others."""
    for k, n in enumerate(sizes):
        x = np.random.default_rng(k).normal(k, 1 + k, (6, 5)).astype(np.float32)
        x[n:] = 1e3
        yield {'features': x, 'mask': (np.arange(6) < n).astype(np.float32)}


def reference(variables, layers):
    """{path: statistic} of each layer, Σ n_b s_b / Σ n_b, in float64."""
    total, N = {}, 0
    for batch in batches():
        n = int(batch['mask'].sum())
        x, N = batch['features'][:n].astype(np.float64), N + n
        for name in ('a', 'b'):
            p, kept = variables['params'][name], variables['batch_stats'][name]['bn']
            x = x @ p['dense']['kernel'].astype(np.float64) + p['dense']['bias']
            mean, var = x.mean(0), x.var(0)
            if f'{name}/bn' in layers:
                for key, value in (('mean', mean), ('var', var)):
                    total[f'{name}/bn/{key}'] = total.get(f'{name}/bn/{key}', 0) + n * value
            else:
                mean, var = kept['mean'], kept['var']
            x = np.maximum((x - mean) / np.sqrt(var + EPS) * p['bn']['scale'] + p['bn']['bias'], 0)
    return {path: value / N for path, value in total.items()}


@pytest.mark.parametrize('layers', [BOTH, {'b/bn'}])
def test_recomputed_are_the_means_over_batches(layers, variables):
    collections = {'batch_stats': variables['batch_stats'], 'other': {'x': np.ones(1)}}
    made = statistics.recomputed(Net(), variables['params'], collections, batches(), frozenset(layers))
    flat, expected = tree.flatten(made['batch_stats']), reference(variables, layers)
    assert len(expected) == 2 * len(layers) and made['other'] is collections['other']
    for path, before in tree.flatten(variables['batch_stats']).items():
        if path in expected:  # float32, of numbers up to about 10
            np.testing.assert_allclose(flat[path], expected[path], rtol=2e-5, atol=2e-5)
            assert flat[path].dtype == np.float32 and abs(flat[path] - before).max() > 0.1
        else:
            np.testing.assert_array_equal(flat[path], before)


def test_recomputed_is_the_same_of_a_model_that_is_rematerialised(variables):
    plain, again = (
        statistics.recomputed(Net(remat), variables['params'], variables, batches(), BOTH) for remat in (False, True)
    )
    for path, x in tree.flatten(plain['batch_stats']).items():
        np.testing.assert_allclose(tree.flatten(again['batch_stats'])[path], x, rtol=1e-6)


def test_moved_names_the_layers_whose_statistics_differ(variables):
    stats = variables['batch_stats']
    change = lambda path, x: x * np.float32([1, 1, 1 + 1e-6]) if path == 'b/bn/var' else x
    other = tree.map_paths(change, stats)
    assert statistics.moved([stats, stats, other]) == {'b/bn'}
    assert statistics.moved([stats, stats]) == frozenset() == statistics.moved([{}, {}])
