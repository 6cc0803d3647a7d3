"""The classic programs train what they say, on tiny pictures; their table has the numbers of its logs."""

import importlib
import json
from pathlib import Path

import numpy as np
import pytest
import tiny

from jtl import checkpoint, main, sweep, tree
from jtl.config import override
from jtl.errors import UserError
from jtl.train import train

ROOT = Path(__file__).parents[1]
RUNS = {
    'a': ['head'],
    'b': ['head'],
    'c': ['head', 'all', 'head-longer'],
    'd': ['head'],
    'e': ['all'],
}  # arms by program
HIDDEN = {'a': 64, 'b': 1024}
D = tiny.CONFIG['model']['hidden'][-1]  # features of the tiny network


@pytest.fixture
def classic(monkeypatch):
    """The module, as a script in its folder finds it."""
    monkeypatch.syspath_prepend(str(ROOT / 'experiments'))
    return importlib.import_module('classic')


def program(letter, arg):
    module = main.load_file(ROOT / 'experiments' / f'classic_{letter}.py')
    module.SEEDS = 1
    return module, module.get_config(arg)


@pytest.fixture(scope='module')
def done(tmp_path_factory):
    """Every program from a tiny source: `{program: its folder}` and the source."""
    place = tmp_path_factory.mktemp('classic')
    data = f'folder:{tiny.pictures(place / "pictures")}'
    others = f'folder:{tiny.pictures(place / "others", {"black": 10, "gray": 90, "white": 240})}'
    config = {**tiny.CONFIG, 'data': {'name': others}, 'preprocess': {'size': 8}, 'steps': 2}
    train(config, place / 'source', quiet=True)
    for letter in RUNS:
        module, config = program(letter, f'init={place / "source"},data={data}')
        if letter == 'c':
            module.ARMS['head-longer']['epochs'] = 2.0
        short = {'epochs': 1.0, 'batch_size': 8, 'optim.warmup': 0, 'preprocess': {}, 'report': False}
        short |= {'log_every': 1, 'eval_every': 1}
        sweep.run(module, type(config)(override(config, short)), place / letter, lambda: False)
    return place


def backbone(run):
    """Its parameters after the last step, by path."""
    folder = run / 'checkpoints'
    params = checkpoint.load(folder, max(checkpoint.steps(folder)), ('params',))[0]
    return {path: value for path, value in tree.flatten(params).items() if 'backbone/' in path}


def test_programs_move_what_they_say(done):
    before = backbone(done / 'source')
    for letter, arms in RUNS.items():
        for arm in arms:
            after = backbone(done / letter / arm / 'seed=0')
            assert before.keys() == after.keys() and len(after) == 2
            moved = [not np.array_equal(before[path], after[path]) for path in after]
            assert moved == [arm == 'all'] * 2, (letter, arm)


def test_heads_have_the_parameters_of_their_formula(done):
    for letter, h in HIDDEN.items():
        params = json.loads((done / letter / 'head/seed=0/result.json').read_text())['params']
        assert params['trainable'] == (D + 1) * h + (h + 1) * 2  # two layers with biases, two classes


def test_table_of_real_runs_has_a_row_an_arm(classic, done):
    text = classic.table(done).splitlines()
    assert [line[:4] for line in text if line.startswith('| (')] == [f'| ({p}' for p in RUNS for _ in RUNS[p]]
    assert sum(line.startswith('(c) All minus head') for line in text) == 2


def put(folder, accuracy, right, config=None, **model):
    folder.mkdir(parents=True)
    logits = np.where(np.array(right)[:, None], [1.0, 0.0], [0.0, 1.0])
    np.savez(folder / 'predictions.npz', label=np.zeros(len(right), int), logits=logits, index=np.arange(len(right)))
    config = {'data': {'name': 'folder:/home/someone/flowers.zip'}, 'init': None, 'epochs': 6.0, **(config or {})}
    facts = {'hardware': '1 × cpu', 'versions': {'jax': '0.10.2'}, 'version': '0.1.0', 'commit': 'abc'}
    (folder / 'config.json').write_text(json.dumps({'config': config, **facts}))
    (folder / 'model').mkdir()
    model = {'model': {'name': 'resnet50', **model}, 'preprocess': {'size': 224}}
    (folder / 'model' / 'model.json').write_text(json.dumps(model))
    test = {'accuracy': accuracy, 'f1_macro': accuracy - 0.1, 'loss': 1 - accuracy}
    params = {'trainable': 130, 'total': 12345}
    (folder / 'result.json').write_text(json.dumps({'test': test, 'params': params, 'seconds': 20.4}))


