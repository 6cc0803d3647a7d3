"""A saved adapter: what a run changed of its weights, by itself, put back on them, and refused on others."""

import functools
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import tiny
from fuzzing import mutate

from jtl import models, run, tree
from jtl.cli import main
from jtl.errors import UserError
from jtl.pretrained import adapter
from jtl.pretrained.convert import merged, to_run, to_safetensors
from jtl.pretrained.formats import safetensors
from jtl.pretrained.load import Pretrained, load
from jtl.pretrained.shapes import example, shapes
from jtl.train import train

VIT = {'name': 'vit', 'width': 16, 'depth': 1, 'heads': 2, 'patch': 4}
RESNET = {'name': 'resnet', 'stages': (1,), 'width': 4}
PREPROCESS = {'size': 8, 'mean': [0.5], 'std': [0.5], 'channels': 1}
CLASSES = tuple('abc')
STAGE = (('backbone/stage1/.*', 1.0), ('head/.*', 1.0), ('.*', None))


def weights_run(folder, model, seed=0):
    """Random weights of a model as a finished run, and its path."""
    flat = shapes(model, len(CLASSES), example(model, PREPROCESS))
    rng = np.random.default_rng(seed)
    normal = lambda shape: rng.normal(size=shape) / np.sqrt(np.prod(shape[:-1]))  # of a kernel; others are above 0
    made = {p: normal(s) if p.endswith('kernel') else rng.uniform(0.1, 1, s) for p, s in flat.items()}
    whole = tree.unflatten({p: np.float32(x) for p, x in made.items()})
    state = {'model': whole.pop('model')} if 'model' in whole else {}
    to_run(Pretrained('made', model, whole, state, CLASSES, PREPROCESS, ''), folder)
    return str(folder)


def config(init, **more):
    data = {'name': 'digits', 'labels_per_class': 4, 'val': 0.0, 'test': 0.0}
    optim = {'name': 'sgd', 'lr': 0.1}
    return {'data': data, 'init': init, 'batch_size': 8, 'steps': 2, 'optim': optim, 'report': False, **more}


def changed_run(folder, base, change, rules=tiny.HEAD, **more):
    """A finished run from `base` that no loop made: `change(leaves)` is what training did."""
    weights = load(base)
    leaves = {path: np.array(x) for path, x in weights.leaves().items()}
    change(leaves)
    whole = tree.unflatten(leaves)
    state = {'model': whole.pop('model')} if 'model' in whole else {}
    said = {'init': base, 'load': {}, 'rules': rules, 'phases': None, 'data': {'name': ''}, **more}
    model = {key: getattr(weights, key) for key in ('model', 'classes', 'preprocess', 'multi_label')}
    record, result = run.record(said, '', weights.sha256), {'step': 0, 'seconds': 0.0, 'params': {}}
    with run.lock(folder):
        run.write_finished(folder, record, {**model, 'method': {}}, '', {}, whole, state, result)
    return str(folder)


def add(*paths, value=1.0):
    return lambda leaves: leaves.update({path: leaves[path] + np.float32(value) for path in paths})


def leaves_of(folder):
    fitted = run.read(folder)
    return tree.flatten({**fitted.params, 'model': fitted.state.get('model', {})})


@functools.cache
def compiled(model, classes):
    built = models.build(num_classes=classes, **json.loads(model))
    return tiny.jit(lambda variables, batch: built.apply(variables, batch, train=False)['logits'])


def logits(model, leaves):
    """Of pictures that differ."""
    params = tree.unflatten(dict(leaves))
    statistics = params.pop('model', {})
    images = np.random.default_rng(5).normal(size=(3, 8, 8, 1)).astype(np.float32)
    predict = compiled(json.dumps(model), leaves['head/bias'].size)
    return np.asarray(predict({'params': params, **statistics}, {'image': images}))


def same(mine, theirs):
    assert mine.keys() == theirs.keys()
    return all(mine[path].tobytes() == np.asarray(theirs[path]).tobytes() for path in mine)


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp('adapter')


@pytest.fixture(scope='module')
def vit(folder):
    return weights_run(folder / 'vit', VIT)


@pytest.fixture(scope='module')
def lora(folder, vit):
    """A LoRA run of two steps, and its adapter's file."""
    train(config(vit, model={'lora': {'rank': 2}}), folder / 'lora', quiet=True)
    file = folder / 'lora.safetensors'
    assert main(['convert', str(folder / 'lora'), f'--to=adapter:{file}']) == 0
    return str(folder / 'lora'), file


