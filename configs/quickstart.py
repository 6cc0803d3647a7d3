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
class as training labels); the test split decides nothing. RESULTS.md and results.png in the run's folder are the
outcome. It is a sweep of plain runs: pretraining is one of them, and the others name it in `init`.
"""

from ml_collections import ConfigDict

from jtl import compare

LABELS = (1, 2, 5, 10)
SEEDS = 10
STEPS = 60
HEAD, ALL = (('head/.*', 1.0), ('.*', None)), (('.*', 1.0),)
METHODS = {  # name: (overrides, learning rates)
    'scratch': ({'rules': ALL}, (1e-3, 3e-3, 1e-2)),
    'head': ({'rules': HEAD, 'init': 'source'}, (3e-3, 1e-2, 3e-2)),
    'all': ({'rules': ALL, 'init': 'source'}, (1e-3, 3e-3, 1e-2)),
    'head-then-all': ({'phases': ((STEPS // 2, HEAD), (None, ALL)), 'init': 'source'}, (1e-3, 3e-3, 1e-2)),
}


def get_config(arg=None):
    config = ConfigDict()
    config.data = {'name': 'digits', 'val': 0.2}
    config.model = {'name': 'resnet', 'stages': (1, 1, 1), 'width': 16}
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
            'data': {'name': 'letters'},
            'batch_size': 128,
            'steps': 700,
            'optim.lr': 1e-2,
            'eval_every': 700,
            'checkpoint_every': 700,
            'log_every': 100,
        },
    )
    for labels in LABELS:
        for method, (overrides, rates) in METHODS.items():
            for lr in rates:
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
