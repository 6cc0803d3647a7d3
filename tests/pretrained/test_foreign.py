"""Somebody's weights from a file to a trained run, to what `jtl inspect` says, and back to a file."""

import json
import re
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest
import tiny

from jtl import models, run, tree
from jtl.cli import main
from jtl.errors import UserError
from jtl.pretrained.convert import to_safetensors
from jtl.pretrained.formats import safetensors
from jtl.pretrained.load import Pretrained, load
from jtl.pretrained.names.resnet import DIALECTS
from jtl.pretrained.shapes import shapes
from jtl.pretrained.table import export
from jtl.train import train

MODEL = {
    'name': 'resnet',
    'stages': (1, 2),
    'width': 8,
    'stem': 'imagenet',
    'block': 'bottleneck',
    'shortcut': 'projection',
}
CLASSES = ('tabby cat', 'bright', 'cow')


def leaves(model, classes=3, seed=0):
    """Random weights of a model, by our path."""
    images = {'image': np.zeros((1, 16, 16, 3), np.float32)}
    variables = models.build(num_classes=classes, **model).init(jax.random.key(seed), images, train=False)
    flat = tree.flatten({**variables['params'], 'model': {'batch_stats': variables['batch_stats']}})
    rng = np.random.default_rng(seed)
    return {path: rng.uniform(0.5, 1.5, leaf.shape).astype(np.float32) for path, leaf in flat.items()}


@pytest.fixture(scope='module')
def weights(tmp_path_factory):
    """`(URI of a file with torchvision's names, the same under ours, a file with the names of its classes)`."""
    folder = tmp_path_factory.mktemp('weights')
    ours = leaves(MODEL)
    safetensors.write(folder / 'net.safetensors', export(ours, DIALECTS[0]))
    (folder / 'labels.txt').write_text('\n'.join(CLASSES))
    return f'safetensors:{folder / "net.safetensors"}', ours, str(folder / 'labels.txt')


@pytest.fixture(scope='module')
def pictures(tmp_path_factory):
    return f'folder:{tiny.pictures(tmp_path_factory.mktemp("data") / "pictures", side=16)}'


def config(pictures, weights, **more):
    """A step that changes nothing, so that the run holds what was loaded."""
    return {
        'data': {'name': pictures, 'val': 0.0},
        'init': weights[0],
        'preprocess': {'size': 16},
        'batch_size': 4,
        'steps': 1,
        'rules': (('head/.*', 1.0), ('.*', None)),
        'optim': {'name': 'sgd', 'lr': 1e-30},
        'report': False,
        **more,
    }


def found(folder):
    fitted = run.read(folder)
    return fitted, tree.flatten({**fitted.params, 'model': fitted.state['model']})


def test_train_starts_from_foreign_weights_and_says_where_each_came_from(pictures, weights, tmp_path):
    train(config(pictures, weights), tmp_path / 'run', quiet=True)
    fitted, flat = found(tmp_path / 'run')
    assert fitted.model == {**MODEL, 'stages': [1, 2]}
    for path, leaf in weights[1].items():
        if not path.startswith('head/'):
            np.testing.assert_array_equal(flat[path], leaf, err_msg=path)
    table = {line.split()[0]: line for line in (tmp_path / 'run' / 'params.txt').read_text().splitlines()}
    assert table['head/kernel'].endswith('fresh')
    assert table['backbone/stage1/block0/conv1/kernel'].endswith(f'{weights[0]} layer1.0.conv1.weight (OIHW to HWIO)')
    assert table['model/batch_stats/backbone/stem/bn/var'].endswith('bn1.running_var')
    assert set(weights[1]) <= set(table)


def test_train_keeps_the_preprocessing_of_the_weights_in_the_run(pictures, weights, tmp_path):
    train(config(pictures, weights), tmp_path / 'run', quiet=True)
    said = json.loads((tmp_path / 'run' / 'model' / 'model.json').read_text())['preprocess']
    assert said == {
        **said,
        'size': 16,  # the config's word
        'mean': [0.485, 0.456, 0.406],  # torchvision's
        'interpolation': 'bilinear',
        'channels': 3,
    }


