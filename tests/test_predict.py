"""`jtl eval` and `jtl predict`: a finished run at work."""

import json
import re
import shutil

import numpy as np
import pytest
import tiny
from PIL import Image

from jtl import cli, run
from jtl.predict import evaluate, probabilities_of
from jtl.train import train


@pytest.fixture(scope='module')
def fitted(tmp_path_factory):
    """A run that tells bright pictures from dark and middling ones; its data is gone."""
    folder = tmp_path_factory.mktemp('pictures')
    tiny.pictures(folder / 'data', {'bright': 230, 'dark': 25, 'middle': 128}, each=20)
    config = {
        **tiny.CONFIG,
        'data': {'name': f'folder:{folder / "data"}', 'val': 0.2, 'test': 0.2},
        'steps': 60,
        'eval_every': 30,
        'optim': {'name': 'adam', 'lr': 1e-2},
    }
    train(config, folder / 'run', quiet=True)
    assert json.loads((folder / 'run' / 'result.json').read_text())['test']['accuracy'] > 0.9  # chance is 1/3
    (folder / 'data').rename(folder / 'moved')
    return folder / 'run'


def command(capsys, *arguments):
    """`(status, what it printed, its message)`."""
    capsys.readouterr()
    status = cli.main([str(a) for a in arguments])
    said = capsys.readouterr()
    assert 'Traceback' not in said.err
    return status, said.out, said.err


def picture(path, level, mode='RGB', side=8):
    Image.fromarray(np.full((side, side, 3), level, np.uint8)).convert(mode).save(path)
    return path


# eval


@pytest.fixture
def with_data(fitted):
    """For as long as a test lasts, the run's data is where it was."""
    (fitted.parent / 'moved').rename(fitted.parent / 'data')
    yield fitted
    (fitted.parent / 'data').rename(fitted.parent / 'moved')


def test_eval_repeats_the_result(with_data, capsys):
    status, out, _ = command(capsys, 'eval', with_data, '--json')
    values, expected = json.loads(out), json.loads((with_data / 'result.json').read_text())['test']
    assert status == 0 and values['split'] == 'test'
    assert values['accuracy'] == expected['accuracy'] and values['confusion'] == expected['confusion']
    assert values['loss'] == pytest.approx(expected['loss'], rel=1e-5)  # float32, in batches of another size
    status, out, _ = command(capsys, 'eval', with_data, '--split=val')
    assert status == 0 and 'split val' in out and 'accuracy' in out


def test_eval_maps_classes_by_name(fitted, tmp_path, capsys):
    # two of the run's three classes: 'dark' is 0 and 'middle' 1 here, 1 and 2 in the run
    tiny.pictures(tmp_path / 'other', {'middle': 128, 'dark': 25}, each=7, seed=1)
    status, out, _ = command(capsys, 'eval', fitted, f'--data=folder:{tmp_path / "other"}', '--json')
    values = json.loads(out)
    assert status == 0 and values['split'] == 'train' and values['support'] == [0, 7, 7]
    assert values['accuracy'] > 0.9


def test_eval_uses_all_of_data_without_splits(fitted, tmp_path):
    tiny.pictures(tmp_path / 'other', {'dark': 25, 'middle': 128}, each=7)
    split, values = evaluate(run.read(fitted), f'folder:{tmp_path / "other"}')
    assert split == 'train' and sum(values['support']) == 14


def test_eval_refuses_classes_that_the_run_does_not_know(fitted, tmp_path, capsys):
    tiny.pictures(tmp_path / 'other', {'midle': 128, 'dark': 25}, each=3)
    status, _, err = command(capsys, 'eval', fitted, f'--data=folder:{tmp_path / "other"}')
    assert status == 2 and "class 'midle' of the data is not one that the run knows; did you mean 'middle'" in err


