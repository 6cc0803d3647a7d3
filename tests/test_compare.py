"""The summary of a sweep: rates are chosen on validation alone, intervals are Student's, words follow the numbers."""

import json

import numpy as np
import pytest
from scipy import stats

from jtl import compare
from jtl.errors import UserError


class Poison(dict):
    """A test split that must not be looked at."""

    def _refuse(self, *_):
        raise AssertionError('the test split was read')

    __getitem__ = __contains__ = get = items = keys = values = __iter__ = _refuse


def row(method='head', labels=1, lr=0.1, seed=0, val=0.5, test=0.5):
    named = {'run': f'{method}/labels={labels}/lr={lr}/seed={seed}', 'method': method, 'source': False}
    scores = {'val': {'accuracy': val}, 'test': test if isinstance(test, dict) else {'accuracy': test}}
    return named | {'labels': labels, 'lr': lr, 'seed': seed, **scores, 'majority': None, 'facts': {}}


def put(workdir, name, accuracy, val=0.5, label=(0, 0, 1), **config):
    run = workdir / name
    run.mkdir(parents=True)
    (run / 'config.json').write_text(json.dumps(config))
    result = {'test': {'accuracy': accuracy}, 'val': {'accuracy': val}, 'seconds': 2.0}
    (run / 'result.json').write_text(json.dumps(result))
    np.savez(run / 'predictions.npz', label=np.array(label), index=np.arange(len(label)), logits=np.zeros((3, 2)))


def chosen(rows):
    (value,) = compare.choose(rows).values()
    return value


def test_read_takes_settings_from_the_path_and_skips_unfinished_runs(tmp_path):
    put(tmp_path, 'head/labels=5/lr=1e-2/seed=3', 0.7, commit='abc')
    put(tmp_path, 'pretrain', 0.9)
    (tmp_path / 'head/labels=5/lr=1e-2/seed=4').mkdir()
    run, source = compare.read(tmp_path)
    assert {k: run[k] for k in ('method', 'labels', 'lr', 'seed', 'seconds', 'source')} == {
        'method': 'head', 'labels': 5, 'lr': 0.01, 'seed': 3, 'seconds': 2.0, 'source': False
    }  # fmt: skip
    assert run['test'] == {'accuracy': 0.7} and run['facts'] == {'commit': 'abc'}
    assert run['majority'] == pytest.approx(2 / 3)  # labels 0, 0, 1
    assert source['source'] and source['run'] == 'pretrain'


def test_read_prefers_the_majority_that_the_run_gives(tmp_path):
    put(tmp_path, 'head/labels=5/seed=3', 0.7)
    (tmp_path / 'head/labels=5/seed=3/result.json').write_text('{"test": {"accuracy": 0.7, "majority": 0.25}}')
    assert compare.read(tmp_path)[0]['majority'] == 0.25


def test_choose_takes_the_best_mean_validation_and_never_reads_test():
    means = {0.01: (0.6, 0.6), 0.1: (0.9, 0.5), 1.0: (0.2, 0.3)}  # 0.6, 0.7, 0.25
    rows = [row(lr=lr, seed=s, val=v, test=Poison()) for lr, vs in means.items() for s, v in enumerate(vs)]
    assert chosen(rows) == 0.1
    for each in rows:
        del each['test']
    assert chosen(rows) == 0.1


def test_choose_is_not_swayed_by_test():
    rows = [row(lr=0.01, val=0.6, test=0.1), row(lr=0.1, val=0.5, test=0.99)]
    assert chosen(rows) == 0.01
    (line,) = compare.table(rows, baseline='head')
    assert line['mean'] == 0.1 and line['tuned'] == 0.01 and line['edge']


@pytest.mark.parametrize('rates, expected', [((1, 2, 3), 2), ((1, 2, 3, 4), 2), ((1, 2), 1)])
def test_choose_takes_the_middle_of_equals(rates, expected):
    assert chosen([row(lr=lr) for lr in reversed(rates)]) == expected


