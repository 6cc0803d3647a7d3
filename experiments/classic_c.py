"""Classic program (c): fine-tuning against feature extraction on flowers.

    python -m jtl.main --config=experiments/classic_c.py:shared=DIR --workdir=runs/classic/c
    python -m jtl.main --config=experiments/classic_c.py:init=resnet50.a1_in1k,data=tfds:oxford_flowers102

The same head and batches, by Adam at 1e-3: once with the backbone frozen, and once with all parameters, the backbone at
a tenth of the rate. Nothing is augmented, so that the two differ in nothing else, and the features of the frozen one
are computed once: `head-longer`, a head with ten times the updates, costs seconds more. It was added because the
training loss of `head` is still high at its end.

`DIR` has `data/` and `weights/`: flowers17, whose neighbours look alike, so that the last third of each class is the
test split; and a ResNet-50 v2 without its stage 4. Pictures are taken at 96 pixels for the sake of time; `init` names
other weights, at their own size, and `data` other pictures. Nothing is chosen: the parameters after the last step are
tested, once. 5 seeds, twenty minutes on two cores.
"""

from ml_collections import ConfigDict

from jtl.config import parse_arg

SEEDS = 5
HEAD, ALL = (('head/.*', 1.0), ('.*', None)), (('head/.*', 1.0), ('.*', 0.1))
ARMS = {'head': {'rules': HEAD}, 'all': {'rules': ALL}, 'head-longer': {'rules': HEAD, 'epochs': 60.0}}


def get_config(arg=None):
    arg = parse_arg(arg, shared='../shared', init='', data='')
    config = ConfigDict()
    config.data = {'name': arg.data or f'folder:{arg.shared}/data/flowers17/flowers17.zip', 'val': 0.0}
    if not arg.data:
        config.data.update({'order': 'sequential', 'test': 1 / 3})
    config.init = arg.init or f'npz:{arg.shared}/weights/resnet50v2_imagenet_stage123/weights.npz'
    if not arg.init:
        config.model = {'depth': 3}
        config.preprocess = {'size': 96}
    config.optim = {'name': 'adam', 'lr': 1e-3, 'schedule': 'constant'}
    config.batch_size, config.epochs = 32, 6.0
    config.select = None
    config.report = False
    return config


def sweep(config):
    for seed in range(SEEDS):
        for arm, overrides in ARMS.items():
            yield f'{arm}/seed={seed}', {**overrides, 'seed': seed}