def test_eval_refuses_data_of_another_kind(fitted, tmp_path, capsys):
    classes = ['bright', 'dark', 'middle']
    np.savez(tmp_path / 'f.npz', x=np.zeros((6, 5)), y=np.arange(6) % 3, classes=classes)
    status, _, err = command(capsys, 'eval', fitted, f'--data=npz:{tmp_path}/f.npz')
    assert status == 2 and 'the model cannot take features (5,)' in err
    np.savez(tmp_path / 'm.npz', x=np.zeros((6, 8, 8), np.uint8), y=np.eye(3)[np.arange(6) % 3], classes=classes)
    status, _, err = command(capsys, 'eval', fitted, f'--data=npz:{tmp_path}/m.npz')
    assert status == 2 and 'the data has several labels for each example; the run has one label' in err


def test_eval_refuses_a_split_that_is_not_there(fitted, tmp_path, capsys):
    tiny.pictures(tmp_path / 'other', each=3)
    status, _, err = command(capsys, 'eval', fitted, f'--data=folder:{tmp_path / "other"}', '--split=test')
    assert status == 2 and '--split test: ' in err and 'Known: train' in err


def test_eval_says_that_the_data_is_gone(fitted, capsys):
    status, _, err = command(capsys, 'eval', fitted)
    assert status == 2 and f'{fitted.parent / "data"} does not exist' in err


# predict


@pytest.mark.parametrize(
    'mode, suffix',
    [
        *(('RGB', suffix) for suffix in ('png', 'jpg', 'bmp', 'gif', 'webp', 'tif')),
        *(('L', suffix) for suffix in ('png', 'jpg', 'gif')),
        *(('RGBA', suffix) for suffix in ('png', 'webp', 'tif')),
        ('LA', 'png'),
        ('P', 'png'),
        ('CMYK', 'jpg'),
        ('I;16', 'png'),
    ],
)
def test_predict_names_the_class_of_any_picture(mode, suffix, fitted, tmp_path, capsys):
    levels = {'bright': 230, 'dark': 25, 'middle': 128}
    for name, level in levels.items():
        if mode == 'I;16':
            Image.fromarray(np.full((8, 8), level * 256, np.uint16)).save(tmp_path / f'{name}.{suffix}')
        else:
            picture(tmp_path / f'{name}.{suffix}', level, mode)
    files = [tmp_path / f'{name}.{suffix}' for name in levels]
    status, out, _ = command(capsys, 'predict', fitted, *files, '--json')
    assert status == 0
    for line, file, name in zip(out.splitlines(), files, levels, strict=True):
        said = json.loads(line)
        assert said['file'] == str(file) and next(iter(said['classes'])) == name
        assert sum(said['classes'].values()) == pytest.approx(1, abs=1e-5)


def test_predict_needs_the_folder_of_the_run_alone(fitted, tmp_path, monkeypatch, capsys):
    """Moved elsewhere, without its data, from another working directory, and without what is for people to read."""
    shutil.copytree(fitted, tmp_path / 'moved')
    for file in ('metrics.jsonl', 'params.txt', 'predictions.npz'):
        (tmp_path / 'moved' / file).unlink()
    picture(tmp_path / 'x.png', 230)
    monkeypatch.chdir(tmp_path)
    status, out, _ = command(capsys, 'predict', 'moved', 'x.png', '--top=1')
    assert status == 0 and out.startswith('x.png: bright ') and out.count('%') == 1


def test_predict_does_not_depend_on_the_other_files(fitted, tmp_path):
    files = [str(picture(tmp_path / f'{level}.png', level)) for level in range(0, 255, 3)]  # 85: more than a batch
    _, together = probabilities_of(run.read(fitted), files)
    assert together.shape == (85, 3)
    np.testing.assert_allclose(probabilities_of(run.read(fitted), files[70:71])[1][0], together[70], atol=1e-6)
    named, twice = probabilities_of(run.read(fitted), files[:1] * 2)
    assert named == files[:1] * 2 and len(twice) == 2