@pytest.fixture(scope='module')
def resnet(folder):
    return weights_run(folder / 'resnet', RESNET)


@pytest.fixture(scope='module')
def head(folder, resnet):
    """A run that trained the head, and its adapter's file."""
    trained = changed_run(folder / 'head', resnet, add('head/kernel', 'head/bias'))
    adapter.write(trained, folder / 'head.safetensors')
    return trained, folder / 'head.safetensors'


# What is in the file, and back.


def test_adapter_of_a_lora_run_comes_back_bit_for_bit(lora, vit):
    """Parameters, statistics and logits; and the file is as large as what was trained, with a note of a few kB."""
    trained, file = lora
    held, whole = adapter.leaves(file), leaves_of(trained)
    assert held.keys() == {path for path in whole if path.startswith(('lora/', 'head/'))}
    numbers = sum(x.size for x in held.values())
    assert numbers == 2 * 2 * 2 * 16 + 17 * 10  # of query and value a and b of rank 2; the head
    assert 4 * numbers < file.stat().st_size < 4 * numbers + 3000
    back = load(f'adapter:{file}')
    assert same(back.leaves(), whole)
    assert back.model == {**VIT, 'lora': {'rank': 2}} == run.read(trained).model
    assert back.classes == run.read(trained).classes and back.preprocess == run.read(trained).preprocess
    np.testing.assert_array_equal(logits(back.model, back.leaves()), logits(back.model, whole))
    plain = logits(VIT, {**load(vit).leaves(), **{p: x for p, x in held.items() if p.startswith('head/')}})
    assert np.abs(plain - logits(back.model, whole)).max() > 1e-4  # the adapter does something


def test_a_run_goes_on_from_an_adapter_and_is_one_of_the_same_weights(lora, vit, folder):
    """The second adapter names the weights at the bottom, not the first adapter."""
    trained, file = lora
    second = train(config(f'adapter:{file}', seed=1), folder / 'second', quiet=True)
    assert second['params']['trainable'] == 298  # config.model has the adapter, and the rules are those of adapters
    before, after = leaves_of(trained), leaves_of(folder / 'second')
    moved = {path for path in before if before[path].tobytes() != after[path].tobytes()}
    assert moved and all(path.startswith(('lora/', 'head/')) for path in moved)
    assert adapter.write(folder / 'second', folder / 'second.safetensors').weights.uri == vit
    assert same(load(f'adapter:{folder / "second.safetensors"}').leaves(), after)


def test_an_adapter_becomes_a_run_that_predicts(lora, tmp_path, capsys):
    trained, file = lora
    assert main(['convert', f'adapter:{file}', f'--to=run:{tmp_path / "back"}']) == 0
    assert main(['convert', f'adapter:{file}', f'--to=run:{tmp_path / "plain"}', '--merge']) == 0
    assert same(leaves_of(tmp_path / 'back'), leaves_of(trained))
    plain = run.read(tmp_path / 'plain')
    assert plain.model == VIT and same(merged(load(trained)).leaves(), tree.flatten(plain.params))
    picture = tiny.pictures(tmp_path / 'pictures', each=1) / 'dark' / '00.png'
    capsys.readouterr()
    assert main(['predict', str(tmp_path / 'back'), str(picture), '--json', '--top=10']) == 0
    assert sum(json.loads(capsys.readouterr().out)['classes'].values()) == pytest.approx(1)
    assert main(['eval', trained, '--json']) == 0
    said = json.loads((Path(trained) / 'result.json').read_text())['test']
    assert json.loads(capsys.readouterr().out)['loss'] == pytest.approx(said['loss'], rel=1e-6)


def test_inspect_shows_an_adapter_without_its_weights(lora, capsys):
    assert main(['inspect', f'adapter:{lora[1]}', '--json']) == 0
    said = json.loads(capsys.readouterr().out)
    assert len(said['tensors']) == 6 and said['model']['lora'] == {'rank': 2}
    assert main(['inspect', str(lora[1])]) == 2
    assert f'write adapter:{lora[1]}' in capsys.readouterr().err