def test_choose_ignores_rates_with_missing_seeds_and_nan():
    rows = [row(lr=lr, seed=s, val=0.5) for lr in (1, 2) for s in range(2)]
    assert chosen([*rows, row(lr=3, val=0.9)]) == 1
    rows[0]['val']['accuracy'] = float('nan')
    rows[1]['val']['accuracy'] = None
    assert chosen(rows) == 2


def test_choose_needs_validation_only_where_there_is_a_choice():
    one = row() | {'val': None}
    assert chosen([one]) == 0.1
    with pytest.raises(UserError, match="cannot choose lr of head, labels=1: a run has no validation 'accuracy'"):
        compare.choose([one, row(lr=0.2)])


def test_interval_is_students():
    values = [0.70, 0.74, 0.75, 0.81]
    mean, half = compare.interval(values)
    low, high = stats.t.interval(0.95, 3, np.mean(values), stats.sem(values))
    np.testing.assert_allclose([mean - half, mean + half], [low, high], rtol=1e-12)
    # By hand: n = 2, s = |a - b| / √2, so half = t(0.975, 1) |a - b| / 2, t = 12.7062.
    assert compare.interval([0.5, 0.7])[1] == pytest.approx(12.7062 * 0.1, rel=1e-5)
    assert np.isnan(compare.interval([0.5])[1]) and np.isnan(compare.interval([])[0])


def test_table_pairs_by_seed():
    base, ours = {0: 0.5, 1: 0.6, 2: 0.7, 9: 0.1}, {2: 0.75, 1: 0.66, 0: 0.54, 5: 0.9}
    rows = [row('scratch', seed=s, test=x) for s, x in base.items()] + [row(seed=s, test=x) for s, x in ours.items()]
    first, line = compare.table(rows)
    assert first['method'] == 'scratch' and first['n'] == 4 and 'verdict' not in first
    reference = stats.ttest_rel([0.54, 0.66, 0.75], [0.5, 0.6, 0.7]).confidence_interval(0.95)  # seeds 0, 1, 2
    np.testing.assert_allclose([line['low'], line['high']], reference, rtol=1e-9)
    assert line['pairs'] == 3 and line['n'] == 4 and line['verdict'] == 'helps'
    assert line['difference'] == pytest.approx(0.05) and line['mean'] == pytest.approx(0.7125)


def sweep(differences, n=3):
    """Rows of scratch and head whose paired differences at each number of labels are d - 0.01, d, d + 0.01."""
    spread = [-0.01, 0, 0.01][:n]
    rows = [row('scratch', labels, seed=s, test=0.5 + s / 10) for labels in differences for s in range(n)]
    for labels, d in differences.items():
        rows += [row('head', labels, seed=s, test=0.5 + s / 10 + d + e) for s, e in zip(range(n), spread)]
    return rows


def words(rows):
    return compare.sentences(compare.table(rows), 'scratch', 'labels a class')


def test_sentences_say_from_where_to_where():
    # The interval is ± t(0.975, 2) 0.01 / √3 = ± 0.0248.
    assert words(sweep({1: 0.101, 2: 0.08, 5: 0.03, 10: 0.01, 20: -0.04})) == [
        'head: helps from 1 to 5 labels a class (+10.1 points at 1, +3.0 at 5); '
        'at 10 it cannot be told from scratch; hurts at 20 (-4.0 points at 20).'
    ]
    assert words(sweep({1: 0.101})) == ['head: helps at 1 label a class (+10.1 points at 1).']
    assert words(sweep({1: 0, 2: 0})) == ['head: from 1 to 2 labels a class it cannot be told from scratch.']


