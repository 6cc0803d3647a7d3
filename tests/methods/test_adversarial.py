"""PGD against a loop in float64 NumPy on a linear softmax model, whose gradient is a formula."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import jit

from jtl.errors import UserError
from jtl.methods import adversarial as a
from jtl.methods.adversarial import adversarial
from jtl.methods.delta import delta
from jtl.methods.l2sp import l2sp
from jtl.methods.sam import sam
from jtl.methods.supervised import supervised
from jtl.models import build

B, H, W, C, K = 5, 3, 2, 3, 4
RNG = np.random.default_rng(0)
PIXELS = RNG.uniform(size=(B, H, W, C))
PIXELS[0, 0, 0] = (0, 1, 0.999)  # at the edge of what is a picture
PREPROCESS = {'mean': (0.4, 0.5, 0.6), 'std': (0.2, 0.3, 0.5)}
MEAN, STD = (np.array(PREPROCESS[key]) for key in ('mean', 'std'))
IMAGE = ((PIXELS - MEAN) / STD).astype(np.float32)
LABEL = np.array([0, 3, 1, 1, 2], np.int32)
BATCH = {'image': IMAGE, 'label': LABEL, 'mask': np.ones(B, np.float32)}
LINEAR = supervised(build('mlp', K, hidden=()))  # logits = flatten(x) kernel + bias
ARGS = (BATCH, jax.random.key(1), jnp.int32(0))


def made(method=LINEAR):
    params, state = jit(method.init)(jax.random.key(0), BATCH)
    return jax.tree.map(lambda w: w + RNG.normal(0, 0.5, w.shape).astype(np.float32), params), state


PARAMS, STATE = made()
KERNEL, BIAS = (np.asarray(PARAMS['head'][name], np.float64) for name in ('kernel', 'bias'))


def numpy_loss(image):
    logits = image.reshape(B, -1) @ KERNEL + BIAS
    log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    return -log_p[np.arange(B), LABEL].mean(), log_p


def numpy_attack(epsilon, steps, size, norm, start):
    """Projected gradient ascent in pixels, then normalised: the cross-entropy's slope is (p - y) kernelᵀ."""
    delta = start
    for _ in range(steps):
        _, log_p = numpy_loss((PIXELS + delta - MEAN) / STD)
        slope = ((np.exp(log_p) - np.eye(K)[LABEL]) @ KERNEL.T).reshape(PIXELS.shape) / STD
        if norm == 'linf':
            delta = np.clip(delta + size * np.sign(slope), -epsilon, epsilon)
        else:
            length = lambda x: np.sqrt((x**2).sum((1, 2, 3), keepdims=True))
            delta = delta + size * slope / length(slope)
            delta = delta * np.minimum(1, epsilon / length(delta))
        delta = np.clip(PIXELS + delta, 0, 1) - PIXELS
    return (PIXELS + delta - MEAN) / STD


def threat(epsilon=0.1, steps=3, step_size=None, norm='linf', random_start=False):
    return a.threat(epsilon, steps, step_size, norm, random_start, PREPROCESS, 'here')


def climb(image):
    return LINEAR.loss(PARAMS, STATE, {**BATCH, 'image': image}, *ARGS[1:])[0]


RNGS = jax.random.split(jax.random.key(2), B)


@pytest.mark.parametrize('norm, epsilon, size', [('linf', 0.1, 0.04), ('l2', 0.7, None)])
def test_attack_agrees_with_a_loop_in_numpy(norm, epsilon, size):
    found = jit(lambda: a.attack(climb, IMAGE, RNGS, threat(epsilon, 4, size, norm)))()
    expected = numpy_attack(epsilon, 4, size or 2.5 * epsilon / 4, norm, np.zeros_like(PIXELS))
    np.testing.assert_allclose(found, expected, atol=2e-5)
    assert np.abs(found - IMAGE).max() > 0.1


def test_attack_from_a_random_start_agrees_with_a_loop_in_numpy():
    about = threat(random_start=True)
    start, found = jit(lambda: (a.begin(IMAGE, RNGS, about), a.attack(climb, IMAGE, RNGS, about)))()
    start = np.asarray(start, np.float64)
    assert start.std() > 0.03  # uniform in ±0.1 has 0.058, less what is cut off at 0 and 1
    np.testing.assert_allclose(found, numpy_attack(0.1, 3, 0.25 / 3, 'linf', start), atol=2e-5)


