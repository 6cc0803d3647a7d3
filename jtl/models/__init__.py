"""Models by name.

A family is a file in this folder with three things: `NAMES`, examples of what it can build;
`backbone(variant, *, dtype, **kwargs)`, a Linen module `(x, train) -> [B, D]` whose `INPUTS` are the batch keys that
it can read; and `preprocess(variant)`. A model's name is the file's name followed by the variant: `resnet50` is
`resnet.py` with `50`. To add a family, add a file.
"""

import importlib
import pkgutil
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from jtl.errors import UserError, nearest

if TYPE_CHECKING:
    from jtl.adapters import Adapted
    from jtl.models.classifier import Classifier

DTYPES = ('float32', 'bfloat16')
IMAGENET_COLOURS = {'mean': (0.485, 0.456, 0.406), 'std': (0.229, 0.224, 0.225)}  # of its pixels in [0, 1]


def build(
    name: str, num_classes: int, *, head: Mapping[str, Any] | None = None, dtype: str = 'float32', **kwargs
) -> 'Classifier | Adapted':
    """The classifier of a name, not yet initialised; equal arguments give equal, hashable models.

        model = build('resnet20', 10)
        variables = model.init(rng, {'image': images}, train=False)     # params: {'backbone': …, 'head': …}
        outputs = model.apply(variables, {'image': images}, train=False)  # logits [B, K], features [B, D]

    Args:
        name: family and variant: `resnet50`, `vit_ti16`, `mlp`, `conv4`, …
        num_classes: K.
        head: a head of `classifier.HEADS` and its attributes: `{'name': 'mlp', 'hidden': (64,), 'dropout': 0.5}`;
            without a name, a linear one: `{'init': 'zeros'}`.
        dtype: of the computation. Parameters, features and logits are float32.
        kwargs: keyword arguments of the backbone, over those of the variant; and adapters with their options,
            `lora={'rank': 4}`, with which this gives an `adapters.Adapted`, to be used in the same way.
    """
    from jtl import adapters
    from jtl.models import classifier

    family, variant = resolve(name)
    if not isinstance(num_classes, int) or num_classes < 1:
        raise UserError(f'a model needs at least one class, not num_classes={num_classes!r}.')
    if dtype not in DTYPES:
        raise UserError(f'unknown config.model.dtype {dtype!r}: {nearest(str(dtype), DTYPES)}')
    made = classifier.make_head(num_classes, head or {})
    adapted, kwargs = adapters.split(kwargs)
    kwargs = {key: tuple(value) if isinstance(value, list) else value for key, value in kwargs.items()}
    plain = classifier.Classifier(
        backbone=family.backbone(variant, dtype=dtype, **kwargs),
        head=made,
    )
    return adapters.Adapted(plain, adapted) if adapted else plain


def preprocess(name: str) -> dict[str, Any]:
    """What images a model expects: `size` (None: as they come), `mean`, `std`, `interpolation`, `crop`.

    `mean` and `std` are of pixels in [0, 1], one number a channel, or a single one for all. `crop` is the fraction of
    the shorter side that evaluation keeps.
    """
    family, variant = resolve(name)
    family.backbone(variant)  # an unknown variant is an error here too
    return family.preprocess(variant)


def resolve(name: str) -> tuple[Any, str]:
    """The family's module and the variant: the longest file name that `name` begins with, and the rest of `name`."""
    files = [file.name for file in pkgutil.iter_modules(__path__)]
    file = max((file for file in files if name.startswith(file)), key=len, default=None)
    if file is not None:
        family = importlib.import_module(f'jtl.models.{file}')
        if hasattr(family, 'backbone'):
            return family, name[len(file) :]
    modules = [importlib.import_module(f'jtl.models.{file}') for file in files]
    raise UserError(f'unknown model {name!r}: {nearest(name, [n for m in modules for n in getattr(m, "NAMES", ())])}')
