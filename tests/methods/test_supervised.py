"""Losses against float64 formulas and optax; the method against hand-made batches."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jtl.errors import UserError
from jtl.methods import supervised as s
from jtl.models import build

B, D, K = 6, 5, 4
RNG = np.random.default_rng(0)
LOGITS = RNG.normal(size=(B, K)).astype(np.float32) * 3
LABEL = np.array([0, 3, 1, 1, 2, 0], np.int32)
BATCH = {'features': RNG.normal(size=(B, D)).astype(np.float32), 'label': LABEL, 'mask': np.ones(B, np.float32)}


def initialised(**options):
    method = s.supervised(build('mlp', K, hidden=(8,)), **options)
    params, state = method.init(jax.random.key(0), BATCH)
    return method, params, state


def loss_of(method, params, state, batch):
    return method.loss(params, state, batch, jax.random.key(1), jnp.int32(0))[0]


def log_softmax(x):  # in float64
    x = x.astype(np.float64)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


def test_softmax_cross_entropy_against_float64():
    weight = np.array([0.5, 1.0, 2.0, 3.0])
    target = 0.9 * np.eye(K)[LABEL] + 0.1 / K
    expected = -(weight * target * log_softmax(LOGITS)).sum(-1)
    np.testing.assert_allclose(s.softmax_cross_entropy(LOGITS, target, weight), expected, rtol=1e-5)


def test_sigmoid_cross_entropy_against_float64():
    target = (RNG.random((B, K)) > 0.5).astype(float)
    weight = np.array([0.5, 1.0, 2.0, 3.0])
    p = 1 / (1 + np.exp(-LOGITS.astype(np.float64)))
    expected = -(weight * (target * np.log(p) + (1 - target) * np.log(1 - p))).mean(-1)
    np.testing.assert_allclose(s.sigmoid_cross_entropy(LOGITS, target, weight), expected, rtol=1e-5)


def test_smooth_keeps_the_mass():
    np.testing.assert_allclose(s.smooth(np.eye(4)[[1]], 0.2, floor=4), [[0.05, 0.85, 0.05, 0.05]])
    np.testing.assert_allclose(s.smooth(np.array([[0.0, 1.0]]), 0.2, floor=2), [[0.1, 0.9]])


def test_loss_is_the_mean_cross_entropy_of_predict():
    method, params, state = initialised()
    logits = method.predict(params, state, BATCH)['logits']
    expected = optax.softmax_cross_entropy_with_integer_labels(logits, LABEL).mean()
    np.testing.assert_allclose(loss_of(method, params, state, BATCH), expected, rtol=1e-6)


def test_loss_ignores_padding_rows():
    method, params, state = initialised()
    padded = {k: np.concatenate([v, v[:2]]) for k, v in BATCH.items()}
    padded['mask'][B:] = 0
    padded['label'][B:] = 3
    np.testing.assert_allclose(loss_of(method, params, state, padded), loss_of(method, params, state, BATCH), rtol=1e-6)


def test_example_weights_multiply_and_divide_by_the_number_of_examples():
    method, params, state = initialised()
    one = {**BATCH, 'weight': np.array([6, 0, 0, 0, 0, 0], np.float32)}  # Σ w l / 6 = the first example's loss
    alone = {k: v[:1] for k, v in BATCH.items()}
    np.testing.assert_allclose(loss_of(method, params, state, one), loss_of(method, params, state, alone), rtol=1e-6)


def test_balanced_class_weights_are_counted_in_prepare():
    method, params, state = initialised(class_weights='balanced')
    padded = {**BATCH, 'mask': np.array([1, 1, 1, 1, 1, 0], np.float32)}  # counts 1, 2, 1, 1 of 5
    _, state = method.prepare(params, state, iter([padded, padded]), jax.random.key(0))
    np.testing.assert_allclose(state['class_weight'], 10 / (4 * np.array([2, 4, 2, 2])), rtol=1e-6)
    loss_of(method, params, state, BATCH)  # and the state is accepted


def test_class_weights_scale_the_loss_of_their_class():
    method, params, state = initialised(class_weights=(0.0, 1.0, 0.0, 0.0))
    _, state = method.prepare(params, state, iter([BATCH]), jax.random.key(0))
    logits = method.predict(params, state, BATCH)['logits']
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, LABEL)
    np.testing.assert_allclose(loss_of(method, params, state, BATCH), losses[LABEL == 1].sum() / B, rtol=1e-6)


def test_class_weights_of_the_wrong_number_are_refused():
    method, params, state = initialised(class_weights=(1.0, 2.0))
    with pytest.raises(UserError, match='2 given for 4 classes'):
        method.prepare(params, state, iter([BATCH]), jax.random.key(0))


@pytest.mark.parametrize('options', [{'label_smoothing': 1.0}, {'mixup': -0.1}, {'class_weights': 'balance'}])
def test_supervised_refuses(options):
    with pytest.raises(UserError, match=f'config.method.{next(iter(options))}'):
        s.supervised(build('mlp', K), **options)


def test_multi_label_uses_the_sigmoid():
    method, params, state = initialised()
    label = (RNG.random((B, K)) > 0.5).astype(np.float32)
    batch = {**BATCH, 'label': label}
    logits = method.predict(params, state, batch)['logits']
    expected = optax.sigmoid_binary_cross_entropy(logits, label).mean()
    np.testing.assert_allclose(loss_of(method, params, state, batch), expected, rtol=1e-6)
    outputs = method.loss(params, state, batch, jax.random.key(1), jnp.int32(0))[1][1]
    np.testing.assert_allclose(outputs['metrics']['accuracy'], np.mean((logits > 0) == (label > 0)), rtol=1e-6)


def test_mixup_blends_inputs_and_labels_alike():
    # with identity logits = inputs, the loss must equal cross-entropy of blended labels at blended inputs
    blend = s.blending(jax.random.key(3), B, 0.4)
    x, y = blend(jnp.asarray(BATCH['features'])), blend(jnp.eye(K)[LABEL])
    np.testing.assert_allclose(y.sum(-1), 1.0, rtol=1e-6)
    row = np.asarray(y[0])  # label 0 mixed with its pair's: λ and 1 - λ
    lam = row[LABEL[0]] if (row > 0).sum() == 2 else 1.0
    pair = [
        j
        for j in range(B)
        if np.allclose(x[0], lam * BATCH['features'][0] + (1 - lam) * BATCH['features'][j], atol=1e-5)
    ]
    assert pair, 'the inputs were not blended with the weights of the labels'
    method, params, state = initialised(mixup=0.4)
    assert 'accuracy' not in method.loss(params, state, BATCH, jax.random.key(3), jnp.int32(0))[1][1]['metrics']
    assert loss_of(method, params, state, BATCH) != loss_of(initialised()[0], params, state, BATCH)


def test_the_gradient_agrees_with_finite_differences():
    method, params, state = initialised(label_smoothing=0.1)
    (_, _), grads = jax.value_and_grad(method.loss, has_aux=True)(params, state, BATCH, jax.random.key(1), jnp.int32(0))
    kernel = params['head']['kernel']
    for i, j in ((0, 0), (3, 2), (7, 3)):
        up, down = (
            loss_of(method, {**params, 'head': {**params['head'], 'kernel': kernel.at[i, j].add(e)}}, state, BATCH)
            for e in (1e-2, -1e-2)
        )
        np.testing.assert_allclose(grads['head']['kernel'][i, j], (up - down) / 2e-2, atol=2e-4)  # float32 differences


def test_dropout_is_off_in_predict_and_keyed_in_loss():
    method = s.supervised(build('mlp', K, hidden=(8,), head={'dropout': 0.5}))
    params, state = method.init(jax.random.key(0), BATCH)
    losses = {float(method.loss(params, state, BATCH, jax.random.key(k), jnp.int32(0))[0]) for k in (1, 1, 2)}
    assert len(losses) == 2
    a, b = (method.predict(params, state, BATCH)['logits'] for _ in range(2))
    np.testing.assert_array_equal(a, b)
