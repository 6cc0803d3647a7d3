"""Batches as pure functions of (seed, step), and `load`, which makes them from a URI."""

import pickle

import numpy as np
import pytest

from jtl.data import load, open_source
from jtl.data.pipeline import Inputs, Memory, PlainBatch, Preprocess, Share, TrainBatch, stream
from jtl.errors import UserError

N = 10
IMAGES = np.random.default_rng(0).integers(0, 256, (40, 8, 8, 3), dtype=np.uint8)
LABELS = (np.arange(40) % 4).astype(np.int32)
INDEX = np.arange(3, 3 + N)  # the examples to train on are not the first of the source
AS_IT_IS = Preprocess(mean=(0.0,), std=(1 / 255,))  # the model sees the pixels' own values
AUGMENT = (('pad_crop', 2), 'flip', ('random_erasing', 0.5))


def get(i):
    return {'image': IMAGES[i]}


def batches(batch_size=4, seed=0, augment=AUGMENT, index=INDEX, preprocess=AS_IT_IS):
    return TrainBatch(Inputs(get, preprocess, augment, seed), LABELS, index, batch_size, seed)


def seen(make, steps):
    """Every example as it was shown: `[(index, picture)]`, in order."""
    return [(int(i), x) for s in range(steps) for i, x in zip(make(s)['index'], make(s)['image'])]


def same(a, b):
    assert a.keys() == b.keys()
    for key in a:
        np.testing.assert_array_equal(a[key], b[key])
        assert a[key].dtype == b[key].dtype


# Training.


def test_train_batch_has_what_the_contract_says():
    batch = batches()(0)
    assert {k: (v.shape, v.dtype) for k, v in batch.items()} == {
        'image': ((4, 8, 8, 3), np.float32),
        'label': ((4,), np.int32),
        'index': ((4,), np.int32),
    }
    np.testing.assert_array_equal(batch['label'], LABELS[batch['index']])


def test_train_batch_is_a_pure_function_of_seed_and_step():
    one, two = batches(), batches()
    forwards = [one(s) for s in range(8)]
    for s in reversed(range(8)):
        same(two(s), forwards[s])
    assert not np.array_equal(batches(seed=1)(0)['index'], forwards[0]['index'])


