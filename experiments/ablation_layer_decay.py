"""Layer-wise decay of the learning rate: each layer at so many times the rate of the one above it; 1 is one rate.

    python experiments/ablation_layer_decay.py --config=configs/FILE.py --workdir=runs/decay [--seeds=5]

`jtl compare --help` has the rest of the arguments.
"""

import sys

from jtl.comparison.command import ablation
from jtl.recipes import BOLD, Recipe

FACTORS = (0.9, 0.75, 0.6, 0.4)
RECIPES = {
    '1': Recipe('one rate', {'rules': 'all'}),
    **{f'{f}': Recipe(f'{f} of the rate above', {'rules': f'layer_decay:{f}'}) for f in FACTORS},
    'head': Recipe('the head alone', {'rules': 'head'}, BOLD),
}

if __name__ == '__main__':
    sys.exit(ablation(RECIPES, baseline='1'))
