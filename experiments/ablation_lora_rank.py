"""What rank LoRA needs, against fine-tuning of everything.

    python experiments/ablation_lora_rank.py --config=configs/FILE.py --workdir=runs/rank [--seeds=5]

`jtl compare --help` has the rest of the arguments.
"""

import sys

from jtl import recipes
from jtl.comparison.command import ablation

RECIPES = {
    'finetune': recipes.RECIPES['finetune'],
    'head': recipes.RECIPES['probe'],
    **{f'rank{r}': recipes.adapter(f'LoRA of rank {r}', 'lora', rank=r, alpha=2.0 * r) for r in (1, 2, 4, 8, 16)},
}

if __name__ == '__main__':
    sys.exit(ablation(RECIPES, baseline='finetune'))
