"""README says what the logs say, and points at nothing that is not there."""

import importlib.util
import json
import re
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[1]
SPEC = importlib.util.spec_from_file_location('readme', ROOT / 'experiments' / 'readme.py')
readme = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(readme)

EMPTY = 'Before.\n<!-- results:quickstart -->\nold\n<!-- end -->\n<!-- results:cifar -->\n<!-- end -->\nAfter.\n'


@pytest.fixture
def root(tmp_path):
    (tmp_path / 'README.md').write_text(EMPTY)
    return tmp_path


def put(folder, name, *, accuracy, n, rules=(('.*', 1.0),), phases=None, init=None, labels=None, commit='abc'):
    run = folder / name
    run.mkdir(parents=True)
    data = {'name': 'folder:/home/someone/cats.zip', 'labels_per_class': labels}
    config = {'data': data, 'rules': rules, 'phases': phases, 'init': init}
    record = {'config': config, 'hardware': '1 × cpu', 'versions': {'jax': '0.10.2'}, 'version': '0.1.0'}
    (run / 'config.json').write_text(json.dumps({**record, 'commit': commit}))
    params = {'total': 12000, 'trainable': 1300}
    result = {'test': {'accuracy': accuracy}, 'step': 250, 'params': params, 'seconds': 90.0}
    (run / 'result.json').write_text(json.dumps(result))
    (run / 'metrics.jsonl').write_text('{"step": 1200, "split": "train"}\n{"step": 1500, "split": "val"}\n')
    np.savez(run / 'predictions.npz', label=np.zeros(n, np.int32))


def put_two(folder):
    put(folder, 'scratch', accuracy=0.8, n=100)
    phases = ((500, (('head/.*', 1.0), ('.*', None))), (None, (('(head|neck)/.*', 1.0), ('.*', 0.1))))
    put(folder, 'tuned/labels=25', accuracy=1.0, n=10, phases=phases, init='/home/someone/runs/source', labels=25)


def put_sweep(folder):
    folder.mkdir()
    (folder / 'results.png').write_bytes(b'picture')
    text = '# Title\n\nall: helps.\n\n![](results.png)\n\n- command: python -m jtl.main --workdir=/home/someone/q\n'
    (folder / 'RESULTS.md').write_text(text)


def test_wilson_by_hand():
    # p = 0.8, n = 100, z² = 3.8415: centre (0.8 + 0.019207) / 1.038415 = 0.78890,
    # half 1.95996 √(0.0016 + 0.000096037) / 1.038415 = 1.88746 · 0.0411830 = 0.07773.
    assert readme.wilson(0.8, 100) == pytest.approx((0.71117, 0.86663), abs=1e-5)
    # p = 1: the upper end is 1 and the lower n / (n + z²) = 10 / 13.8415.
    assert readme.wilson(1.0, 10) == pytest.approx((0.72247, 1.0), abs=1e-5)


def test_parity_has_the_worst_of_each_family_and_library(tmp_path):
    rows = [('a', 'vit', 'timm', 2e-6), ('b', 'vit', 'timm', 3e-7), ('c', 'bert', 'huggingface', 1e-6)]
    lines = [json.dumps({'test': t, 'family': f, 'names': n, 'difference': d}) for t, f, n, d in rows]
    (tmp_path / 'parity.jsonl').write_text('\n'.join(lines))
    assert readme.parity(tmp_path / 'parity.jsonl').splitlines() == [
        '|  | huggingface | timm |',
        '| --- | --- | --- |',
        '| bert | 1e-06 |  |',
        '| vit |  | 2e-06 |',
        '',
        '3 comparisons in 3 tests.',
    ]