def test_adapter_holds_the_statistics_of_a_batch_norm_that_moved_and_no_other(resnet, folder):
    train(config(resnet, rules=STAGE), folder / 'moved', quiet=True)
    adapter.write(folder / 'moved', folder / 'moved.safetensors')
    whole, held = leaves_of(folder / 'moved'), adapter.leaves(folder / 'moved.safetensors')
    moves = ('backbone/stage1/', 'head/', 'model/batch_stats/backbone/stage1/')
    assert held.keys() == {path for path in whole if path.startswith(moves)}
    assert any(path.endswith('/mean') for path in held)
    assert same(load(f'adapter:{folder / "moved.safetensors"}').leaves(), whole)


def test_adapter_of_a_head_is_the_head_alone(head):
    assert adapter.leaves(head[1]).keys() == {'head/kernel', 'head/bias'}
    assert same(load(f'adapter:{head[1]}').leaves(), leaves_of(head[0]))


def test_adapter_holds_what_was_trained_without_moving_and_what_moved_without_being_trained(resnet, tmp_path):
    """A zero gradient; and a frozen position embedding that was resized, a first convolution of other channels."""
    stem, rules = 'backbone/stem/conv/kernel', (('head/bias', 1.0), ('.*', None))
    trained = changed_run(tmp_path / 'a', resnet, add(stem), rules=rules)
    adapter.write(trained, tmp_path / 'a.safetensors')
    assert adapter.leaves(tmp_path / 'a.safetensors').keys() == {stem, 'head/bias'}
    phases = ((1, (('head/kernel', 1.0), ('.*', None))), (None, rules))
    trained = changed_run(tmp_path / 'b', resnet, add(stem), phases=phases)
    adapter.write(trained, tmp_path / 'b.safetensors')
    assert adapter.leaves(tmp_path / 'b.safetensors').keys() == {stem, 'head/bias', 'head/kernel'}


def test_adapter_tells_zero_from_minus_zero(folder, tmp_path):
    base = changed_run(tmp_path / 'base', weights_run(tmp_path / 'w', RESNET), lambda x: x['head/bias'].fill(0.0))
    trained = changed_run(tmp_path / 'run', base, lambda x: x['head/bias'].fill(-0.0), (('.*kernel', None),))
    with pytest.raises(UserError, match='no rule covers'):
        adapter.write(trained, tmp_path / 'x.safetensors')
    trained = changed_run(tmp_path / 'run2', base, lambda x: x['head/bias'].fill(-0.0), None)
    adapter.write(trained, tmp_path / 'x.safetensors')
    assert adapter.leaves(tmp_path / 'x.safetensors').keys() == {'head/bias'}


def test_adapter_keeps_whether_there_are_several_labels(resnet, tmp_path):
    trained = changed_run(tmp_path / 'run', resnet, add('head/bias'))
    path = tmp_path / 'run' / 'model' / 'model.json'
    path.write_text(json.dumps({**json.loads(path.read_text()), 'multi_label': True}))
    assert main(['convert', trained, f'--to=adapter:{tmp_path / "x.safetensors"}']) == 0
    assert main(['convert', f'adapter:{tmp_path / "x.safetensors"}', f'--to=run:{tmp_path / "back"}']) == 0
    assert run.read(tmp_path / 'back').multi_label


# Its weights.


def test_adapter_is_refused_on_other_weights_and_names_both(head, resnet, tmp_path):
    other = weights_run(tmp_path / 'other', RESNET, seed=1)
    with pytest.raises(UserError) as e:
        load(f'adapter:{head[1]}', base=other)
    assert resnet in str(e.value) and other in str(e.value) and 'its numbers are others' in str(e.value)
    with pytest.raises(UserError, match='is not the same: it has no backbone/stage1'):
        load(f'adapter:{head[1]}', base=weights_run(tmp_path / 'vit', VIT))


