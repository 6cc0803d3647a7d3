"""Classic program (e): a ResNet on CIFAR-10, random crops with padding 4 and mirror images, all parameters.

    python -m jtl.main --config=experiments/classic_e.py:shared=DIR --workdir=runs/classic/e
    python -m jtl.main --config=experiments/classic_e.py:data=tfds:cifar10 --config.epochs=160.0
    python -m jtl.main --config=experiments/classic_e.py:init=resnet18.a1_in1k

ResNet-20 from scratch, or what `init` names, at a tenth of the rate: SGD with momentum, a cosine, weight decay. A tenth
of the training split is held out for the curves, a point an epoch, in `metrics.jsonl` and `report.html`.

`DIR` has `data/`: 1,000 training pictures of each class, as JPEG files, and the whole test split. Eight epochs of that
are a small part of what such programs train. Nothing is chosen: the parameters after the last step are tested, once.
3 seeds, twenty minutes on two cores.
"""

from ml_collections import ConfigDict

from jtl.config import parse_arg

SEEDS = 3


def get_config(arg=None):
    arg = parse_arg(arg, shared='../shared', init='', data='')
    config = ConfigDict()
    config.data = {'name': arg.data or f'folder:{arg.shared}/data/cifar10/cifar10_10k_10k.zip', 'val': 0.1}
    config.data.augment = (('pad_crop', 4), 'flip')
    if arg.init:
        config.init = arg.init
    else:
        config.model = {'name': 'resnet20'}
    config.preprocess = {'size': 32, 'crop': 1.0}
    config.rules = (('.*', 1.0),)
    config.optim = {
        'name': 'sgd',
        'momentum': 0.9,
        'nesterov': True,
        'lr': 0.01 if arg.init else 0.1,
        'schedule': 'cosine',
        'warmup': 35,
        'weight_decay': 5e-4,
    }
    config.batch_size, config.epochs = 128, 8.0
    config.log_every = config.eval_every = 70
    config.select = None
    return config


def sweep(config):
    for seed in range(SEEDS):
        yield f'all/seed={seed}', {'seed': seed}