def test_train_takes_the_classes_that_have_a_name_in_the_weights(pictures, weights, tmp_path):
    load_ = {'head': 'names', 'labels': weights[2]}
    train(config(pictures, weights, load=load_, model={'head': {'init': 'zeros'}}), tmp_path / 'run', quiet=True)
    fitted, flat = found(tmp_path / 'run')
    assert fitted.classes == ('bright', 'dark')
    np.testing.assert_array_equal(flat['head/kernel'][:, 0], weights[1]['head/kernel'][:, 1])
    np.testing.assert_allclose(flat['head/kernel'][:, 1], 0, atol=1e-15)


def test_train_cuts_the_backbone(pictures, weights, tmp_path):
    train(config(pictures, weights, model={'depth': 1}), tmp_path / 'run', quiet=True)
    _, flat = found(tmp_path / 'run')
    assert flat['head/kernel'].shape == (32, 2) and not any('stage2' in path for path in flat)
    np.testing.assert_array_equal(
        flat['backbone/stage1/block0/conv1/kernel'], weights[1]['backbone/stage1/block0/conv1/kernel']
    )


def test_train_takes_other_channels(pictures, weights, tmp_path):
    train(config(pictures, weights, preprocess={'size': 16, 'channels': 1}), tmp_path / 'run', quiet=True)
    _, flat = found(tmp_path / 'run')
    kernel = weights[1]['backbone/stem/conv/kernel']
    np.testing.assert_allclose(flat['backbone/stem/conv/kernel'], kernel.sum(2, keepdims=True), rtol=1e-6)
    assert 'channels 3 → 1' in (tmp_path / 'run' / 'params.txt').read_text()


@pytest.mark.parametrize(
    'model, message',
    [
        ({'name': 'resnet18'}, r"looks like \{'name': 'resnet', 'stages': \(1, 2\).*\n.* missing:(.|\n)*left over:"),
        ({'stages': (1, 3)}, r'missing:\n  backbone/stage2/block2/: bn1/bias, '),
        (
            {'width': 16},
            r'of another shape:(.|\n)*backbone/stem/conv/kernel is \(7, 7, 3, 8\) there, \(7, 7, 3, 16\) here',
        ),
        ({'depth': 3}, r'config\.model\.depth: 3 should be 1 to 2'),
    ],
)
def test_train_refuses_weights_of_another_architecture(model, message, pictures, weights, tmp_path):
    with pytest.raises(UserError, match=message):
        train(config(pictures, weights, model=model), tmp_path / 'run', quiet=True)
    assert not (tmp_path / 'run').exists()


def damaged(weights, tmp_path, change):
    tensors = export(weights[1], DIALECTS[0])
    change(tensors)
    safetensors.write(tmp_path / 'odd.safetensors', tensors)
    return f'safetensors:{tmp_path / "odd.safetensors"}'


def test_load_names_every_tensor_that_it_does_not_know(weights, tmp_path):
    uri = damaged(weights, tmp_path, lambda t: t.update({'gate.weight': np.ones(2), 'gate.bias': np.ones(1)}))
    with pytest.raises(UserError, match=r'2 have no place in .*:\n  gate\.(weight|bias)\n  gate\.(weight|bias)\n'):
        load(uri)
    assert load(uri, ignore=(r'gate\..*',)).model == MODEL


@pytest.mark.parametrize(
    'name, value, message',
    [
        ('bn1.weight', np.full(8, np.nan, np.float32), 'backbone/stem/bn/scale has numbers that are not finite'),
        ('bn1.weight', np.ones(8, np.int8), 'backbone/stem/bn/scale is of int8'),
    ],
)
def test_load_refuses_numbers_that_no_network_has(name, value, message, weights, tmp_path):
    with pytest.raises(UserError, match=message):
        load(damaged(weights, tmp_path, lambda t: t.update({name: value})))


def test_load_takes_half_precision(weights, tmp_path):
    half = lambda t: t.update({name: x.astype(np.float16) for name, x in t.items()})
    loaded = load(damaged(weights, tmp_path, half)).leaves()
    for path, leaf in weights[1].items():
        assert loaded[path].dtype == np.float32
        np.testing.assert_array_equal(loaded[path], leaf.astype(np.float16))


def test_load_refuses_labels_of_another_number(weights, tmp_path):
    (tmp_path / 'two.txt').write_text('a\nb\n')
    with pytest.raises(UserError, match=r'two\.txt: 2 class names, but the head of .* has 3 classes'):
        load(weights[0], labels=str(tmp_path / 'two.txt'))


