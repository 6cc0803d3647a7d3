"""Name tables: what a template reads and writes, and what becomes of tensors."""

import numpy as np
import pytest

from jtl.errors import UserError
from jtl.pretrained.recognise import families, recognise, unwrapped
from jtl.pretrained.table import CONV, DENSE, SAME, Dialect, Row, Way, export, left_out, template, translate

RNG = np.random.default_rng(0)


@pytest.mark.parametrize(
    'text, name, values',
    [
        ('layer{stage}.{block}.conv{i}.weight', 'layer2.13.conv1.weight', {'stage': 2, 'block': 13, 'i': 1}),
        ('stages.{stage-1}.x', 'stages.0.x', {'stage': 1}),
        ('conv{3*block+2}.x', 'conv11.x', {'block': 3}),
        ('[bert.]layer.{i}', 'bert.layer.3', {'i': 3}),
        ('[bert.]layer.{i}', 'layer.3', {'i': 3}),
        ('mlp.{part:key|value}.w', 'mlp.value.w', {'part': 'value'}),
        ('net{net=0}_conv', 'net12_conv', {'net': 12}),
    ],
)
def test_template_reads_what_it_writes(text, name, values):
    words = (('part', 'key|value'),)
    found = template(text, words).match(name)
    assert found == values
    assert name in (template(text, words).write(found), template(text, words).write(found, optional=False))


@pytest.mark.parametrize(
    'text, name',
    [
        ('layer{stage}.x', 'layer01.x'),  # another name than layer1.x
        ('layer{stage}.x', 'layer1axx'),  # a point is a point
        ('layer{stage}.x', 'layer1.x.y'),
        ('conv{3*block+2}', 'conv4'),  # 4 - 2 is not a multiple of 3
        ('conv{3*block+2}', 'conv1'),  # block would be below 0
        ('mlp.{part:key|value}', 'mlp.query'),
        ('layer{stage}', 'layer9999999'),
    ],
)
def test_template_does_not_read(text, name):
    assert template(text, (('part', 'key|value'),)).match(name) is None


def test_template_writes_the_default_of_a_number_that_only_they_have():
    assert template('net{net=4}_conv{i}').write({'i': 2}) == 'net4_conv2'


SPLIT = Way('split', lambda x: tuple(np.split(x, 2)), lambda a, b: np.concatenate([a, b]))
MEAN = Way('mean', lambda a, b: (a + b) / 2, lambda x: (x, x))
DIALECT = Dialect(
    'theirs',
    (
        Row('fc.weight', 'head/kernel', DENSE),
        Row('conv{i+1}.weight', 'backbone/conv{i}/kernel', CONV),
        Row('both.{part:a|b}', ('backbone/{part}/left', 'backbone/{part}/right'), SPLIT),
        Row(('one.bias', 'two.bias'), 'head/bias', MEAN),
        left_out('conv{i}.count', 'a count'),
        Row('one.bias', 'backbone/alone', SAME),
    ),
)