def test_sentences_say_where_there_is_too_little():
    rows = sweep({1: 0.1, 2: 0.1})
    unfinished = [r for r in rows if not (r['method'] == 'head' and r['labels'] == 2)]
    assert 'at 2 too few paired runs' in words(unfinished)[0]
    rows[-1]['test']['accuracy'] = None  # NaN, in JSON
    assert 'at 2 too few paired runs are finished (or one gave NaN)' in words(rows)[0]
    assert 'at 1 label a class too few paired runs' in words(sweep({1: 0.1}, n=1))[0]


def test_table_names_what_is_missing():
    rows = [row('head'), row('lora')]
    with pytest.raises(UserError, match="baseline 'scratch'.*Known: head, lora"):
        compare.table(rows)
    with pytest.raises(UserError, match="no setting 'label': did you mean 'labels'"):
        compare.table(rows, baseline='head', across='label')
    with pytest.raises(UserError, match='lower is better'):
        compare.choose(rows, metric='loss')


def test_other_settings_share_a_baseline_without_them():
    rows = sweep({1: 0.1})
    lora = [r | {'method': 'lora', 'rank': 4} for r in rows if r['method'] == 'head']
    line = compare.table(rows + lora)[-1]
    assert line['method'] == 'lora, rank=4' and line['verdict'] == 'helps'


def test_write_saves_the_summary_and_returns_a_table_for_the_terminal(tmp_path):
    for labels in (1, 10):
        for seed in range(3):
            put(tmp_path, f'scratch/labels={labels}/lr=0.1/seed={seed}', 0.5 + seed / 100, commit='abc')
            put(tmp_path, f'head/labels={labels}/lr=0.1/seed={seed}', 0.6 + seed / 50, val=0.6, commit='abc')
            put(tmp_path, f'head/labels={labels}/lr=1/seed={seed}', 0.9, val=0.5, commit='abc')
    put(tmp_path, 'pretrain', 0.9)
    (tmp_path / 'head/labels=20/lr=0.1/seed=0').mkdir(parents=True)
    (tmp_path / 'head/labels=20/lr=0.1/seed=0/config.json').write_text('{}')
    text = compare.write(tmp_path, baseline='scratch', across='labels', tune='lr', pair='seed', title='A $title')
    # head: 60, 62, 64, s = 2, ± 4.303 · 2 / √3 = 4.97; differences 10, 11, 12, s = 1, ± 2.48.
    assert '62.0 ± 5.0' in text and '+11.0 [8.5, 13.5]' in text and '0.1*' in text
    assert 'head: helps from 1 to 10 labels a class (+11.0 points at 1, +11.0 at 10).' in text
    assert max(map(len, text.splitlines())) <= 100
    saved = (tmp_path / 'RESULTS.md').read_text()
    assert '| 62.0 ± 5.0 | +11.0 [8.5, 13.5] |' in saved and 'commit: abc' in saved
    assert '18 runs compared' in saved and '1 unfinished. Sources: pretrain.' in saved
    assert 'Always naming the most frequent class: 66.7 %' in saved
    assert len((tmp_path / 'results.jsonl').read_text().splitlines()) == 19
    assert (tmp_path / 'results.png').stat().st_size > 1000


def test_write_with_one_seed_or_nan_still_writes(tmp_path):
    put(tmp_path, 'scratch/labels=1/seed=0', 0.5)
    put(tmp_path, 'head/labels=1/seed=0', float('nan'))
    text = compare.write(tmp_path)
    assert 'No interval (±) where fewer than two seeds are finished.' in text and '50.0  ' in text and 'nan' in text
    rows = [json.loads(line, parse_constant=pytest.fail) for line in (tmp_path / 'results.jsonl').open()]
    assert rows[0]['test']['accuracy'] is None


def test_read_of_no_sweep_says_what_was_expected(tmp_path):
    with pytest.raises(UserError, match='no finished run below it'):
        compare.read(tmp_path)
    with pytest.raises(UserError, match='no such folder'):
        compare.read(tmp_path / 'nothing')
