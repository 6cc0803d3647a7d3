"""What tests of adapters share: one tiny model of each family, and adapters that have learned something."""

import jax
import numpy as np

from jtl import adapters, models, tree

RNG = np.random.default_rng(0)
PICTURES = {'image': RNG.normal(size=(3, 8, 8, 3)).astype(np.float32)}
TEXTS = {'tokens': np.array([[5, 6, 7, 8, 9], [5, 6, 0, 0, 0]], np.int32)}  # of the second, three are padding
FAMILIES = {
    'vit': ({'name': 'vit', 'width': 8, 'depth': 1, 'heads': 2, 'patch': 4, 'mlp_ratio': 1.5}, PICTURES),
    'resnet': ({'name': 'resnet', 'stages': (1, 1), 'width': 6}, PICTURES),
    'mlp': ({'name': 'mlp', 'hidden': (7, 9)}, {'features': RNG.normal(size=(3, 10)).astype(np.float32)}),
    'bert': ({'name': 'bert', 'width': 8, 'depth': 1, 'heads': 2, 'vocab': 12, 'positions': 8, 'mlp': 12}, TEXTS),
}


def build(family, **changes):
    return models.build(num_classes=4, **{**FAMILIES[family][0], **changes})


def init(model, batch):
    return model.init(jax.random.key(0), batch, train=False)


def outlined(model, batch):
    """The shapes of its variables."""
    return jax.eval_shape(lambda: init(model, batch))


def variables_of(model, batch, seed=0):
    """Variables far from their start, and nothing compiled: kernels random, scales and variances near 1."""
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        x = rng.uniform(-0.5, 0.5, leaf.shape)
        if path.endswith(('kernel', 'embedding', '/a', '/down')):
            x *= (12 / max(np.prod(leaf.shape[:-1]), 1)) ** 0.5  # of variance 1 / fan-in
        return (x + path.endswith(('scale', 'var', '/output', '/input'))).astype(np.float32)

    return tree.map_paths(draw, outlined(model, batch))


def fresh(model, batch):
    """What adapters start with: `{'lora': …}`."""
    sites = adapters.find_sites(model.model, batch)
    return {a.name: tree.unflatten(a.init(jax.random.key(0), sites)) for a in model.adapters}


def own(model, params):
    """The adapters' leaves by path."""
    return tree.flatten({name: params[name] for name in model.names})


def trained(family, **options):
    """How many numbers adapters add to a model of a family."""
    model = build(family, **options)
    return tree.count(own(model, outlined(model, FAMILIES[family][1])['params']))
