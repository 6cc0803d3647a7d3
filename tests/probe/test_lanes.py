"""Lanes come out as each would alone, and as a plain loop of optax finds them."""

import functools

import jax
import numpy as np
import optax
import pytest
from sklearn.datasets import load_digits

from jtl.errors import UserError
from jtl.probe import lanes_program
from jtl.probe.heads import Linear, class_weights
from jtl.probe.lanes import Lanes, grid, lane_bytes, start, subsets, train

FIT, VAL = slice(0, 230), slice(230, 330)  # no multiple of the batch size, nor of each other


@pytest.fixture(scope='module')
def digits():
    """Five digits of unequal frequency, shifted and scaled: x [330, 64], y [330]."""
    x, y = load_digits(return_X_y=True)
    rng = np.random.default_rng(0)
    rows = np.concatenate([np.flatnonzero(y == k)[: 110 - 22 * k] for k in range(5)])
    rows = rng.permutation(rows)
    return (x[rows] / 8 - 0.7).astype(np.float32), y[rows]


def parts(x, y):
    return (x[FIT], y[FIT]), (x[VAL], y[VAL])


def alone(lanes: Lanes, lane: int) -> Lanes:
    return Lanes(*(values[lane : lane + 1] for values in lanes))


def logits(params, x):
    for w, b in params[:-1]:
        x = jax.nn.relu(x @ w + b)
    return x @ params[-1][0] + params[-1][1]


def optimiser_of(name, lr, decay, params):
    kernels = [(True, False) for _ in params]
    if name == 'adamw':
        return optax.adamw(lr, weight_decay=decay, mask=kernels)
    return optax.chain(optax.add_decayed_weights(decay, mask=kernels), optax.sgd(lr, momentum=0.9))


@functools.partial(jax.jit, static_argnames='name')
def reference_step(params, slots, x, y, weight, kept, lr, decay, name):
    def loss(params):
        entropy = optax.softmax_cross_entropy_with_integer_labels
        if y.ndim == 2:
            entropy = lambda z, y: optax.sigmoid_binary_cross_entropy(z, y).mean(-1)
        return (entropy(logits(params, x), y) * weight * kept).sum() / kept.sum()

    value, grads = jax.value_and_grad(loss)(params)
    updates, slots = optimiser_of(name, lr, decay, params).update(grads, slots, params)
    return optax.apply_updates(params, updates), slots, value


