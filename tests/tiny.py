"""The smallest runs that are real ones, shared by the tests of commands, so that compiled functions are as well.

And what tests of models share: `jit`, `shapes` and `init`.
"""

import functools
import json

import jax
import numpy as np
from PIL import Image

from jtl import tree

FAST = {'xla_backend_optimization_level': 0, 'xla_cpu_use_fusion_emitters': False}  # to compile, not to run
jit = functools.partial(jax.jit, compiler_options=FAST)

CONFIG = {
    'data': {'name': 'digits', 'labels_per_class': 4, 'val': 0.2},
    'model': {'name': 'mlp', 'hidden': (8,)},
    'batch_size': 8,
    'steps': 3,
    'eval_every': 2,
    'log_every': 1,
    'optim': {'name': 'sgd', 'lr': 0.1},
    'report': False,
}
HEAD, ALL = (('head/.*', 1.0), ('.*', None)), (('.*', 1.0),)
EVERYTHING = {  # all that has a state of its own, draws random numbers or looks at the whole batch
    'data': {
        'name': 'digits',
        'labels_per_class': 4,
        'val': 0.2,
        'augment': (('pad_crop', 1), 'flip'),
        'threads': 2,
        'eval_batch_size': 24,
    },
    'model': {'name': 'resnet', 'stages': (1,), 'width': 4, 'head': {'dropout': 0.3}},
    'batch_size': 8,  # 32 examples
    'steps': 20,
    'eval_every': 4,
    'log_every': 1,
    'checkpoint_every': 2,
    'select': 'loss',
    'method': {'name': 'supervised', 'mixup': 0.3, 'class_weights': 'balanced', 'label_smoothing': 0.1},
    'optim': {'name': 'sgd', 'lr': 0.1, 'momentum': 0.9, 'warmup': 2, 'ema': 0.9, 'accumulate': 2, 'clip': 1.0},
    'report': False,
}


def write_config(path, config=CONFIG, more=''):
    """A config file that says `config`, and then `more`."""
    head = 'from ml_collections import ConfigDict\n\n\ndef get_config(arg=None):\n'
    path.write_text(f'{head}    return ConfigDict({config!r})\n{more}')
    return path


def files(folder):
    """Every file below a folder and its bytes: what a refused command must leave as it was."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob('*')) if p.is_file()}


def tamper(path):
    """Flips one bit in the middle of a file."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def largest(folder):
    return max((p for p in folder.rglob('*') if p.is_file()), key=lambda p: p.stat().st_size)


def rows(run, exempt=('examples_per_second',)):
    """metrics.jsonl without what the wall clock decides."""
    lines = (run / 'metrics.jsonl').read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k not in exempt} for line in lines]


def pictures(folder, classes={'bright': 200, 'dark': 40}, each=12, side=8, seed=0):  # noqa: B006 (never changed)
    """Class folders of noisy gray levels, too far apart to confuse."""
    rng = np.random.default_rng(seed)
    for name, level in classes.items():
        (folder / name).mkdir(parents=True)
        for i in range(each):
            image = np.clip(level + rng.normal(0, 20, (side, side, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(image).save(folder / name / f'{i:02d}.png')
    return folder


def shapes(model, size=32):
    """The variables of a model of pictures of this size, nothing computed."""
    images = np.zeros((1, size, size, 3), np.float32)
    return jax.eval_shape(lambda: model.init(jax.random.key(0), {'image': images}, train=False))


def init(model, batch):
    """Variables with scales, biases and statistics of their own, so that it matters which are used."""
    variables = jit(lambda: model.init(jax.random.key(0), batch, train=False))()
    rng = np.random.default_rng(1)
    return tree.map_paths(
        lambda path, x: x if path.endswith('kernel') else x + rng.uniform(0.1, 0.5, x.shape).astype(np.float32),
        variables,
    )