def test_adapter_finds_weights_that_moved(head, resnet, tmp_path, capsys):
    """One bit of one frozen leaf makes them others; a leaf that the adapter has itself does not."""
    base = shutil.copytree(resnet, tmp_path / 'base')
    trained = changed_run(tmp_path / 'run', str(base), add('head/bias', 'head/kernel'))
    adapter.write(trained, tmp_path / 'x.safetensors')
    shutil.move(base, tmp_path / 'moved')
    with pytest.raises(UserError, match=r'base.* does not exist; .* config\.load\.base=URI'):
        load(f'adapter:{tmp_path / "x.safetensors"}')
    back = load(f'adapter:{tmp_path / "x.safetensors"}', base=str(tmp_path / 'moved'))
    assert same(back.leaves(), leaves_of(trained))
    assert main(['convert', trained, f'--to=adapter:{tmp_path / "y.safetensors"}']) == 2
    flags = [f'--to=adapter:{tmp_path / "y.safetensors"}', f'--base={tmp_path / "moved"}']
    assert main(['convert', trained, *flags]) == 0
    assert main(['convert', f'adapter:{head[1]}', f'--to=run:{tmp_path / "z"}', f'--base={head[0]}']) == 0  # other head
    flip = lambda leaves: leaves['model/batch_stats/backbone/stem/bn/mean'].view(np.uint8).put(0, 7)
    bit = changed_run(tmp_path / 'bit', resnet, flip)
    with pytest.raises(UserError, match='its numbers are others'):
        load(f'adapter:{head[1]}', base=bit)


def test_adapter_digest_knows_path_shape_numbers_and_tokenizer():
    x = np.arange(6, dtype=np.float32)
    others = [{'b': x}, {'a': x.reshape(2, 3)}, {'a': x[::-1]}, {'a': x, 'b': x[:0]}]
    assert len({adapter.digest(leaves, {}) for leaves in ({'a': x}, *others)}) == 5
    assert adapter.digest({'a': x, 'b': 2 * x}, {}) == adapter.digest({'b': 2 * x, 'a': x}, {})
    assert len({adapter.digest({'a': x}, files) for files in ({}, {'vocab.txt': b'a'}, {'vocab.txt': b'b'})}) == 3


def test_convert_refuses_weights_that_are_not_those_a_run_started_from(resnet, tmp_path):
    base = shutil.copytree(resnet, tmp_path / 'base')
    trained = changed_run(tmp_path / 'run', str(base), add('head/bias'))
    shutil.rmtree(base)
    weights_run(base, RESNET, seed=1)
    with pytest.raises(UserError, match=r'started from .*base with the hash'):
        adapter.write(trained, tmp_path / 'x.safetensors')


@pytest.mark.parametrize(
    'uri, options, message',
    [
        ('adapter:', {}, 'names no file; expected adapter:FILE'),
        ('adapter:{tmp}/none.safetensors', {}, 'none.safetensors: no such file'),
        ('adapter:{head}', {'base': 'adapter:{head}'}, 'is an adapter, and an adapter belongs to whole weights'),
        ('adapter:{head}', {'base': 'x/y'}, r'belongs to .*resnet .*x/y'),
        ('adapter:{head}', {'ignore': ('a',)}, 'is an adapter, which has its own labels'),
        ('{resnet}', {'base': 'x'}, 'config.load.base: .* is no adapter'),
        ('adaptor:{head}', {}, "unknown scheme 'adaptor': did you mean 'adapter'"),
    ],
)
def test_load_refuses(uri, options, message, head, resnet, tmp_path):
    at = {'tmp': tmp_path, 'head': head[1], 'resnet': resnet}
    options = {key: x.format(**at) if isinstance(x, str) else x for key, x in options.items()}
    with pytest.raises(UserError, match=message):
        load(uri.format(**at), **options)


@pytest.mark.parametrize(
    'said, message',
    [
        ({'init': None}, 'started from no weights'),
        ({'load': {'fresh': True}}, 'started from no weights'),
        ({'rules': None}, 'nothing was trained'),
    ],
)
def test_convert_to_adapter_refuses_a_run(said, message, resnet, tmp_path):
    trained = changed_run(tmp_path / 'run', resnet, lambda leaves: None)
    path = tmp_path / 'run' / 'config.json'
    record = json.loads(path.read_text())
    path.write_text(json.dumps({**record, 'config': {**record['config'], **said}}))
    with pytest.raises(UserError, match=message):
        adapter.write(trained, tmp_path / 'x.safetensors')
    assert not (tmp_path / 'x.safetensors').exists()


def test_convert_to_adapter_refuses_other_things(head, resnet, tmp_path, capsys):
    for uri, to, message in (
        (f'adapter:{head[1]}', 'x.safetensors', 'is not the folder of a finished run'),
        (head[0], 'x.pth', 'expected a file NAME.safetensors'),
    ):
        assert main(['convert', uri, f'--to=adapter:{tmp_path / to}']) == 2
        assert message in capsys.readouterr().err


