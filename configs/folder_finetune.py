"""Fine-tuning on your own pictures: a folder, or a .zip, of class folders.

    python -m jtl.main --config=configs/folder_finetune.py:pictures
    python -m jtl.main --config=configs/folder_finetune.py:pictures.zip,init=RUN
    jtl predict RUN_FOLDER some.jpg other.jpg

    pictures/cats/*.jpg                    no split: 15 % of each class are held out to test, 10 % to validate
    pictures/train/cats/*.jpg, test/…      with splits, which stay as they are

`init` names pretrained weights, `resnet50.a1_in1k`, `torch:PATH` or the folder of a former run, whose model and
preprocessing are taken over: the new head is trained first, by itself, then everything, the backbone at a tenth of the
rate. Without it `model` is trained from scratch.
"""

from ml_collections import ConfigDict

from jtl.config import parse_arg
from jtl.errors import UserError


def get_config(arg=None):
    path, _, options = (arg or '').partition(',')
    if not path:
        raise UserError('name your folder after a colon: --config=configs/folder_finetune.py:PATH')
    options = parse_arg(options, init='', model='resnet20', size=64, steps=600)
    config = ConfigDict()
    config.data = {'name': f'folder:{path}', 'augment': (('random_resized_crop', (0.5, 1.0)), 'flip')}
    config.batch_size = 32
    config.steps = options.steps
    config.method = {'name': 'supervised', 'class_weights': 'balanced', 'label_smoothing': 0.1}
    config.optim = {'name': 'adamw', 'lr': 3e-3, 'warmup': options.steps // 30, 'weight_decay': 0.01, 'clip': 1.0}
    if options.init:
        config.init = options.init
        head_only = (('head/.*', 1.0), ('.*', None))
        config.phases = ((options.steps // 4, head_only), (None, (('head/.*', 1.0), ('.*', 0.1))))
    else:
        config.model = {'name': options.model}
        config.preprocess = {'size': options.size}
    return config
