"""Runs whose backbone is frozen read its features from the cache, and come to the same."""

import json
import shutil

import numpy as np
import pytest
from tiny import ALL, CONFIG, HEAD, pictures, rows

from jtl.config import parse
from jtl.errors import UserError
from jtl.plan import make_plan
from jtl.probe import attach, features
from jtl.train import Stopped, train

NETWORK = {'name': 'resnet', 'stages': (1, 1), 'width': 4}
AUGMENT = (('pad_crop', 1), 'flip')


@pytest.fixture(scope='module')
def source(tmp_path_factory):
    """A former run on other data."""
    folder = tmp_path_factory.mktemp('source')
    pictures(folder / 'pictures', {'a': 60, 'b': 90, 'c': 120}, size := 16)
    data = {'name': f'folder:{folder / "pictures"}'}
    train({**CONFIG, 'data': data, 'model': NETWORK, 'steps': 6}, folder / 'run', quiet=True)
    assert size
    return str(folder / 'run')


@pytest.fixture
def config(source, tmp_path):
    pictures(tmp_path / 'pictures', {'bright': 140, 'dark': 110})
    data = {'name': f'folder:{tmp_path / "pictures"}', 'val': 0.2, 'test': 0.25}
    return {**CONFIG, 'data': data, 'model': {}, 'init': source, 'rules': HEAD, 'steps': 12, 'eval_every': 4}


@pytest.fixture
def passes(monkeypatch, tmp_path):
    """The rows that backbone passes were made for; the cache is empty at first."""
    monkeypatch.setenv('JTL_CACHE', str(tmp_path / 'cache'))
    seen, compute = [], features._compute

    def watched(of, split, layers, pool, epoch, quiet, rows):
        seen.extend((split, epoch, row) for row in rows.tolist())
        return compute(of, split, layers, pool, epoch, quiet, rows)

    monkeypatch.setattr(features, '_compute', watched)
    return seen


def logits(run):
    with np.load(run / 'predictions.npz') as arrays:
        return arrays['logits']


def changed(config, data=None, **other):
    return {**config, **other, 'data': {**config['data'], **(data or {})}}


def compare(a, b):
    """Two runs that did the same, up to the rounding of a forward pass in batches of another size."""
    np.testing.assert_allclose(logits(a), logits(b), atol=1e-4)
    for one, two in zip(rows(a), rows(b), strict=True):
        assert one.keys() == two.keys() and one['step'] == two['step']
        np.testing.assert_allclose(
            [one[k] for k in one if k not in ('split',)], [two[k] for k in one if k != 'split'], atol=1e-4
        )


def test_a_frozen_backbone_is_run_once_for_each_example(config, passes, tmp_path, capsys):
    train(config, tmp_path / 'a')
    assert (
        'The backbone is frozen: features of 0 examples come from the cache, of 24 are computed'
        in capsys.readouterr().out
    )
    assert sorted(passes) == [('train', None, i) for i in range(24)]
    train({**config, 'seed': 1, 'optim': {'lr': 0.01}}, tmp_path / 'b')
    assert len(passes) == 24 and 'of 24 examples come from the cache' in capsys.readouterr().out
    train(changed(config, cache={'use': 'never'}), tmp_path / 'c')
    assert len(passes) == 24 and 'The backbone is frozen' not in capsys.readouterr().out
    compare(tmp_path / 'a', tmp_path / 'c')
    assert not np.allclose(logits(tmp_path / 'a'), logits(tmp_path / 'b'), atol=1e-3)


def test_a_cached_run_leaves_a_whole_model(config, passes, tmp_path):
    from jtl import predict, run

    result = train(config, tmp_path / 'a', quiet=True)
    _, values = predict.evaluate(run.read(tmp_path / 'a'))
    assert values['accuracy'] == result['test']['accuracy']
    np.testing.assert_allclose(values['loss'], result['test']['loss'], atol=1e-5)


def test_a_cached_run_goes_on_to_the_same_bits(config, passes, tmp_path):
    train(config, tmp_path / 'whole', quiet=True)
    asked = iter(range(1000))
    with pytest.raises(Stopped):
        train(config, tmp_path / 'cut', quiet=True, stop=lambda: next(asked) == 7)
    shutil.rmtree(tmp_path / 'cache')  # and it does not matter what became of the features
    train(config, tmp_path / 'cut', quiet=True)
    np.testing.assert_array_equal(logits(tmp_path / 'cut'), logits(tmp_path / 'whole'))
    assert rows(tmp_path / 'cut') == rows(tmp_path / 'whole')


def test_views_are_the_first_epochs_of_the_augmented_run(config, passes, tmp_path):
    augmented = changed(config, {'augment': AUGMENT})  # 14 training pictures; 12 steps of 8 are 7 epochs
    train(augmented, tmp_path / 'plain', quiet=True)
    assert not passes  # augmented at random, so not cached unless asked
    train({**augmented, 'cache': {'views': 100}}, tmp_path / 'views', quiet=True)
    assert {epoch for _, epoch, _ in passes} == {None, *range(7)}
    compare(tmp_path / 'plain', tmp_path / 'views')
    train({**augmented, 'cache': {'views': 2}}, tmp_path / 'two', quiet=True)
    assert not np.allclose(logits(tmp_path / 'two'), logits(tmp_path / 'views'), atol=1e-3)


