"""Which head: linear, of two layers, of cosines; on a backbone that is fine-tuned, and on a frozen one.

    python experiments/ablation_head.py --config=configs/FILE.py --workdir=runs/head [--seeds=5]

`jtl compare --help` has the rest of the arguments.
"""

import sys

from jtl.comparison.command import ablation
from jtl.recipes import BOLD, GENTLE, Recipe

BACKBONE = {'all': 'fine-tuned', 'head': 'frozen'}
RECIPES = {
    f'{head}-{rules}': Recipe(
        f'{head}, on a backbone that is {BACKBONE[rules]}', {'rules': rules, 'model.head': {'name': head}}, times
    )
    for rules, times in (('all', GENTLE), ('head', BOLD))
    for head in ('linear', 'mlp', 'cosine')
}

if __name__ == '__main__':
    sys.exit(ablation(RECIPES, baseline='linear-all'))
