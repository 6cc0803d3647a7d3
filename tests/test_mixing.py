"""Mixup and cutmix on batches whose pixels say which example they are of."""

import jax
import jax.numpy as jnp
import numpy as np
import tiny

from jtl import mixing

B, H, W = 5, 6, 10
MARKED = np.broadcast_to(np.arange(B, dtype=np.float32)[:, None, None, None], (B, H, W, 2)).copy()
ONES = np.eye(B, dtype=np.float32)  # and so do the labels


def blended(seed, x=MARKED, **alphas):
    blend = mixing.draw(jax.random.key(seed), x.shape, **alphas)
    return blend, np.asarray(blend.inputs(x)), np.asarray(blend.labels(ONES))


def areas(seeds, **alphas):
    one = lambda seed: mixing.draw(jax.random.key(seed), (1, 40, 40, 1), **alphas).share
    return np.asarray(tiny.jit(jax.vmap(one))(jnp.arange(seeds)))


def test_mixup_blends_inputs_and_labels_alike():
    blend, x, y = blended(0, mixup=0.4)
    lam, pair = float(blend.share), np.asarray(blend.pair)
    assert 0.01 < lam < 0.99 and sorted(pair) == list(range(B)) and (pair != np.arange(B)).any()
    np.testing.assert_allclose(x, lam * MARKED + (1 - lam) * MARKED[pair], rtol=1e-6)
    np.testing.assert_allclose(y, lam * ONES + (1 - lam) * ONES[pair], rtol=1e-6)
    features = np.arange(B * 3, dtype=np.float32).reshape(B, 3)
    _, x, _ = blended(0, features, mixup=0.4)  # any shape, with the same draws
    np.testing.assert_allclose(x, lam * features + (1 - lam) * features[pair], rtol=1e-6)


def test_cutmix_pastes_a_box_and_labels_by_its_area():
    sizes = set()
    for seed in range(6):
        blend, x, y = blended(seed, cutmix=1.0)
        pair = np.asarray(blend.pair)
        moved = next(b for b in range(B) if pair[b] != b)
        box = x[moved, :, :, 0] == pair[moved]
        rows, columns = np.flatnonzero(box.any(1)), np.flatnonzero(box.any(0))
        assert box.sum() == len(rows) * len(columns)  # a box, of rows and columns that are neighbours
        assert all((np.diff(index) == 1).all() for index in (rows, columns))
        for b in range(B):  # the same for all, and nothing in between
            np.testing.assert_array_equal(x[b], np.where(box[:, :, None], MARKED[pair[b]], MARKED[b]))
        area = box.sum() / (H * W)
        np.testing.assert_allclose(y, (1 - area) * ONES + area * ONES[pair], atol=1e-6)
        sizes.add((len(rows), len(columns)))
    assert len(sizes) >= 4


def test_cutmix_cuts_the_area_that_it_drew():
    # a = 1 - λ is uniform for α = 1. Of a side √a around a uniform centre, √a (1 - √a / 4) lies in the picture on
    # average, so of a box ∫ a (1 - √a / 4)² da = 1/2 - 1/5 + 1/48 = 0.321, with a standard error of at most
    # 0.29 / √2000 = 0.0065.
    pasted = 1 - areas(2000, cutmix=1.0)
    assert abs(pasted.mean() - 0.321) < 0.02 and pasted.min() < 0.01 and pasted.max() > 0.8


def test_a_box_of_everything_and_of_nothing():
    for seed in range(5):
        whole, none = (mixing.box(jax.random.key(seed), (6, 10), jnp.float32(area)) for area in (1.0, 0.0))
        assert none.sum() == 0 and whole.shape == (6, 10, 1)
        assert whole.sum() >= 15  # a quarter: the centre may be a corner


def test_both_are_drawn_equally_often_each_with_its_own_alpha():
    def drawn(seed):
        blend = mixing.draw(jax.random.key(seed), (4, 8, 8, 1), mixup=1000.0, cutmix=1.0)
        return jnp.all((blend.own == 0) | (blend.own == 1)), blend.share

    cut, share = map(np.asarray, tiny.jit(jax.vmap(drawn))(jnp.arange(1000)))
    assert abs(cut.sum() - 500) < 80  # a deviation of √1000 / 2 = 16
    assert abs(share[~cut] - 0.5).max() < 0.06  # Beta(1000, 1000) has a deviation of 0.011
    assert share[cut].max() > 0.95 and share[cut].min() < 0.3 and share[cut].std() > 0.15


def test_draws_are_by_their_key_and_the_same_when_compiled():
    run = lambda key: mixing.draw(key, MARKED.shape, mixup=0.4, cutmix=1.0).inputs(jnp.asarray(MARKED))
    one, two, other = run(jax.random.key(1)), tiny.jit(run)(jax.random.key(1)), run(jax.random.key(2))
    np.testing.assert_allclose(one, two, rtol=1e-5, atol=1e-6)
    assert np.abs(one - other).max() > 0.1
