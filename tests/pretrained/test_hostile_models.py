"""Files that are whole, but whose names and shapes ask for networks that they do not hold."""

import json
import resource
import time

import numpy as np
import pytest

from jtl.cli import main
from jtl.pretrained.formats import safetensors
from jtl.pretrained.recognise import dialects
from jtl.pretrained.shapes import shapes
from jtl.pretrained.table import export

MODELS = {
    'resnet': {'name': 'resnet', 'stages': (1, 1), 'width': 4, 'stem': 'imagenet', 'shortcut': 'projection'},
    'vit': {'name': 'vit', 'width': 64, 'patch': 4, 'depth': 1, 'heads': 1},
    'bert': {'name': 'bert', 'vocab': 10, 'positions': 8, 'width': 128, 'depth': 1, 'heads': 2},
    'mobilenetv2': {'name': 'mobilenetv2_0.35'},
}
INPUT = {'bert': {'tokens': np.zeros((1, 8), np.int32)}}


def tensors(family, **more):
    """A whole checkpoint of a small model, PyTorch's names, and other tensors by shape."""
    images = {'image': np.zeros((1, 32, 32, 3), np.float32)}
    dialect = next(d for f, d in dialects() if family == f.FAMILY)
    known = {p: np.ones(s, np.float32) for p, s in shapes(MODELS[family], 3, INPUT.get(family, images)).items()}
    return {**export(known, dialect), **{name: np.zeros(shape, np.float32) for name, shape in more.items()}}


CASES = {
    'a stage far away': ('resnet', {'layer999999.0.conv1.weight': (4, 4, 3, 3)}),
    'seventy stages': ('resnet', {f'layer{i}.0.bn1.bias': (4,) for i in range(3, 70)}),
    'a block far away': ('vit', {'blocks.99999.norm1.weight': (64,)}),
    'patches without numbers': ('vit', {'pos_embed': (1, 10000, 0), 'patch_embed.proj.weight': (0, 3, 200, 200)}),
    'classes without numbers': ('resnet', {'fc.weight': (10**9, 0)}),
    'words without numbers': ('bert', {'bert.embeddings.word_embeddings.weight': (10**12, 0)}),
    'channels without numbers': ('resnet', {'conv1.weight': (4, 0, 7, 7)}),
    'a scalar': ('mobilenetv2', {'features.2.conv.0.1.weight': ()}),
    'blocks without numbers': ('bert', {f'bert.encoder.layer.{i}.output.dense.bias': (0,) for i in range(5000)}),
    'too many': ('resnet', {f'x{i}': (0,) for i in range(30000)}),
}


@pytest.mark.parametrize('what', CASES)
def test_a_model_that_the_file_does_not_hold_is_refused(what, tmp_path, capsys):
    family, more = CASES[what]
    safetensors.write(tmp_path / 'x.safetensors', tensors(family, **more))
    uri, started = f'safetensors:{tmp_path / "x.safetensors"}', time.process_time()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert main(['inspect', uri]) == 0 or 'tensors' in capsys.readouterr().err
    assert main(['convert', uri, f'--to=run:{tmp_path / "run"}']) == 2
    assert not (tmp_path / 'run').exists()
    assert 'Traceback' not in capsys.readouterr().err
    assert time.process_time() - started < 30  # processor time; those that are not refused took minutes
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**20  # KiB


@pytest.mark.parametrize(
    'family, config',
    [
        ('bert', {'vocab_size': 10, 'pad_token_id': 10**12}),
        ('bert', {'vocab_size': 10, 'num_attention_heads': 10**12}),
        ('bert', {'vocab_size': 10, 'num_attention_heads': 0}),
        ('bert', {'vocab_size': 10, 'layer_norm_eps': float('nan')}),
        ('bert', {'vocab_size': 10, 'layer_norm_eps': 10**400}),
        ('bert', {'vocab_size': 10, 'layer_norm_eps': -1.0}),
    ],
)
def test_a_description_of_nonsense_is_refused(family, config, tmp_path, capsys):
    safetensors.write(tmp_path / 'model.safetensors', tensors(family))
    (tmp_path / 'config.json').write_text(json.dumps(config))
    (tmp_path / 'vocab.txt').write_text('\n'.join(['[PAD]', '[UNK]', '[CLS]', '[SEP]', 'a']))
    assert main(['convert', str(tmp_path), f'--to=run:{tmp_path / "run"}']) == 2
    said = capsys.readouterr().err
    assert 'Traceback' not in said and 'config' in said


def test_names_cannot_move_the_cursor(tmp_path, capsys):
    safetensors.write(tmp_path / 'x.safetensors', {'a\x1b[31mred': np.ones(2, np.float32), **tensors('resnet')})
    (tmp_path / 'labels.json').write_text(json.dumps(['\x1b[2J', 'b', 'c']))
    uri = f'safetensors:{tmp_path / "x.safetensors"}'
    main(['inspect', uri])
    main(['inspect', uri, f'--labels={tmp_path / "labels.json"}'])
    main(['convert', uri, f'--to=run:{tmp_path / "run"}'])
    said = capsys.readouterr()
    assert '\x1b' not in said.out + said.err and '\\x1b[31mred' in said.err
