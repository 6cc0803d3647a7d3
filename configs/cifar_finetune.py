"""Fine-tuning on CIFAR-10, or any other data set in its place.

    jtl prepare tfds:cifar10        # once; needs the `tfds` extra and a network
    python -m jtl.main --config=configs/cifar_finetune.py --config.init=RUN
    python -m jtl.main --config=configs/cifar_finetune.py --config.data.name=folder:pictures.zip
    python -m jtl.main --config=configs/cifar_finetune.py:model=vit_ti16,smoke

`RUN` is the folder of a former run (see `configs/pretrain.py`); without `init` it trains from scratch. What moves is
up to the rules:

    head only        --config.rules="(('head/.*', 1.0), ('.*', None))"
    discriminative   --config.rules="(('head/.*', 1.0), ('.*', 0.1))"
    all              (default)

Few labels: --config.data.labels_per_class=25.
"""

from ml_collections import ConfigDict

from jtl.config import parse_arg


def get_config(arg=None):
    arg = parse_arg(arg, model='resnet20', smoke=False)
    config = ConfigDict()
    config.data = {'name': 'tfds:cifar10', 'val': 0.1, 'augment': (('pad_crop', 4), 'flip')}
    config.model = {'name': arg.model}
    config.preprocess = {'size': 32} if arg.model.startswith('resnet') else {'size': 224}
    config.batch_size = 128
    config.epochs = 20.0
    config.method = {'name': 'supervised', 'label_smoothing': 0.1}
    config.optim = {
        'name': 'sgd',
        'momentum': 0.9,
        'nesterov': True,
        'lr': 0.1,
        'schedule': 'cosine',
        'warmup': 100,
        'weight_decay': 5e-4,
        'clip': 5.0,
    }
    if arg.smoke:
        config.batch_size, config.epochs = 8, 0.01
        config.optim.warmup = 0
        config.data.labels_per_class = 8
    return config