def test_convert_refuses_leaves_of_a_method(resnet, tmp_path):
    trained = changed_run(tmp_path / 'run', resnet, lambda x: x.update({'disc/kernel': np.ones(3, np.float32)}))
    with pytest.raises(UserError, match='disc/kernel: of the method'):
        adapter.write(trained, tmp_path / 'x.safetensors')


# Export.


def test_export_merges_adapters_into_the_weights(lora, tmp_path, capsys):
    weights = load(lora[0])
    plain = merged(weights)
    assert plain.model == VIT and 'lora' not in plain.params
    np.testing.assert_allclose(logits(VIT, plain.leaves()), logits(weights.model, weights.leaves()), rtol=0, atol=1e-5)
    assert merged(plain) is plain
    assert main(['convert', lora[0], f'--to=safetensors:{tmp_path / "x.safetensors"}', '--names=timm']) == 0
    tensors = safetensors.read(tmp_path / 'x.safetensors')
    assert not any('lora' in name for name in tensors)
    before, after = (x.leaves()['backbone/block0/attn/value/kernel'] for x in (weights, plain))
    assert np.abs(before - after).max() > 1e-6
    np.testing.assert_array_equal(tensors['blocks.0.attn.qkv.weight'][32:], after.reshape(16, 16).T)


@pytest.mark.parametrize('adapted', [{'prompts': {}}, {'bottleneck': {'width': 4}}])
def test_convert_refuses_to_merge_what_cannot_be(adapted, tmp_path, capsys):
    trained = weights_run(tmp_path / 'run', {**VIT, **adapted})
    for flags in ([f'--to=safetensors:{tmp_path / "x.safetensors"}'], [f'--to=run:{tmp_path / "x"}', '--merge']):
        assert main(['convert', trained, *flags]) == 2
        assert f'{trained}: cannot be merged: ' in capsys.readouterr().err
    assert main(['convert', trained, f'--to=adapter:{tmp_path / "x.safetensors"}', '--merge']) == 2
    assert '--merge: a run whose adapters are merged' in capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == ['run']


@pytest.mark.parametrize('name', ['mlp', 'cosine'])
def test_export_refuses_heads_that_no_library_has(name, resnet, tmp_path):
    head = {'head': {'name': name}}
    weights = load(weights_run(tmp_path / 'run', {**RESNET, **head}))
    with pytest.raises(UserError, match=f"have no names for a head '{name}'"):
        to_safetensors(weights, tmp_path / 'x.safetensors')


# Damage.


def test_adapter_refuses_adapters_that_are_not_in_the_file(lora, tmp_path):
    for options, message in (({'rank': 3}, None), ({'rank': 10**6}, 'cannot be: .*rank'), (7, 'should be a mapping')):
        uri = rewrite(lora[1], tmp_path / f'{message}.safetensors', lambda x, o=options: x['model'].update(lora=o))
        if message:
            with pytest.raises(UserError, match=message):
                load(uri)
        else:  # seen when it is put into a model
            with pytest.raises(UserError, match=r'lora/.*/a is \(16, 2\) there, \(16, 3\) here'):
                to_run(load(uri), tmp_path / 'run')
    prompts = lambda said: said['model'].update(prompts={'tokens': 10**7})
    with pytest.raises(UserError, match='numbers, the file and its weights'):
        load(rewrite(lora[1], tmp_path / 'p.safetensors', prompts))


def rewrite(path, new, note=None, leaves=None):
    """The file with other parts of its note, and other leaves."""
    said = json.loads(safetensors.notes(path)[adapter.NOTE])
    (note or (lambda said: None))(said)
    tensors = {name: np.array(x) for name, x in safetensors.read(path).items()}
    (leaves or (lambda tensors: None))(tensors)
    safetensors.write(new, tensors, {adapter.NOTE: json.dumps(said)})
    return f'adapter:{new}'


