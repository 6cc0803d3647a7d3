"""Classic program (d): the last layer of a ResNet exchanged for one of ten classes, and trained alone.

    python -m jtl.main --config=experiments/classic_d.py:shared=DIR --workdir=runs/classic/d
    python -m jtl.main --config=experiments/classic_d.py:init=resnet18.a1_in1k,data=folder:pictures

A folder of ten class folders, a linear head, Adam at 1e-3. Nothing moves below the head and nothing is augmented, so
the run keeps the features by itself (`jtl.probe.cache`): the other seeds compute none.

`DIR` has `data/` and `weights/`: 1,000 pictures of each class of CIFAR-10 as JPEG files, enlarged to 96 pixels, and a
ResNet-50 v2 without its stage 4. `init` names other weights, at their own size, and `data` other pictures. Nothing is
chosen: the parameters after the last step are tested, once. 5 seeds, five minutes on two cores.
"""

from ml_collections import ConfigDict

from jtl.config import parse_arg

SEEDS = 5


def get_config(arg=None):
    arg = parse_arg(arg, shared='../shared', init='', data='')
    config = ConfigDict()
    config.data = {'name': arg.data or f'folder:{arg.shared}/data/cifar10/cifar10_10k_10k.zip', 'val': 0.0}
    config.init = arg.init or f'npz:{arg.shared}/weights/resnet50v2_imagenet_stage123/weights.npz'
    if not arg.init:
        config.model = {'depth': 3}
        config.preprocess = {'size': 96, 'crop': 1.0}
    config.rules = (('head/.*', 1.0), ('.*', None))
    config.optim = {'name': 'adam', 'lr': 1e-3, 'schedule': 'constant'}
    config.batch_size, config.epochs = 64, 10.0
    config.select = None
    config.report = False
    return config


def sweep(config):
    for seed in range(SEEDS):
        yield f'head/seed={seed}', {'seed': seed}
