"""`jtl prepare`, with stand-ins for the network and for packages that are missing."""

from pathlib import Path

import pytest
import requests
import tensorflow_datasets as tfds

from jtl.data import prepare
from jtl.errors import UserError


def stand_in(monkeypatch, error=None, file='mnist-train.array_record-00000-of-00001'):
    """Make `tfds.builder` give a builder that writes one empty file, or fails; returns how it was called."""
    calls = {}

    def builder(name, data_dir, **options):
        calls.update(name=name, data_dir=data_dir, **options)

        class Builder:
            data_path = Path(data_dir) / 'mnist' / '3.0.1'

            def download_and_prepare(self, download_config):
                if error:
                    raise error
                self.data_path.mkdir(parents=True)
                (self.data_path / file).write_bytes(b'')
                calls['prepared'] = True

        return Builder()

    monkeypatch.setattr(tfds, 'builder', builder)
    return calls


def test_prepare_writes_array_record(monkeypatch, tmp_path, capsys):
    calls = stand_in(monkeypatch)
    prepare.main(['tfds:mnist', '--data-dir', str(tmp_path)])
    assert calls == dict(name='mnist', data_dir=str(tmp_path), file_format='array_record', try_gcs=False, prepared=True)
    assert capsys.readouterr().out.splitlines() == [
        f'tfds:mnist is ready in {tmp_path}/mnist/3.0.1',
        f'To use it: export TFDS_DATA_DIR={tmp_path}',
    ]
    calls.clear()
    prepare.main(['tfds:mnist', '--data-dir', str(tmp_path)])  # it is there now
    assert 'prepared' not in calls


def test_prepare_keeps_other_formats(monkeypatch, tmp_path):
    stand_in(monkeypatch)
    folder = tmp_path / 'mnist' / '3.0.1'
    folder.mkdir(parents=True)
    (folder / 'mnist-train.tfrecord-00000-of-00001').write_bytes(b'x')
    with pytest.raises(UserError, match='not as array_record: delete that folder'):
        prepare.main(['tfds:mnist', '--data-dir', str(tmp_path)])
    assert len(list(folder.iterdir())) == 1


@pytest.mark.parametrize(
    'error, message',
    [
        (
            ModuleNotFoundError("No module named 'tensorflow'"),
            r"needs the Python package tensorflow: pip install 'jtl\[t",
        ),
        (
            ImportError("In foo: No module named 'cv2.x'"),
            r"package cv2: pip install 'jtl\[tfds\]', and .* pip install cv2",
        ),
        (requests.ConnectionError('name not resolved'), r'name not resolved \(is there a network, and space\?\)'),
        (OSError('No space left on device'), 'No space left'),
        (AssertionError('Manual directory does not exist'), 'cannot prepare tfds:mnist: Manual directory'),
    ],
)
def test_prepare_explains(monkeypatch, tmp_path, error, message):
    stand_in(monkeypatch, error)
    with pytest.raises(UserError, match=message):
        prepare.main(['tfds:mnist', '--data-dir', str(tmp_path)])


@pytest.mark.parametrize(
    'uri, message',
    [
        ('tfds:minst', "no data set tfds:minst: did you mean 'mnist'"),
        ('letters', "'letters' needs no preparation"),
        ('tfds:', 'expected tfds:NAME'),
        ('tfds:cifar10:9.9.9', 'only: 3.0.2'),
    ],
)
def test_prepare_refuses(uri, message, tmp_path):
    with pytest.raises(UserError, match=message):
        prepare.main([uri, '--data-dir', str(tmp_path)])
    assert list(tmp_path.iterdir()) == []
