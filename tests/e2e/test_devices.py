"""One device or eight: the same training, the same evaluation, and a run goes on from one to the other.

Measured in two processes with eight simulated devices each (`devices.py`), since JAX counts its devices only once.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from jtl import data

# The largest difference from one device. In float32, after one step: a sum of 8 parts is rounded otherwise, by 1e-7 of
# numbers below 1 (measured: parameters 6e-8, slots 4e-7). In float64, after 20: by 1e-16, but AdamW divides by 1e-8
# where a gradient is zero but for rounding, and moves by 1e-2 of that (measured: SGD 1e-15, AdamW 3e-12).
FLOAT32, FLOAT64 = 1e-6, 1e-9
ANOTHER = 100 * FLOAT32  # what is really computed otherwise differs by at least this


@pytest.fixture(scope='module')
def measured(tmp_path_factory):
    """What `devices.py` measures, in float32 and in float64, at the same time."""
    paths = [str(Path(__file__).parents[1]), *filter(None, [os.environ.get('PYTHONPATH')])]
    env = {**os.environ, 'PYTHONPATH': os.pathsep.join(paths), 'JAX_PLATFORMS': 'cpu'}
    command = [sys.executable, str(Path(__file__).parent / 'devices.py')]
    folders = {precision: tmp_path_factory.mktemp(precision) for precision in ('float32', 'float64')}
    started = {}
    try:
        for precision, folder in folders.items():
            with (folder / 'said.txt').open('w') as said:
                args = [*command, precision, str(folder)]
                started[precision] = subprocess.Popen(args, env=env, stdout=said, stderr=subprocess.STDOUT)
        for precision, process in started.items():
            assert process.wait(timeout=600) == 0, (folders[precision] / 'said.txt').read_text()
    finally:
        for process in started.values():
            process.kill()
            process.wait()
    return {precision: json.loads((folder / 'result.json').read_text()) for precision, folder in folders.items()}


@pytest.mark.parametrize('precision, bound', [('float32', FLOAT32), ('float64', FLOAT64)])
def test_steps_on_8_devices_are_those_of_one(measured, precision, bound):
    """One step in float32, 20 in float64: parameters, batch statistics, optimiser slots, averages."""
    cases = measured[precision]['steps']
    assert len(cases) == {'float32': 6, 'float64': 4}[precision]
    for case, found in cases.items():
        model, options, _ = case.split(', ')
        parts = {'params', 'opt_state', *['state'] * (model == 'resnet'), *['ema'] * (options == 'everything')}
        assert parts <= found['apart'].keys(), case
        assert all(difference <= bound for difference in found['apart'].values()), case


@pytest.mark.parametrize('precision', ['float32', 'float64'])
def test_after_steps_every_array_is_where_it_was_put(measured, precision):
    for case, found in measured[precision]['steps'].items():
        assert found['moved'] == [], case
        if case.endswith('fsdp'):
            assert found['part'] <= 1 / 6, case  # so that the comparison above was of something
        else:
            assert found['part'] == 1, case


def test_batch_norm_sees_the_whole_batch(measured):
    """Were each device to take the statistics of its own rows, the comparison would show it; without BatchNorm, not."""
    alone = measured['float32']['parts alone']
    assert alone['resnet']['params'] >= ANOTHER and alone['resnet']['state'] >= ANOTHER
    assert alone['vit']['params'] <= FLOAT32


@pytest.mark.parametrize('model', ['resnet', 'vit'])
def test_rows_on_another_device_are_another_step(measured, model):
    """The comparison above would show rows in another order: each has random masks and a partner of its own."""
    moved = measured['float64']['rows moved'][model]
    assert min(moved[part] for part in ('params', 'opt_state', 'ema')) >= ANOTHER


def test_evaluation_is_exact_on_any_number_of_devices(measured):
    """100 and 797 examples in batches of 61 and 30 on 8 devices, against one batch of them all on one."""
    found = measured['float32']['evaluations']
    assert sorted((case['split'], case['examples']) for case in found) == [('test', 797)] * 2 + [('val', 100)] * 2
    for case in found:
        assert set(case['differ']) <= {'logits', 'loss', 'ece'}  # not accuracy, confusion, support, label, index, …
        assert case['logits'] <= FLOAT32 and case['loss'] <= FLOAT32


def test_fsdp_of_vit_s16_holds_an_eighth_on_each_device(measured):
    found = measured['float32']['bytes']
    assert found['numbers'] == 21_669_514  # 21,665,664 of ViT-S/16 at 224 px without its head, 3,850 for 10 classes
    assert 3 * 4 * found['numbers'] <= found['whole'] <= 3 * 4 * found['numbers'] + 64  # and the slots' counts
    assert found['whole'] / 8 <= found['held'] <= found['whole'] / 6


BEGUN_ENDED = [
    ({'devices': 8}, {'devices': 2}),
    ({'devices': 8}, {'devices': 4}),
    ({'devices': 8}, {'devices': 1}),
    ({'devices': 1}, {'devices': 8}),
    ({'devices': 1}, {'rules': 'fsdp'}),
    ({'rules': 'fsdp'}, {'devices': 1}),
]


@pytest.mark.parametrize('begun, ended', BEGUN_ENDED)
def test_a_run_goes_on_with_other_devices(measured, begun, ended):
    """Stopped after 4 of 8 steps; the end is that of a run on one device that was not stopped."""
    found = measured['float64']['runs resumed'][f'{begun} -> {ended}']
    assert found['stopped'].startswith('stopped after step 4 of 8, saved')
    devices = ended.get('devices', 8)
    assert 'going on from step 4 of 8.' in found['said']
    assert (f'\n{devices} devices, ' in found['said']) == (devices > 1)
    assert {'params', 'state', 'opt_state', 'ema', 'loop'} == found['apart'].keys()
    assert all(difference <= FLOAT64 for difference in found['apart'].values())
    train, val = [[step, 'train'] for step in (2, 4, 6, 8)], [[step, 'val'] for step in (3, 6, 8)]
    assert sorted(found['rows']) == sorted(train + val) and found['same rows']
    assert found['metrics'] <= FLOAT32  # of logits, which evaluations take in float32
    assert found['logits'] <= FLOAT32
    assert found['same best'] and found['same index']


# Batches do not depend on devices or processes; these need no device.


@pytest.fixture(scope='module')
def digits():
    """Pictures with random views, in batches of 12; 40 to train on, 10 for validation."""
    options = {'labels_per_class': 4, 'val': 0.2, 'augment': (('pad_crop', 1), 'flip'), 'threads': 0}
    return data.load('digits', preprocess=data.Preprocess(), batch_size=12, seed=3, **options)


def joined(shares):
    """Iterators of batches, by process -> a list of the whole batches."""
    return [{k: np.concatenate([part[k] for part in parts]) for k in parts[0]} for parts in zip(*shares, strict=True)]


def equal(a, b):
    return len(a) == len(b) and all(
        x.keys() == y.keys() and all(x[k].dtype == y[k].dtype and np.array_equal(x[k], y[k]) for k in x)
        for x, y in zip(a, b)
    )


@pytest.mark.parametrize('processes', [2, 3, 4])
def test_training_batches_are_the_same_bits_in_any_number_of_processes(digits, processes):
    whole = list(digits.train(0, 8))  # 96 examples of 40: across epochs
    shares = [digits.train(0, 8, data.Share(i, processes, 2 * processes)) for i in range(processes)]
    assert equal(joined(shares), whole)
    assert equal(list(digits.train(0, 8, data.Share(0, 1, 12))), whole)  # and on any number of devices
    first, second = whole[0]['image'][: 12 // processes], whole[0]['image'][12 // processes : 2 * (12 // processes)]
    assert not np.array_equal(first, second)  # two shares in the other order would show


@pytest.mark.parametrize('split', ['train', 'val', 'test'])
@pytest.mark.parametrize('processes', [2, 3, 4])
def test_plain_batches_are_the_same_bits_in_any_number_of_processes(digits, split, processes):
    shares = [digits.plain(split, data.Share(i, processes, 2 * processes)) for i in range(processes)]
    found, whole = joined(shares), list(digits.plain(split))
    for batch in found:
        assert len(batch['mask']) % (2 * processes) == 0
    real = [[{k: v[batch['mask'] > 0] for k, v in batch.items()} for batch in batches] for batches in (found, whole)]
    assert equal(*real)
    assert sum(batch['mask'].sum() for batch in found) == digits.sizes[split]
    assert equal(found, list(digits.plain(split, data.Share(0, 1, 2 * processes))))  # padding as on one process
