"""Methods are compared on the same examples at equal budget, tuned on validation alone, and no run is made twice."""

import json
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tiny import CONFIG, files, write_config

from jtl import cli, comparison
from jtl.comparison import layout, page, pool, results, work
from jtl.config import parse
from jtl.errors import UserError
from jtl.plan import check_sections
from jtl.recipes import RECIPES, Recipe, table

EXPERIMENTS = Path(__file__).parents[1] / 'experiments'
BASE = {**CONFIG, 'steps': 4, 'eval_every': 4, 'checkpoint_every': 0}
ALL, HEAD = {'rules': 'all'}, {'rules': 'head'}
METHODS = {
    'finetune': Recipe('everything', ALL, (1.0, 3.0)),
    'probe': Recipe('the head', HEAD, (1.0, 10.0)),
    'wild': Recipe('one of its rates diverges', ALL, (1.0, 1e30)),
}


def request(**changes):
    made = layout.Request(BASE, METHODS, (2, 4), 2, 2, 'finetune', 'accuracy')
    return made._replace(**changes)


@pytest.fixture(scope='module')
def done(tmp_path_factory):
    """A finished comparison: 3 methods, 2 numbers of labels, 2 rates, 2 seeds."""
    workdir = tmp_path_factory.mktemp('comparison') / 'w'
    text = comparison.comparison(request(), workdir)
    return workdir, text


@pytest.fixture
def undrawn(monkeypatch):
    """Pictures take a second each."""
    monkeypatch.setattr(page.report, 'save', lambda figure, path: None)
    monkeypatch.setattr(page, 'costs', lambda *_: None)


def read(workdir):
    return [json.loads(line) for line in (workdir / 'results.jsonl').read_text().splitlines()]


def config_of(workdir, name):
    return json.loads((workdir / name / 'config.json').read_text())


def untimed(lines):
    return [{key: value for key, value in line.items() if key != 'seconds'} for line in lines]


def test_methods_have_the_same_budget_and_examples(done):
    workdir, _ = done
    for labels in (2, 4):
        for seed in (0, 1):
            names = [f'{m}/labels={labels}/lr={lr}/seed={seed}' for m, lr in (('finetune', 0.3), ('probe', 1))]
            one, other = (config_of(workdir, name) for name in names)
            assert one['data'] == other['data']  # the hash of which examples, labels and pixels
            assert {key: one['config'][key] for key in ('steps', 'batch_size', 'seed', 'data')} == {
                'steps': 4, 'batch_size': 8, 'seed': seed, 'data': {**BASE['data'], 'labels_per_class': labels}
            }  # fmt: skip
            assert one['config']['rules'] != other['config']['rules']
            index = [np.load(workdir / name / 'predictions.npz')['index'] for name in names]
            np.testing.assert_array_equal(*index)
    drawn = {config_of(workdir, f'probe/labels=4/lr=1/seed={seed}')['data'] for seed in (0, 1)}
    assert len(drawn) == 2  # another seed, other labels


def test_lines_agree_with_the_runs(done):
    workdir, text = done
    lines = {(line['method'], line['across']): line for line in read(workdir)}
    assert len(lines) == 6 and 'verdict' not in lines['finetune', 2]
    line, base = lines['probe', 4], lines['finetune', 4]
    runs = [workdir / f'probe/labels=4/{line["settings"]}/seed={seed}' for seed in (0, 1)]
    scores = [json.loads((run / 'result.json').read_text())['test']['accuracy'] for run in runs]
    assert line['by_seed'] == {'0': scores[0], '1': scores[1]} and line['mean'] == pytest.approx(np.mean(scores))
    gaps = [line['by_seed'][s] - base['by_seed'][s] for s in '01']
    # two pairs: half of the interval is t(0.975, 1) |a - b| / 2, t = 12.7062
    half = 12.7062 * abs(gaps[0] - gaps[1]) / 2
    np.testing.assert_allclose([line['low'], line['high']], np.mean(gaps) + [-half, half], rtol=1e-4)
    assert line['resampled']['difference'] == pytest.approx(np.mean(gaps))
    assert line['trained'] == 8 * 10 + 10 and base['trained'] == line['total'] > 64 * 8
    assert 0 < line['bytes'] < base['bytes'] and 0 < line['flops'] < base['flops'] and line['seconds'] > 0
    assert 'probe' in text and 'minus finetune' in text
    page = (workdir / 'RESULTS.md').read_text()
    assert '| probe |' in page and 'results.png' in page and 'commit' in page
    assert (workdir / 'results.png').stat().st_size > 20_000 and (workdir / 'labels.png').stat().st_size > 10_000


