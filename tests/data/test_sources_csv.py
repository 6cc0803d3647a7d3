"""Tables."""

import pickle

import numpy as np
import pytest
from PIL import Image

from jtl.data.sources import csv
from jtl.errors import UserError


def save(tmp_path, text, encoding='utf-8'):
    (tmp_path / 'a.csv').write_bytes(text.encode(encoding))
    return str(tmp_path / 'a.csv')


@pytest.mark.parametrize('delimiter', [',', ';', '\t'])
@pytest.mark.parametrize('encoding', ['utf-8', 'utf-8-sig'])
def test_csv_reads_features(delimiter, encoding, tmp_path):
    text = 'u,label,w\r\n1,rosé,2\n3.5,lily,-1e2\n\n"0",rosé,7\n'.replace(',', delimiter)
    source = csv.read(save(tmp_path, text, encoding))
    assert source.classes == ('lily', 'rosé') and source.channels is None and list(source.splits) == ['train']
    split = source.splits['train']
    np.testing.assert_array_equal(split.labels, [1, 0, 1])
    assert split.labels.dtype == np.int32
    get = pickle.loads(pickle.dumps(split.get))
    assert get(0)['features'].dtype == np.float32
    np.testing.assert_array_equal([get(i)['features'] for i in range(3)], [[1, 2], [3.5, -100], [0, 7]])


def test_csv_reads_splits_and_counts_classes(tmp_path):
    source = csv.read(save(tmp_path, 'label,split,u\n10,train,1\n9,Training,2\n9,dev,3\n10,test,4\n10,test,5\n'))
    assert source.classes == ('9', '10')
    found = {name: (s.labels.tolist(), [s.get(i)['features'].item() for i in range(len(s.labels))])
             for name, s in source.splits.items()}  # fmt: skip
    assert found == {'train': ([1, 0], [1, 2]), 'val': ([0], [3]), 'test': ([1, 1], [4, 5])}


def test_csv_reads_pictures_beside_it(tmp_path):
    (tmp_path / 'pics').mkdir()
    for i in range(3):
        Image.new('L', (4, 3), i).save(tmp_path / 'pics' / f'{i}.png')
    source = csv.read(save(tmp_path, 'image,label,note\npics/2.png,a,x\npics/0.png,b,y\npics/1.png,a,z\n'))
    assert source.channels == 1
    get = pickle.loads(pickle.dumps(source.splits['train'].get))
    assert [get(i)['image'].max() for i in range(3)] == [2, 0, 1] and get(0)['image'].shape == (3, 4, 1)


def test_csv_reads_multi_label(tmp_path):
    source = csv.read(save(tmp_path, 'label,u,split\na|c,1,train\n,2,train\nb | a,3,train\nc,4,test\n'))
    assert source.classes == ('a', 'b', 'c')
    labels = source.splits['train'].labels
    assert labels.dtype == np.float32
    np.testing.assert_array_equal(labels, [[1, 0, 1], [0, 0, 0], [1, 1, 0]])
    np.testing.assert_array_equal(source.splits['test'].labels, [[0, 0, 1]])


@pytest.mark.parametrize(
    'text, message',
    [
        ('', 'no column label'),
        ('lable,u\na,1\n', "no column label: did you mean 'lable'"),
        ('label,u\n', 'a header but no rows'),
        ('label,u,u\na,1,2\n', "two columns called 'u'"),
        ('label,u\na,1\nb\n', 'row 3: 1 cells, but the header has 2'),
        ('label,u\na,1,2\n', 'row 2: 3 cells, but the header has 2'),
        ('label,u\na,1\n\n,2\n', 'row 4, column label: empty'),
        ('label,u\na,1\nb,x2\n', "row 3, column u: 'x2' is not a finite number"),
        ('label,u\na,1\nb,\n', "row 3, column u: '' is not a finite number"),
        ('label,u\na,nan\n', "row 2, column u: 'nan' is not a finite number"),
        ('label,u\na,inf\n', "row 2, column u: 'inf' is not a finite number"),
        ('label\na\n', 'no inputs: expected a column image'),
        ('label,split,u\na,tran,1\n', "row 2, column split: unknown split 'tran': did you mean 'train'"),
        ('label,split,u\na,test,1\n', 'never says train, only: test'),
        ('label,split,u\nrose,train,1\nrosse,val,1\n', "'rosse' is in split 'val' but not in train: .*'rose'"),
        ('label,split,u\na|b,train,1\na|c,val,1\n', "'c' is in split 'val' but not in train"),
        ('label,image\na,nowhere.png\n', "row 2, column image: there is no file '.*nowhere.png'"),
        ('label,image\na,\n', 'row 2, column image'),
        ('label,u\n"a,1\n', 'cannot read .* as a UTF-8 table'),
    ],
)
def test_csv_refuses(text, message, tmp_path):
    with pytest.raises(UserError, match=message):
        csv.read(save(tmp_path, text))


def test_csv_refuses_other_encodings_and_paths(tmp_path):
    path = save(tmp_path, 'label,u\nrosé,1\n', 'latin-1')
    with pytest.raises(UserError, match='UTF-8'):
        csv.read(path)
    with pytest.raises(UserError, match="did you mean 'a.csv'"):
        csv.read(str(tmp_path / 'b.csv'))
