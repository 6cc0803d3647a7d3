"""Adversarial training: learning from the worst pictures within a small distance of the given ones.

All distances are in units of pixels in [0, 1], whatever mean and standard deviation the model's inputs are
normalised by.

Legend: B batch, H×W pixels, C channels.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jtl.errors import UserError, nearest
from jtl.method import Batch, Method

NORMS = ('linf', 'l2')


class Threat(NamedTuple):
    """What an attacker may do, and how hard it tries; see `threat`."""

    epsilon: float
    steps: int
    step_size: float
    norm: str
    random_start: bool
    mean: tuple[float, ...]  # [C], or [1] for all channels
    std: tuple[float, ...]


def adversarial(
    method: Method,
    *,
    preprocess: Mapping[str, Any],
    epsilon: float = 8 / 255,
    steps: int = 7,
    step_size: float | None = None,
    norm: str = 'linf',
    random_start: bool = True,
    share: float = 1.0,
) -> Method:
    """Trains `method` on pictures that an attack has made worse for it.

        min_w  share · max_{‖δ‖ ≤ ε} L(w, x + δ) + (1 - share) · L(w, x)

    The inner maximum is by projected gradient ascent (PGD): Madry et al., "Towards Deep Learning Models Resistant to
    Adversarial Attacks", ICLR 2018, with `share=1`. With `steps=1` and `random_start=False` it is the fast gradient
    sign method: Goodfellow et al., "Explaining and Harnessing Adversarial Examples", ICLR 2015, with `share=0.5`.

    The attack climbs the loss of `method` itself, in training mode and with the same random numbers, so that smoothed
    labels or dropout are as they will be in the loss; it changes no state. Afterwards the clean pictures come first, if
    they count at all, and the attacked ones second, and running statistics see both. A step costs
    `steps` + 1 gradients.

    Metrics: those of the attacked pictures, whose `accuracy` is called `robust_accuracy`; and, if `share` is below 1,
    the `accuracy` of the clean ones.

    Args:
        preprocess: `mean` and `std` of the model's inputs.
        epsilon, steps, step_size, norm, random_start: see `threat`.
        share: of the loss that the attacked pictures make up, above 0, up to 1.

    Raises:
        UserError: an option out of its range; a batch without pictures.
    """
    about = threat(epsilon, steps, step_size, norm, random_start, preprocess, 'config.method.adversarial')
    if not 0 < share <= 1:
        raise UserError(f'config.method.adversarial.share: {share} should be above 0 and at most 1.')

    def init(rng: jax.Array, batch: Batch):
        pictures(batch, 'config.method.adversarial')
        return method.init(rng, batch)

    def loss(params, state, batch: Batch, rng: jax.Array, step: jax.Array):
        image = pictures(batch, 'config.method.adversarial')
        rng_attack, rng = jax.random.split(rng)
        fixed = jax.lax.stop_gradient(params)  # else the gradient would go through the attack
        climb = lambda x: method.loss(fixed, state, {**batch, 'image': x}, rng, step)[0]
        attacked = attack(climb, image, jax.random.split(rng_attack, len(image)), about)
        clean, metrics = 0.0, {}
        if share < 1:
            clean, (state, outputs) = method.loss(params, state, batch, rng, step)
            metrics = {k: v for k, v in outputs.get('metrics', {}).items() if k == 'accuracy'}
        value, (state, outputs) = method.loss(params, state, {**batch, 'image': attacked}, rng, step)
        renamed = {'accuracy': 'robust_accuracy'}
        metrics |= {renamed.get(k, k): v for k, v in outputs.get('metrics', {}).items()}
        return share * value + (1 - share) * clean, (state, {**outputs, 'metrics': metrics})

    return method._replace(init=init, loss=loss)


def threat(
    epsilon: float,
    steps: int,
    step_size: float | None,
    norm: str,
    random_start: bool,
    preprocess: Mapping[str, Any],
    where: str,
) -> Threat:
    """Checks what an attack is told.

    Args:
        epsilon: ε, how far a picture may be from the given one. In `linf` no pixel's channel differs by more; in `l2`
            it is the length of the whole difference, e.g. 0.5 for 32×32 pixels.
        steps: of gradient ascent.
        step_size: of each; None is 2.5 ε / steps, which reaches any place in the ball from any other.
        norm: `linf` or `l2`.
        random_start: from a random place in the ball, else from the picture.
        preprocess: `mean` and `std`, by channel; without them inputs are pixels as they are.
        where: how the user knows these options.
    """
    if norm not in NORMS:
        raise UserError(f'{where}.norm: {norm!r} is unknown; {nearest(str(norm), NORMS)}')
    if not 0 <= epsilon < float('inf'):
        raise UserError(f'{where}.epsilon: {epsilon} should be at least 0, and finite; pixels are in 0 … 1.')
    if norm == 'linf' and epsilon > 1:
        raise UserError(f'{where}.epsilon: {epsilon} is above 1, and pixels are in 0 … 1: did you mean {epsilon}/255?')
    if steps < 1 or steps != int(steps):
        raise UserError(f'{where}.steps: {steps} should be a whole number from 1.')
    if step_size is not None and not 0 < step_size < float('inf'):
        raise UserError(f'{where}.step_size: {step_size} should be above 0, and finite.')
    size = 2.5 * epsilon / steps if step_size is None else step_size
    mean, std = (tuple(map(float, preprocess.get(key, default))) for key, default in (('mean', (0,)), ('std', (1,))))
    return Threat(float(epsilon), int(steps), float(size), norm, bool(random_start), mean, std)


def pictures(batch: Mapping[str, Any], where: str) -> jax.Array:
    """The pictures of a batch, float [B, H, W, C]; refuses one without, or with features in their place."""
    if 'image' not in batch or 'embedding' in batch:
        has = 'features of a frozen backbone (config.cache)' if 'embedding' in batch else ', '.join(sorted(batch))
        raise UserError(f'{where}: changes pixels, so a batch needs `image`; this one has {has or "nothing"}.')
    return batch['image']


def attack(climb: Callable[[jax.Array], jax.Array], image: jax.Array, rngs: jax.Array, about: Threat) -> jax.Array:
    """Pictures near the given ones at which `climb` is higher: [B, H, W, C] -> [B, H, W, C], both normalised.

    No gradient flows through the result. The steps are a loop of XLA, compiled once however many there are; but on a
    CPU, where convolutions in a loop are slow (seven steps on a ResNet-20 took 1.1 s, 0.2 s without the loop), they
    are written out.

    Args:
        climb: normalised pictures -> a sum or a mean over examples.
        rngs: a key an example [B], so that its start does not depend on the others in its batch.
    """
    unroll = about.steps if jax.default_backend() == 'cpu' else 1
    step = lambda _, delta: ascend(climb, image, delta, about)
    delta = jax.lax.fori_loop(0, about.steps, step, begin(image, rngs, about), unroll=unroll)
    return jax.lax.stop_gradient(shifted(image, delta, about))


def begin(image: jax.Array, rngs: jax.Array, about: Threat) -> jax.Array:
    """δ before the first step, in pixels: float32 [B, H, W, C]."""
    if not about.random_start:
        return jnp.zeros(image.shape, jnp.float32)
    return project(jax.vmap(lambda rng: in_ball_at_random(rng, image.shape[1:], about))(rngs), image, about)


def ascend(climb: Callable, image: jax.Array, delta: jax.Array, about: Threat) -> jax.Array:
    """One step up: δ ← P(δ + step_size · s(∇_δ climb(x + δ))), s(g) = sign(g) in linf, g / ‖g‖ in l2."""
    uphill = jax.grad(lambda delta: climb(shifted(image, delta, about)))(delta)
    return project(delta + about.step_size * direction(uphill, about.norm), image, about)


def shifted(image: jax.Array, delta: jax.Array, about: Threat) -> jax.Array:
    """x + δ, normalised as x is."""
    return image + (delta / jnp.asarray(about.std, jnp.float32)).astype(image.dtype)


def project(delta: jax.Array, image: jax.Array, about: Threat) -> jax.Array:
    """P: onto ‖δ‖ ≤ ε, then onto what is a picture, pixels in [0, 1]; one that was outside need not come back."""
    mean, std = (jnp.asarray(values, jnp.float32) for values in (about.mean, about.std))
    pixels = jax.lax.stop_gradient(image.astype(jnp.float32)) * std + mean
    low, high = jnp.minimum(-pixels, 0), jnp.maximum(1 - pixels, 0)
    return jnp.clip(in_ball(delta, about), low, high)


def direction(g: jax.Array, norm: str) -> jax.Array:
    """The steepest way up of length 1, for each example."""
    return jnp.sign(g) if norm == 'linf' else g / jnp.maximum(lengths(g), 1e-12)


def in_ball(delta: jax.Array, about: Threat) -> jax.Array:
    """The nearest place with ‖δ‖ ≤ ε, for each example."""
    if about.norm == 'linf':
        return jnp.clip(delta, -about.epsilon, about.epsilon)
    return delta * jnp.minimum(1, about.epsilon / jnp.maximum(lengths(delta), 1e-12))


def in_ball_at_random(rng: jax.Array, shape: tuple[int, ...], about: Threat) -> jax.Array:
    """Uniform in the ball: one example."""
    rng_way, rng_far = jax.random.split(rng)
    if about.norm == 'linf':
        return jax.random.uniform(rng_way, shape, minval=-about.epsilon, maxval=about.epsilon)
    way = jax.random.normal(rng_way, shape)
    return about.epsilon * jax.random.uniform(rng_far) ** (1 / way.size) * way / jnp.linalg.norm(way)


def lengths(x: jax.Array) -> jax.Array:
    """‖x‖ of each example: [B, H, W, C] -> [B, 1, 1, 1]."""
    return jnp.sqrt(jnp.square(x).sum((1, 2, 3), keepdims=True))