def test_runs_that_were_not_chosen_lose_their_checkpoints_and_nothing_else(tmp_path, undrawn):
    asked = request(config={**BASE, 'checkpoint_every': 4}, methods={'probe': METHODS['probe']}, baseline='probe')
    comparison.comparison(asked._replace(labels=(2,), seeds=1, grid_seeds=1), tmp_path / 'w')
    chosen = read(tmp_path / 'w')[0]['settings']
    for rate in ('lr=0.1', 'lr=1'):
        run = tmp_path / f'w/probe/labels=2/{rate}/seed=0'
        assert (run / 'checkpoints').exists() == (rate == chosen) and (run / 'result.json').exists()
        assert not (run / 'report.html').exists()


def test_a_point_that_diverges_loses_and_is_not_run_again(done, monkeypatch):
    workdir, _ = done
    lost = workdir / 'wild/labels=2/lr=1e+29/seed=0'
    assert (
        'is nan' in json.loads((lost / 'diverged.json').read_text())['message'] and not (lost / 'result.json').exists()
    )
    line = next(line for line in read(workdir) if line['method'] == 'wild')
    assert line['settings'] == 'lr=0.1' and [point['diverged'] for point in line['grid']] == [0, 2]
    assert 'wild (2) at lr=1e+29' in (workdir / 'RESULTS.md').read_text()
    assert all(lost != Path(task['folder']) for task in comparison._to_train(runs_of(request()), workdir))


def runs_of(asked):
    return layout.runs(asked, asked.first_seeds)


def test_a_finished_comparison_runs_nothing_again(undrawn, done, tmp_path, monkeypatch):
    workdir = tmp_path / 'w'
    shutil.copytree(done[0], workdir)
    before = files(workdir)
    monkeypatch.setattr(work, 'do', lambda task, stop: pytest.fail(f'{task["name"]} was run again'))
    comparison.comparison(request(), workdir)
    assert files(workdir) == before


def test_what_is_missing_is_run_and_comes_out_the_same(undrawn, done, tmp_path, monkeypatch):
    workdir, names = tmp_path / 'w', []
    shutil.copytree(done[0], workdir)
    shutil.rmtree(workdir / 'probe/labels=4/lr=1/seed=1')
    do = work.do
    monkeypatch.setattr(work, 'do', lambda task, stop: (names.append(task['name']), do(task, stop))[1])
    comparison.comparison(request(), workdir)
    assert names == ['probe/labels=4/lr=1/seed=1']
    assert untimed(read(workdir)) == untimed(read(done[0]))


def test_the_grid_is_chosen_by_validation_alone(undrawn, done, tmp_path):
    """A better test value, planted, is not chosen; a better validation value is."""
    workdir, asked = tmp_path / 'w', request(methods={'finetune': METHODS['finetune']}, labels=(4,))
    shutil.copytree(done[0], workdir)

    def plant(split, value):
        for seed in (0, 1):
            path = workdir / f'finetune/labels=4/{other}/seed={seed}' / 'result.json'
            result = json.loads(path.read_text())
            result[split]['accuracy'] = value
            path.write_text(json.dumps(result))
        comparison.comparison(asked, workdir)
        return read(workdir)[0]['settings']

    (line,) = [line for line in read(workdir) if (line['method'], line['across']) == ('finetune', 4)]
    other = next(point['settings'] for point in line['grid'] if point['settings'] != line['settings'])
    assert plant('test', 1.0) == line['settings']
    assert plant('val', 1.0) == other


def test_choose_is_not_given_the_test_split(monkeypatch):
    seen = []
    monkeypatch.setattr(results.compare, 'choose', lambda rows, **_: seen.extend(rows) or {})
    results.choose(
        [{'method': 'a', 'labels': 1, 'point': 0, 'seed': 0, 'val': {}, 'test': {'accuracy': 1}}], 'accuracy'
    )
    assert seen and all('test' not in row for row in seen)


def test_grid_seeds_choose_alone_and_the_rest_runs_the_chosen_point_only():
    asked = request(seeds=5, grid_seeds=1, config={**BASE, 'seed': 7})
    first, rest = runs_of(asked), layout.runs(asked, [8, 9, 10, 11], {(m, n): 1 for m in METHODS for n in (2, 4)})
    assert len(first) == 3 * 2 * 2 and {run.seed for run in first} == {7}
    assert len(rest) == 3 * 2 * 4 and {run.point for run in rest} == {1} and list(asked.all_seeds) == [7, 8, 9, 10, 11]
    assert not {run.name for run in first} & {run.name for run in rest}