@pytest.mark.parametrize(
    'note, message',
    [
        (lambda x: x.pop('model'), 'missing key jtl_adapter.model'),
        (lambda x: x.update(more=1), 'unknown key jtl_adapter.more'),
        (lambda x: x.update(version=2), 'jtl_adapter.version is 2; this jtl reads 1'),
        (lambda x: x.update(model=[]), r'jtl_adapter.model: \[\] should be dict'),
        (lambda x: x.update(model={}), 'is not as it was written'),
        (lambda x: x.update(classes=[1]), 'jtl_adapter.classes'),
        (lambda x: x.update(classes=['a']), '1 class names, but its head has another number of columns'),
        (lambda x: x.update(preprocess={'size': 'x'}), 'jtl_adapter.preprocess.size'),
        (lambda x: x.update(preprocess={'size': 10**6}), 'is not as it was written: 1000000'),
        (lambda x: x.update(preprocess={'std': [0]}), 'config.preprocess.std'),
        (lambda x: x.update(weights=[]), 'is not as it was written'),
        (lambda x: x.update(weights={}), 'missing key jtl_adapter.weights.uri'),
        (lambda x: x['weights'].update(uri=3), 'jtl_adapter.weights.uri: 3 should be str'),
        (lambda x: x['weights'].update(leaves='0'), 'is not the same: its numbers are others'),
        (lambda x: x['weights'].update(uri='adapter:me'), 'an adapter belongs to whole weights'),
        (lambda x: x['model'].update(name='none'), 'cannot be: unknown model'),
        (lambda x: x['model'].update(name='resnet999998'), '999998 in .*, where nothing has more than 256'),
        (lambda x: x['model'].update(width=10**9), '1000000000 in model'),
        (lambda x: x['model'].update(stages=[10**5]), '100000 in .*, where nothing has more than'),
        (lambda x: x['model'].update(stages=[1] * 300), '300 values in'),
        (lambda x: x['model'].update(width=0), 'cannot be'),
        (lambda x: x['model'].update(stages=[]), 'has no place in'),
        (lambda x: x['model'].update(stages=[1, 1]), 'is not the same: it has no backbone/stage2'),
        (lambda x: x['model'].update(head={'name': 'mlp', 'hidden': [10**7]}), 'numbers, the file and its weights'),
        (lambda x: x['model'].update(deep=json.loads('[' * 600 + ']' * 600)), 'is not as it was written|cannot be'),
    ],
)
def test_adapter_refuses_a_note_that_was_changed(note, message, folder, resnet, tmp_path):
    trained = changed_run(tmp_path / 'run', resnet, add('backbone/stage1/block0/conv1/kernel'), STAGE)
    adapter.write(trained, tmp_path / 'x.safetensors')
    with pytest.raises(UserError, match=message) as e:
        load(rewrite(tmp_path / 'x.safetensors', tmp_path / 'y.safetensors', note))
    assert 'y.safetensors' in str(e.value) and len(str(e.value)) < 3000


@pytest.mark.parametrize(
    'leaves, message',
    [
        (lambda x: x['head/bias'].fill(np.nan), "'head/bias' has numbers that are not finite"),
        (lambda x: x.update({'head/bias': x['head/bias'].astype(np.float16)}), 'is of float16'),
        (lambda x: x.update({'head/bia': x.pop('head/bias')}), 'head/bia has no place|has no place in'),
        (lambda x: x.pop('head/bias'), 'is not the same: its numbers are others'),
        (lambda x: x.update({'head/kernel': np.float32(1)}), 'its head has another number of columns'),
        (lambda x: x.update({'head': np.ones(2, np.float32)}), 'head has no place'),
    ],
)
def test_adapter_refuses_leaves_that_were_changed(leaves, message, head, tmp_path):
    with pytest.raises(UserError, match=message):
        load(rewrite(head[1], tmp_path / 'x.safetensors', leaves=leaves))


def test_adapter_refuses_a_file_of_weights(tmp_path):
    safetensors.write(tmp_path / 'x.safetensors', {'head/bias': np.ones(2, np.float32)})
    with pytest.raises(UserError, match=r'is no adapter, .* write safetensors:'):
        load(f'adapter:{tmp_path / "x.safetensors"}')


def test_adapter_that_is_damaged_is_read_or_refused(head, tmp_path):
    """400 files with some of their bits and bytes changed: a UserError, or whole leaves of the model."""
    rng, data, whole = np.random.default_rng(0), head[1].read_bytes(), load(f'adapter:{head[1]}').leaves()
    notes, read = int.from_bytes(data[:8], 'little'), 0
    for _ in range(400):
        path = tmp_path / 'x.safetensors'
        path.write_bytes(mutate(rng, data, (8, 8 + notes)))
        try:
            leaves = load(f'adapter:{path}').leaves()
        except UserError as e:
            assert len(str(e)) < 5000
            continue
        read += 1
        assert leaves.keys() == whole.keys()
        assert all(x.tobytes() == whole[path].tobytes() for path, x in leaves.items() if not path.startswith('head/'))
    assert 0 < read < 200
