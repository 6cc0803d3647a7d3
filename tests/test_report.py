"""The report of a run: what is there is drawn, what is missing is left out, and names cannot harm the page."""

import json
import re

import numpy as np
import pytest
from PIL import Image

from jtl import report
from jtl.errors import UserError


def make_run(run, classes=('cat', 'dog', '<script>alert(1)</script> $x'), val=True):
    """A run of 100 steps; of 30 test examples, 0 and 1 are mistaken, 1 with more confidence."""
    (run / 'model').mkdir(parents=True)
    K, label = len(classes), np.arange(30) % len(classes)
    logits = 5.0 * np.eye(K, dtype=np.float32)[label]
    logits[0], logits[1] = 3 * np.eye(K)[1], 9 * np.eye(K)[2]
    np.savez(run / 'predictions.npz', index=100 + np.arange(30), label=label, logits=logits)
    (run / 'model' / 'model.json').write_text(json.dumps({'classes': classes}))
    rows = [{'step': s, 'split': 'train', 'loss': 1 / (s + 1), 'accuracy': s / 100, 'lr': 0.1} for s in range(100)]
    if val:
        rows += [{'step': s, 'split': 'val', 'loss': None, 'accuracy': a} for s, a in ((50, 0.9), (99, 0.8))]
    (run / 'metrics.jsonl').write_text('\n'.join(map(json.dumps, rows)) + '\n{"step": 1')  # cut off by a crash
    result = {'test': {'accuracy': 28 / 30, 'loss': 0.1}, 'step': 50, 'params': {'total': 12345, 'trainable': 678}}
    (run / 'result.json').write_text(json.dumps(result | ({'val': {'accuracy': 0.9}} if val else {})))
    (run / 'params.txt').write_text('head/kernel  <3, 2>  trained\n')
    (run / 'config.json').write_text('{"seed": 7}')
    return run


def test_write_makes_a_self_contained_page_with_escaped_names(tmp_path):
    asked = []
    pictures = lambda index: asked.append(index) or np.full((8, 8, 3), index, np.uint8)
    page = report.write(make_run(tmp_path / 'run'), pictures).read_text()
    assert '<script' not in page
    assert '&lt;script&gt;alert(1)&lt;/script&gt; $x' in page
    assert not re.search(r'(https?:)?//\w', re.sub(r'base64,[^"]*', '', page))
    assert re.findall(r'src="(.{22})', page) == ['data:image/png;base64,'] * 3
    assert '93.3 % <small>test accuracy' in page
    assert 'Parameters of step 50, the best validation accuracy of 2 evaluations.' in page
    assert (
        '12,345 in all, 678 trained' in page and 'head/kernel  &lt;3, 2&gt;' in page and '&quot;seed&quot;: 7' in page
    )
    assert asked == [101, 100]  # by confidence, asked for by 'index'
    for name in ('curves', 'confusion', 'mistakes'):
        with Image.open(tmp_path / 'run' / f'{name}.png') as image:
            assert image.format == 'PNG' and min(image.size) > 200


def test_write_leaves_out_what_a_run_does_not_have(tmp_path):
    run = make_run(tmp_path / 'run', val=False)
    page = report.write(run).read_text()  # no pictures: features, say
    assert 'confident mistakes' not in page and not (run / 'mistakes.png').exists()
    assert 'nothing was selected on a validation split' in page
    for name in ('predictions.npz', 'params.txt', 'config.json', 'model/model.json', 'metrics.jsonl', 'confusion.png'):
        (run / name).unlink()
    page = report.write(run).read_text()
    assert '<h2>' not in page and '<details>' not in page
    assert not (run / 'confusion.png').exists()
    (run / 'result.json').unlink()
    assert '<body>' in report.write(run).read_text()


def test_write_of_a_multi_label_run_has_classes_but_no_confusion(tmp_path):
    run = make_run(tmp_path / 'run')
    label = np.eye(3, dtype=np.float32)[np.arange(30) % 3]
    np.savez(run / 'predictions.npz', index=np.arange(30), label=label, logits=8 * label - 4)
    page = report.write(run, lambda index: np.zeros((8, 8), np.uint8)).read_text()
    assert '<h2>Classes</h2>' in page and '<h2>Confusion</h2>' not in page


def test_mistakes_takes_grey_pictures_and_skips_missing_ones(tmp_path):
    seen = report._seen(make_run(tmp_path / 'run', classes=('a', 'b', 'c')))
    found = report.mistakes(seen, lambda index: None if index == 101 else np.zeros((4, 5, 1), np.uint8))
    assert [(picture.shape, true, predicted) for picture, true, predicted, _ in found] == [((4, 5), 'a', 'b')]
    # softmax of (0, 3, 0): e³ / (e³ + 2)
    assert found[0][3] == pytest.approx(np.exp(3) / (np.exp(3) + 2), rel=1e-6)


@pytest.mark.parametrize('K', [2, 100])
def test_confusion_names_every_class_and_counts_only_a_few(K):
    figure = report.confusion(np.eye(K, dtype=int) * 3, tuple(f'class {k}' for k in range(K)))
    ax = figure.axes[0]
    assert [label.get_text() for label in ax.get_yticklabels()] == [f'class {k}' for k in range(K)]
    assert [text.get_text() for text in ax.texts] == (['3', '3'] if K == 2 else [])


def test_a_cut_off_result_is_named(tmp_path):
    (tmp_path / 'result.json').write_text('{"test": {')
    with pytest.raises(UserError, match=r'result\.json: not valid JSON'):
        report.write(tmp_path)
