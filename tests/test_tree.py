import numpy as np

from jtl import tree

TREE = {'b': {'kernel': np.zeros((2, 3)), 'none': None}, 'a': (np.ones(4, np.float16), {'x': np.zeros(())})}


def test_flatten_names_leaves_by_path_and_skips_none():
    assert list(tree.flatten(TREE)) == ['a/0', 'a/1/x', 'b/kernel']


def test_unflatten_inverts_flatten_for_dicts():
    nested = {'a': {'b': 1, 'c': {'d': 2}}, 'e': 3}
    assert tree.unflatten(tree.flatten(nested)) == nested


def test_map_paths_keeps_the_structure():
    assert tree.map_paths(lambda path, leaf: path, {'a': {'b': 1}, 'c': 2}) == {'a': {'b': 'a/b'}, 'c': 'c'}


def test_count_and_nbytes():
    assert tree.count(TREE) == 6 + 4 + 1
    assert tree.nbytes(TREE) == 6 * 8 + 4 * 2 + 8
