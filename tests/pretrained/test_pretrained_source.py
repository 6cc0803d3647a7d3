"""URIs of weights: what is read, what describes it, and what is said of a URI that is nothing."""

import json
import os
from pathlib import Path

import numpy as np
import pytest

from jtl.errors import UserError
from jtl.pretrained import hub, source

TENSORS = {'fc.weight': np.arange(6, dtype=np.float32).reshape(2, 3), 'fc.bias': np.float32([1, 2])}
VIT = {'model_type': 'vit', 'id2label': {'0': 'cat', '1': 'dog'}}
PREPROCESSOR = {'size': 32, 'image_mean': [0.1, 0.2, 0.3], 'image_std': [0.5, 0.5, 0.5], 'resample': 3}
TIMM = {'architecture': 'resnet18', 'pretrained_cfg': {'input_size': [3, 64, 64], 'crop_pct': 0.95}}
SHARED = Path(__file__).resolve().parents[2].parent / 'shared'


def safetensors(path, tensors):
    """The format, by hand: the length of a header, the header, the numbers."""
    header, place = {}, 0
    for name, x in tensors.items():
        header[name] = {'dtype': 'F32', 'shape': x.shape, 'data_offsets': [place, place := place + x.nbytes]}
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, 'little') + text + b''.join(x.tobytes() for x in tensors.values()))


def sharded(folder, stem='model'):
    for i, (name, x) in enumerate(TENSORS.items()):
        safetensors(folder / f'{stem}-{i}.safetensors', {name: x})
    index = {'weight_map': {name: f'{stem}-{i}.safetensors' for i, name in enumerate(TENSORS)}}
    (folder / f'{stem}.safetensors.index.json').write_text(json.dumps(index))


@pytest.fixture
def folder(tmp_path):
    """As `save_pretrained` leaves it."""
    safetensors(tmp_path / 'model.safetensors', TENSORS)
    (tmp_path / 'config.json').write_text(json.dumps(VIT))
    (tmp_path / 'preprocessor_config.json').write_text(json.dumps(PREPROCESSOR))
    (tmp_path / 'vocab.txt').write_text('[PAD]')
    (tmp_path / 'README.md').write_text('#')
    return tmp_path


def same(found, expected=TENSORS):
    assert found.keys() == expected.keys()
    for name, x in expected.items():
        np.testing.assert_array_equal(found[name], x)


@pytest.mark.parametrize('uri', ['{}', 'safetensors:{}', 'safetensors:{}/model.safetensors', '{}/model.safetensors'])
def test_read_takes_a_directory_of_hugging_face(folder, uri):
    found = source.read(uri.format(folder))
    same(found.tensors)
    assert found.config == VIT and found.classes == ('cat', 'dog')
    assert found.preprocess['mean'] == (0.1, 0.2, 0.3) and found.preprocess['resize'] == 'squash'
    assert found.tokenizer == {'vocab.txt': b'[PAD]'}
    names = ('config.json', 'preprocessor_config.json', 'vocab.txt', 'model.safetensors')
    assert found.files == tuple(str(folder / name) for name in names)


@pytest.mark.parametrize('uri', ['{}', 'safetensors:{}', 'safetensors:{}/model.safetensors.index.json'])
def test_read_takes_shards(tmp_path, uri):
    sharded(tmp_path)
    found = source.read(uri.format(tmp_path))
    same(found.tensors)
    assert {Path(name).name for name in found.files} == {
        'model.safetensors.index.json',
        'model-0.safetensors',
        'model-1.safetensors',
    }


def test_read_takes_timms_description(folder):
    (folder / 'config.json').write_text(json.dumps(TIMM))
    found = source.read(str(folder))
    assert found.preprocess['size'] == 64 and found.preprocess['crop'] == 0.95 and found.config == TIMM