def test_inspect_says_what_it_is_and_where_each_tensor_goes(weights, capsys):
    assert main(['inspect', weights[0], f'--labels={weights[2]}']) == 0
    said = capsys.readouterr().out
    assert 'looks like: resnet, stages (1, 2), width 8, stem imagenet, block bottleneck' in said
    assert 'tensors have names of resnet in torchvision' in said and 'classes: 3: tabby cat, bright, cow' in said
    row = next(line for line in said.splitlines() if line.startswith('layer2.1.conv2.weight'))
    assert row.split() == [
        'layer2.1.conv2.weight', '16×16×3×3', 'float32', 'backbone/stage2/block1/conv2/kernel', '(OIHW', 'to', 'HWIO)',
    ]  # fmt: skip
    assert said.endswith('unknown: 0\nmissing: 0\n')


def test_inspect_says_what_is_missing_and_what_it_does_not_know(weights, tmp_path, capsys):
    def change(tensors):
        del tensors['layer2.1.conv2.weight']
        tensors['gate'] = np.ones(2, np.float32)

    assert main(['inspect', damaged(weights, tmp_path, change), '--json']) == 0
    said = json.loads(capsys.readouterr().out)
    assert said['unknown'] == {'gate': ''} and said['missing'] == ['backbone/stage2/block1/conv2/kernel']


def test_inspect_shows_what_nobody_knows(tmp_path, capsys):
    safetensors.write(tmp_path / 'x.safetensors', {'a.b': np.ones((2, 3), np.float32)})
    assert main(['inspect', f'safetensors:{tmp_path / "x.safetensors"}']) == 0
    said = capsys.readouterr().out
    assert 'looks like: nothing that jtl knows' in said and 'a.b     2×3    float32' in said


def test_convert_to_a_run_and_back_keeps_every_bit(weights, pictures, tmp_path, capsys):
    there, back = tmp_path / 'run', tmp_path / 'back.safetensors'
    command = [sys.executable, '-m', 'jtl', 'convert', weights[0], f'--to=run:{there}', f'--labels={weights[2]}']
    subprocess.run(command, check=True)  # in a process that has imported nothing yet
    assert main(['convert', str(there), f'--to=safetensors:{back}', '--names=torchvision']) == 0
    assert 'The file does not say' not in capsys.readouterr().out
    before, after = (safetensors.read(p) for p in (tmp_path / weights[0].partition(':')[2], back))
    assert before.keys() == after.keys()
    for name, x in before.items():
        assert x.dtype == after[name].dtype and np.array_equal(x, after[name])
    assert run.read(there).classes == CLASSES
    capsys.readouterr()
    picture = next((tmp_path / pictures.partition(':')[2]).glob('*/*.png'))
    assert main(['predict', str(there), str(picture), '--json']) == 0
    assert set(json.loads(capsys.readouterr().out)['classes']) <= set(CLASSES)
    train(config(pictures, (str(there),)), tmp_path / 'next', quiet=True)


def test_convert_says_what_the_file_does_not(tmp_path, capsys):
    """MobileNet as PyTorch has it, under Keras's names: whoever loads it there gets another network."""
    images = {'image': np.zeros((1, 32, 32, 3), np.float32)}
    model = {'name': 'mobilenetv1_0.25', 'eps': 1e-5, 'padding': 'symmetric'}
    params = tree.unflatten({p: np.ones(s, np.float32) for p, s in shapes(model, 2, images).items()})
    state = {'model': params.pop('model')}
    weights = Pretrained('mine', model, params, state, (), {}, '')
    weights = weights._replace(preprocess={'size': 32, 'channels': 3})
    silent = {'padding': 'symmetric', 'eps': 1e-5, 'momentum': 0.9}
    assert to_safetensors(weights, tmp_path / 'x.safetensors', 'keras') == ('keras', silent)
    assert to_safetensors(weights, tmp_path / 'y.safetensors') == ('timm', {})


