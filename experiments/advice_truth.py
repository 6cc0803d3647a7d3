"""What fine-tuning really gives, from each source on each data set: the truth that `jtl advise` is held against.

    python -m jtl.main --config=experiments/advice_truth.py:shared=DIR --workdir=runs/truth

`DIR` has `data/` and `weights/`: the pictures and the pretrained files that `DATA` and `SOURCES` name. All parameters
are trained, the head at 1e-3 and the backbone at a tenth of that, for six epochs on pictures of 64 px: a recipe, not
the best that could be had. Twenty runs, about an hour on two cores. `experiments/advice.py` reads them.
"""

from jtl.config import parse_arg

DATA = {
    'catsdogs': {'name': 'folder:{}/data/catsdogs/catsdogs.zip'},
    'flowers17': {'name': 'folder:{}/data/flowers17/flowers17.zip', 'order': 'sequential', 'test': 1 / 3},
    'cifar10': {'name': 'folder:{}/data/cifar10/cifar10_10k_10k.zip', 'labels_per_class': 60},
    'pneumonia': {'name': 'npz:{}/data/pneumoniamnist/pneumoniamnist.npz', 'labels_per_class': 200},
}
SOURCES = {
    'mobilenetv2': 'npz:{}/weights/mobilenetv2_imagenet_notop/weights.npz',
    'mobilenetv1': 'npz:{}/weights/mobilenet_v1_0.75_224_imagenet/weights.npz',
    'resnet20-cifar10': 'torch:{}/weights/cifar10_resnets/resnet20-12fca82f.th',
    'resnet56-cifar10': 'torch:{}/weights/cifar10_resnets/resnet56-4bfd9763.th',
    'resnet50v2': 'npz:{}/weights/resnet50v2_imagenet_stage123/weights.npz',
}


def get_config(arg=None):
    config = parse_arg(arg, shared='../shared')
    config.unlock()
    return type(config)(
        {
            'data': {'name': config.shared, 'augment': ('flip',)},
            'init': 'set by the sweep',
            'preprocess': {'size': 64},
            'batch_size': 32,
            'epochs': 6.0,
            'rules': (('head/.*', 1.0), ('.*', 0.1)),
            'optim': {'name': 'adamw', 'lr': 1e-3, 'weight_decay': 1e-2, 'warmup': 10},
            'evals': ('classification',),
            'report': False,
        }
    )


def sweep(config):
    shared = config.data.name
    for data, section in DATA.items():
        for source, uri in SOURCES.items():
            section = {**section, 'name': section['name'].format(shared), 'augment': config.data.augment}
            model = {'depth': 3} if source == 'resnet50v2' else {}  # that file holds its first three stages alone
            yield f'{data}/{source}/all', {'data': section, 'init': uri.format(shared), 'model': model}
