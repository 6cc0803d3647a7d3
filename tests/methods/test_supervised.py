"""The method against optax and float64 formulas, on hand-made batches."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny

from jtl import mixing
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
    _, state = method.prepare(params, state, [padded, padded], jax.random.key(0))
    np.testing.assert_allclose(state['class_weight'], 10 / (4 * np.array([2, 4, 2, 2])), rtol=1e-6)
    loss_of(method, params, state, BATCH)  # and the state is accepted


def test_class_weights_scale_the_loss_of_their_class():
    method, params, state = initialised(class_weights=(0.0, 1.0, 0.0, 0.0))
    _, state = method.prepare(params, state, [BATCH], jax.random.key(0))
    logits = method.predict(params, state, BATCH)['logits']
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, LABEL)
    np.testing.assert_allclose(loss_of(method, params, state, BATCH), losses[LABEL == 1].sum() / B, rtol=1e-6)


def test_class_weights_of_the_wrong_number_are_refused():
    method, params, state = initialised(class_weights=(1.0, 2.0))
    with pytest.raises(UserError, match='2 given for 4 classes'):
        method.prepare(params, state, [BATCH], jax.random.key(0))


@pytest.mark.parametrize(
    'options',
    [
        {'label_smoothing': 1.0},
        {'class_weights': 'balance'},
        {'mixup': -0.1},
        {'cutmix': -1.0},
        {'focal': float('nan')},
        {'logit_adjustment': float('inf')},
    ],
)
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


def test_mixup_trains_on_blended_inputs_and_labels():
    # the loss is the cross-entropy of the blended labels at the blended inputs, both computed here from λ and the pairs
    method, params, state = initialised(mixup=0.4, label_smoothing=0.1)
    blend = mixing.draw(jax.random.split(jax.random.key(1))[0], (B, D), mixup=0.4)
    lam, pair = float(blend.share), np.asarray(blend.pair)
    assert 0.01 < lam < 0.99 and (pair != np.arange(B)).any()
    x, y = BATCH['features'], 0.9 * np.eye(K)[LABEL] + 0.1 / K
    mixed = {**BATCH, 'features': lam * x + (1 - lam) * x[pair]}
    logits = np.asarray(method.predict(params, state, mixed)['logits'])
    expected = -((lam * y + (1 - lam) * y[pair]) * log_softmax(logits)).sum(-1).mean()
    np.testing.assert_allclose(loss_of(method, params, state, BATCH), expected, rtol=1e-5)
    assert 'accuracy' not in method.loss(params, state, BATCH, jax.random.key(3), jnp.int32(0))[1][1]['metrics']


PICTURES = {
    'image': RNG.normal(size=(B, 6, 10, 3)).astype(np.float32),
    'label': LABEL,
    'mask': np.ones(B, np.float32),
}


def test_cutmix_trains_on_pasted_boxes_and_mixed_labels():
    weights = (0.5, 1.0, 2.0, 3.0)
    method = s.supervised(build('mlp', K, hidden=(8,)), focal=2.0, class_weights=weights, cutmix=1.0)
    params, state = method.init(jax.random.key(0), PICTURES)
    _, state = method.prepare(params, state, [PICTURES], jax.random.key(0))
    blend = mixing.draw(jax.random.split(jax.random.key(1))[0], (B, 6, 10, 3), cutmix=1.0)
    mixed = {**PICTURES, 'image': blend.inputs(PICTURES['image'])}
    logits = np.asarray(method.predict(params, state, mixed)['logits'])
    target = np.asarray(blend.labels(np.eye(K)[LABEL]))
    expected = s.softmax_cross_entropy(logits, target, np.array(weights), 2.0).mean()
    np.testing.assert_allclose(loss_of(method, params, state, PICTURES), expected, rtol=1e-5)
    assert 0 < blend.share < 1 and np.abs(mixed['image'] - PICTURES['image']).max() > 0.1
    outputs = method.loss(params, state, PICTURES, jax.random.key(1), jnp.int32(0))[1][1]
    assert 'accuracy' not in outputs['metrics']


def test_mixing_needs_what_it_mixes():
    words = {'tokens': np.ones((B, 4), np.int32), 'label': LABEL}
    model = build('mlp', K)
    for options, batch, message in (
        ({'mixup': 0.2}, words, 'mixup: mixes pictures or features; words'),
        ({'cutmix': 1.0}, words, 'cutmix: pastes a part of a picture'),
        ({'cutmix': 1.0}, BATCH, 'cutmix: pastes a part of a picture'),
    ):
        with pytest.raises(UserError, match=message):
            s.supervised(model, **options).init(jax.random.key(0), batch)
    cached = {'embedding': np.ones((B, 8), np.float32), 'label': LABEL}
    for key in ('mixup', 'cutmix'):
        with pytest.raises(UserError, match=f'config.method.{key}: mixes what a backbone reads'):
            s.supervised(model, **{key: 0.5}).loss({}, {}, cached, jax.random.key(0), jnp.int32(0))


def test_focal_multiplies_what_is_predicted_well():
    method, params, state = initialised(focal=2.0)
    log_p = log_softmax(np.asarray(method.predict(params, state, BATCH)['logits']))[np.arange(B), LABEL]
    expected = -((1 - np.exp(log_p)) ** 2 * log_p).mean()
    np.testing.assert_allclose(loss_of(method, params, state, BATCH), expected, rtol=1e-5)


def test_focal_of_several_labels():
    method, params, state = initialised(focal=2.0)
    batch = {**BATCH, 'label': np.tile([0.0, 1.0, 1.0, 0.0], (B, 1)).astype(np.float32)}
    p = 1 / (1 + np.exp(-np.asarray(method.predict(params, state, batch)['logits'], np.float64)))
    p_t = np.where(batch['label'] > 0, p, 1 - p)
    expected = -((1 - p_t) ** 2 * np.log(p_t)).mean()
    np.testing.assert_allclose(loss_of(method, params, state, batch), expected, rtol=1e-5)


def test_logit_adjustment_is_balanced_softmax():
    # Ren et al. 2020: p_k = N_k exp(z_k) / Σ_j N_j exp(z_j); with τ, N_k^τ. Of the training labels N = (2, 4, 2, 1).
    method, params, state = initialised(logit_adjustment=0.5)
    padded = {**BATCH, 'mask': np.array([1, 1, 1, 1, 1, 0], np.float32)}  # counts 1, 2, 1, 1
    extra = {**BATCH, 'mask': np.array([0, 0, 1, 1, 1, 1], np.float32)}  # 1, 2, 1, 0
    _, state = method.prepare(params, state, [padded, extra], jax.random.key(0))
    np.testing.assert_allclose(np.exp(state['log_prior']), np.array([2, 4, 2, 1]) / 9, rtol=1e-6)
    logits = np.asarray(method.predict(params, state, BATCH)['logits'], np.float64)
    np.testing.assert_array_equal(logits.astype(np.float32), initialised()[0].predict(params, {}, BATCH)['logits'])
    weight = np.array([2, 4, 2, 1]) ** 0.5 * np.exp(logits)
    expected = -np.log(weight / weight.sum(1, keepdims=True))[np.arange(B), LABEL].mean()
    value, (_, outputs) = method.loss(params, state, BATCH, jax.random.key(1), jnp.int32(0))
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    np.testing.assert_array_equal(outputs['logits'], logits.astype(np.float32))  # and so accuracy is that of predict
    assert abs(value - loss_of(initialised()[0], params, {}, BATCH)) > 0.01


def test_logit_adjustment_counts_a_class_without_examples_as_one():
    method, params, state = initialised(logit_adjustment=1.0)
    batch = {**BATCH, 'label': np.array([0, 0, 0, 1, 1, 2], np.int32)}
    _, state = method.prepare(params, state, [batch], jax.random.key(0))
    np.testing.assert_allclose(np.exp(state['log_prior']), np.array([3, 2, 1, 1]) / 6, rtol=1e-6)
    assert np.isfinite(loss_of(method, params, state, batch))


def test_logit_adjustment_refuses_several_labels():
    with pytest.raises(UserError, match='config.method.logit_adjustment: takes one label an example'):
        s.supervised(build('mlp', K), logit_adjustment=1.0).init(
            jax.random.key(0), {**BATCH, 'label': np.ones((B, K), np.float32)}
        )


def test_all_options_go_together_and_jit_changes_nothing():
    options = {'label_smoothing': 0.1, 'class_weights': 'balanced', 'focal': 1.5, 'logit_adjustment': 1.0}
    method = s.supervised(build('mlp', K, hidden=(8,)), mixup=0.4, cutmix=1.0, **options)
    params, state = method.init(jax.random.key(0), PICTURES)
    _, state = method.prepare(params, state, [PICTURES], jax.random.key(0))
    assert set(state) == {'class_weight', 'log_prior'}
    pictures = jax.device_put(PICTURES)
    run = lambda params: method.loss(params, state, pictures, jax.random.key(4), jnp.int32(0))[0]
    value, slopes = tiny.jit(jax.value_and_grad(run))(params)
    np.testing.assert_allclose(value, run(params), rtol=1e-5)
    assert all(np.isfinite(slope).all() and slope.any() for slope in jax.tree.leaves(slopes))


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
