"""Real weights beside the checkout and photographs of cats and dogs for them, both as a run would have them."""

from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from jtl.data import Preprocess
from jtl.data.sources import folder
from jtl.models import build
from jtl.pretrained.into import into
from jtl.pretrained.load import Pretrained, load

SHARED = Path(__file__).resolve().parents[2].parent / 'shared'
PICTURES = SHARED / 'data' / 'catsdogs' / 'catsdogs.zip'
CLASSES = ('cats', 'dogs')
EACH = {'train': 15, 'test': 20}  # photographs of a class


class Real(NamedTuple):
    """What was read, the model it belongs to, and the model's variables: with the weights in, and as they began."""

    weights: Pretrained
    model: object
    variables: dict
    fresh: dict

    def photographs(self, split):
        """Images as the weights expect them, [B, H, W, 3], and their classes, [B]."""
        preprocess, source = Preprocess(**self.weights.preprocess), folder.read(str(PICTURES))
        assert source.classes == CLASSES
        labels, get = source.splits[split]
        index = np.concatenate([np.flatnonzero(labels == label)[: EACH[split]] for label in (0, 1)])
        return preprocess.normalise([preprocess.fit(get(int(i))['image']) for i in index]), labels[index]

    def run(self, images, output, variables=None):
        variables = self.variables if variables is None else variables
        parts = [_apply(self.model, variables, images[i : i + 20])[output] for i in range(0, len(images), 20)]
        return np.concatenate(parts)

    def nearest_class_mean(self):
        """The accuracy of giving each test picture the class whose mean training features are nearest.

        Returns:
            With the weights, and with random ones.
        """
        (images, labels), (others, expected) = map(self.photographs, ('train', 'test'))

        def accuracy(variables):
            features = self.run(images, 'features', variables)
            means = np.stack([features[labels == label].mean(0) for label in (0, 1)])  # [2, D]
            distances = ((self.run(others, 'features', variables)[:, None] - means) ** 2).sum(-1)  # [B, 2]
            return (distances.argmin(-1) == expected).mean()

        return accuracy(self.variables), accuracy(self.fresh)


def real(uri, classes=CLASSES, labels=None, **changes):
    """The weights behind a URI in a model for these classes, None for their own; `changes` are of `config.model`."""
    weights = load(uri, labels=labels)
    classes = classes or weights.classes
    config = {**weights.model, **changes}
    model = build(num_classes=len(classes), **config)
    batch = {'image': np.zeros((1, 64, 64, 3), np.float32)}
    fresh = jax.jit(lambda: model.init(jax.random.key(0), batch, train=False))()
    params, state, _ = into(
        fresh['params'], {'model': {'batch_stats': fresh['batch_stats']}}, weights, classes, config, batch
    )
    return Real(weights, model, {'params': params, **state['model']}, fresh)


@jax.jit(static_argnums=0)
def _apply(model, variables, images):
    return model.apply(variables, {'image': images}, train=False)
