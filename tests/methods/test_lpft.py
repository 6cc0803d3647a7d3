"""LP-FT: the head that `prepare` puts in, against scikit-learn on the features, and what it leaves alone."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from tiny import jit

from jtl.errors import UserError
from jtl.evals import Seen, classification
from jtl.method import Passes
from jtl.methods.l2sp import l2sp
from jtl.methods.lpft import lpft, solve
from jtl.methods.supervised import supervised
from jtl.models import build
from jtl.probe import choose
from jtl.probe.heads import standard

N, B, D, K = 60, 16, 5, 3
RNG = np.random.default_rng(0)
LABEL = np.arange(N).astype(np.int32) % K
X = (RNG.normal(size=(N, D)) * [1, 2, 3, 0.5, 1] + 2.5 * np.eye(K, D)[LABEL] + 4).astype(np.float32)
MODEL = build('mlp', K, hidden=(5,))
PLAIN = supervised(MODEL)


def batches(label=LABEL):
    """Passes, the last batch padded by nonsense with mask 0."""
    return Passes(lambda: one_pass(label))


def one_pass(label):
    for i in range(0, N, B):
        rows = np.arange(i, i + B)
        real = rows < N
        x = np.where(real[:, None], X[rows % N], 1e6).astype(np.float32)
        yield {'features': x, 'label': label[rows % N], 'mask': real.astype(np.float32)}


@pytest.fixture(scope='module')
def start():
    return jit(PLAIN.init)(jax.random.key(0), {'features': X[:2], 'label': LABEL[:2]})


def loss(logits, label=LABEL):
    return dict(classification.run(Seen({'logits': logits, 'label': label}, tuple('abc'), None, None)))['loss']


def sure(logits):
    p = np.exp(logits - logits.max(1, keepdims=True))
    return (p / p.sum(1, keepdims=True)).max(1)


def test_lpft_puts_logistic_regression_on_the_features_and_leaves_the_rest(start):
    params, state = start
    found, _ = lpft(PLAIN, model=MODEL).prepare(params, state, batches(), jax.random.key(0))
    jax.tree.map(np.testing.assert_array_equal, found['backbone'], params['backbone'])
    assert {k: v.shape for k, v in found['head'].items()} == {'kernel': (5, K), 'bias': (K,)}
    outputs = jit(PLAIN.predict)(found, state, {'features': X})
    x = np.asarray(outputs['features'], np.float64)
    z = standard(x)(x)
    ours = np.asarray(outputs['logits'], np.float64)
    # it is one of those with a penalty that was tried, up to one factor for all scores
    apart = []
    for setting in choose.SETTINGS['logistic']:
        theirs = LogisticRegression(C=1 / (setting['penalty'] * N), tol=1e-8, max_iter=1000).fit(z, LABEL)
        theirs = theirs.decision_function(z)
        centred = ours - ours.mean(1, keepdims=True)
        factor = (centred * theirs).sum() / (theirs**2).sum()
        apart.append(np.abs(centred - factor * theirs).max() / np.abs(centred).max())
    assert min(apart) < 2e-3 < sorted(apart)[1]
    random = np.asarray(jit(PLAIN.predict)(params, state, {'features': X})['logits'])
    assert loss(ours) < 0.9 < loss(random)  # log 3 = 1.1 is chance


def test_ridge_scores_become_logits(start):
    params, state = start
    found, _ = lpft(PLAIN, model=MODEL, head='ridge').prepare(params, state, batches(), jax.random.key(0))
    logits = np.asarray(jit(PLAIN.predict)(found, state, {'features': X})['logits'], np.float64)
    accuracy = (logits.argmax(1) == LABEL).mean()
    assert accuracy > 0.6 and loss(logits) < 0.9
    assert abs(sure(logits).mean() - accuracy) < 0.15  # as sure as right; scores of ±1 themselves are not


def test_lpft_learns_several_labels(start):
    params, state = start
    label = (X[:, :K] > X[:, :K].mean(0)).astype(np.float32)
    found, _ = lpft(PLAIN, model=MODEL, head='ridge').prepare(params, state, batches(label), jax.random.key(0))
    logits = np.asarray(jit(PLAIN.predict)(found, state, {'features': X})['logits'])
    assert ((logits > 0) == label).mean() > 0.75


def test_lpft_and_the_method_within_go_through_the_data_each_for_itself(start):
    params, state = start

    def greedy(params, state, batches, rng):  # reads some of them
        first, second = itertools.islice(batches, 2)
        return params, {**state, 'read': jnp.int32(len(first['label']) + len(second['label']))}

    method = lpft(l2sp(PLAIN._replace(prepare=greedy)), model=MODEL, head='ridge')
    found, kept = method.prepare(params, state, batches(), jax.random.key(0))
    alone, _ = lpft(PLAIN, model=MODEL, head='ridge').prepare(params, state, batches(), jax.random.key(0))
    jax.tree.map(np.testing.assert_array_equal, found, alone)
    assert kept['read'] == 2 * B and 'l2sp' in kept
    assert method.loss is not PLAIN.loss and method.predict is PLAIN.predict


def test_a_feature_that_hardly_varies_gets_no_weight():
    idle = np.where(np.arange(N) == 3, 1e-3, 0).astype(np.float32)  # a relu that fires once
    kernel, bias = solve(np.c_[X, idle], LABEL, K, 'ridge')
    assert not kernel[-1].any() and np.abs(kernel[:-1]).max() < 100
    alone, _ = solve(X, LABEL, K, 'ridge')
    np.testing.assert_allclose(kernel[:-1], alone, rtol=1e-4)


def test_lpft_weighs_classes_as_the_loss_does():
    kernel, bias = solve(X, LABEL, K, 'ridge', jnp.array([20.0, 1.0, 1.0]))
    assert ((X @ kernel + bias).argmax(1) == 0).sum() > 40  # of 60, where 20 are


def test_training_from_a_solved_head_goes_on_from_a_lower_loss(start):
    params, state = start
    method = lpft(PLAIN, model=MODEL, head='ridge')
    solved, _ = method.prepare(params, state, batches(), jax.random.key(0))
    step, ended = jit(method.grads(method.loss)), {}
    batch = {'features': X, 'label': LABEL}
    for name, at in (('random', params), ('solved', solved)):
        for i in range(20):
            grads, _, metrics = step(at, state, batch, jax.random.key(i), jnp.int32(i))
            ended.setdefault(name, []).append(float(metrics['loss']))
            at = jax.tree.map(lambda w, g: w - 0.02 * g, at, grads)
    assert ended['solved'][0] < 0.9 < ended['random'][0]
    assert ended['solved'][-1] < ended['solved'][0]


def test_lpft_refuses(start):
    with pytest.raises(UserError, match="lpft.head: 'logistics'.*did you mean 'logistic'"):
        lpft(PLAIN, model=MODEL, head='logistics')
    for name in ('mlp', 'cosine'):
        with pytest.raises(UserError, match='config.method.lpft: solves for a linear head'):
            lpft(PLAIN, model=build('mlp', K, head={'name': name}))
    one_each = [{'features': X[:3], 'label': np.arange(3), 'mask': np.ones(3, np.float32)}]
    with pytest.raises(UserError, match='config.method.lpft: each class has one example'):
        lpft(PLAIN, model=MODEL).prepare(*start, one_each, jax.random.key(0))