@pytest.mark.parametrize(
    'change, reason',
    [
        ({'rules': ALL}, 'the backbone is trained'),
        ({'rules': None, 'phases': ((6, HEAD), (None, ALL))}, 'the backbone is trained'),
        ({'augment': ('flip',)}, 'augmented at random'),
        ({'method': {'name': 'supervised', 'mixup': 0.2}}, 'mixup'),
        ({'cache': {'use': 'never'}}, 'never'),
    ],
)
def test_what_speaks_against_a_cache_is_said(config, change, reason):
    changes = {key: value for key, value in change.items() if key != 'augment'}
    values = changed(config, {'augment': change.get('augment', ())}, **changes)
    values = {key: value for key, value in values.items() if value is not None}
    assert reason in attach.obstacle(make_plan(parse(values)))


def test_methods_that_prepare_a_state_are_served_from_the_cache(config, passes, tmp_path):
    # that it can be is found before `prepare` has made the state
    penalty = {'l2sp': {'beta': 0.3}, 'class_weights': 'balanced', 'logit_adjustment': 1.0}
    config = {**config, 'method': {'name': 'supervised', **penalty}, 'steps': 4}
    train(config | {'cache': {'use': 'never'}}, tmp_path / 'plain', quiet=True)
    assert not passes
    train(config | {'cache': {'use': 'always'}}, tmp_path / 'cached', quiet=True)
    assert passes
    compare(tmp_path / 'plain', tmp_path / 'cached')
    assert rows(tmp_path / 'cached')[0]['l2sp'] > 0


def test_a_backbone_that_drops_at_random_is_not_cached(config, tmp_path):
    vit = {'name': 'vit', 'width': 8, 'depth': 1, 'heads': 2, 'patch': 4}
    values = {**config, 'init': None, 'model': vit, 'preprocess': {'size': 8}}
    assert attach.obstacle(make_plan(parse(values))) is None
    values['model'] = {**vit, 'dropout': 0.1}
    assert 'drops at random' in attach.obstacle(make_plan(parse(values)))


def test_a_cache_that_cannot_be_is_refused_if_it_was_asked_for(config, tmp_path):
    for change, said in (
        ({'rules': ALL, 'cache': {'use': 'always'}}, 'cannot be cached: the backbone is trained'),
        ({'cache': {'views': 3}}, 'nothing is augmented'),
        ({'cache': {'views': 3, 'use': 'never'}}, 'views: 3, but config.cache.use is "never"'),
        ({'cache': {'use': 'no'}}, "config.cache.use: 'no'"),
        ({'cache': {'vews': 3}}, "did you mean 'views'"),
    ):
        with pytest.raises(UserError, match=said):
            train({**config, **change}, tmp_path / 'run')
        assert not (tmp_path / 'run').exists()


def test_several_labels_are_served_with_embeddings(source, passes, tmp_path):
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 255, (30, 8, 8, 3), dtype=np.uint8), rng.integers(0, 2, (30, 4))
    np.savez(tmp_path / 'many.npz', train_images=x, train_labels=y, test_images=x[:6], test_labels=y[:6])
    values = {**CONFIG, 'data': {'name': f'npz:{tmp_path / "many.npz"}'}, 'model': {}, 'init': source, 'rules': HEAD}
    values['steps'] = 4  # more than an epoch
    train(values, tmp_path / 'cached', quiet=True)
    assert len(passes) == 36
    train({**values, 'cache': {'use': 'never'}}, tmp_path / 'plain', quiet=True)
    compare(tmp_path / 'cached', tmp_path / 'plain')
    assert json.loads((tmp_path / 'cached/result.json').read_text())['params']['trainable'] == 4 * 9


def test_a_cache_that_cannot_be_used_is_done_without(config, passes, tmp_path, monkeypatch, capsys):
    (tmp_path / 'file').write_text('')
    monkeypatch.setenv('JTL_CACHE', str(tmp_path / 'file' / 'below'))
    train(config, tmp_path / 'a')
    assert 'its features are not kept' in capsys.readouterr().out and not passes
    with pytest.raises(UserError, match='cannot be written to'):
        train({**config, 'cache': {'use': 'always'}}, tmp_path / 'b')


def test_a_cache_that_is_complete_need_not_be_written_to(config, passes, tmp_path, monkeypatch):
    from jtl import files

    train(config, tmp_path / 'a', quiet=True)
    before = len(passes)
    locked = files.locked
    monkeypatch.setattr(files, 'locked', lambda path: pytest.fail('locked') if 'cache' in path.parts else locked(path))
    train({**config, 'seed': 1}, tmp_path / 'b', quiet=True)
    assert len(passes) == before


def test_a_run_shorter_than_an_epoch_computes_what_it_meets(config, passes, tmp_path):
    train({**config, 'steps': 1, 'eval_every': 1}, tmp_path / 'a', quiet=True)  # 8 of 14 training pictures
    assert len(passes) == 24 - 14 + 8
    train({**config, 'steps': 1, 'eval_every': 1, 'cache': {'use': 'never'}}, tmp_path / 'b', quiet=True)
    compare(tmp_path / 'a', tmp_path / 'b')


def test_a_run_that_is_stopped_during_the_pass_goes_on(config, passes, tmp_path):
    with pytest.raises(Stopped, match='features'):
        train(config, tmp_path / 'a', quiet=True, stop=lambda: True)
    train(config, tmp_path / 'a', quiet=True)
    assert sorted(passes) == [('train', None, i) for i in range(24)]
