"""Ways to fine-tune compared on real pictures and few labels: the table of methods in README.

    jtl compare --config=experiments/finetuning.py:shared=DIR,data=flowers17 --workdir=runs/finetuning/flowers17 \\
        --methods=scratch,probe,finetune,discriminative,lpft,lpft_solved,biases,norms,lora,ia3,l2sp,delta,sam \\
        --seeds=5 --grid-seeds=1 --workers=2
    jtl compare --config=experiments/finetuning.py:shared=DIR,data=cifar10 --labels=4,25,100 …
    python experiments/methods_table.py runs/finetuning --readme

`DIR` has `data/` and `weights/` in the layout of DATA below. The source is MobileNet v1 (width 0.75) of ImageNet, on
pictures smaller than its 224 px so that two cores can do it: every number is lower than it could be, for all methods
alike. 60 steps of 32 pictures each, validated and tested at the end. CIFAR-10's test set is 100 pictures a class.
"""

from ml_collections import ConfigDict

from jtl.config import parse_arg

SOURCE = 'npz:{}/weights/mobilenet_v1_0.75_224_imagenet/weights.npz'
DATA = {  # the `data` section, and the side of a picture
    'catsdogs': ({'name': 'folder:{}/data/catsdogs/catsdogs.zip', 'val': 0.2}, 64),
    'flowers17': (
        {'name': 'folder:{}/data/flowers17/flowers17.zip', 'order': 'sequential', 'test': 1 / 3, 'val': 0.2},
        64,
    ),
    'cifar10': ({'name': 'folder:{}/data/cifar10/cifar10_10k_10k.zip', 'val': 0.1, 'test_per_class': 100}, 48),
    'pneumonia': ({'name': 'npz:{}/data/pneumoniamnist/pneumoniamnist.npz'}, 48),
}
STEPS = 60


def get_config(arg=None):
    arg = parse_arg(arg, shared='../shared', data='flowers17')
    data, size = DATA[arg.data]
    config = ConfigDict()
    config.data = {**data, 'name': data['name'].format(arg.shared), 'augment': ('flip',), 'eval_batch_size': 128}
    config.init = SOURCE.format(arg.shared)
    config.preprocess = {'size': size, 'crop': 1.0}
    config.batch_size = 32
    config.steps = STEPS
    config.optim = {'name': 'adamw', 'lr': 1e-3, 'weight_decay': 1e-2, 'warmup': 6}
    config.eval_every = STEPS
    config.checkpoint_every = 0
    config.log_every = 20
    config.report = False
    return config
