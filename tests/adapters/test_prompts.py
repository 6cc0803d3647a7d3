"""Prompts against a ViT that is given them by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from adapting import PICTURES, build, fresh, init, trained, variables_of
from tiny import jit

from jtl import models, tree
from jtl.models import vit


def by_hand(params, tokens, heads=2):
    """The features of a ViT of `token` pooling, block by block, prompts between the class token and the patches.

    Args:
        tokens: prompts of each block; None leaves those that are there as they are.
    """
    p = params['backbone']
    x = jax.lax.conv_general_dilated(
        PICTURES['image'], p['patch']['kernel'], (4, 4), 'VALID', dimension_numbers=('NHWC', 'HWIO', 'NHWC')
    )
    x = (x + p['patch']['bias']).reshape(3, 4, 8)
    x = jnp.concatenate([jnp.tile(p['class_token'], (3, 1, 1)), x], axis=1) + p['position']
    count = 0
    for i, new in enumerate(tokens):
        if new is not None:
            new = jnp.broadcast_to(new, (3, *new.shape))
            x = jnp.concatenate([x[:, :1], new, x[:, 1 + count :]], axis=1)
            count = new.shape[1]
        block = vit.Block(heads, 1.5, True, 'gelu', 1e-6, 0.0, 0.0, 'float32')
        x = block.apply({'params': p[f'block{i}']}, x, False)
    x = (x - x.mean(-1, keepdims=True)) / jnp.sqrt(x.var(-1, keepdims=True) + 1e-6)
    return x * p['norm']['scale'] + p['norm']['bias'], count


@pytest.mark.parametrize('deep', [False, True])
@pytest.mark.parametrize('pool', ['token', 'mean'])
def test_prompts_are_tokens_that_pooling_does_not_see(deep, pool):
    model = build('vit', depth=2, pool=pool, prompts={'tokens': 3, 'deep': deep})
    params = variables_of(model, PICTURES)['params']
    given = [params['prompts']['backbone'].get(f'block{i}', {}).get('tokens') for i in (0, 1)]
    assert given[0].shape == (3, 8) and (given[1] is not None) == deep

    def both(params):
        given = [params['prompts']['backbone'].get(f'block{i}', {}).get('tokens') for i in (0, 1)]
        x, count = by_hand(params, given)
        expected = x[:, 0] if pool == 'token' else x[:, 1 + count :].mean(1)
        return model.apply({'params': params}, PICTURES, train=False, method='features'), expected

    found, expected = jit(both)(params)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def test_prompts_start_uniform_as_in_the_paper():
    """Within ±√(6 / (3·4·4 + 8)), every block others."""
    model = build('vit', depth=2, prompts={'tokens': 500, 'deep': True})
    first, second = tree.flatten(fresh(model, PICTURES)).values()
    bound = (6 / (3 * 4 * 4 + 8)) ** 0.5
    assert 0.99 * bound < np.abs(first).max() <= bound and abs(np.mean(first)) < 0.05 * bound
    assert (first != second).all()


def test_trained_numbers_are_those_of_the_formulas():
    """N D shallow, N D L deep."""
    assert trained('vit', depth=3, prompts={'tokens': 5}) == 5 * 8
    assert trained('vit', depth=3, prompts={'tokens': 5, 'deep': True}) == 5 * 8 * 3


def test_prompts_serve_any_vit():
    """Distilled, without a class token, with fc_norm: the number of tokens alone matters."""
    for kwargs in (
        {'distilled': True, 'pool': 'both'},
        {'class_token': False, 'pool': 'mean'},
        {'fc_norm': True, 'pool': 'mean'},
    ):
        model = models.build('vit', 2, width=8, heads=2, **kwargs, prompts={'tokens': 3})
        shapes = jax.eval_shape(lambda m=model: m.apply(init(m, PICTURES), PICTURES, train=False))
        assert shapes['features'].shape == (3, 16 if kwargs['pool'] == 'both' else 8)


def test_prompts_are_dropped_in_training_alone():
    model = build('vit', prompts={'tokens': 3, 'dropout': 0.5})
    variables = variables_of(model, PICTURES)
    at = jit(
        lambda train, seed: model.apply(
            variables, PICTURES, train=train, method='features', rngs={'dropout': jax.random.key(seed)}
        ),
        static_argnums=0,
    )
    assert np.abs(at(True, 0) - at(True, 1)).max() > 1e-3
    np.testing.assert_array_equal(at(False, 0), at(False, 1))
    assert set(tree.flatten(variables['params']['prompts'])) == {'backbone/block0/tokens'}