def test_table_has_means_intervals_and_paired_differences(classic, tmp_path):
    init = {'init': 'npz:/home/someone/resnet50_stage123/weights.npz'}
    put(tmp_path / 'c/head/seed=0', 0.8, [0, 1, 1, 0], init)
    put(tmp_path / 'c/head/seed=1', 0.9, [1, 1, 1, 0], init)
    put(tmp_path / 'c/head/seed=7', 0.85, [1, 1, 1, 1], init)  # has no partner: in the mean, not in the difference
    put(tmp_path / 'c/all/seed=1', 0.9, [1, 1, 1, 1], init, name='resnetv2_50', depth=3)
    put(tmp_path / 'c/all/seed=0', 0.7, [1, 1, 1, 1], init, name='resnetv2_50', depth=3)
    (tmp_path / 'c/all/seed=2').mkdir()  # not finished
    tuned, fixed = (line for line in classic.table(tmp_path).splitlines() if line.startswith('| (c)'))
    # t(0.975, 1) s / √2 = 12.7062 · 0.141421 / 1.41421 = 1.27062; t(0.975, 2) s / √3 = 4.30265 · 0.05 / √3 = 0.12421
    assert tuned == (
        '| (c) fine-tuning against feature extraction, flowers | all | resnetv2_50, stages 1–3, for resnet50; '
        'folder:flowers.zip for tfds:oxford_flowers102 | folder:flowers.zip, 4 to test | resnet50_stage123 | 6 | 2 | '
        '80.0 ± 127.1 | 70.0 ± 127.1 | 130 of 12,345 | 20 |'
    )
    assert '| folder:flowers.zip for tfds:oxford_flowers102 |' in fixed and '| 3 | 85.0 ± 12.4 |' in fixed
    # of 8 pairs of answers, fine-tuning alone is right in 3; four examples tell nothing
    assert '(c) All minus head, points: +37.5 [' in classic.table(tmp_path) and '2 seeds, resampling' in classic.table(
        tmp_path
    )
    assert 'fine-tuning cannot be told.' in classic.table(tmp_path) and '/home' not in classic.table(tmp_path)


def test_table_has_the_loss_and_the_curves_of_e_and_nothing_to_tell_of_the_original(classic, tmp_path):
    (tmp_path / 'README.md').write_text('Before.\n<!-- results:classic -->\nold\n<!-- end -->\nAfter.\n')
    (tmp_path / 'docs').mkdir()
    put(tmp_path / 'a/head/seed=0', 0.75, [1, 1, 0])
    put(tmp_path / 'e/all/seed=0', 0.75, [1, 1, 0])
    rows = [{'step': s, 'split': split, 'loss': 1 / s} for s in (1, 2) for split in ('train', 'val')]
    (tmp_path / 'e/all/seed=0/metrics.jsonl').write_text('\n'.join(map(json.dumps, rows)))
    text = classic.table(tmp_path)
    assert '64 units with dropout 0.5 | head | – | folder:flowers.zip, 3 to test | none | 6 | 1 | 75.0 |' in text
    assert '(e) Test loss, all: 0.250.' in text
    classic.write(tmp_path, text, tmp_path)
    written = (tmp_path / 'README.md').read_text()
    assert written.startswith('Before.\n<!-- results:classic -->\n| program |') and written.endswith(
        '<!-- end -->\nAfter.\n'
    )
    assert '![' in written and (tmp_path / 'docs/classic_e.png').stat().st_size > 1000


def test_table_of_nothing_is_an_error(classic, tmp_path, capsys):
    with pytest.raises(UserError, match='no finished run in it'):
        classic.table(tmp_path)
    assert classic.main([str(tmp_path)]) == 2 and 'classic: ' in capsys.readouterr().err


@pytest.mark.parametrize('letter', RUNS)
def test_programs_take_weights_and_data_of_the_user(letter):
    _, config = program(letter, 'init=resnet50.a1_in1k,data=tfds:oxford_flowers102')
    assert config.init == 'resnet50.a1_in1k' and config.data.name == 'tfds:oxford_flowers102'
    assert 'depth' not in config.get('model', {}) and 'order' not in config.data
    with pytest.raises(UserError, match='unknown'):
        program(letter, 'inti=x')