def test_values_are_the_config_with_the_recipe_over_it():
    config = {**BASE, 'phases': ((2, 'head'), (None, 'all')), 'data': {**BASE['data'], 'augment': ('flip',)}}
    recipe = Recipe('', {**HEAD, 'data.augment+': ('pad',), 'method.l2sp': {'alpha': 1}}, (0.5,), {'optim.ema': (0.9,)})
    (point,) = layout.points(recipe, config)
    made = layout.values(config, recipe, 3, point, 11)
    assert point == {'optim.lr': 0.05, 'optim.ema': 0.9} and layout.settings(point) == ['lr=0.05', 'ema=0.9']
    assert made['rules'] == 'head' and 'phases' not in made and made['method'] == {'l2sp': {'alpha': 1}}
    assert made['data'] == {'name': 'digits', 'labels_per_class': 3, 'val': 0.2, 'augment': ('flip', 'pad')}
    assert made['optim'] == {'name': 'sgd', 'lr': 0.05, 'ema': 0.9} and made['seed'] == 11
    assert 'labels_per_class' not in layout.values({'data': {}}, recipe, 'all', point, 0)['data']


@pytest.mark.parametrize(
    'changes, message',
    [
        ({'baseline': 'finetun'}, "did you mean 'finetune'"),
        ({'seeds': 0}, '--seeds 0: should be at least 1'),
        ({'grid_seeds': 3}, '--grid-seeds 3: should be from 1 to --seeds, 2'),
        ({'labels': (2, 2)}, 'different numbers'),
        ({'labels': (2, 500)}, '500 asked for, but class'),
        ({'metric': 'loss'}, 'lower is better'),
        (
            {'methods': {'finetune': METHODS['finetune'], 'n': Recipe('', {'rules': 'norms'})}},
            'n cannot be compared here',
        ),
        (
            {'methods': {'finetune': METHODS['finetune'], 'long': Recipe('', {**ALL, 'steps': 9})}},
            "'steps' may not differ",
        ),
        ({'methods': {'finetune': Recipe('', {**ALL, 'data.val': 0.5})}}, "'data.val' may not differ"),
        ({'methods': {'finetune': Recipe('', {**ALL, 'method.mixp': 1.0})}}, "did you mean 'mixup'"),
        ({'methods': {'finetune': Recipe('', ALL, (0.0,))}}, 'above 0'),
        ({'methods': {'finetune': METHODS['finetune'], '../up': METHODS['probe']}}, 'becomes a folder'),
        ({'metric': 'robust_loss'}, 'lower is better'),
        ({'config': {**BASE, 'data': {'name': 'digits', 'val': 0.0}}}, 'no validation split'),
        ({'config': {**BASE, 'guard': True, 'init': 'x'}}, 'config.guard'),
    ],
)
def test_what_cannot_be_compared_is_refused_before_anything_is_written(tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        comparison.comparison(request(**changes), tmp_path / 'w')
    assert not (tmp_path / 'w').exists()


@pytest.mark.parametrize(
    'name, recipe, message',
    [
        (3, METHODS['probe'], 'becomes a folder'),
        ('lock', METHODS['probe'], 'none of .* lock'),  # a file of the comparison's own
        ('a', Recipe('', ALL, 1.0), 'times 1.0 should be'),
        ('a', Recipe('', ALL, ('x',)), 'should be multiples'),
        ('a', Recipe('', None), 'dicts by dotted key'),
        ('a', Recipe('', ALL, (1.0,), {'method.focal': 1.0}), 'several different values'),
        ('a', Recipe('', ALL, (1.0,), {'method.focal': ()}), 'several different values'),
        ('a', Recipe('', ALL, (1.0,), {'method.focal': (1, 1.0)}), 'several different values'),  # in one folder
        ('a', Recipe('', ALL, (1.0, 3.0), {'optim': ({'name': 'adam'},)}), 'given as times'),  # would undo the rates
    ],
)
def test_recipes_that_are_none_are_refused(name, recipe, message):
    with pytest.raises(UserError, match=message):
        layout.check_recipe(name, recipe)


def test_a_metric_that_is_not_there_is_found_before_training(tmp_path):
    with pytest.raises(UserError, match="no evaluator of config.evals gives it; did you mean 'f1_macro'"):
        comparison.comparison(request(metric='f1_macr', methods={'finetune': METHODS['finetune']}), tmp_path / 'w')
    assert not list(tmp_path.rglob('config.json'))


def test_a_folder_of_another_comparison_is_refused(done, tmp_path):
    before = files(done[0])
    for changes, message in (
        ({'config': {**BASE, 'steps': 5}}, 'config.steps: 4 -> 5'),
        ({'methods': {**METHODS, 'probe': METHODS['probe']._replace(overrides=ALL)}}, 'what probe is'),
    ):
        with pytest.raises(UserError, match=message):
            comparison.comparison(request(**changes), done[0])
    (tmp_path / 'mine.txt').touch()
    with pytest.raises(UserError, match='not the folder of a comparison'):
        comparison.comparison(request(), tmp_path)
    assert files(done[0]) == before


@pytest.mark.parametrize(
    'file, content, message',
    [
        ('probe/labels=2/lr=*/seed=0/predictions.npz', b'', 'predictions.npz: cannot be read'),
        ('probe/labels=2/lr=*/seed=0/result.json', b'{"val": {"accuracy": 0.5}}', 'has no test, params, seconds'),
        ('comparison.json', b'{"config": 1, "methods": [], "command": ""}', 'has no config, data, methods, weights'),
    ],
)
def test_a_damaged_file_is_named(undrawn, done, tmp_path, file, content, message):
    workdir = tmp_path / 'w'
    shutil.copytree(done[0], workdir)
    for damaged in workdir.glob(file):  # whichever rate was chosen
        damaged.write_bytes(content)
    with pytest.raises(UserError, match=message):
        comparison.comparison(request(), workdir)


def test_a_stop_ends_with_the_run_at_hand(tmp_path, monkeypatch):
    made = []
    monkeypatch.setattr(work, 'do', lambda task, stop: made.append(task) or {'status': 'stopped'})
    with pytest.raises(comparison.Interrupted, match='The same command goes on'):
        comparison.comparison(request(), tmp_path / 'w', stop=lambda: bool(made))
    assert len(made) == 1


# The command.


def test_command_compares_the_recipes_of_a_file(undrawn, tmp_path, capsys):
    config, own = write_config(tmp_path / 'config.py', BASE), tmp_path / 'own.py'
    own.write_text("from jtl.recipes import Recipe\nRECIPES = {'bare': Recipe('all', {'rules': 'all'}, (1.0,))}\n")
    workdir = tmp_path / 'w'
    given = [
        'compare',
        f'--config={config}',
        f'--recipes={own}',
        '--seeds=1',
        f'--workdir={workdir}',
        '--config.steps=2',
    ]
    assert cli.main(given) == 0
    (line,) = read(workdir)
    assert line['method'] == 'bare' and line['across'] == 4 and line['n'] == 1  # labels as the config says
    assert config_of(workdir, 'bare/labels=4/lr=0.1/seed=0')['config']['steps'] == 2
    assert 'bare' in capsys.readouterr().out


@pytest.mark.parametrize(
    'arguments, message',
    [
        (['--methods=finetun'], "did you mean 'finetune'"),
        ([], '--methods=list shows'),
        (['--methods=probe', '--labels=four'], 'expected numbers of labels a class'),
        (['--methods=probe', '--recipes=none.py'], 'none.py does not exist'),
        (['--methods=probe', '--sed=3'], "'sed'"),
    ],
)
def test_command_names_what_is_wrong(tmp_path, capsys, arguments, message):
    config = write_config(tmp_path / 'config.py', BASE)
    assert cli.main(['compare', f'--config={config}', f'--workdir={tmp_path / "w"}', *arguments]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / 'w').exists()


def test_command_lists_the_recipes(capsys):
    assert cli.main(['compare', '--methods=list']) == 0
    assert capsys.readouterr().out.strip() == table().strip()


# Recipes.


@pytest.mark.parametrize('file', sorted(EXPERIMENTS.glob('ablation_*.py')), ids=lambda path: path.stem)
def test_ablations_are_recipes(file):
    found = runpy.run_path(str(file))
    assert len(found['RECIPES']) > 2 and found['__doc__']
    for name, recipe in found['RECIPES'].items():
        layout.check_recipe(name, recipe)


@pytest.mark.parametrize('name', RECIPES)
def test_recipes_fit_a_model_of_pictures(name):
    recipe = RECIPES[name]
    layout.check_recipe(name, recipe)
    assert len(recipe.times) == 3 and not recipe.grid  # none is tried more often than another
    vit = {'name': 'vit', 'patch': 4, 'width': 8, 'depth': 4, 'heads': 2}
    base = {**BASE, 'init': 'hf:somewhere/x', 'model': vit}
    for point in layout.points(recipe, base):
        check_sections(parse(layout.values(base, recipe, 4, point, 0)))


# Workers.

ECHO = """
import json, os, sys
for line in sys.stdin:
    task = json.loads(line)
    seen = task['file']
    if task.get('kills') and (task['kills'] == 'always' or not os.path.exists(seen)):
        open(seen, 'w').close()
        os.kill(os.getpid(), 9)
    print(json.dumps({'status': 'done', 'pid': os.getpid()}), flush=True)
"""


@pytest.fixture
def echo(monkeypatch):
    """Workers that answer at once, without JAX."""

    def start(i, number, folder):
        return subprocess.Popen(
            [sys.executable, '-c', ECHO],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    monkeypatch.setattr(pool, 'start', start)


def test_a_worker_that_dies_loses_no_task_and_does_none_twice(tmp_path, echo):
    tasks = [{'name': str(i), 'file': str(tmp_path / f'{i}'), 'kills': 'once' if i in (1, 4) else ''} for i in range(9)]
    with pool.workers(2, tmp_path / 'logs') as perform:
        answers = list(perform(tasks, lambda: False))
        again = list(perform(tasks[:2], lambda: False))
    assert sorted(task['name'] for task, _ in answers) == [str(i) for i in range(9)]
    assert {answer['status'] for _, answer in answers + again} == {'done'}


def test_a_task_that_always_kills_its_worker_is_told(tmp_path, echo):
    tasks = [{'name': 'bad', 'file': str(tmp_path / 'x'), 'kills': 'always'}]
    with pool.workers(2, tmp_path / 'logs') as perform:
        ((_, answer),) = perform(tasks, lambda: False)
    assert answer['status'] == 'failed' and 'died of it, with status -9' in answer['message']


def test_workers_that_are_asked_to_stop_leave_the_rest(tmp_path, echo):
    tasks = [{'name': str(i), 'file': str(tmp_path / 'none')} for i in range(10_000)]
    with pool.workers(2, tmp_path / 'logs') as perform:
        answers = perform(tasks, lambda: False)
        next(answers)
        answers.close()
    with pool.workers(2, tmp_path / 'logs') as perform:
        assert len(list(perform(tasks[:5], lambda: False))) == 5


@pytest.mark.slow
def test_two_workers_find_what_one_does(undrawn, done, tmp_path):
    comparison.comparison(request(), tmp_path / 'w', workers=2)
    assert untimed(read(tmp_path / 'w')) == untimed(read(done[0]))


# The page.


def test_notes_name_the_methods_that_draw_or_augment_otherwise():
    other = Recipe('', {**ALL, 'data.sampling': 'balanced'})
    said = ' '.join(page.notes([], request(methods={**METHODS, 'even': other}), 1))
    assert 'augmentation by seed (even: sampled or augmented otherwise).' in said
    assert 'augmentation by seed.' in ' '.join(page.notes([], request(), 1))


def test_figures_name_each_number_of_labels_and_stay_within_a_hundred_percent(done):
    lines = [{**line, 'half': 2.0, 'across': 'all' if line['across'] == 4 else 2} for line in read(done[0])]
    figure = page.costs(lines, 'test accuracy, %', 'labels a class')
    assert [ax.get_title(loc='left') for ax in figure.axes] == ['2 labels a class', '', '', 'all labels', '', '']
    across = page.report.comparison(lines, 'test accuracy, %', 'labels a class', None, '')
    for ax in (*figure.axes, *across.axes):
        assert -6 < ax.get_ylim()[0] < ax.get_ylim()[1] < 106


def test_labels_of_points_that_coincide_do_not_cover_each_other():
    taken = []
    for width in (40, 60, 25, 50, 33):
        dx, dy = next(iter(page._places(100, 100, width, taken)))
        taken.append((100 + dx, 100 + dy - 2, 100 + dx + width, 100 + dy + page.LINE - 2))
    assert not any(page._overlap(a, b) for i, a in enumerate(taken) for b in taken[:i])
