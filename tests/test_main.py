"""`jtl train`: what bad input gets. A message that names what is wrong, status 2, and nothing written."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import tiny
from PIL import Image

from jtl import checkpoint
from jtl.main import load_file, main


@pytest.fixture
def refuse(tmp_path, capsys):
    """`refuse(flags…, config=…)`: the message, after checking that nothing was made."""

    def run(*flags, config=tiny.CONFIG, more='', workdir=None):
        path = tiny.write_config(tmp_path / 'config.py', config, more)
        workdir = workdir or tmp_path / 'run'
        before = tiny.files(workdir) if workdir.exists() else None
        assert main([f'--config={path}', f'--workdir={workdir}', *flags]) == 2
        said = capsys.readouterr().err
        assert re.search(r'(?m)^jtl: ', said) and 'Traceback' not in said
        assert (tiny.files(workdir) if workdir.exists() else None) == before
        return said

    return run


@pytest.fixture(scope='module')
def finished(tmp_path_factory):
    """A finished run; tests that change it take a copy."""
    folder = tmp_path_factory.mktemp('finished')
    config = tiny.write_config(folder / 'config.py')
    assert main([f'--config={config}', f'--workdir={folder / "run"}']) == 0
    return folder / 'run'


# The command line.


@pytest.mark.parametrize(
    'flag, message',
    [
        ('--config.stepz=3', r"unknown key config\.stepz: did you mean 'steps'"),
        ('--config.modle.name=mlp', r"unknown key config\.modle: did you mean 'model'"),
        ('--config.data.nme=digits', r"unknown key config\.data\.nme: did you mean 'name'"),
        ('--config.model.hiden=(8,)', r"unknown key config\.model\.hiden: did you mean 'hidden'"),
        ('--config.model.head.ini=zeros', r"unknown key config\.model\.head\.ini: did you mean 'init'"),
        ('--config.method.mixxup=0.1', r"unknown key config\.method\.mixxup: did you mean 'mixup'"),
        ('--config.optim.lrr=0.1', r"unknown key config\.optim\.lrr: did you mean 'lr'"),
        ('--config.preprocess.sze=8', r"unknown key config\.preprocess\.sze: did you mean 'size'"),
        ('--config.steps.x=3', r'config\.steps is 3, not a section'),
        ('--wrokdir=x', r"Unknown command line flag 'wrokdir'\. Did you mean: workdir"),
        ('--config.', r'--config\.: no key'),
        ('--config.seed', r'config\.seed: True should be int'),
        ('runs/1', r"unexpected argument 'runs/1'; values are given as --config\.KEY=VALUE"),
        ('--config.steps=many', r"config\.steps: 'many' should be int"),
        ('--config.steps=2.5', r'config\.steps: 2\.5 should be int'),
        ('--config.data.val=half', r"config\.data\.val: 'half' should be float"),
        ('--config.data.augment=flip', r"config\.data\.augment: 'flip' should be tuple, e\.g\. \('flip',\)"),
        ('--config.model.hidden=8', r'config\.model\.hidden: 8 should be tuple\[int, \.\.\.\]'),
        ('--config.preprocess.mean=grey', r"config\.preprocess\.mean: 'grey' should be tuple\[float"),
        ('--config.optim.lr=abc', r"config\.optim\.lr: 'abc' should be float"),
        ('--config.optim.lr=True', r'config\.optim\.lr: True should be float'),
        ('--config.optim.boundaries=abc', r'config\.optim\.boundaries'),
        ('--config.optim.steps=4', r'unknown key config\.optim\.steps'),
        ('--config.model.num_classes=3', r'unknown key config\.model\.num_classes'),
        ('--config.model.name=3', r'config\.model\.name: 3 should be str'),
        ('--config.epochs=2', r'give one of config\.steps and config\.epochs'),
        ('--config.steps=None', r'give one of config\.steps and config\.epochs'),
    ],
)
def test_main_refuses_a_wrong_flag(flag, message, refuse):
    assert re.search(message, refuse(flag))


@pytest.mark.parametrize(
    'flag, message',
    [
        ('--config.model.name=resnt', r"unknown model 'resnt': did you mean 'resnet'"),
        ('--config.method.name=superwised', r"config\.method\.name: 'superwised': unknown; did you mean 'supervised'"),
        ("--config.evals=('clasification',)", r"'clasification': unknown; did you mean 'classification'"),
        ('--config.optim.name=sdg', r"config\.optim\.name: optax has no optimiser 'sdg'; did you mean 'sgd'"),
        ('--config.optim.schedule=cosin', r"config\.optim\.schedule: 'cosin' is unknown; did you mean 'cosine'"),
        ('--config.data.name=foldr:x', r"config\.data\.name: data scheme of 'foldr:x': unknown; did you mean 'folder'"),
        ('--config.data.name=digits:x', r"'digits:x' is not a URI: expected tfds:NAME, folder:PATH"),
        ('--config.data.name=folder:', r"'folder:' is not a URI"),
        ("--config.data.augment=('flp',)", r"unknown image operation 'flp': did you mean 'flip'"),
        ("--config.data.augment=(('pad_crop', 1, 2, 3),)", r"Usage: \('pad_crop', pad: int = 4\)"),
        ("--config.data.augment=('random_resized_crop',)", r'give config\.preprocess\.size'),
        ('--config.data.order=reversed', r"config\.data\.order: 'reversed' should be"),
        ('--config.data.val=1.0', r'config\.data\.val: 1\.0 should be a share'),
        ('--config.data.labels_per_class=0', r'config\.data\.labels_per_class: 0 should be at least 1'),
        ('--config.data.split_seed=-1', r'config\.data\.split_seed: -1 should be at least 0'),
        ('--config.data.threads=-1', r'config\.data\.threads: -1 should be at least 0'),
        ('--config.data.eval_batch_size=0', r'config\.data\.eval_batch_size: 0 should be at least 1'),
        ('--config.preprocess.size=0', r'config\.preprocess\.size: 0 should be at least 1'),
        ('--config.preprocess.std=(0.0,)', r'config\.preprocess\.std: \(0\.0,\) should be above 0'),
        ('--config.preprocess.crop=1.5', r'config\.preprocess\.crop: 1\.5 should be above 0 and at most 1'),
        ('--config.preprocess.channels=4', r'config\.preprocess\.channels: 4 should be 1, 3 or None'),
        ('--config.preprocess.mean=(0.1, 0.2, 0.3)', r'config\.preprocess\.mean: .* should have 1'),
        ('--config.preprocess.interpolation=cubic', r"config\.preprocess\.interpolation: 'cubic' should be .*bicubic"),
        ('--config.method.class_weights=(1.0, 2.0)', r'config\.method\.class_weights: 2 given for 10 classes'),
        ('--config.select=acuracy', r"config\.select: no validation metric 'acuracy'; did you mean 'accuracy'"),
        ('--config.optim.accumulate=3', r'config\.batch_size: 8 does not divide into 3 equal parts'),
        ('--config.optim.warmup=10', r'config\.optim\.warmup: 10 should be .* 3'),
        ("--config.rules=(('hed/.*', 1.0), ('.*', None))", r"config\.rules: 'hed/\.\*' matches no parameter.* 'head/"),
        ("--config.rules=(('head/.*', 1.0),)", r"config\.rules: no rule covers 'backbone/fc1/bias'"),
        ("--config.rules=(('.*', None),)", r'config\.rules: every parameter is frozen'),
        ("--config.rules=(('*', 1.0),)", r"config\.rules: '\*' is not a regular expression"),
        ("--config.rules=(('.*', -1.0),)", r'config\.rules: multiplier -1\.0'),
        ("--config.phases=((2, (('.*', 1.0),)), (1, (('.*', 1.0),)), (None, (('.*', 1.0),)))", r'steps \[2, 1, None\]'),
        ("--config.phases=((3, (('.*', 1.0),)), (None, (('.*', 1.0),)))", r'ends at step 3, but the run has 3 steps'),
        ("--config.phases=((2, (('.*', 1.0),)),)", r'config\.phases: .*None for the last'),
    ],
)
def test_main_refuses_a_wrong_value(flag, message, refuse):
    assert re.search(message, refuse(flag))


def test_main_takes_values_that_the_file_does_not_mention(tmp_path):
    config = tiny.write_config(tmp_path / 'config.py', {**tiny.CONFIG, 'select': 'accuracy'})
    flags = ['--config.steps=None', '--config.epochs=0.1', '--config.method.label_smoothing=0.1']
    flags += ['--config.select=None', '--config.report=False', f'--config.init={None}', '--config.checkpoint_every=0']
    assert main([f'--config={config}', f'--workdir={tmp_path / "run"}', *flags]) == 0
    written = json.loads((tmp_path / 'run' / 'config.json').read_text())['config']
    expected = {'steps': None, 'epochs': 0.1, 'select': None, 'init': None, 'report': False, 'checkpoint_every': 0}
    assert {key: written[key] for key in expected} == expected
    assert written['method'] == {'name': 'supervised', 'label_smoothing': 0.1}


def test_main_says_what_the_help_is(capsys):
    assert main(['--help']) == 0
    assert '--config.optim.lr=3e-4' in capsys.readouterr().out


def test_main_makes_a_dated_folder_where_it_is_called(tmp_path, monkeypatch, capsys):
    config = tiny.write_config(tmp_path / 'config.py')
    monkeypatch.chdir(tmp_path)
    assert main([f'--config={config}']) == 0
    (run,) = (tmp_path / 'runs').iterdir()
    assert re.fullmatch(r'\d{4}-\d\d-\d\d-\d{6}-config', run.name) and (run / 'result.json').exists()
    assert f'Run folder: runs/{run.name}' in capsys.readouterr().out


def test_main_debug_shows_the_traceback(tmp_path):
    config = tiny.write_config(tmp_path / 'config.py')
    with pytest.raises(Exception, match=r'config\.stepz'):
        main([f'--config={config}', f'--workdir={tmp_path / "run"}', '--config.stepz=3', '--debug'])


# The config file.


@pytest.mark.parametrize(
    'text, message',
    [
        ('x = 1\n', r'has no function get_config'),
        (
            'def get_config(arg=None):\n    return {}\n',
            r'get_config should return an ml_collections\.ConfigDict, not dict',
        ),
        ('def get_config(:\n', r'SyntaxError'),
        ('import nothing_of_this_name\n', r"line 1: ModuleNotFoundError: No module named 'nothing_of_this_name'"),
        ('def get_config(arg=None):\n    x = 1\n    return x.data\n', r"line 3: AttributeError: 'int' object"),
        ('def get_config(arg):\n    pass\n', r'TypeError: .*arg'),
        ('from jtl.config import parse_arg\nget_config = lambda arg: parse_arg("stpes=3", steps=1)\n', r'steps'),
    ],
)
def test_main_refuses_a_config_file(text, message, tmp_path, capsys):
    path = tmp_path / 'config.py'
    path.write_text(text)
    flag = f'--config={path}' + (':x' if 'lambda' in text else '')
    assert main([flag, f'--workdir={tmp_path / "run"}']) == 2
    assert re.search(message, capsys.readouterr().err) and not (tmp_path / 'run').exists()


@pytest.mark.parametrize(
    'flags, message',
    [
        ([], r'no config: give --config=configs/FILE\.py'),
        (['--config='], r'no config'),
        (['--config'], r'no config'),
        (['--config={}/confg.py'], r"confg\.py does not exist; did you mean '.*/config\.py'"),
        (['--config={}'], r'does not exist'),
        (['--config={}/config.txt'], r'a config is a Python file'),
    ],
)
def test_main_refuses_a_config_that_is_not_there(flags, message, tmp_path, capsys):
    tiny.write_config(tmp_path / 'config.py')
    (tmp_path / 'config.txt').write_text('steps: 3\n')
    assert main([flag.format(tmp_path) for flag in flags]) == 2
    assert re.search(message, capsys.readouterr().err)


# Data.


def with_data(uri, **more):
    return {**tiny.CONFIG, 'data': {'name': uri, **more}}


def test_main_suggests_the_scheme_of_a_path(refuse, tmp_path):
    tiny.pictures(tmp_path / 'pictures', each=2)
    assert f'Did you mean folder:{tmp_path}/pictures?' in refuse(config=with_data(f'{tmp_path}/pictures'))


def test_main_names_the_part_of_a_path_that_is_missing(refuse, tmp_path):
    tiny.pictures(tmp_path / 'pictures', each=2)
    said = refuse(config=with_data(f'folder:{tmp_path}/picturs'))
    assert "no 'picturs' in" in said and "did you mean 'pictures'" in said


def test_main_says_how_to_prepare_a_data_set(refuse):
    assert 'run `jtl prepare tfds:cifar10` first' in refuse(config=with_data('tfds:cifar10'))


def test_main_refuses_more_labels_than_there_are(refuse):
    # digits: 1,000 for training, of which the rarest class has 97; val 0.2 holds out round(19.4) = 19 of it
    said = refuse('--config.data.labels_per_class=90')
    assert re.search(r"90 asked for, but class '\d' has \d\d training examples; the most is 78", said)


def test_main_names_a_class_that_is_not_in_train(refuse, tmp_path):
    tiny.pictures(tmp_path / 'd' / 'train', each=3)
    tiny.pictures(tmp_path / 'd' / 'val', {'bright': 200, 'drak': 40}, each=3)
    said = refuse(config=with_data(f'folder:{tmp_path}/d'))
    assert "class 'drak' is in split 'val' but not in train: did you mean 'dark'" in said


def test_main_names_an_empty_class_folder(refuse, tmp_path):
    tiny.pictures(tmp_path / 'd', each=3)
    (tmp_path / 'd' / 'grey').mkdir()
    assert 'class folder grey has no pictures' in refuse(config=with_data(f'folder:{tmp_path}/d'))


@pytest.mark.parametrize('damage', ['truncated', 'no picture'])
def test_main_names_a_picture_that_cannot_be_decoded(damage, refuse, tmp_path):
    tiny.pictures(tmp_path / 'd', each=9, side=32)
    broken = tmp_path / 'd' / 'dark' / '07.png'
    broken.write_bytes(broken.read_bytes()[:200] if damage == 'truncated' else b'dark, very dark')
    said = refuse(config=with_data(f'folder:{tmp_path}/d'))
    assert f'cannot decode {broken}' in said


@pytest.mark.parametrize(
    'label, message',
    [(-1, r'row 2 is -1: labels count from 0'), (9, r'row 2 of train has label 9, but classes names 2')],
)
def test_main_names_a_label_out_of_range(label, message, refuse, tmp_path):
    y = np.array([0, 1, label, 1, 0, 1])
    np.savez(tmp_path / 'a.npz', x=np.zeros((6, 4, 4), np.uint8), y=y, classes=['a', 'b'])
    assert re.search(message, refuse(config=with_data(f'npz:{tmp_path}/a.npz')))


def test_main_refuses_pictures_of_several_sizes(refuse, tmp_path):
    tiny.pictures(tmp_path / 'd', {'bright': 200}, each=9, side=8)
    tiny.pictures(tmp_path / 'e', {'dark': 40}, each=9, side=9)
    shutil.move(tmp_path / 'e' / 'dark', tmp_path / 'd' / 'dark')
    Image.new('RGB', (7, 8)).save(tmp_path / 'd' / 'bright' / '00.png')  # so that the first one is no square
    said = refuse(config=with_data(f'folder:{tmp_path}/d', val=0.0, test=0.0))
    assert 'pictures differ in size' in said and 'give config.preprocess.size' in said


def test_main_refuses_a_size_that_the_patch_does_not_divide(refuse):
    said = refuse(config={**tiny.CONFIG, 'model': {'name': 'vit', 'patch': 3, 'width': 8, 'heads': 2, 'depth': 1}})
    assert '8' in said and 'patch' in said and '3' in said


# Weights.


def test_main_refuses_an_init_that_is_not_a_finished_run(refuse, finished, tmp_path):
    assert "'runs/none' does not exist; expected the folder of a former run" in refuse('--config.init=runs/none')
    (tmp_path / 'empty').mkdir()
    assert 'not the folder of a run: it has no config.json' in refuse(f'--config.init={tmp_path / "empty"}')
    assert f'Runs in it: {finished}' in refuse(f'--config.init={finished.parent}')
    shutil.copytree(finished, tmp_path / 'unfinished')
    (tmp_path / 'unfinished' / 'result.json').unlink()
    assert 'has not finished' in refuse(f'--config.init={tmp_path / "unfinished"}')
    shutil.copytree(finished, tmp_path / 'without')
    shutil.rmtree(tmp_path / 'without' / 'checkpoints')
    assert 'kept no checkpoint of step' in refuse(f'--config.init={tmp_path / "without"}')


def test_main_refuses_weights_of_another_architecture(refuse, finished):
    said = refuse(f'--config.init={finished}', '--config.model.hidden=(8, 8)')
    assert 'it does not fit config.model' in said and '2 missing:\n  backbone/fc2/: bias, kernel' in said
    said = refuse(f'--config.init={finished}', '--config.model.hidden=(9,)')
    assert 'backbone/fc1/kernel is (64, 8) there, (64, 9) here' in said


def test_main_refuses_damaged_weights(refuse, finished, tmp_path):
    shutil.copytree(finished, tmp_path / 'source')
    step = json.loads((finished / 'result.json').read_text())['step']
    tiny.tamper(tiny.largest(tmp_path / 'source' / 'checkpoints' / f'{step:08d}'))
    assert 'damaged' in refuse(f'--config.init={tmp_path / "source"}')


@pytest.mark.parametrize('file', ['config.json', 'result.json', 'model/model.json'])
@pytest.mark.parametrize('text', ['{"step": ', '[]', '{"something": "else"}'])
def test_main_refuses_weights_of_a_run_whose_files_were_changed(file, text, refuse, finished, tmp_path):
    shutil.copytree(finished, tmp_path / 'source')
    (tmp_path / 'source' / file).write_text(text)
    assert 'source' in refuse(f'--config.init={tmp_path / "source"}')


# The run's folder.


def test_main_refuses_a_folder_that_is_not_a_run(refuse, tmp_path):
    (tmp_path / 'home').mkdir()
    (tmp_path / 'home' / 'thesis.tex').write_text('x')
    assert 'is not empty and not the folder of a run' in refuse(workdir=tmp_path / 'home')


def test_main_refuses_a_file_for_a_folder(tmp_path, capsys):
    config = tiny.write_config(tmp_path / 'config.py')
    assert main([f'--config={config}', f'--workdir={config}']) == 2
    assert 'is a file, not a folder' in capsys.readouterr().err
    assert main([f'--config={config}', f'--workdir={config}/run']) == 2
    assert 'Not a directory' in capsys.readouterr().err


def test_main_refuses_the_folder_of_another_config_and_names_what_differs(refuse, finished):
    said = refuse('--config.optim.lr=0.2', '--config.seed=1', workdir=finished)
    assert 'config.optim.lr: 0.1 -> 0.2; config.seed: 0 -> 1; the data behind it.' in said  # the seed draws the labels


def test_main_refuses_the_folder_of_a_run_on_data_that_changed(refuse, tmp_path):
    tiny.pictures(tmp_path / 'd', each=9)
    config = with_data(f'folder:{tmp_path}/d')
    path = tiny.write_config(tmp_path / 'config.py', config)
    assert main([f'--config={path}', f'--workdir={tmp_path / "run"}']) == 0
    shutil.copy(tmp_path / 'd' / 'dark' / '00.png', tmp_path / 'd' / 'dark' / '09.png')
    assert 'differs in the data behind it' in refuse(config=config, workdir=tmp_path / 'run')


def kill_at_the_end(finished, run):
    """A copy of a finished run as a kill just before the end would have left it; its checkpoints, ascending."""
    shutil.copytree(finished, run)
    (run / 'result.json').unlink()
    return [run / 'checkpoints' / f'{step:08d}' for step in checkpoint.steps(run / 'checkpoints')]


@pytest.mark.parametrize('damage', ['flip', 'truncate', 'delete'])
def test_main_names_a_damaged_checkpoint_and_goes_on_from_the_one_before(damage, finished, tmp_path, capsys):
    run = tmp_path / 'again'
    *_, before, newest = kill_at_the_end(finished, run)
    file = tiny.largest(newest)
    if damage == 'flip':
        tiny.tamper(file)
    elif damage == 'truncate':
        file.write_bytes(file.read_bytes()[:-1])
    else:
        file.unlink()
    config = tiny.write_config(tmp_path / 'config.py')
    assert main([f'--config={config}', f'--workdir={run}']) == 0
    said = capsys.readouterr().out
    assert f'{newest}: damaged: {file.relative_to(newest)} is not as written. Going on from the one before it.' in said
    assert f'going on from step {int(before.name)} of 3' in said
    old, new = (json.loads((folder / 'result.json').read_text()) for folder in (finished, run))
    assert old['test'] == new['test'] and old['step'] == new['step']
    assert tiny.rows(finished) == tiny.rows(run)
    checkpoint.load(run / 'checkpoints', int(newest.name))  # written again, whole


@pytest.mark.parametrize(
    'file, text',
    [
        ('config.json', '{'),
        ('config.json', '[1]'),
        ('config.json', '{"config": 7}'),
        ('result.json', '{'),
        ('result.json', '{}'),
    ],
)
def test_main_refuses_a_folder_whose_files_were_edited(file, text, refuse, finished, tmp_path):
    shutil.copytree(finished, tmp_path / 'again')
    (tmp_path / 'again' / file).write_text(text)
    assert file in refuse(workdir=tmp_path / 'again')


def test_main_refuses_when_no_checkpoint_is_whole(refuse, finished, tmp_path):
    folders = kill_at_the_end(finished, tmp_path / 'again')
    for folder in folders:
        tiny.tamper(tiny.largest(folder))
    said = refuse(workdir=tmp_path / 'again')
    assert 'no checkpoint is whole' in said and all(f'{folder}: damaged' in said for folder in folders)


def test_main_refuses_a_checkpoint_folder_with_other_things_in_it(refuse, finished, tmp_path):
    kill_at_the_end(finished, tmp_path / 'again')
    (tmp_path / 'again' / 'checkpoints' / 'thesis.tex').write_text('x')
    assert "holds 'thesis.tex', which is not a checkpoint; move it elsewhere" in refuse(workdir=tmp_path / 'again')


OTHERS = {
    'model': (
        {'model': {'name': 'mlp', 'hidden': (9,)}},
        r"'backbone/fc1/bias' is \(9,\) in the checkpoint, \(8,\) here",
    ),
    'optimiser': ({'optim': {'name': 'adam', 'lr': 0.1}}, 'of another model, optimiser or version'),
    'seed': ({'seed': 1}, 'is of a run with another config, data or weights'),
    'rate': ({'optim': {'name': 'sgd', 'lr': 0.2}}, 'is of a run with another config, data or weights'),
}


@pytest.mark.parametrize('other', OTHERS)
def test_main_refuses_a_checkpoint_of_another_run_put_in_its_place(other, refuse, finished, tmp_path):
    changes, message = OTHERS[other]
    config = tiny.write_config(tmp_path / 'other.py', {**tiny.CONFIG, **changes})
    assert main([f'--config={config}', f'--workdir={tmp_path / "other"}']) == 0
    run = tmp_path / 'again'
    kill_at_the_end(finished, run)
    shutil.rmtree(run / 'checkpoints')
    shutil.copytree(tmp_path / 'other' / 'checkpoints', run / 'checkpoints')
    assert re.search(message, refuse(workdir=run))


def test_main_keeps_what_was_selected_when_only_that_checkpoint_is_left(tmp_path):
    run = tmp_path / 'again'
    config = tiny.write_config(tmp_path / 'config.py')
    command = [f'--config={config}', f'--workdir={run}', '--config.checkpoint_every=1', '--config.eval_every=1']
    command += ['--config.select=loss', '--config.optim.lr=10.0']  # too high: the first step has the lowest loss
    assert main(command) == 0
    before = (run / 'result.json').read_text()
    (run / 'result.json').unlink()
    assert checkpoint.steps(run / 'checkpoints') == [1, 2, 3]
    for step in (2, 3):
        shutil.rmtree(run / 'checkpoints' / f'{step:08d}')
    assert main(command) == 0
    old, new = json.loads(before), json.loads((run / 'result.json').read_text())
    assert old['test'] == new['test'] and old['step'] == new['step']


def test_main_says_so_when_the_selected_checkpoint_is_damaged_and_takes_the_next(tmp_path, capsys):
    flags = ['--config.checkpoint_every=1', '--config.eval_every=1', '--config.select=loss', '--config.optim.lr=10.0']
    config = tiny.write_config(tmp_path / 'config.py')
    run = tmp_path / 'again'
    assert main([f'--config={config}', f'--workdir={run}', *flags]) == 0
    (run / 'result.json').unlink()
    tiny.tamper(tiny.largest(run / 'checkpoints' / '00000001'))
    assert main([f'--config={config}', f'--workdir={run}', *flags]) == 0
    said = capsys.readouterr().out
    assert '00000001: damaged' in said and 'It was the best by validation; now the best of the others' in said
    assert json.loads((run / 'result.json').read_text())['step'] == 3  # one was kept, so the last is left


def test_main_refuses_a_record_that_was_edited(refuse, finished, tmp_path):
    kill_at_the_end(finished, tmp_path / 'again')
    path = tmp_path / 'again' / 'metrics.jsonl'
    path.write_text('7\n' + path.read_text())
    assert 'metrics.jsonl: line 1 is not as it was written' in refuse(workdir=tmp_path / 'again')


# Divergence.


def test_main_stops_at_a_loss_that_is_not_finite_and_keeps_the_last_good_checkpoint(tmp_path, capsys):
    # the gradient of step 1 times 1e30 overflows in the forward pass of step 2
    config = tiny.write_config(tmp_path / 'config.py')
    flags = ['--config.optim.lr=1e30', '--config.checkpoint_every=1', '--config.eval_every=1']
    assert main([f'--config={config}', f'--workdir={tmp_path / "run"}', *flags]) == 2
    said = capsys.readouterr().err
    assert re.search(r'step 2: training (loss|grad_norm) is (nan|inf)\. Checkpoints of earlier steps are kept', said)
    assert checkpoint.steps(tmp_path / 'run' / 'checkpoints') == [1]
    parts, progress = checkpoint.load(tmp_path / 'run' / 'checkpoints', 1)
    assert np.isfinite(parts['params']['head']['bias']).all() and progress['best'][0][0] == 1
    assert not (tmp_path / 'run' / 'result.json').exists()


# Sweeps.

SWEEP = """

