"""Position embeddings of weights on pictures of another size."""

import jax
import numpy as np
import pytest

from jtl import models, tree
from jtl.errors import UserError
from jtl.pretrained import resize
from jtl.pretrained.into import into
from jtl.pretrained.load import Pretrained

VIT = {'name': 'vit', 'patch': 4, 'width': 16, 'depth': 1, 'heads': 2}


def fresh(height, width, seed, **changes):
    """Parameters for pictures of a size, none of them 0."""
    batch = {'image': np.zeros((1, height, width, 3), np.float32)}
    params = models.build(num_classes=2, **{**VIT, **changes}).init(jax.random.key(seed), batch, train=False)['params']
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), params), batch


def put(mine, theirs, model=VIT, origin=None, **more):
    weights = Pretrained('theirs', VIT, theirs[0], {}, ('a', 'b'), {}, '', origin or {'x': 'y'}, **more)
    params, _, origin = into(mine[0], {}, weights, ('a', 'b'), model, mine[1])
    return params, origin


@pytest.mark.parametrize('antialias', [True, False])
@pytest.mark.parametrize('height, width', [(32, 32), (8, 24), (8, 32)])  # the last has as many patches as 16×16
def test_into_resizes_the_position_embedding(height, width, antialias):
    theirs, mine = fresh(16, 16, 0), fresh(height, width, 1)
    params, origin = put(mine, theirs, antialias=antialias)
    expected = resize.position(theirs[0]['backbone']['position'], 1, 1, (4, 4), (height // 4, width // 4), antialias)
    np.testing.assert_array_equal(params['backbone']['position'], expected)
    assert not np.array_equal(expected, theirs[0]['backbone']['position'])
    assert origin['backbone/position'] == f'theirs, 17 → {1 + height * width // 16} tokens'
    rest = lambda node: {path: x for path, x in tree.flatten(node).items() if path != 'backbone/position'}
    for path, leaf in rest(theirs[0]).items():
        np.testing.assert_array_equal(rest(params)[path], leaf)


def test_into_leaves_a_former_run_of_any_grid_as_it_is():
    theirs, mine = fresh(8, 32, 0), fresh(8, 32, 1)
    weights = Pretrained('runs/x', VIT, theirs[0], {}, ('a', 'b'), {}, '')
    params, _, _ = into(mine[0], {}, weights, ('a', 'b'), VIT, mine[1])
    np.testing.assert_array_equal(params['backbone']['position'], theirs[0]['backbone']['position'])


def test_into_makes_room_for_a_distillation_token():
    model = {**VIT, 'distilled': True}
    theirs, mine = fresh(16, 16, 0), fresh(16, 16, 1, distilled=True)
    with pytest.raises(UserError, match='1 missing:\n  backbone/: distillation_token'):
        put(mine, theirs, model)
    params, _ = put(mine, theirs, model, missing=('backbone/distillation_token',))
    position = params['backbone']['position'][0]
    np.testing.assert_array_equal(position[0], theirs[0]['backbone']['position'][0, 0])
    np.testing.assert_array_equal(position[1], mine[0]['backbone']['position'][0, 1])  # stays fresh
    np.testing.assert_array_equal(position[2:], theirs[0]['backbone']['position'][0, 1:])