@pytest.mark.parametrize(
    'make, message',
    [
        (lambda path: None, 'no such file'),
        (lambda path: path.mkdir(), 'no such file'),
        (lambda path: path.write_bytes(b''), 'cannot decode .*: it is empty or not a picture'),
        (lambda path: path.write_text('GIF89a, or so it says'), 'cannot decode'),
        (lambda path: path.write_bytes(picture(path, 9, side=64).read_bytes()[:90]), 'cannot decode'),
    ],
)
def test_predict_names_a_file_that_is_no_picture_before_any_work(make, message, fitted, tmp_path, capsys):
    make(tmp_path / 'broken.png')
    status, out, err = command(capsys, 'predict', fitted, picture(tmp_path / 'a.png', 0), tmp_path / 'broken.png')
    assert status == 2 and out == '' and re.search(message, err) and f'{tmp_path / "broken.png"}' in err


def test_predict_takes_pictures_of_the_model_s_size_only_where_it_has_no_size(tmp_path, capsys):
    x = np.random.default_rng(0).integers(0, 256, (12, 6, 8), dtype=np.uint8)  # no squares: taken as they are
    np.savez(tmp_path / 'a.npz', x=x, y=np.arange(12) % 2)
    train({**tiny.CONFIG, 'data': {'name': f'npz:{tmp_path}/a.npz'}}, tmp_path / 'run', quiet=True)
    Image.fromarray(x[0]).save(tmp_path / 'fits.png')
    assert command(capsys, 'predict', tmp_path / 'run', tmp_path / 'fits.png')[0] == 0
    status, _, err = command(capsys, 'predict', tmp_path / 'run', picture(tmp_path / 'a.png', 9))
    assert status == 2 and 'the model cannot take image (8, 8, 1)' in err


def test_predict_refuses_a_run_on_features(tmp_path, capsys):
    np.savez(tmp_path / 'f.npz', x=np.random.default_rng(0).normal(size=(12, 5)), y=np.arange(12) % 2)
    train({**tiny.CONFIG, 'data': {'name': f'npz:{tmp_path}/f.npz'}}, tmp_path / 'run', quiet=True)
    status, _, err = command(capsys, 'predict', tmp_path / 'run', picture(tmp_path / 'a.png', 9))
    assert status == 2 and 'works on features, not pictures' in err
    assert command(capsys, 'eval', tmp_path / 'run')[0] == 0


# The run's folder.


@pytest.mark.parametrize('name', ['eval', 'predict'])
def test_commands_refuse_what_is_no_finished_or_a_damaged_run(name, fitted, tmp_path, capsys):
    files = [picture(tmp_path / 'a.png', 9)] if name == 'predict' else []
    status, _, err = command(capsys, name, tmp_path / 'none', *files)
    assert status == 2 and 'not the folder of a run' in err
    shutil.copytree(fitted, tmp_path / 'run')
    step = json.loads((fitted / 'result.json').read_text())['step']
    tiny.tamper(tiny.largest(tmp_path / 'run' / 'checkpoints' / f'{step:08d}' / 'params'))
    status, _, err = command(capsys, name, tmp_path / 'run', *files)
    assert status == 2 and 'damaged: params/' in err
    (tmp_path / 'run' / 'result.json').unlink()
    status, _, err = command(capsys, name, tmp_path / 'run', *files)
    assert status == 2 and 'has not finished' in err


@pytest.mark.parametrize(
    'change, message',
    [
        ({'model': {'name': '../../evil'}}, "unknown model '../../evil'"),
        ({'method': {'name': 'os'}}, "'os': unknown"),
        ({'classes': ['bright', 'dark']}, 'the model cannot take image|does not fit'),
        ({'preprocess': {'size': -1}}, r'config\.preprocess\.size: -1'),
    ],
)
def test_predict_distrusts_the_record_of_a_run(change, message, fitted, tmp_path, capsys):
    shutil.copytree(fitted, tmp_path / 'run')
    file = tmp_path / 'run' / 'model' / 'model.json'
    model = json.loads(file.read_text())
    model = {
        k: {**v, **change[k]} if k in change and isinstance(v, dict) else change.get(k, v) for k, v in model.items()
    }
    file.write_text(json.dumps(model))
    status, _, err = command(capsys, 'predict', tmp_path / 'run', picture(tmp_path / 'a.png', 9))
    assert status == 2 and re.search(message, err)
