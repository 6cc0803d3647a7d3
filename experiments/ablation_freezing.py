"""How deep to fine-tune: the head alone, the last N blocks, everything.

    python experiments/ablation_freezing.py --config=configs/FILE.py --workdir=runs/freezing [--seeds=5]

A model of fewer than 8 blocks is asked about with --methods=head,last1,last2,all. `jtl compare --help` has the rest of
the arguments.
"""

import sys

from jtl.comparison.command import ablation
from jtl.recipes import BOLD, GENTLE, Recipe

RECIPES = {
    'head': Recipe('the head alone', {'rules': 'head'}, BOLD),
    **{f'last{n}': Recipe(f'the last {n} blocks and the head', {'rules': f'last:{n}'}, GENTLE) for n in (1, 2, 4, 8)},
    'all': Recipe('everything', {'rules': 'all'}, GENTLE),
}

if __name__ == '__main__':
    sys.exit(ablation(RECIPES, baseline='all'))