def test_one_step_without_a_random_start_is_the_fast_gradient_sign_method():
    found, slope = jit(lambda: (a.attack(climb, IMAGE, RNGS, threat(steps=1)), jax.grad(climb)(IMAGE)))()
    np.testing.assert_allclose(found * STD + MEAN, np.clip(PIXELS + 0.1 * np.sign(slope), 0, 1), atol=1e-6)


@pytest.mark.parametrize('norm', ['linf', 'l2'])
def test_attack_stays_in_the_ball_and_within_pictures_and_does_harm(norm):
    about = threat(0.2, 5, norm=norm, random_start=True)
    found = np.asarray(jit(lambda: a.attack(climb, IMAGE, RNGS, about))(), np.float64)
    moved = (found - IMAGE) * STD
    size = np.abs(moved).max() if norm == 'linf' else np.sqrt((moved**2).sum((1, 2, 3))).max()
    assert 0.19 < size <= 0.2 + 1e-6
    assert (found * STD + MEAN).min() >= -1e-6 and (found * STD + MEAN).max() <= 1 + 1e-6
    assert numpy_loss(found)[0] > numpy_loss(IMAGE)[0] + 0.1


def test_a_start_is_its_examples_own_and_lies_evenly_in_the_ball():
    about = threat(0.3, norm='l2', random_start=True)
    both = a.begin(np.zeros((2, 1, 1, 3), np.float32), RNGS[:2], about)
    alone = a.begin(np.zeros((1, 1, 1, 3), np.float32), RNGS[1:2], about)
    np.testing.assert_array_equal(both[1:], alone)
    draw = jit(jax.vmap(lambda rng: a.in_ball_at_random(rng, (2,), about)))
    many = draw(jax.random.split(jax.random.key(0), 4000))
    radius = np.linalg.norm(many, axis=1)
    assert radius.max() <= 0.3 and abs((radius < 0.15).mean() - 0.25) < 0.03  # a quarter of the area; 4 σ


def test_a_pixel_that_was_no_pixel_need_not_come_back():
    image = IMAGE.copy()
    image[1, 0, 0, 0] = (1.5 - MEAN[0]) / STD[0]
    found = jit(lambda: a.attack(climb, image, RNGS, threat(0.0)))()
    np.testing.assert_allclose(found, image, atol=1e-6)


@pytest.fixture(scope='module')
def by_hand():
    """What the loss should attack: its own random numbers, and those of the attack."""
    rng_attack, rng = jax.random.split(ARGS[1])
    loss = lambda x: LINEAR.loss(PARAMS, STATE, {**BATCH, 'image': x}, rng, jnp.int32(0))[0]
    found = jit(lambda: a.attack(loss, IMAGE, jax.random.split(rng_attack, B), threat(random_start=True)))()
    return np.asarray(found, np.float64)


def test_the_loss_is_that_of_the_attacked_pictures_and_its_gradient_is_not_taken_through_the_attack(by_hand):
    method = adversarial(LINEAR, preprocess=PREPROCESS, epsilon=0.1, steps=3)
    grads, _, metrics = jit(method.grads(method.loss))(PARAMS, STATE, *ARGS)
    value, log_p = numpy_loss(by_hand)
    error = (np.exp(log_p) - np.eye(K)[LABEL]) / B
    np.testing.assert_allclose(metrics['loss'], value, rtol=1e-5)
    np.testing.assert_allclose(grads['head']['kernel'], by_hand.reshape(B, -1).T @ error, atol=1e-5)
    np.testing.assert_allclose(metrics['robust_accuracy'], (log_p.argmax(1) == LABEL).mean(), rtol=1e-6)
    assert 'accuracy' not in metrics
    assert method.predict is LINEAR.predict


def test_share_mixes_the_clean_loss_in(by_hand):
    method = adversarial(LINEAR, preprocess=PREPROCESS, epsilon=0.1, steps=3, share=0.3)
    _, _, metrics = method.grads(method.loss)(PARAMS, STATE, *ARGS)  # without jit
    clean, log_p = numpy_loss(IMAGE.astype(np.float64))
    np.testing.assert_allclose(metrics['loss'], 0.3 * numpy_loss(by_hand)[0] + 0.7 * clean, rtol=1e-5)
    np.testing.assert_allclose(metrics['accuracy'], (log_p.argmax(1) == LABEL).mean(), rtol=1e-6)