def test_table_has_a_row_a_run(tmp_path):
    put_two(tmp_path)
    head, line, scratch, tuned, _, note = readme.table(tmp_path).splitlines()
    assert [row.replace('\\|', '').count('|') for row in (head, line, scratch, tuned)] == [10] * 4
    # 1500 is the last step in metrics.jsonl, 250 the selected one; 90 s are 1.5 minutes; the interval is as above.
    assert scratch == (
        '| scratch | folder:cats.zip | all | `.*` ×1 | – | 1,500 | 80.0 [71.1, 86.7] | 1,300 of 12,000 | 1.5 |'
    )
    assert tuned == (
        '| tuned/labels=25 | folder:cats.zip | 25 | to step 500: `head/.*` ×1, `.*` frozen; '
        'then `(head\\|neck)/.*` ×1, `.*` ×0.1 | source | 1,500 | 100.0 [72.2, 100.0] | 1,300 of 12,000 | 1.5 |'
    )
    assert 'Hardware: 1 × cpu. Versions: jax 0.10.2; jtl 0.1.0, commit abc.' in note


def test_markers_are_filled_and_filling_again_changes_nothing(root):
    put_two(root / 'runs')
    put_sweep(root / 'sweep')
    given = [f'quickstart={root / "sweep"}', f'cifar={root / "runs"}']
    assert readme.main(['--check', *given], root) == 1
    assert (root / 'README.md').read_text() == EMPTY and not (root / 'docs').exists()
    assert readme.main(given, root) == 0
    text = (root / 'README.md').read_text()
    assert text.startswith('Before.\n<!-- results:quickstart -->\nall: helps.') and text.endswith(
        '<!-- end -->\nAfter.\n'
    )
    assert '\nold\n' not in text and '](docs/quickstart.png)' in text and '--workdir=q\n' in text
    assert 'someone' not in text and '/home' not in text
    assert (root / 'docs' / 'quickstart.png').read_bytes() == b'picture'
    assert readme.main(given, root) == 0 and (root / 'README.md').read_text() == text
    assert readme.main(['--check', *given], root) == 0


def test_paths_are_cut_to_their_last_part():
    # Regular expressions, relative paths, URLs and examples/s are no absolute paths.
    said = '`head/.*` `(a|b)/c/d` `.*/bn/scale` runs/a https://a.org/b/c 5 examples/s'
    assert readme.relative(f'{said} --workdir=/somewhere/q1, ~/x/y.zip folder:/a/b/c') == (
        f'{said} --workdir=q1, y.zip folder:c'
    )


@pytest.mark.parametrize(
    'given, said',
    [
        ('cifar', 'expected NAME=FOLDER'),
        ('cifar=nowhere', 'nowhere: no such folder'),
        ('mnist=.', 'no marker <!-- results:mnist -->'),
        ('cifar=empty', 'no finished run'),
        ('quickstart=empty', 'no RESULTS.md'),
    ],
)
def test_what_is_missing_is_named(root, monkeypatch, capsys, given, said):
    monkeypatch.chdir(root)
    (root / 'empty').mkdir()
    put(root, 'run', accuracy=0.5, n=4)
    assert readme.main([given], root) == 2
    assert said in capsys.readouterr().err and (root / 'README.md').read_text() == EMPTY


def test_end_marker_must_follow(root, capsys):
    put(root, 'run', accuracy=0.5, n=4)
    (root / 'README.md').write_text('<!-- results:cifar -->\n<!-- results:quickstart -->\n<!-- end -->\n')
    assert readme.main([f'cifar={root}'], root) == 2
    assert 'no <!-- end --> after <!-- results:cifar -->' in capsys.readouterr().err


@pytest.mark.parametrize('file', ['README.md', 'CONTRIBUTING.md'])
def test_everything_named_exists(file):
    text = (ROOT / file).read_text(encoding='utf-8')
    links = re.findall(r'\]\(([^)#\s]+)[^)]*\)|(?:src|srcset|href)="([^"#]+)"', text)
    links = [link for pair in links for link in pair if link and '://' not in link]
    configs = re.findall(r'\bconfigs/\w+\.py', text)
    assert [path for path in {*links, *configs} if not (ROOT / path).exists()] == []
    if file == 'README.md':
        assert {'configs/quickstart.py', 'configs/folder_finetune.py'} <= set(configs) and links
