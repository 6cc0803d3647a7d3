"""The ways to fine-tune that `jtl compare` knows by name: what each changes in a config, and what it is tuned over.

A recipe is a handful of overrides by dotted key, as in a config, and a small grid. Its rates are multiples of
config.optim.lr, the rate that fine-tuning would be given, since what is right for a few new parameters is mostly more
than what pretrained ones bear. All grids here have three points, so that none is better for having been tried more
often: knobs of a method's own stay at what its paper says, unless a file of further recipes, `--recipes=FILE.py` with
`RECIPES = {'name': Recipe(…)}`, says otherwise.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

GENTLE, BOLD = (0.3, 1.0, 3.0), (1.0, 3.0, 10.0)


class Recipe(NamedTuple):
    """One way to fine-tune.

    Attributes:
        about: one line on the idea, and the paper.
        overrides: values of the config by dotted key; a mapping replaces a whole section, and a key that ends with `+`
            adds to what is there: `{'data.augment+': ('flip',)}`.
        times: learning rates to try, as multiples of config.optim.lr.
        grid: further values to try by dotted key, `{'method.l2sp.alpha': (0.01, 0.1)}`, with every rate.
    """

    about: str
    overrides: Mapping[str, Any]
    times: tuple[float, ...] = GENTLE
    grid: Mapping[str, tuple] = {}


def full(about: str, **sections: Any) -> Recipe:
    """Fine-tuning of everything, and something besides; `__` in a key is a dot."""
    return Recipe(about, {'rules': 'all', **{key.replace('__', '.'): value for key, value in sections.items()}})


def adapter(about: str, name: str, **options: Any) -> Recipe:
    """An adapter beside the frozen backbone, trained with the head."""
    return Recipe(about, {'rules': 'adapters', f'model.{name}': options}, BOLD)


def lpft(share: float) -> tuple:
    """The head for a share of the run, then everything."""
    return (share, 'head'), (None, 'all')


RECIPES: dict[str, Recipe] = {
    # How much moves.
    'scratch': Recipe('everything, from random parameters', {'rules': 'all', 'load.fresh': True}, BOLD),
    'probe': Recipe('the head alone, on a frozen backbone', {'rules': 'head'}, BOLD),
    'finetune': full('everything, at one rate'),
    'discriminative': Recipe('the backbone at a tenth of the rate', {'rules': 'discriminative:0.1'}, BOLD),
    'last2': Recipe('the last two blocks and the head', {'rules': 'last:2'}),
    'biases': Recipe('biases and the head: BitFit (Ben Zaken et al., ACL 2022)', {'rules': 'biases'}, BOLD),
    'norms': Recipe('normalisation layers and the head (Frankle et al., ICLR 2021)', {'rules': 'norms'}, BOLD),
    'layer_decay': Recipe('lower rates further down (Bao et al., ICLR 2022)', {'rules': 'layer_decay:0.75'}),
    # What moves when.
    'lpft': Recipe('the head first, then everything (Kumar et al., ICLR 2022)', {'phases': lpft(0.3)}),
    'lpft_solved': full('the same, with the head solved in closed form first', method__lpft={}),
    'gradual': Recipe('gradual unfreezing from the top (Howard and Ruder, ACL 2018)', {'phases': 'gradual:4'}),
    # A few new parameters.
    'lora': adapter('low-rank updates of weights (Hu et al., ICLR 2022)', 'lora', rank=8),
    'dora': adapter('LoRA with magnitudes of their own (Liu et al., ICML 2024)', 'lora', rank=8, dora=True),
    'ia3': adapter('activations scaled by learned vectors (Liu et al., NeurIPS 2022)', 'ia3'),
    'prompts': adapter('learned tokens in every block of a ViT (Jia et al., ECCV 2022)', 'prompts', deep=True),
    'bottleneck': adapter('a small residual network in each block (Houlsby et al., ICML 2019)', 'bottleneck'),
    # Held near where it began.
    'l2sp': full(
        'a pull towards the pretrained weights (Li et al., ICML 2018)', method__l2sp={}, optim__weight_decay=0.0
    ),
    'delta': full('a pull towards the pretrained features (Li et al., ICLR 2019)', method__delta={}),
    # What the loss, and its gradient, are.
    'sam': full('flat minima: sharpness-aware minimisation (Foret et al., ICLR 2021)', method__sam={}),
    'adversarial': full('trained against attacks (Madry et al., ICLR 2018)', method__adversarial={}),
    'focal': full('hard examples count more (Lin et al., ICCV 2017)', method__focal=2.0),
    'logit_adjustment': full('rare classes get a margin (Menon et al., ICLR 2021)', method__logit_adjustment=1.0),
    'weighted': full('rare classes count more', method__class_weights='balanced'),
    'balanced': full('rare classes are drawn more often', data__sampling='balanced'),
    'smoothing': full('softened labels (Szegedy et al., CVPR 2016)', method__label_smoothing=0.1),
    'ema': full('evaluated at an average of the parameters (Polyak and Juditsky, 1992)', optim__ema=0.99),
    # What is seen.
    'mixup': full('blends of two examples (Zhang et al., ICLR 2018)', method__mixup=0.2),
    'cutmix': full('a piece of one picture in another (Yun et al., ICCV 2019)', method__cutmix=1.0),
    'randaugment': full('random changes of pictures (Cubuk et al., 2020)', **{'data.augment+': ('rand_augment',)}),
    # Which head.
    'mlp_head': full('a head of two layers', model__head={'name': 'mlp'}),
    'cosine_head': full('a head of cosines (Gidaris and Komodakis, CVPR 2018)', model__head={'name': 'cosine'}),
}


def table(recipes: Mapping[str, Recipe] = RECIPES) -> str:
    """The recipes as text, a line each."""
    width = max(map(len, recipes))
    lines = []
    for name, recipe in recipes.items():
        given = ' '.join(f'{key}={value!r}' for key, value in {**recipe.overrides, **recipe.grid}.items())
        rates = ', '.join(f'{x:g}' for x in recipe.times)
        lines.append(f'  {name:{width}}  {recipe.about}\n  {"":{width}}    {given}; lr × {rates}')
    return '\n'.join(lines)
