"""Does transfer help? An answer in two minutes, on a laptop, with nothing to download.

    python -m jtl.main --config=configs/quickstart.py

Source: the 52 printed letters, rendered from fonts. Target: handwritten digits, with 1, 2, 5 and 10 labels a class.
A small ResNet is trained on the source; then, on the target,

    scratch         all parameters, from random ones
    head            only a new head, on the frozen source network
    all             all parameters, from the source's
    head-then-all   a new head first, then all parameters

each with the same number of updates, the same labels by seed, and as many learning rates to choose from. The rate is
chosen for each method and number of labels by the mean validation accuracy over the seeds (as many validation labels a
class as training labels); the test split decides nothing. (How the source is trained was settled in trials that did
look at accuracies on the target.) RESULTS.md and results.png in the run's folder are the
outcome. It is a sweep of plain runs: pretraining is one of them, and the others name it in `init`.
"""

from ml_collections import ConfigDict

from jtl import compare

LABELS = (1, 2, 5, 10)
SEEDS = 10
STEPS = 30
RATES = (1e-2, 3e-2, 1e-1)
HEAD, ALL = (('head/.*', 1.0), ('.*', None)), (('.*', 1.0),)
METHODS = {
    'scratch': {'rules': ALL},
    'head': {'rules': HEAD, 'init': 'source'},
    'all': {'rules': ALL, 'init': 'source'},
    'head-then-all': {'phases': ((STEPS // 2, HEAD), (None, ALL)), 'init': 'source'},
}


def get_config(arg=None):
    config = ConfigDict()
    config.data = {'name': 'digits', 'val': 0.2, 'eval_batch_size': 256}
    config.model = {'name': 'resnet', 'stages': (1, 1, 1), 'width': 12}
    config.batch_size = 16
    config.steps = STEPS
    config.optim = {'name': 'adamw', 'lr': 3e-3, 'weight_decay': 1e-2}
    config.eval_every = STEPS  # one look at the validation split, at the end: it chooses the rate, not the step
    config.log_every = STEPS
    config.checkpoint_every = 0
    config.report = False
    return config


def sweep(config):
    yield (
        'source',
        {
            'data': {'name': 'letters', 'augment': (('pad_crop', 1),), 'eval_batch_size': 256},
            'batch_size': 128,
            'steps': 500,
            'optim.lr': 1e-2,
            'optim.weight_decay': 0.1,
            'eval_every': 500,
            'checkpoint_every': 500,
            'log_every': 100,
        },
    )
    for labels in LABELS:
        for method, overrides in METHODS.items():
            for lr in RATES:
                for seed in range(SEEDS):
                    setting = {'data.labels_per_class': labels, 'optim.lr': lr, 'seed': seed}
                    yield f'{method}/labels={labels}/lr={lr:g}/seed={seed}', {**overrides, **setting}


def summary(workdir):
    return compare.write(
        workdir,
        baseline='scratch',
        across='labels',
        tune='lr',
        pair='seed',
        title='Handwritten digits, from printed letters',
    )