def tensors(**more):
    shapes = {'fc.weight': (5, 4), 'conv1.weight': (8, 3, 2, 2), 'conv2.weight': (6, 8, 1, 1), 'both.b': (6,)}
    found = {name: RNG.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    return {**found, 'one.bias': np.ones(5, np.float32), 'two.bias': 3 * np.ones(5, np.float32), **more}


def test_translate_names_and_turns_everything():
    found = tensors(**{'conv1.count': np.int64(3)})
    got = translate(found, DIALECT)
    assert got.unknown == {} and got.left == {'conv1.count': 'a count'}
    np.testing.assert_array_equal(got.leaves['head/kernel'], found['fc.weight'].T)
    np.testing.assert_array_equal(got.leaves['backbone/conv0/kernel'][1, 0, 2], found['conv1.weight'][:, 2, 1, 0])
    np.testing.assert_array_equal(got.leaves['backbone/b/right'], found['both.b'][3:])
    np.testing.assert_array_equal(got.leaves['head/bias'], [2] * 5)
    assert got.origin['head/bias'] == 'one.bias + two.bias (mean)' and got.origin['backbone/b/left'] == 'both.b (split)'


def test_translate_goes_on_to_a_later_row_if_a_part_is_missing():
    found = tensors()
    del found['two.bias']
    assert 'backbone/alone' in translate(found, DIALECT).leaves


@pytest.mark.parametrize(
    'name, value, why',
    [
        ('nonsense', np.zeros(2), ''),
        ('conv1.weight', np.zeros((8, 3, 2)), 'of shape (8, 3, 2), expected 4 axes'),
        ('fc.weight', np.zeros(3), 'of shape (3,), expected 2 axes'),
        ('both.b', np.zeros(5), 'array split does not result in an equal division'),
    ],
)
def test_translate_says_what_it_does_not_know_and_why(name, value, why):
    got = translate(tensors(**{name: value}), DIALECT)
    assert got.unknown == {name: why} and len(got.leaves) >= 4


def test_translate_refuses_a_second_tensor_for_a_place():
    twice = Dialect('x', (Row('[net.]bias', 'head/bias'),))
    got = translate({'bias': np.zeros(1), 'net.bias': np.ones(1)}, twice)
    assert got.leaves == {'head/bias': np.zeros(1)} and got.unknown == {'net.bias': 'head/bias is taken already'}


def test_export_is_the_inverse():
    found = tensors()
    back = export(translate(found, DIALECT).leaves, DIALECT)
    assert back.keys() == found.keys()
    for name in found.keys() - {'one.bias', 'two.bias'}:  # of a mean there is no inverse; both become it
        np.testing.assert_array_equal(back[name], found[name])
        assert back[name].flags.c_contiguous
    np.testing.assert_array_equal(back['two.bias'], [2] * 5)


def test_export_names_what_it_has_no_name_for():
    with pytest.raises(UserError, match='the names of theirs have no place for head/new'):
        export({'head/kernel': np.zeros((2, 2)), 'head/new': np.zeros(1)}, DIALECT)


def test_unwrapped_takes_away_what_most_names_share():
    assert unwrapped({'module.model.a': 1, 'module.model.b': 2})[-1] == ({'a': 1, 'b': 2}, 'module.model.')
    assert unwrapped({'backbone.a': 1, 'backbone.b': 2, 'fc': 3})[-1] == ({'a': 1, 'b': 2, 'fc': 3}, 'backbone.')
    assert len(unwrapped({'module.a': 1, 'b': 2, 'c': 3})) == 1
    assert len(unwrapped({'module.a': 1, 'a': 2})) == 1  # two of one name


def test_recognise_refuses_what_it_does_not_know():
    with pytest.raises(UserError, match=r'x\.pth: 2 tensors that look like no model of jtl: a, b\. Known: .*resnet of'):
        recognise({'a': np.zeros(2), 'b': np.zeros(2)}, {}, 'x.pth')


def test_every_table_reads_its_own_names():
    """A row whose sides do not have the same holes could be read in one direction only."""
    for family in families():
        for dialect in family.DIALECTS:
            for row in dialect.rows:
                theirs, ours = ((side,) if isinstance(side, str) else side for side in (row.theirs, row.ours))
                holes = [
                    {part.name for text in side for part in template(text).parts if hasattr(part, 'factor')}
                    for side in (theirs, ours)
                ]
                optional = {
                    part.name
                    for text in theirs
                    for part in template(text).parts
                    if getattr(part, 'default', None) is not None
                }
                assert not ours or holes[0] - optional == holes[1], (family.FAMILY, dialect.name, row)


def test_the_first_dialect_of_a_family_is_pytorch_s():
    """It is what `jtl convert` writes if nothing else is asked for."""
    first = {family.FAMILY: family.DIALECTS[0].name for family in reversed(families())}
    assert set(first.values()) == {'torchvision', 'timm', 'huggingface'}, first