@pytest.fixture(scope='module')
def tiny():
    model = build('resnet', K, stages=(1,), width=4)
    method = supervised(model)
    return model, method, *jit(method.init)(jax.random.key(0), BATCH)


def test_running_statistics_see_the_attacked_pictures_once(tiny):
    _, plain, params, state = tiny
    seen = []
    spy = plain._replace(loss=lambda p, s, batch, *args: seen.append(batch['image']) or plain.loss(p, s, batch, *args))
    method = adversarial(spy, preprocess=PREPROCESS, epsilon=0.1, steps=2)

    def both(params, state):
        found = method.loss(params, state, *ARGS)[1][0]
        once = plain.loss(params, state, {**BATCH, 'image': seen[-1]}, ARGS[1], ARGS[2])[1][0]
        return found['model'], once['model']

    found, once = jit(both)(params, state)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-5), found, once)
    moved = jax.tree.map(lambda x, y: float(np.abs(x - y).max()), found, state['model'])
    assert min(jax.tree.leaves(moved)) > 1e-3


def test_adversarial_goes_with_the_other_methods(tiny):
    model, plain, params, state = tiny
    about = {'preprocess': PREPROCESS, 'epsilon': 0.05, 'steps': 2}
    method = sam(l2sp(delta(adversarial(plain, **about), model=model, attention='uniform'), alpha=1.0))
    params, state = method.prepare(params, state, [BATCH], jax.random.key(0))
    grads, kept, metrics = jit(method.grads(method.loss))(params, state, *ARGS)
    assert {'delta', 'l2sp', 'robust_accuracy', 'sharpness'} <= metrics.keys()
    assert jax.tree.structure(kept) == jax.tree.structure(state)
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(grads))


def test_adversarial_around_l2sp_is_l2sp_around_adversarial(by_hand):
    about = {'preprocess': PREPROCESS, 'epsilon': 0.1, 'steps': 3}
    apart, wide = adversarial(l2sp(LINEAR), **about), l2sp(adversarial(LINEAR, **about))
    params, state = wide.prepare(PARAMS, STATE, [BATCH], jax.random.key(0))
    a, b = jit(lambda: [m.loss(params, state, *ARGS)[0] for m in (apart, wide)])()
    np.testing.assert_allclose(a, b, rtol=1e-6)  # how far parameters have moved does not depend on pictures
    assert a > numpy_loss(by_hand)[0]


def test_adversarial_overfits_one_batch():
    method = adversarial(supervised(build('mlp', K, hidden=(16,))), preprocess=PREPROCESS, epsilon=0.03, steps=2)
    params, state = jit(method.init)(jax.random.key(0), BATCH)
    step = jit(method.grads(method.loss))
    for i in range(150):
        grads, state, metrics = step(params, state, BATCH, jax.random.key(i), jnp.int32(i))
        params = jax.tree.map(lambda w, g: w - 0.1 * g, params, grads)
    assert metrics['robust_accuracy'] == 1.0


@pytest.mark.parametrize(
    'options, says',
    [
        ({'epsilon': 8}, r'epsilon: 8 is above 1.*8/255'),
        ({'epsilon': -0.1}, 'epsilon'),
        ({'steps': 0}, 'steps'),
        ({'step_size': 0.0}, 'step_size'),
        ({'norm': 'l3'}, r"norm: 'l3'.*did you mean 'l2'"),
        ({'share': 0.0}, 'share'),
    ],
)
def test_adversarial_refuses(options, says):
    with pytest.raises(UserError, match=f'config.method.adversarial.{says}'):
        adversarial(LINEAR, preprocess=PREPROCESS, **options)


def test_adversarial_refuses_batches_without_pictures():
    method = adversarial(LINEAR, preprocess={})
    for batch in ({'features': np.ones((B, 4), np.float32)}, {**BATCH, 'embedding': np.ones((B, 4), np.float32)}):
        with pytest.raises(UserError, match='config.method.adversarial: changes pixels'):
            method.init(jax.random.key(0), batch)
        with pytest.raises(UserError, match='config.method.adversarial: changes pixels'):
            method.loss(PARAMS, STATE, {**batch, 'label': LABEL}, *ARGS[1:])
