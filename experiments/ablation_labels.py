"""From how many labels a class fine-tuning is worth it: against training from scratch, a probe, and both in turn.

    python experiments/ablation_labels.py --config=configs/FILE.py --workdir=runs/labels [--seeds=5] [--labels=4,25,100]

`jtl compare --help` has the rest of the arguments.
"""

import sys

from jtl.comparison.command import ablation
from jtl.recipes import RECIPES as ALL

RECIPES = {name: ALL[name] for name in ('scratch', 'probe', 'finetune', 'lpft')}

if __name__ == '__main__':
    sys.exit(ablation(RECIPES, baseline='finetune', labels='1,4,10,25,100'))
