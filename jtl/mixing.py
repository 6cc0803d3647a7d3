"""Mixup and cutmix: every example of a batch is blended with another one of it, and so is its label.

    x ← m x + (1 - m) x[pair],  y ← λ y + (1 - λ) y[pair]

Mixup (Zhang et al. 2018): m = λ everywhere. Cutmix (Yun et al. 2019): m is 0 in a box and 1 outside, and λ is the share
of the picture outside.

Legend: B batch, H height, W width, C channels, K classes.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp


class Blend(NamedTuple):
    """How a batch is blended.

    Attributes:
        own: m, what inputs keep of themselves: a scalar, or [H, W, 1].
        share: λ, what labels keep of themselves, a scalar.
        pair: the row that each row is blended with, int32 [B].
    """

    own: jax.Array
    share: jax.Array
    pair: jax.Array

    def inputs(self, x: jax.Array) -> jax.Array:
        """[B, …] -> [B, …]; where m is a map, [B, H, W, C]."""
        return self.own * x + (1 - self.own) * x[self.pair]

    def labels(self, y: jax.Array) -> jax.Array:
        """[B, K] -> [B, K]."""
        return self.share * y + (1 - self.share) * y[self.pair]


def draw(rng: jax.Array, shape: tuple[int, ...], *, mixup: float = 0.0, cutmix: float = 0.0) -> Blend:
    """Draws λ ~ Beta(α, α), the pairs and the box, once a batch of inputs of a `shape` (B, …).

    Args:
        mixup: its α; 0 is off.
        cutmix: its α; 0 is off. Inputs are pictures, [B, H, W, C]. With both on, a coin is thrown (as in timm).
    """
    rng_lam, rng_pair, rng_box, rng_coin = jax.random.split(rng, 4)
    cut = jax.random.bernoulli(rng_coin) if mixup and cutmix else bool(cutmix)
    alpha = jnp.where(cut, cutmix, mixup)
    lam = jax.random.beta(rng_lam, alpha, alpha)
    pair = jax.random.permutation(rng_pair, shape[0])
    if not cutmix:
        return Blend(lam, lam, pair)
    outside = 1.0 - box(rng_box, shape[1:3], 1 - lam)
    return Blend(jnp.where(cut, outside, lam), jnp.where(cut, outside.mean(), lam), pair)


def box(rng: jax.Array, shape: tuple[int, int], area: jax.Array) -> jax.Array:
    """1 inside of a random box, 0 outside: float32 [H, W, 1].

    The box is of the picture's form and has `area` of it, up to whole pixels. Its centre is any pixel, and what would
    lie outside of the picture is cut off.
    """

    def inside(rng: jax.Array, side: int) -> jax.Array:  # bool [side]
        length = jnp.round(side * jnp.sqrt(area)).astype(jnp.int32)
        place = jnp.arange(side) - jax.random.randint(rng, (), 0, side) + length // 2
        return (place >= 0) & (place < length)

    rng_row, rng_column = jax.random.split(rng)
    rows, columns = inside(rng_row, shape[0]), inside(rng_column, shape[1])
    return (rows[:, None, None] & columns[None, :, None]).astype(jnp.float32)  # [H, W, 1]
