"""Prepared TFDS data sets, here a small one written by the test."""

import json
import os
import pickle
import shutil
import subprocess
import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds_lib

from jtl.data.sources import tfds
from jtl.errors import UserError


class Toy(tfds_lib.core.GeneratorBasedBuilder):
    """Pictures whose pixels are all their own number; the split `extra` has no meaning here, `test` no labels."""

    VERSION = tfds_lib.core.Version('1.2.0')
    code_path = None

    def _info(self):
        names = {'image': tfds_lib.features.Image(shape=(None, None, 3), encoding_format='png'),
                 'label': tfds_lib.features.ClassLabel(names=['cat', 'dog'])}  # fmt: skip
        return tfds_lib.core.DatasetInfo(builder=self, features=tfds_lib.features.FeaturesDict(names))

    def _split_generators(self, dl_manager):
        sizes = {'train': 5, 'validation': 3, 'test': 2, 'extra': 1}
        return {name: self._generate_examples(name, size) for name, size in sizes.items()}

    def _generate_examples(self, split, size):
        for i in range(size):
            image = np.full((2, 3, 3), i, np.uint8)
            yield i, {'image': tfds.encode_png(image), 'label': -1 if split == 'test' else i % 2}


class Textual(tfds_lib.core.GeneratorBasedBuilder):
    """No pictures."""

    VERSION = tfds_lib.core.Version('1.0.0')
    code_path = None

    def _info(self):
        features = tfds_lib.features.FeaturesDict({'text': tfds_lib.features.Text(), 'label': np.int64})
        return tfds_lib.core.DatasetInfo(builder=self, features=features)

    def _split_generators(self, dl_manager):
        return {'train': self._generate_examples()}

    def _generate_examples(self):
        yield 0, {'text': 'x', 'label': 0}


@pytest.fixture(scope='module')
def prepared(tmp_path_factory):
    folder = tmp_path_factory.mktemp('prepared')
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('TFDS_DATA_DIR', str(folder))
        tfds.prepare_bundled(Toy)
        tfds.prepare_bundled(Textual)
    return folder


@pytest.fixture
def toy(prepared, tmp_path, monkeypatch):
    """A copy of the prepared data that a test may break; its folder."""
    shutil.copytree(prepared, tmp_path, dirs_exist_ok=True)
    monkeypatch.setenv('TFDS_DATA_DIR', str(tmp_path))
    return tmp_path / 'toy' / '1.2.0'


@pytest.mark.parametrize('path', ['toy', 'toy:1.2.0'])
def test_tfds_reads_splits(toy, path):
    source = tfds.read(path)
    assert source.classes == ('cat', 'dog') and source.channels == 3
    assert {name: len(split.labels) for name, split in source.splits.items()} == {'train': 5, 'val': 3}
    split = source.splits['train']
    assert split.labels.dtype == np.int32
    get = pickle.loads(pickle.dumps(split.get))
    values = [int(get(i)['image'].max()) for i in range(5)]
    assert sorted(values) == list(range(5)) and get(0)['image'].shape == (2, 3, 3)
    np.testing.assert_array_equal(split.labels, np.array(values) % 2)  # TFDS shuffles; labels stay with pictures


def test_tfds_reads_the_newest_version(toy):
    for version in ('1.10.0', '1.9.0'):
        shutil.copytree(toy, toy.parent / version)
        info = json.loads((toy / 'dataset_info.json').read_text())
        (toy.parent / version / 'dataset_info.json').write_text(json.dumps({**info, 'version': version}))
    assert tfds.read('toy').splits['train'].get.records is not None
    assert tfds._find('toy').endswith('1.10.0')
    assert tfds._find('toy:1.9.0').endswith('1.9.0')
    with pytest.raises(UserError, match='no version 1.10.1 in .*: did you mean .1.10.0'):
        tfds.read('toy:1.10.1')


def test_tfds_finds_configs(toy):
    shutil.copytree(toy, toy.parent.parent / 'two' / 'small' / '1.2.0')
    assert tfds._find('two') == tfds._find('two/small')
    shutil.copytree(toy, toy.parent.parent / 'two' / 'large' / '1.2.0')
    with pytest.raises(UserError, match='configs large, small: say tfds:two/CONFIG'):
        tfds.read('two')


def test_tfds_says_how_to_prepare(toy):
    with pytest.raises(UserError, match='tfds:cifar10 is not prepared in .*: run `jtl prepare tfds:cifar10` first'):
        tfds.read('cifar10')


def test_tfds_suggests_a_name(toy):
    with pytest.raises(UserError, match="no data set tfds:cifra10: did you mean 'cifar10'"):
        tfds.read('cifra10')
    with pytest.raises(UserError, match="no data set tfds:toi: did you mean 'toy'"):
        tfds.read('toi')


def test_tfds_says_which_format_it_needs(toy):
    for file in toy.glob('*.array_record*'):
        file.rename(toy / file.name.replace('array_record', 'tfrecord'))
    with pytest.raises(UserError, match='not as array_record: delete that folder and run `jtl prepare tfds:toy`'):
        tfds.read('toy')


def test_tfds_says_which_features_there_are(toy):
    with pytest.raises(UserError, match='no feature image of type Image; it has: .*text [(]Text[)]'):
        tfds.read('textual')


def test_tfds_needs_a_training_split(toy):
    info = json.loads((toy / 'dataset_info.json').read_text())
    info['splits'] = [split for split in info['splits'] if split['name'] != 'train']
    (toy / 'dataset_info.json').write_text(json.dumps(info))
    with pytest.raises(UserError, match='no split train, only: '):
        tfds.read('toy')


def test_prepare_bundled_is_quiet_and_leaves_nothing_behind(tmp_path, monkeypatch, capfd):
    monkeypatch.setenv('TFDS_DATA_DIR', str(tmp_path / 'new'))
    tfds.prepare_bundled(Toy)
    assert capfd.readouterr() == ('', '')
    assert os.listdir(tmp_path / 'new') == ['toy'] and os.listdir(tmp_path / 'new' / 'toy') == ['1.2.0']


def test_prepare_bundled_explains_a_folder_it_cannot_write(tmp_path, monkeypatch):
    (tmp_path / 'file').write_text('')
    monkeypatch.setenv('TFDS_DATA_DIR', str(tmp_path / 'file'))
    with pytest.raises(UserError, match='cannot prepare toy in .*: set TFDS_DATA_DIR'):
        tfds.prepare_bundled(Toy)


def test_prepare_bundled_survives_a_race(tmp_path):
    """Two processes that find nothing prepare at once; both must read all of it."""
    code = 'from jtl.data.sources import digits; print(len(digits.read("").splits["train"].labels))'
    env = {**os.environ, 'TFDS_DATA_DIR': str(tmp_path)}
    runs = [subprocess.Popen([sys.executable, '-c', code], env=env, stdout=subprocess.PIPE) for _ in range(2)]
    assert [run.communicate()[0].strip() for run in runs] == [b'1000', b'1000']
    assert os.listdir(tmp_path) == ['digits']