def reference(
    fit, val, lane: Lanes, classes, *, hidden, batch_size, epochs, patience, optimiser, weight=None, cosine=False
):
    """One lane in a plain loop: parameters of the best epoch, the curves, and when that was."""
    (x, y), (x_val, y_val) = fit, val
    (lr,), (decay,), (kept,), N = lane.lr, lane.decay, subsets(lane, y)[0], len(x)
    net = start([lane.seed], [x.shape[1]], classes, hidden, x.dtype)
    params = [(w[0].T, b[0]) for w, b in zip(net.first + net.rest, net.biases)]
    slots, weight = optimiser_of(optimiser, lr, decay, params).init(params), np.ones(N) if weight is None else weight
    rate = optax.cosine_decay_schedule(lr, epochs * -(-N // batch_size)) if cosine else lambda step: lr
    best, best_epoch, best_params, curve, losses, step = -np.inf, -1, params, [], [], 0
    for epoch in range(epochs):
        order = np.asarray(jax.random.permutation(jax.random.fold_in(jax.random.key(0), epoch), N))
        total = 0.0
        for begin in range(0, N, batch_size):
            rows = order[begin : begin + batch_size]
            if kept[rows].any():
                batch = x[rows], y[rows], weight[rows], kept[rows]
                params, slots, value = reference_step(params, slots, *batch, rate(step), decay, optimiser)
                total += float(value) * kept[rows].sum()
            step += 1
        z = np.asarray(logits(params, x_val))
        curve.append(np.mean((z > 0) == (y_val > 0.5)) if y.ndim == 2 else np.mean(z.argmax(-1) == y_val))
        losses.append(total / kept.sum())
        if curve[-1] > best:
            best, best_epoch, best_params = curve[-1], epoch, params
        if epoch - best_epoch >= patience:
            break
    return best_params, curve, losses, best_epoch


def agree(found, lane, head, wanted, atol):
    """A lane's parameters and curves are the reference's."""
    params, curve, losses, best_epoch = wanted
    n = len(curve)
    assert found.stopped[lane] == n and found.best_epoch[lane] == best_epoch
    np.testing.assert_allclose(found.accuracy[:n, lane], curve, atol=1e-6)
    assert np.isnan(found.accuracy[n:, lane]).all() and np.isnan(found.loss[n:, lane]).all()
    np.testing.assert_allclose(found.loss[:n, lane], losses, rtol=1e-5, atol=atol)
    kernels = (head.kernel,) if isinstance(head, Linear) else head.kernels
    biases = (head.bias,) if isinstance(head, Linear) else head.biases
    for (w, b), kernel, bias in zip(params, kernels, biases):
        np.testing.assert_allclose(kernel[0], w, atol=atol)
        np.testing.assert_allclose(bias[0], b, atol=atol)


@pytest.mark.parametrize(('optimiser', 'hidden'), [('sgd', (7, 5)), ('adamw', ())])
def test_train_equals_a_loop_of_optax(digits, optimiser, hidden):
    with jax.enable_x64():  # in float64 nothing hides behind rounding: 1e-9
        x, y = digits[0].astype(np.float64), digits[1]
        lanes = grid(lr=(0.003, 0.1), decay=(0.0, 0.2), seed=(0, 3), fraction=(0.01, 1.0))  # 0.01: batches without any
        how = dict(hidden=hidden, batch_size=64, epochs=6, patience=2, optimiser=optimiser)
        weight = class_weights(y[FIT], 5, 'balanced').astype(np.float64)
        found = train(lanes, *parts(x, y), 5, weight=weight, **how)
        for lane in (0, 1, 6, 11, 13, 15):
            wanted = reference(*parts(x, y), alone(lanes, lane), 5, weight=weight, **how)
            agree(found, lane, found.head(lane), wanted, 1e-9)
    assert len(set(found.stopped)) > 1  # or the patience would not have been tested


def test_train_equals_a_loop_of_optax_with_several_labels_and_a_cosine(digits):
    with jax.enable_x64():
        x, digit = digits[0].astype(np.float64), digits[1]
        y = np.stack([digit > 1, digit % 2 == 0, digit == 3], 1).astype(np.float64)
        lanes = grid(lr=(0.01, 0.5), seed=(1,), fraction=(0.2, 1.0))
        how = dict(hidden=(), batch_size=50, epochs=5, patience=9, optimiser='sgd')
        found = train(lanes, *parts(x, y), 3, schedule='cosine', **how)
        for lane in range(4):
            wanted = reference(*parts(x, y), alone(lanes, lane), 3, cosine=True, **how)
            agree(found, lane, found.head(lane), wanted, 1e-9)


def same(found, others, lane, other=0):
    for name in ('best', 'best_epoch', 'stopped', 'accuracy', 'loss'):
        np.testing.assert_allclose(
            getattr(found, name)[..., lane], getattr(others, name)[..., other], rtol=1e-4, atol=1e-6, err_msg=name
        )
    for a, b in zip(jax.tree.leaves(found.head(lane)), jax.tree.leaves(others.head(other))):
        np.testing.assert_allclose(a, b, atol=2e-5)


def test_train_gives_a_lane_what_it_finds_alone(digits):
    """In float32: another lane's stopping, divergence, layer or label fraction changes nothing."""
    x, y = digits
    narrow = x[:, ::3] - 0.5
    lanes = grid(lr=(0.02, 1e38, 0.3), decay=(0.01,), seed=(0, 5), layer=(1, 0), fraction=(0.3, 1.0))
    both = [([x[rows], narrow[rows]], y[rows]) for rows in (FIT, VAL)]
    how = dict(batch_size=64, epochs=7, patience=2)
    found = train(lanes, *both, 5, **how)
    for lane in (0, 3, 5, 7, 17, 22):
        same(found, train(alone(lanes, lane), *both, 5, **how), lane)
    assert (found.best[lanes.lr > 1] == -np.inf).all() and found.best[lanes.lr < 1].max() > 0.8
    assert len(set(found.stopped[lanes.lr < 1])) > 1


def test_trained_scores_are_those_of_each_lane_on_its_own_layer(digits):
    x, y = digits
    xs = [x, x[:, :20]]
    lanes = grid(lr=(0.05, 0.1), layer=(1, 0), seed=(0, 1))
    both = [([a[rows] for a in xs], y[rows]) for rows in (FIT, VAL)]
    found = train(lanes, *both, 5, epochs=3, batch_size=64)
    scores = found.scores([a[VAL] for a in xs])
    assert scores.shape == (8, 100, 5)
    accuracy = (scores.argmax(-1) == y[VAL]).mean(-1)
    np.testing.assert_allclose(accuracy, found.best, atol=1e-6)
    for lane in range(8):
        one = found.head(lane).scores(xs[lanes.layer[lane]][VAL])
        np.testing.assert_allclose(scores[lane], one[0], atol=1e-5)


def test_train_has_the_parameters_of_the_best_epoch_not_of_the_last(digits):
    x, y = digits
    found = train(grid(lr=(0.5, 1.0, 2.0, 4.0), decay=(0.1,)), *parts(x, y), 5, epochs=12, batch_size=16, patience=12)
    assert (found.accuracy[-1] < found.best).any()
    accuracy = (found.scores(x[VAL]).argmax(-1) == y[VAL]).mean(-1)
    np.testing.assert_allclose(accuracy, np.nanmax(found.accuracy, 0), atol=1e-6)


def test_train_never_picks_a_lane_that_diverged(digits):
    """Class 0 is what NaN scores would predict: here it is right in validation each time."""
    x, y = digits
    val = (x[y == 0], y[y == 0])
    found = train(grid(lr=(1e38, 1e-6, 3e38)), (x[FIT], y[FIT]), val, 5, epochs=3)
    assert found.pick() == 1
    assert found.stopped.tolist()[::2] == [1, 1] and found.best_epoch.tolist()[::2] == [-1, -1]
    assert np.isnan(found.accuracy[:, [0, 2]]).all()
    assert np.isfinite(found.scores(x)).all()  # a diverged lane still has its initial values
    only = train(grid(lr=(1e38,)), *parts(x, y), 5, epochs=2)
    with pytest.raises(UserError, match='all 1 lanes diverged.*lower learning rate'):
        only.pick()


def test_train_in_groups_is_one_program_and_the_same(digits):
    x, y = digits
    lanes = grid(lr=(0.02, 0.2, 0.1), seed=(0, 1, 2), layer=(0, 1))
    both = [([x[rows], x[rows, :20]], y[rows]) for rows in (FIT, VAL)]
    how = dict(hidden=(6,), epochs=3, batch_size=48)
    whole = train(lanes, *both, 5, **how)
    before = lanes_program.run._cache_size()
    few = train(lanes, *both, 5, memory=4 * lane_bytes(64, 5, (6,), 48), **how)  # 18 lanes in five groups
    assert lanes_program.run._cache_size() == before + 1
    for lane in range(18):
        same(whole, few, lane, lane)


def test_train_compiles_once_for_other_rates_decays_seeds_and_patience(digits):
    x, y = digits
    train(grid(lr=(0.1, 0.2), decay=(0.0,)), *parts(x, y), 5, epochs=2, batch_size=48)
    before = lanes_program.run._cache_size()
    train(grid(lr=(0.3,), decay=(0.1,), seed=(4, 9)), *parts(x, y), 5, epochs=2, batch_size=48, patience=1, order=3)
    assert lanes_program.run._cache_size() == before


def test_train_takes_features_in_half_precision(digits):
    x, y = digits
    half = x.astype(np.float16)
    a = train(grid(lr=(0.1,)), *parts(half, y), 5, epochs=3)
    b = train(grid(lr=(0.1,)), *parts(half.astype(np.float32), y), 5, epochs=3)
    assert a.heads[0].kernel.dtype == np.float32
    np.testing.assert_array_equal(a.heads[0].kernel, b.heads[0].kernel)


def test_subsets_are_stratified_nested_and_of_the_seed(digits):
    y = digits[1][FIT]
    lanes = grid(lr=(0.1, 0.2), seed=(0, 1), fraction=(0.001, 0.1, 0.5, 1.0))
    kept, row = subsets(lanes, y)
    assert kept.shape == (7, 230)  # whole sets are one
    count = np.bincount(y)
    for f in (0.001, 0.1, 0.5, 1.0):
        for lane in np.flatnonzero(lanes.fraction == f):
            assert np.bincount(y[kept[row[lane]]]).tolist() == np.ceil(f * count).tolist()
    by = lambda seed, f: kept[row[np.flatnonzero((lanes.seed == seed) & (lanes.fraction == f))[0]]]
    assert (by(0, 0.1) <= by(0, 0.5)).all() and (by(0, 0.001) <= by(0, 0.1)).all()
    assert (by(0, 0.5) != by(1, 0.5)).any()


def test_start_differs_by_seed_and_not_by_lane():
    (w,) = start([np.asarray([0, 1, 0, 2])], [400], 3).first
    assert w.shape == (4, 3, 400)
    assert (w[0] == w[2]).all() and (w[0] != w[1]).any() and (w[1] != w[3]).any()
    assert np.std(w) == pytest.approx(1 / 20, rel=0.05)
    hidden = start([np.asarray([0])], [400], 3, hidden=(50,))
    assert np.std(hidden.first[0]) == pytest.approx(2**0.5 / 20, rel=0.05)


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (dict(optimiser='adam'), "lanes: optimiser: 'adam' is unknown; did you mean 'adamw'"),
        (dict(schedule='cos'), "'cos' is unknown"),
        (dict(batch_size=0), 'lanes: batch_size: 0 should be a whole number from 1'),
        (dict(hidden=(8, 0)), 'lanes: hidden: 0 should be'),
        (dict(momentum=1.0), 'lanes: momentum: 1.0 should be at least 0 and below 1'),
        (dict(lanes=grid(lr=(0.1, -0.5))), 'lanes: lr: -0.5 should be above 0'),
        (dict(lanes=grid(lr=(0.1,), fraction=(0.5, 1.5))), 'lanes: fraction: 1.5 should be above 0, and at most 1'),
        (dict(lanes=grid(lr=(0.1,), layer=(0, 2))), r'lanes: layer: \[0, 2\] given; there are 1'),
        (dict(classes=4), 'labels from 0 to 4 should be from 0 to 3'),
        (dict(weight=np.ones(3)), r'lanes: weight: \(3,\) should be 230 numbers'),
    ],
)
def test_train_refuses_what_it_cannot_do(digits, change, message):
    change = {'lanes': grid(lr=(0.1,)), 'classes': 5, **change}
    lanes, classes = change.pop('lanes'), change.pop('classes')
    with pytest.raises(UserError, match=message):
        train(lanes, *parts(*digits), classes, **change)


def test_grid_refuses_an_empty_axis():
    with pytest.raises(UserError, match='lanes: there are none'):
        grid(lr=(), seed=(0, 1))