def sweep(config):
    yield 'a', {'seed': 1}
    yield 'b', {OVERRIDES}
"""


@pytest.mark.parametrize(
    'overrides, message',
    [
        ("{'optim.lrr': 0.1}", r"run b: unknown key config\.optim\.lrr: did you mean 'lr'"),
        ("{'steps': 'many'}", r"run b: config\.steps: 'many' should be int"),
        ("{'modle.name': 'mlp'}", r'run b: unknown key config\.modle'),
        ("{'data.augment': 'flip'}", r'run b: config\.data\.augment'),
    ],
)
def test_sweep_checks_every_config_before_the_first_run(overrides, message, refuse):
    assert re.search(message, refuse(more=SWEEP.replace('{OVERRIDES}', overrides)))


@pytest.mark.parametrize(
    'name, message',
    [('a', r"two runs are called 'a'"), ('../b', r"'\.\./b' should be a path below"), ('', r'should be')],
)
def test_sweep_refuses_names(name, message, refuse):
    assert re.search(message, refuse(more=SWEEP.replace("'b'", repr(name)).replace('{OVERRIDES}', '{}')))


def test_sweep_refuses_a_folder_with_other_runs(refuse, finished):
    said = refuse(more=SWEEP.replace('{OVERRIDES}', '{}'), workdir=finished.parent)
    assert f'holds runs that are not of this sweep, e.g. {finished.name}' in said


def test_sweep_runs_all_and_may_start_from_an_earlier_one(tmp_path, capsys):
    overrides = "{'init': 'a', 'rules': (('head/.*', 1.0), ('.*', None))}"
    config = tiny.write_config(tmp_path / 'config.py', more=SWEEP.replace('{OVERRIDES}', overrides))
    assert main([f'--config={config}', f'--workdir={tmp_path / "runs"}']) == 0
    a, b = (
        checkpoint.load(tmp_path / 'runs' / name / 'checkpoints', 3, ('params',))[0]['params'] for name in ('a', 'b')
    )
    selected = json.loads((tmp_path / 'runs' / 'a' / 'result.json').read_text())['step']
    if selected == 3:
        np.testing.assert_array_equal(a['backbone']['fc1']['kernel'], b['backbone']['fc1']['kernel'])
    assert (tmp_path / 'runs' / 'b' / 'params.txt').read_text().count(str(tmp_path / 'runs' / 'a')) == 4
    assert json.loads((tmp_path / 'runs' / 'b' / 'config.json').read_text())['config']['init'] == str(
        tmp_path / 'runs' / 'a'
    )
    said = capsys.readouterr().out
    assert f'{tmp_path}/runs/a: step' in said and f'{tmp_path}/runs/b: step' in said


# The configs that come with jtl.


@pytest.mark.parametrize('name, arg', [('cifar_finetune', 'modle=x'), ('folder_finetune', 'pictures,stpes=3')])
def test_bundled_configs_refuse_a_misspelt_argument(name, arg, tmp_path, capsys):
    path = Path(__file__).parents[1] / 'configs' / f'{name}.py'
    assert main([f'--config={path}:{arg}', f'--workdir={tmp_path / "run"}']) == 2
    assert 'did you mean' in capsys.readouterr().err
    assert callable(load_file(path).get_config)