def test_read_takes_a_file_alone(tmp_path):
    # A config.json that lies beside a file of another name need not be its own.
    (tmp_path / 'config.json').write_text(json.dumps(VIT))
    np.savez(tmp_path / 'weights.npz', **TENSORS)
    for uri in (f'npz:{tmp_path}/weights.npz', f'{tmp_path}/weights.npz'):
        found = source.read(uri)
        same(found.tensors)
        assert found[2:] == ({}, {}, (), {}) and found.files == (f'{tmp_path}/weights.npz',)
    assert source.read(str(tmp_path)).config == VIT  # but a directory is one thing


def test_read_takes_labels_from_a_file(folder):
    (folder / 'labels.txt').write_text('a\nb\n')
    assert source.read(str(folder), str(folder / 'labels.txt')).classes == ('a', 'b')
    with pytest.raises(UserError, match='labels: .*absent.txt does not exist'):
        source.read(str(folder), str(folder / 'absent.txt'))


def test_read_takes_the_pooling_of_sentence_transformers(folder):
    (folder / '1_Pooling').mkdir()
    (folder / '1_Pooling' / 'config.json').write_text('{"pooling_mode_mean_tokens": true}')
    (folder / 'sentence_bert_config.json').write_text('{"max_seq_length": 256}')
    found = source.read(str(folder))
    assert found.config == {**VIT, 'pooling': {'pooling_mode_mean_tokens': True}}
    assert set(found.tokenizer) == {'vocab.txt', 'sentence_bert_config.json'}


def test_read_prefers_safetensors(folder):
    (folder / 'pytorch_model.bin').write_bytes(b'not read')
    same(source.read(str(folder)).tensors)


@pytest.mark.parametrize(
    'uri, expected',
    [
        ('hf:a/b@c:d', ('hf', 'a/b@c:d', '')),
        ('torch:{}/x.pth', ('torch', '{}/x.pth', '')),
        ('torch:{}/x.pth#ema.model', ('torch', '{}/x.pth', 'ema.model')),
        ('torch:{}/y#1.pth', ('torch', '{}/y#1.pth', '')),  # it exists
        ('torch:{}/y#1.pth#ema', ('torch', '{}/y#1.pth', 'ema')),
        ('npz:{}/a#b', ('npz', '{}/a#b', '')),
        ('{}/x.pth', ('torch', '{}/x.pth', '')),
        ('{}/x.h5', ('keras', '{}/x.h5', '')),
        ('{}/w:1.npz', ('npz', '{}/w:1.npz', '')),
        ('~/x.npz', ('npz', '~/x.npz', '')),
    ],
)
def test_resolve(tmp_path, monkeypatch, uri, expected):
    monkeypatch.setenv('HOME', str(tmp_path))
    for name in ('x.pth', 'y#1.pth', 'x.h5', 'w:1.npz', 'x.npz'):
        (tmp_path / name).touch()
    assert source.resolve(uri.format(tmp_path)) == tuple(part.format(tmp_path) for part in expected)


@pytest.mark.parametrize('uri', ['{}', 'safetensors:{}', 'safetensors:{}/model.safetensors.index.json'])
def test_find_reads_no_tensors(folder, monkeypatch, uri):
    (folder / 'model.safetensors').unlink()
    sharded(folder)
    monkeypatch.setattr(source, 'READERS', dict.fromkeys(source.READERS))
    found = source.find(uri.format(folder))
    assert (found.scheme, found.key, found.weights) == ('safetensors', '', folder / 'model.safetensors.index.json')
    assert list(found.files) == [
        *('config.json', 'preprocessor_config.json', 'vocab.txt'),
        *('model.safetensors.index.json', 'model-0.safetensors', 'model-1.safetensors'),
    ]
    assert found.record == tuple(str(folder / name) for name in found.files)


def test_find_of_the_hub(folder, monkeypatch):
    snapshot = hub.Snapshot('org/net', 'a' * 40, {'sub/x.pth': folder / 'x.pth'}, 'sub/x.pth')
    monkeypatch.setattr(hub, 'fetch', lambda name: snapshot)
    record = (f'hf:org/net@{"a" * 40}:sub/x.pth',)
    assert source.find('hf:org/net') == ('torch', '', folder / 'x.pth', snapshot.files, record)


