"""Pretraining a source model on labelled pictures, to be named as `init` by other runs.

    python -m jtl.main --config=configs/pretrain.py:DATA --workdir=runs/source
    python -m jtl.main --config=configs/pretrain.py:folder:tiny-imagenet-200.zip --config.epochs=30.0

`DATA` is a URI, by default `tfds:cifar100`.
"""

from ml_collections import ConfigDict


def get_config(arg=None):
    config = ConfigDict()
    config.data = {
        'name': arg or 'tfds:cifar100',
        'augment': (('random_resized_crop', (0.35, 1.0)), 'flip'),
    }
    config.model = {'name': 'resnet20'}
    config.preprocess = {'size': 32}
    config.batch_size = 128
    config.epochs = 30.0
    config.optim = {
        'name': 'sgd',
        'momentum': 0.9,
        'nesterov': True,
        'lr': 0.2,
        'schedule': 'cosine',
        'warmup': 100,
        'weight_decay': 5e-4,
    }
    return config
