"""Robust accuracy of a linear model, whose attack is a loop in NumPy, and what must hold for any."""

import jax
import numpy as np
import pytest
from tiny import jit

from jtl.errors import UserError
from jtl.evals import Seen, check, classification, robust
from jtl.methods.supervised import supervised
from jtl.models import build

N, SHAPE, K = 10, (3, 2, 3), 4
RNG = np.random.default_rng(0)
PIXELS = RNG.uniform(size=(N, *SHAPE))
PREPROCESS = {'mean': (0.4, 0.5, 0.6), 'std': (0.2, 0.3, 0.5)}
MEAN, STD = (np.array(PREPROCESS[key]) for key in ('mean', 'std'))
IMAGE = ((PIXELS - MEAN) / STD).astype(np.float32)
METHOD = supervised(build('mlp', K, hidden=()))
TRACED = []
COUNTED = METHOD._replace(predict=lambda *args: TRACED.append(1) or METHOD.predict(*args))
PARAMS, STATE = jit(METHOD.init)(jax.random.key(0), {'image': IMAGE, 'label': np.zeros(N, np.int32)})
KERNEL = np.asarray(PARAMS['head']['kernel'], np.float64)
LABEL = (IMAGE.reshape(N, -1) @ KERNEL).argmax(1).astype(np.int32)  # right but for two
LABEL[:2] = (LABEL[:2] + 1) % K
MANY = (IMAGE.reshape(N, -1) @ KERNEL > 0.2).astype(np.float32)


def seen(label=LABEL, size=4, params=PARAMS):
    """Batches whose last is padded by nonsense."""

    def batches():
        for i in range(0, N, size):
            rows = np.minimum(np.arange(i, i + size), N - 1)
            real = np.arange(i, i + size) < N
            image = np.where(real[:, None, None, None], IMAGE[rows], 7.0).astype(np.float32)
            yield {'image': image, 'label': label[rows], 'mask': real.astype(np.float32), 'index': rows}

    classes = tuple(map(str, range(K)))
    return Seen({}, classes, None, batches, COUNTED, params, STATE, PREPROCESS)


def measured(*args, **options):
    return dict(robust.run(seen(*args), **options))


def by_hand(label, epsilon, steps):
    """`(robust accuracy, robust loss, clean accuracy)` in float64, from the picture, by signs of (p - y) kernelᵀ."""
    several = label.ndim == 2
    target = label if several else np.eye(K)[label]
    logits = lambda pixels: ((pixels - MEAN) / STD).reshape(N, -1) @ KERNEL
    softmax = lambda z: np.exp(z) / np.exp(z).sum(1, keepdims=True)
    p = lambda z: 1 / (1 + np.exp(-z)) if several else softmax(z)
    delta = np.zeros_like(PIXELS)
    for _ in range(steps):
        slope = ((p(logits(PIXELS + delta)) - target) @ KERNEL.T).reshape(PIXELS.shape) / STD
        delta = np.clip(delta + 2.5 * epsilon / steps * np.sign(slope), -epsilon, epsilon)
        delta = np.clip(PIXELS + delta, 0, 1) - PIXELS
    right, losses = [], []
    for z in (logits(PIXELS), logits(PIXELS + delta)):
        right.append((z > 0) == (label > 0.5) if several else (z.argmax(1) == label)[:, None])
        each = target * np.log(p(z)) + ((1 - target) * np.log(1 - p(z)) if several else 0)
        losses.append(-each.mean(1) if several else -each.sum(1))
    return (right[0] & right[1]).mean(), np.maximum(*losses).mean(), right[0].mean()


@pytest.mark.parametrize('label', [LABEL, MANY], ids=['single', 'several'])
def test_robust_accuracy_and_loss_agree_with_a_loop_in_numpy(label):
    found = measured(label, epsilon=0.05, steps=3, random_start=False)
    accuracy, loss, clean = by_hand(label, 0.05, 3)
    assert 0 < accuracy < clean < 1.01  # else nothing is shown
    assert found['robust_accuracy'] == pytest.approx(accuracy, abs=1e-7)
    assert found['robust_loss'] == pytest.approx(loss, rel=1e-5)


def test_robust_accuracy_is_the_clean_one_where_nothing_may_change_and_never_above():
    outputs = {'logits': np.asarray(METHOD.predict(PARAMS, STATE, {'image': IMAGE})['logits']), 'label': LABEL}
    clean = dict(classification.run(Seen(outputs, tuple(map(str, range(K))), None, None)))['accuracy']
    assert clean == 0.8
    assert measured(epsilon=0.0)['robust_accuracy'] == clean
    values = [measured(epsilon=e, steps=2)['robust_accuracy'] for e in (0.01, 0.05, 0.5)]
    assert clean >= values[0] >= values[1] >= values[2] == 0.0


def test_an_attack_cannot_make_a_wrong_example_right(monkeypatch):
    label, bias = np.zeros(N, np.int32), np.float32([0.1, 0, 0, 0])
    params = {**PARAMS, 'head': {**PARAMS['head'], 'bias': bias}}
    clean = ((IMAGE.reshape(N, -1) @ KERNEL + bias).argmax(1) == 0).mean()
    assert 0 < clean < 0.5
    to_grey = lambda total, image, delta, about: -image * STD  # where logits are the biases and class 0 wins
    monkeypatch.setattr(robust, 'ascend', to_grey)
    assert measured(label, 4, params, epsilon=0.9, steps=1)['robust_accuracy'] == pytest.approx(clean)


def test_robust_is_deterministic_whatever_the_batches():
    options = {'epsilon': 0.05, 'steps': 2, 'norm': 'linf'}
    assert measured(**options) == measured(**options)
    other = measured(LABEL, 5, **options)
    assert other['robust_accuracy'] == measured(**options)['robust_accuracy']
    assert other['robust_loss'] == pytest.approx(measured(**options)['robust_loss'], rel=1e-5)
    assert measured(**options, seed=1)['robust_loss'] != measured(**options)['robust_loss']


def test_robust_is_compiled_once_for_all_parameters():
    measured(epsilon=0.04, steps=2)
    TRACED.clear()
    first = measured(epsilon=0.04, steps=2)
    other = measured(LABEL, 4, jax.tree.map(lambda w: w + 1, PARAMS), epsilon=0.04, steps=2)
    assert not TRACED and first != other


def test_robust_refuses():
    for options, says in (({'norm': 'l1'}, 'norm'), ({'steps': 0}, 'steps'), ({'epsilon': 8}, 'epsilon')):
        with pytest.raises(UserError, match=f'config.evals: robust.{says}'):
            measured(**options)
    with pytest.raises(UserError, match='robust: changes pixels'):
        batches = lambda: iter([{'features': np.ones((2, 3)), 'label': np.zeros(2, int)}])
        list(robust.run(seen()._replace(batches=batches)))
    with pytest.raises(UserError, match="did you mean 'epsilon'"):
        check([('robust', {'epsilo': 0.1})])