def test_load_hashes_all_that_comes_with_the_weights(weights, tmp_path):
    (tmp_path / 'others.txt').write_text('a\nb\nc\n')
    file, hashes = tmp_path / 'model.safetensors', set()
    shutil.copy(weights[0].partition(':')[2], file)
    for labels in (None, weights[2], str(tmp_path / 'others.txt')):
        hashes.add(load(str(file), labels=labels).sha256)
    described = {'architecture': 'resnet50', 'pretrained_cfg': {'mean': [0.1, 0.2, 0.3], 'std': [1, 1, 1]}}
    (tmp_path / 'config.json').write_text(json.dumps(described))
    assert load(str(tmp_path)).preprocess['mean'] == (0.1, 0.2, 0.3)
    hashes.add(load(str(tmp_path)).sha256)
    assert len(hashes) == 4


def test_load_refuses_labels_for_a_former_run(weights, tmp_path):
    assert main(['convert', weights[0], f'--to=run:{tmp_path / "run"}']) == 0
    with pytest.raises(UserError, match='is a former run, which has its own labels'):
        load(str(tmp_path / 'run'), labels=weights[2])


def test_convert_writes_no_names_of_another_architecture(tmp_path):
    """A plain ResNet with two convolutions a block has as many tensors as a pre-activation one, but is not one."""
    model = {'name': 'resnet20'}
    params = tree.unflatten(leaves(model, classes=10))
    state = {'model': params.pop('model')}
    weights = Pretrained('mine', model, params, state, (), {'size': 32, 'channels': 3}, '')
    with pytest.raises(UserError, match='--names=gluon-basic: has no names for resnet20'):
        to_safetensors(weights, tmp_path / 'x.safetensors', 'gluon-basic')
    assert to_safetensors(weights, tmp_path / 'x.safetensors')[1] == {}


def test_convert_refuses_weights_that_are_not_complete(weights, tmp_path, capsys):
    uri = damaged(weights, tmp_path, lambda t: t.pop('bn1.bias'))
    assert main(['convert', uri, f'--to=safetensors:{tmp_path / "y.safetensors"}']) == 2
    assert '1 missing:\n  backbone/stem/bn/: bias' in capsys.readouterr().err
    assert not (tmp_path / 'y.safetensors').exists()


def test_a_converted_run_says_that_it_has_no_data(weights, tmp_path, capsys):
    assert main(['convert', weights[0], f'--to=run:{tmp_path / "run"}']) == 0
    assert main(['eval', str(tmp_path / 'run')]) == 2
    assert 'has no data of its own: give --data=URI' in capsys.readouterr().err


def test_load_takes_weights_of_a_part_of_something_larger(weights, tmp_path):
    """As Lightning saves a module that has a backbone, a head and a loss."""

    def change(tensors):
        for name in list(tensors):
            x = tensors.pop(name)
            tensors[name if name.startswith('fc') else f'backbone.{name}'] = x
        tensors['criterion.weight'] = np.ones(3, np.float32)

    uri = damaged(weights, tmp_path, change)
    with pytest.raises(UserError, match=r'1 have no place in .*:\n  criterion\.weight\n'):
        load(uri)
    loaded = load(uri, ignore=('criterion.*',)).leaves()
    assert loaded.keys() == weights[1].keys()


def test_load_takes_gray_weights(weights, tmp_path):
    gray = lambda t: t.update({'conv1.weight': t['conv1.weight'].sum(1, keepdims=True)})
    loaded = load(damaged(weights, tmp_path, gray))
    assert loaded.preprocess['channels'] == 1
    np.testing.assert_allclose(loaded.preprocess['mean'], [(0.485 + 0.456 + 0.406) / 3])
    assert len(loaded.preprocess['std']) == 1


@pytest.mark.parametrize(
    'flags, message',
    [
        (['--to=onnx:x'], r'--to=onnx:x: expected safetensors:PATH or run:PATH'),
        (['--to=safetensors:{there}'], r'exists already'),
        (['--to=safetensors:{new}', '--names=torchvison'], r"--names=torchvison: .*did you mean 'torchvision'"),
    ],
)
def test_convert_refuses(flags, message, weights, tmp_path, capsys):
    (tmp_path / 'there').write_text('')
    flags = [flag.format(there=tmp_path / 'there', new=tmp_path / 'new') for flag in flags]
    assert main(['convert', weights[0], *flags]) == 2
    assert re.search(message, capsys.readouterr().err) and not (tmp_path / 'new').exists()