@pytest.mark.parametrize('batch_size', [1, 4, 7, 23])
def test_train_batch_visits_every_example_once_an_epoch(batch_size):
    # batches run on across epochs, and one may span several
    shown = [i for i, _ in seen(batches(batch_size), -(-30 // batch_size))]
    epochs = [shown[:10], shown[10:20], shown[20:30]]
    assert all(sorted(epoch) == INDEX.tolist() for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]


def test_train_batch_keeps_the_order_that_runs_have_had():
    # resuming an old run needs it: epoch e is the permutation of a Philox generator whose key is (seed, e)
    orders = [np.random.Generator(np.random.Philox(key=np.array([7, e], np.uint64))).permutation(N) for e in (0, 1)]
    for e in (0, 1):
        examples, epochs = batches(N, seed=7).order(e)
        np.testing.assert_array_equal(examples, INDEX[orders[e]])
        assert (epochs == e).all()


def test_augmentation_is_keyed_by_seed_epoch_and_example():
    # 60 examples are 6 epochs, in 15 batches of 4 or 10 of 6: the same ones, shown the same way
    four, six = seen(batches(4), 15), seen(batches(6), 10)
    assert [i for i, _ in four] == [i for i, _ in six]
    for (_, a), (_, b) in zip(four, six):
        np.testing.assert_array_equal(a, b)
    views = {}
    for i, x in four:
        views.setdefault(i, set()).add(x.tobytes())
    assert all(len(v) >= 5 for v in views.values())  # of 6 epochs; two of the 25 · 2 views may well be alike
    other = dict(seen(batches(4, seed=1), 3)[:10])
    assert sum(np.array_equal(x, other[i]) for i, x in four[:10]) <= 2  # and so may two of other seeds


def test_augmentation_does_not_depend_on_the_other_examples():
    inputs = Inputs(get, AS_IT_IS, AUGMENT)
    alone, among = (inputs(np.array(index), np.full(len(index), 2))['image'] for index in ([4], [7, 3, 4]))
    assert np.array_equal(alone[0], among[2])


def test_augmentation_leaves_the_source_alone():
    before = IMAGES.copy()
    seen(batches(), 10)
    np.testing.assert_array_equal(IMAGES, before)


def test_train_batch_without_augmentation_is_the_picture():
    for i, x in seen(batches(augment=()), 3):
        np.testing.assert_allclose(x, IMAGES[i], atol=1e-4)  # x · (1/255) / (1/255) in float32


def test_train_batch_crops_from_the_whole_picture():
    # from 8×8 pixels to 4×4: pad_crop sees what is resized, random_resized_crop the picture itself
    small = Preprocess(size=4, mean=(0.0,), std=(1 / 255,))
    wide = np.zeros((40, 8, 16, 3), np.uint8)
    wide[:, :, :4] = wide[:, :, 12:] = 255  # white margins, which fit's centre crop leaves out but for bicubic's 7 %
    shown = lambda op: Inputs(lambda i: {'image': wide[i]}, small, (op,))(INDEX, np.zeros(N))['image']
    assert shown(('pad_crop', 0)).max() < 0.1 * 255
    assert shown(('random_resized_crop', (0.2, 0.3))).max() > 0.8 * 255


def test_train_batch_of_features():
    features = np.arange(80, dtype=np.float32).reshape(40, 2)
    batch = TrainBatch(Inputs(lambda i: {'features': features[i]}, AS_IT_IS), LABELS, INDEX, 4, 0)(1)
    np.testing.assert_array_equal(batch['features'], features[batch['index']])
    assert set(batch) == {'features', 'label', 'index'}


# Evaluation.


def test_plain_batch_pads_the_last_one_to_a_power_of_two_with_mask_0():
    make = PlainBatch(Inputs(get, AS_IT_IS), LABELS, INDEX, 7)
    assert len(make) == 2  # 10 examples: 7, then 3 and a row of padding
    parts = [make(k) for k in range(2)]
    assert [p['mask'].tolist() for p in parts] == [[1] * 7, [1, 1, 1, 0]]
    assert [p['image'].shape for p in parts] == [(7, 8, 8, 3), (4, 8, 8, 3)]
    real = np.concatenate([p['index'][p['mask'] > 0] for p in parts])
    np.testing.assert_array_equal(real, INDEX)
    assert parts[1]['index'].tolist() == [10, 11, 12, 12]  # padding repeats the last example, so its labels are valid
    np.testing.assert_array_equal(parts[1]['label'], LABELS[[10, 11, 12, 12]])


def test_plain_batch_is_never_larger_than_asked_for():
    make = PlainBatch(Inputs(get, AS_IT_IS), LABELS, INDEX, 6)  # 6, then 4 of what would be up to 6
    assert [len(make(k)['mask']) for k in range(2)] == [6, 4]
    assert len(PlainBatch(Inputs(get, AS_IT_IS), LABELS, INDEX[:5], 6)(0)['mask']) == 6  # not 8


def test_plain_batch_of_a_size_that_fits_has_no_padding():
    make = PlainBatch(Inputs(get, AS_IT_IS), LABELS, INDEX, 5)
    assert len(make) == 2 and make(1)['mask'].tolist() == [1] * 5


# Preprocessing.


def test_normalise_by_hand():
    image = np.array([[[0, 51, 255]]], np.uint8)  # [1, 1, 3]: 0, 0.2 and 1
    x = Preprocess(mean=(0.5, 0.1, 0.0), std=(0.5, 0.25, 2.0)).normalise([image, image])
    # (0 - 0.5)/0.5 = -1, (0.2 - 0.1)/0.25 = 0.4, (1 - 0)/2 = 0.5; float32
    np.testing.assert_allclose(x, np.broadcast_to([-1, 0.4, 0.5], (2, 1, 1, 3)), rtol=1e-5)
    assert x.dtype == np.float32
    x = Preprocess(mean=(0.5,), std=(0.25,)).normalise([image])
    np.testing.assert_allclose(x[0, 0, 0], [-2, -1.2, 2], rtol=1e-5)


def test_normalise_refuses_several_sizes():
    with pytest.raises(UserError, match=r'\(7, 8, 3\), \(8, 8, 3\)\): give config\.preprocess\.size'):
        Preprocess().normalise([IMAGES[0], IMAGES[0][:7]])


def test_preprocess_fit_resizes_and_converts():
    assert Preprocess(size=4, channels=1).fit(IMAGES[0]).shape == (4, 4, 1)
    assert Preprocess(channels=3).fit(IMAGES[0][:, :, :1]).shape == (8, 8, 3)
    np.testing.assert_array_equal(Preprocess().fit(IMAGES[0]), IMAGES[0])


@pytest.mark.parametrize(
    'field',
    [{'size': 0}, {'std': (1.0, 0.0, 1.0)}, {'interpolation': 'cubic'}, {'crop': 0.0}, {'crop': 1.1}, {'channels': 2}],
)
def test_preprocess_refuses(field):
    with pytest.raises(UserError, match=rf'config\.preprocess\.{next(iter(field))}: .* should be '):
        Preprocess(**field)


# Streams.


@pytest.mark.parametrize('threads', [0, 2])
def test_stream_gives_the_batches_in_order(threads):
    make = batches()
    found = list(stream(make, 3, 9, threads, workers=0))
    assert len(found) == 6
    for s, batch in enumerate(found, 3):
        same(batch, make(s))


def test_stream_gives_the_same_batches_from_processes():
    make = batches()
    found = list(stream(make, 3, 7, threads=1, workers=2))
    assert len(found) == 4
    for s, batch in enumerate(found, 3):
        same(batch, make(s))


def test_stream_of_nothing_is_empty():
    assert list(stream(batches(), 5, 5, 0, 0)) == []


def test_stream_passes_errors_on():
    def broken(s):
        raise UserError(f'cannot decode picture {s}')

    for threads in (0, 2):
        with pytest.raises(UserError, match='cannot decode picture 0'):
            list(stream(broken, 0, 2, threads, 0))


# Memory.


def test_memory_remembers_up_to_its_budget():
    calls = []

    def decode(i):
        calls.append(i)
        return {'image': IMAGES[i]}  # 8 · 8 · 3 = 192 bytes

    memory = Memory(decode, budget=400)  # two of them
    for i in (0, 1, 2, 0, 1, 2):
        np.testing.assert_array_equal(memory(i)['image'], IMAGES[i])
    assert calls == [0, 1, 2, 2] and memory.used == 384


def test_memory_travels_empty():
    memory = Memory(get, 1000)
    memory(0)
    again = pickle.loads(pickle.dumps(memory))
    assert (again.examples, again.used, again.budget) == ({}, 0, 1000)
    np.testing.assert_array_equal(again(0)['image'], IMAGES[0])


# load


def npz(path, count=40, **more):
    np.savez(path, x=IMAGES[:count], y=LABELS[:count], **more)
    return f'npz:{path}'


def opened(uri, **options):
    return load(uri, **{'preprocess': AS_IT_IS, 'batch_size': 4, 'seed': 0, **options})


def test_load_makes_splits_and_batches(tmp_path):
    data = opened(npz(tmp_path / 'a.npz'), eval_batch_size=3)
    # of 10 a class: test round(1.5) = 2, of the 8 left val round(0.8) = 1
    assert data.sizes == {'train': 28, 'val': 4, 'test': 8} and data.classes == ('0', '1', '2', '3')
    assert data.preprocess.size == 8 and data.preprocess.channels == 3
    assert len(list(data.train(2, 5))) == 3
    plain = list(data.plain('val'))
    assert [b['mask'].sum() for b in plain] == [3, 1]
    index = int(plain[0]['index'][0])
    np.testing.assert_array_equal(data.picture('val', index), IMAGES[index])
    assert data.majority == dict.fromkeys(('train', 'val', 'test'), 0.25)


def test_load_fingerprint_changes_with_data_and_division(tmp_path):
    uri = npz(tmp_path / 'a.npz')
    one = opened(uri).fingerprint
    assert opened(uri, batch_size=8, augment=('flip',)).fingerprint == one  # neither is data
    assert opened(uri, split_seed=1).fingerprint != one
    assert opened(uri, labels_per_class=2).fingerprint != one
    changed = IMAGES.copy()
    changed[5, 0, 0, 0] ^= 1
    np.savez(tmp_path / 'b.npz', x=changed, y=LABELS)
    assert opened(f'npz:{tmp_path}/b.npz').fingerprint != one
    np.savez(tmp_path / 'c.npz', x=IMAGES, y=LABELS, classes=['a', 'b', 'c', 'd'])
    assert opened(f'npz:{tmp_path}/c.npz').fingerprint != one


def test_load_does_not_depend_on_what_fits_in_memory(tmp_path):
    uri = npz(tmp_path / 'a.npz')
    roomy, tight = opened(uri, augment=AUGMENT), opened(uri, augment=AUGMENT, cache_mb=0)
    assert roomy.fingerprint == tight.fingerprint
    for a, b in zip(roomy.train(0, 4), tight.train(0, 4), strict=True):
        same(a, b)


def test_load_opens_a_file_once_and_again_when_it_changed(tmp_path):
    uri = npz(tmp_path / 'a.npz')
    opened(uri)
    hits = open_source.cache_info().hits
    opened(uri, seed=5)
    assert open_source.cache_info().hits == hits + 1
    np.savez(tmp_path / 'a.npz', x=IMAGES[:20], y=LABELS[:20])
    assert sum(opened(uri).sizes.values()) == 20


@pytest.mark.parametrize(
    'options, message',
    [
        ({'eval_batch_size': 0}, r'config\.data\.eval_batch_size: 0 should be at least 1'),
        ({'workers': -1}, r'config\.data\.workers: -1 should be at least 0'),
        ({'cache_mb': -1}, r'config\.data\.cache_mb: -1'),
        ({'augment': ('flip', 'turn')}, r"unknown image operation 'turn'"),
        ({'preprocess': Preprocess(mean=(0.0, 0.0))}, r'config\.preprocess\.mean: \(0\.0, 0\.0\) should have 1 or 3'),
    ],
)
def test_load_refuses(options, message, tmp_path):
    with pytest.raises(UserError, match=message):
        opened(npz(tmp_path / 'a.npz'), **options)


def test_load_refuses_to_augment_features(tmp_path):
    np.savez(tmp_path / 'f.npz', x=np.zeros((8, 3)), y=np.arange(8) % 2)
    with pytest.raises(UserError, match='holds features, not pictures'):
        opened(f'npz:{tmp_path}/f.npz', augment=('flip',))


# Balanced batches.

UNEQUAL = tuple(np.arange(k, 40, 4)[:n] for k, n in enumerate((7, 2, 5)))  # 14 examples of 3 classes


def in_turn(batch_size=4, seed=0, augment=(), **options):
    inputs, index = Inputs(get, AS_IT_IS, augment, seed), np.concatenate(UNEQUAL)
    return TrainBatch(inputs, LABELS, index, batch_size, seed, classes=UNEQUAL, **options)


def used(make, steps):
    """`[(example, epoch)]`, in order."""
    return [(int(i), int(e)) for s in range(steps) for i, e in zip(*make.order(s))]


@pytest.mark.parametrize('batch_size', [1, 4, 7])
def test_balanced_batches_have_every_class_equally_often(batch_size):
    classes = [LABELS[i] for i, _ in used(in_turn(batch_size), -(-42 // batch_size))][:42]
    rounds = [classes[i : i + 3] for i in range(0, 42, 3)]
    assert all(sorted(one) == [0, 1, 2] for one in rounds)
    assert len({tuple(one) for one in rounds}) > 3  # of 6 orders, in 14 rounds


def test_balanced_batches_use_a_class_up_before_they_repeat():
    found = used(in_turn(), 21)  # 84 examples: 28 of each class, so 4 epochs of 7, 14 of 2, and 28 = 5 · 5 + 3
    for members, epochs in zip(UNEQUAL, (4, 14, 5)):
        mine = [(i, e) for i, e in found if i in members]
        assert len(mine) == 28
        for epoch in range(epochs):
            part = mine[epoch * len(members) : (epoch + 1) * len(members)]
            assert [e for _, e in part] == [epoch] * len(members)
            assert sorted(i for i, _ in part) == members.tolist()
    first, second = ([i for i, e in found if i in UNEQUAL[0] and e == epoch] for epoch in (0, 1))
    assert first != second and first != UNEQUAL[0].tolist()


def test_balanced_batches_are_a_pure_function_of_seed_and_step():
    forwards = [in_turn()(s) for s in range(8)]
    make = in_turn()
    for s in reversed(range(8)):
        same(make(s), forwards[s])
    assert used(in_turn(6), 14) == used(in_turn(4), 21)  # and not of the batch size
    assert used(in_turn(seed=1), 8) != used(in_turn(), 8)


def test_balanced_batches_are_shared_among_processes():
    halves = [in_turn(share=Share(part, 2)).order(3) for part in range(2)]
    for whole, *parts in zip(in_turn().order(3), *halves):
        np.testing.assert_array_equal(whole, np.concatenate(parts))


def test_balanced_batches_augment_each_use_anew():
    views = {}
    for i, x in seen(in_turn(augment=AUGMENT), 21):
        views.setdefault(i, set()).add(x.tobytes())
    assert all(len(views[int(i)]) >= 10 for i in UNEQUAL[1])  # of 14 uses, of 25 · 2 views and more
    inputs = Inputs(get, AS_IT_IS, AUGMENT)
    index, epoch = in_turn().order(20)
    np.testing.assert_array_equal(in_turn(augment=AUGMENT)(20)['image'], inputs(index, epoch)['image'])


def test_load_samples_classes_equally(tmp_path):
    uneven = np.repeat(np.arange(3), (28, 8, 4))
    np.savez(tmp_path / 'a.npz', x=IMAGES, y=uneven)
    data = opened(f'npz:{tmp_path}/a.npz', sampling='balanced', batch_size=6)
    labels = np.concatenate([b['label'] for b in data.train(0, 10)])
    assert np.bincount(labels).tolist() == [20, 20, 20]
    _, train = data.parts['train']
    shown = np.concatenate([data.order(s)[0] for s in range(10)])
    assert set(shown) <= set(train) and set(train[uneven[train] == 2]) <= set(shown)
    plain = opened(f'npz:{tmp_path}/a.npz', batch_size=6)
    assert plain.fingerprint == data.fingerprint  # the same examples, shown otherwise
    assert np.bincount(np.concatenate([b['label'] for b in plain.train(0, 4)])).tolist() != [8, 8, 8]


def test_load_leaves_out_classes_without_training_examples(tmp_path):
    labels = np.array([0, 2] * 10)
    np.savez(tmp_path / 'a.npz', x=IMAGES[:20], y=labels, classes=['a', 'b', 'c'])
    data = opened(f'npz:{tmp_path}/a.npz', sampling='balanced')
    assert data.classes == ('a', 'b', 'c')
    assert np.bincount(next(data.train(0, 1))['label'], minlength=3).tolist() == [2, 0, 2]


@pytest.mark.parametrize(
    'labels, sampling, message',
    [
        (LABELS, 'balance', r"config\.data\.sampling: 'balance' is unknown; did you mean 'balanced'"),
        (np.eye(4, dtype=np.float32)[LABELS], 'balanced', r'config\.data\.sampling: .* several labels each'),
    ],
)
def test_load_refuses_sampling(labels, sampling, message, tmp_path):
    np.savez(tmp_path / 'a.npz', x=IMAGES, y=labels)
    with pytest.raises(UserError, match=message):
        opened(f'npz:{tmp_path}/a.npz', sampling=sampling)


@pytest.mark.parametrize(
    'options',
    [
        {'augment': AUGMENT},
        {'sampling': 'balanced'},
        {'batch_size': 7, 'eval_batch_size': 2},
        {'preprocess': Preprocess(size=4, channels=1)},
        {'threads': 2, 'cache_mb': 0},
    ],
    ids=lambda options: next(iter(options)),
)
def test_few_labels_are_the_same_however_they_are_shown(options, tmp_path):
    uri = npz(tmp_path / 'a.npz')
    one, other = opened(uri, labels_per_class=2, seed=3), opened(uri, labels_per_class=2, seed=3, **options)
    assert one.sizes == {'train': 8, 'val': 4, 'test': 8} and one.parts.keys() == other.parts.keys()
    for name, (where, index) in one.parts.items():
        assert other.parts[name][0] == where
        np.testing.assert_array_equal(other.parts[name][1], index)
