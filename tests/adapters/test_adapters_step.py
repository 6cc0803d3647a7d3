"""Gradients and steps of adapted models: through remat, and of nothing that is frozen."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from adapting import PICTURES, build, own, variables_of
from tiny import jit

from jtl import optim, tree
from jtl import step as compiled
from jtl.methods.supervised import supervised
from jtl.step import TrainState

EVERYTHING = {'lora': {'rank': 2, 'dropout': 0.2}, 'ia3': {}, 'prompts': {'tokens': 3}, 'bottleneck': {'width': 2}}


def test_adapters_within_remat_give_the_same_logits_and_gradients():
    """In training, with dropout: the masks are the same as well."""
    kept, remade = (build('vit', **EVERYTHING, remat=remat) for remat in (False, True))

    def loss(params, model):
        rngs = {'dropout': jax.random.key(3)}
        logits = model.apply({'params': params}, PICTURES, train=True, rngs=rngs)['logits']
        return (logits**2).sum(), logits

    both = jit(lambda params: [jax.grad(loss, has_aux=True)(params, model) for model in (kept, remade)])
    (grads, logits), (grads_remade, logits_remade) = both(variables_of(kept, PICTURES)['params'])
    np.testing.assert_allclose(logits, logits_remade, rtol=0, atol=1e-5)
    largest = max(np.abs(x).max() for x in jax.tree.leaves(grads))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * largest), grads, grads_remade)
    assert all(np.abs(x).max() > 0 for x in own(kept, grads).values())


@pytest.mark.parametrize('family', ['vit', 'resnet'])
def test_a_step_moves_adapters_and_head_and_nothing_else(family):
    options = EVERYTHING if family == 'vit' else {'lora': {'rank': 2, 'dora': True}, 'bottleneck': {'width': 2}}
    method = supervised(build(family, **options))
    batch = {**PICTURES, 'label': np.array([0, 1, 3], np.int32)}
    variables = variables_of(build(family, **options), PICTURES)
    params = variables.pop('params')
    state = {'model': variables} if variables else {}
    static, rates = optim.optimiser(10, name='sgd', lr=0.1, weight_decay=0.1)
    rules = ((f'({"|".join(options)}|head)/.*', 1.0), ('.*', None))
    (phase,) = optim.make_phases(params, ((None, rules),), static.decay_rules)
    step = jit(compiled.compile_step(method, phase, static).__wrapped__)
    opt_state = optim.transform(phase, params, static, 0.0, 0.0).init(params)
    after, metrics = step(TrainState(jnp.int32(0), jax.random.key(1), params, state, opt_state, ()), batch, rates)
    assert np.isfinite(metrics['loss'])
    for path, before in tree.flatten(params).items():
        moved = (np.asarray(before) != tree.flatten(after.params)[path]).any()
        assert moved != path.startswith('backbone/'), path
    assert bool(state) == (family == 'resnet')
    jax.tree.map(np.testing.assert_array_equal, state, after.state)  # frozen BatchNorm's statistics
