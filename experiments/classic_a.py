"""Classic program (a): features of a frozen ImageNet ResNet, computed once, and a small network on top.

    python -m jtl.main --config=experiments/classic_a.py:shared=DIR --workdir=runs/classic/a
    python -m jtl.main --config=experiments/classic_a.py:init=resnet50.a1_in1k,data=folder:pictures.zip

The head is Dense(64, relu) → Dropout(0.5) → Dense(classes), by Adam at 1e-3. Nothing moves below it and nothing is
augmented, so the run keeps the features by itself (`jtl.probe.cache`): the other seeds compute none.

`DIR` has `data/` and `weights/`. The weights there are a ResNet-50 v2 without its stage 4; `init` names others, and
`data` other pictures. Nothing is chosen: the parameters after the last step are tested, once. 5 seeds, two minutes on
two cores. `experiments/classic.py` makes the table.
"""

from ml_collections import ConfigDict

from jtl.config import parse_arg

SEEDS = 5


def get_config(arg=None):
    arg = parse_arg(arg, shared='../shared', init='', data='')
    config = ConfigDict()
    config.data = {'name': arg.data or f'folder:{arg.shared}/data/catsdogs/catsdogs.zip', 'val': 0.0}
    config.init = arg.init or f'npz:{arg.shared}/weights/resnet50v2_imagenet_stage123/weights.npz'
    config.model = {'head': {'name': 'mlp', 'hidden': (64,), 'activation': 'relu', 'dropout': 0.5}}
    if not arg.init:
        config.model.depth = 3
    config.rules = (('head/.*', 1.0), ('.*', None))
    config.optim = {'name': 'adam', 'lr': 1e-3, 'schedule': 'constant'}
    config.batch_size, config.epochs = 32, 30.0
    config.select = None
    config.report = False
    return config


def sweep(config):
    for seed in range(SEEDS):
        yield f'head/seed={seed}', {'seed': seed}