STAMPED = ('config.json', 'preprocessor_config.json', 'vocab.txt', 'model.safetensors.index.json')
STAMPED += ('model-0.safetensors', 'model-1.safetensors')


@pytest.mark.parametrize('uri', ['{}', '~', 'safetensors:~', '~/model.safetensors.index.json'])
def test_stamp_is_of_the_very_files_that_are_read(folder, monkeypatch, uri):
    (folder / 'model.safetensors').unlink()
    sharded(folder)
    monkeypatch.setenv('HOME', str(folder))
    uri = uri.format(folder)
    before = source.stamp(uri, '~/README.md')
    assert [path for path, _, _ in before] == [str(folder / name) for name in (*STAMPED, 'README.md')]
    assert source.stamp(uri) == before[:-1]
    (folder / 'other').write_text('of no concern')
    assert source.stamp(uri, '~/README.md') == before
    for name in (*STAMPED, 'README.md'):
        stat = (folder / name).stat()
        os.utime(folder / name, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
        assert source.stamp(uri, '~/README.md') != before, name
        os.utime(folder / name, ns=(stat.st_atime_ns, stat.st_mtime_ns))
        assert source.stamp(uri, '~/README.md') == before, name
    (folder / 'tokenizer_config.json').write_text('{}')  # a description that was not there
    assert source.stamp(uri, '~/README.md') != before


@pytest.mark.parametrize('uri', ['torch:~/x.pth', 'torch:~/x.pth#ema', '~/x.pth', 'x.pth', 'torch:./x.pth#ema'])
def test_stamp_of_a_file_is_of_that_file(tmp_path, monkeypatch, uri):
    (tmp_path / 'x.pth').write_bytes(b'123')
    monkeypatch.setenv('HOME', str(tmp_path))
    monkeypatch.chdir(tmp_path)
    ((path, time, size),) = source.stamp(uri)
    assert Path(path).absolute() == tmp_path / 'x.pth' and size == 3 and time == (tmp_path / 'x.pth').stat().st_mtime_ns


@pytest.mark.parametrize(
    'uri', ['hf:org/net', 'hf:org/net@v1:x.pth', 'resnet50.a1_in1k', 'google/vit-base-patch16-224']
)
def test_stamp_does_not_ask_the_hub(folder, monkeypatch, uri):
    monkeypatch.setattr(hub, 'fetch', None)
    monkeypatch.chdir(folder)
    assert source.stamp(uri) == ()
    assert [path for path, _, _ in source.stamp(uri, 'README.md')] == ['README.md']


def test_stamp_leaves_it_to_read_to_say_what_is_missing(tmp_path):
    sharded(tmp_path)
    (tmp_path / 'model-1.safetensors').unlink()
    before = source.stamp(str(tmp_path), str(tmp_path / 'labels.txt'))
    assert [Path(path).name for path, _, _ in before] == ['model.safetensors.index.json', 'model-0.safetensors']
    with pytest.raises(UserError, match='beside it are missing 1 of 2 files: model-1.safetensors'):
        source.read(str(tmp_path))
    for uri in ('torch:', 'npz:', '', f'{tmp_path}/x.pth'):
        with pytest.raises(UserError, match='names no file|does not exist'):
            source.stamp(uri)


def test_read_names_odd_files_without_their_control_characters(tmp_path):
    for name in ('a\x1b[2J.npz', 'b\n.npz'):
        (tmp_path / name).touch()
    for uri in (str(tmp_path), f'npz:{tmp_path}/c.npz'):
        with pytest.raises(UserError) as e:
            source.read(uri)
        assert r'a\x1b[2J.npz' in str(e.value) and str(e.value).isprintable()


def test_read_hands_on_the_key(tmp_path, monkeypatch):
    (tmp_path / 'x.pth').touch()
    monkeypatch.setitem(source.READERS, 'torch', lambda path, key=None: {'asked': (path, key)})
    assert source.read(f'torch:{tmp_path}/x.pth#ema').tensors == {'asked': (tmp_path / 'x.pth', 'ema')}
    assert source.read(f'torch:{tmp_path}/x.pth').tensors == {'asked': (tmp_path / 'x.pth', None)}


@pytest.mark.parametrize(
    'uri, message',
    [
        ('tourch:{}/x.npz', "unknown scheme 'tourch': did you mean 'torch'"),
        ('torch:{}/x.nz', "x.nz does not exist. Did you mean 'x.npz'"),
        ('npz:{}/sub/x.npz', 'There is no directory'),
        ('{}/x.np', "x.np' does not exist; expected the folder of a former run, .* Did you mean 'x.npz'"),
        ('{}/notes.xyz', 'no suffix that is known. Known: .pth'),
        ('{}', 'several: name one of .*x.npz, .*y.npz'),
        ('torch:{}/folder', 'has w.npz: write npz:.*/folder'),
        ('keras:{}', 'is a directory; expected a file'),
        ('{}/empty', 'expected model.safetensors .* found only nothing'),
        ('https://huggingface.co/timm/x.y', 'write hf:timm/x.y'),
        ('https://huggingface.co/timm/x/blob/main/model.safetensors', 'write hf:timm/x:model.safetensors'),
        ('https://huggingface.co/timm/x/resolve/v1/a/b.npz?download=true', 'write hf:timm/x@v1:a/b.npz'),
        ('https://download.pytorch.org/models/r.pth', 'is an address: download it, then give its path, such as torch:'),
        ('timm/resnet50', 'For the Hugging Face hub write hf:timm/resnet50'),
        ('', "'' does not exist; expected the folder of a former run"),
        ('hf:', 'expected hf:OWNER/NAME'),
        ('torch:', 'names no file; expected torch:PATH'),
        ('~nobody-of-this-name/x', 'nobody-of-this-name'),
    ],
)
def test_resolve_says_what_it_should_be(tmp_path, uri, message):
    for name in ('x.npz', 'y.npz', 'notes.xyz'):
        (tmp_path / name).touch()
    for name in ('folder', 'empty'):
        (tmp_path / name).mkdir()
    np.savez(tmp_path / 'folder' / 'w.npz', **TENSORS)
    with pytest.raises(UserError, match=message):
        source.read(uri.format(tmp_path))


@pytest.mark.parametrize('text', ['{', '[]', '\xff', '[' * 100_000, '{"id2label": {"0": 1.5}}', '{"a": 1, "a": 2}'])
def test_read_refuses_a_broken_description(folder, text):
    (folder / 'config.json').write_text(text, encoding='latin-1')
    with pytest.raises(UserError, match=r'config\.json'):
        source.read(str(folder))


def test_has_weights(folder):
    assert source.has_weights(folder)
    (folder / 'model.safetensors').unlink()
    assert not source.has_weights(folder)


def test_read_takes_the_hub(folder, monkeypatch):
    files = {name: folder / name for name in ('config.json', 'preprocessor_config.json', 'model.safetensors')}
    snapshot = hub.Snapshot('org/net', 'a' * 40, files, 'model.safetensors')
    monkeypatch.setattr(hub, 'fetch', {'org/net@v1': snapshot}.get)
    found = source.read('hf:org/net@v1')
    same(found.tensors)
    assert found.files[-1] == f'hf:org/net@{"a" * 40}:model.safetensors'
    assert found.classes == ('cat', 'dog') and found.preprocess['size'] == 32 and found.tokenizer == {}


@pytest.mark.skipif(not (SHARED / 'weights').is_dir(), reason='needs ../shared/weights')
def test_read_takes_real_weights():
    path = SHARED / 'weights' / 'mobilenet_v1_0.75_224_imagenet'
    found = source.read(f'npz:{path}/weights.npz', f'{path}/metadata.json')
    assert len(found.tensors) == 137 and len(found.classes) == 1000 and found.classes[0] == 'tench, Tinca tinca'
