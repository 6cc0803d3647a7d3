"""Classic program (b): global average pooling and a wide head on a frozen ImageNet ResNet, augmented pictures.

    python -m jtl.main --config=experiments/classic_b.py:shared=DIR --workdir=runs/classic/b
    python -m jtl.main --config=experiments/classic_b.py:init=resnet50.a1_in1k,data=folder:pictures.zip

The head is Dense(1024, relu) → Dense(classes), by Adam at 1e-3. Every step has new crops and mirror images, so each
runs through the whole frozen backbone, and nothing is kept; gradients end at the head, and BatchNorm stays as it is.

`DIR` has `data/` and `weights/`. The weights there are a ResNet-50 v2 without its stage 4, and pictures are taken at
96 pixels for the sake of time; `init` names other weights, at their own size, and `data` other pictures. Nothing is
chosen: the parameters after the last step are tested, once. 5 seeds, ten minutes on two cores.
"""

from ml_collections import ConfigDict

from jtl.config import parse_arg

SEEDS = 5


def get_config(arg=None):
    arg = parse_arg(arg, shared='../shared', init='', data='')
    config = ConfigDict()
    config.data = {'name': arg.data or f'folder:{arg.shared}/data/catsdogs/catsdogs.zip', 'val': 0.0}
    config.data.augment = (('random_resized_crop', (0.5, 1.0)), 'flip')
    config.init = arg.init or f'npz:{arg.shared}/weights/resnet50v2_imagenet_stage123/weights.npz'
    config.model = {'head': {'name': 'mlp', 'hidden': (1024,), 'activation': 'relu'}}
    if not arg.init:
        config.model.depth = 3
        config.preprocess = {'size': 96}
    config.rules = (('head/.*', 1.0), ('.*', None))
    config.optim = {'name': 'adam', 'lr': 1e-3, 'schedule': 'constant'}
    config.batch_size, config.epochs = 32, 6.0
    config.select = None
    config.report = False
    return config


def sweep(config):
    for seed in range(SEEDS):
        yield f'head/seed={seed}', {'seed': seed}
