"""Keras files of every generation: the names that their tensors get, and what is refused by name."""

import json
import re
import tracemalloc
import zipfile

import keras_files
import ml_dtypes
import numpy as np
import pytest

from jtl.errors import UserError
from jtl.pretrained.formats import keras


def reading(tmp_path, data, name='x.h5'):
    (tmp_path / name).write_bytes(data)
    return keras.read(tmp_path / name)


def same(found, expected=keras_files.WEIGHTS):
    assert found.keys() == expected.keys()
    for name, x in expected.items():
        assert found[name].shape == x.shape and found[name].dtype == x.dtype and found[name].dtype.isnative
        np.testing.assert_array_equal(found[name], x)


def test_h5_of_keras_3(tmp_path):
    same(reading(tmp_path, keras_files.whole('keras3')))


def test_h5_of_keras_3_0_says_no_names_within_a_model(tmp_path):
    inner = {'inner/fancy/kernel': 'inner/kernel', 'inner/fancy/bias': 'inner/bias'}  # 3.0 wrote only `kernel`
    expected = {inner.get(name, name): x for name, x in keras_files.WEIGHTS.items()}
    same(reading(tmp_path, keras_files.whole('keras3_0')), expected)


def test_h5_of_keras_2(tmp_path):
    def a(*shape):
        return np.arange(np.prod(shape), dtype=np.float32).reshape(shape)

    expected = {
        'first/kernel': a(3, 3, 2, 3),
        'first_bn/gamma': a(3),  # said as first_bn/first_bn_1/gamma:0
        'first_bn/moving_mean': a(3) + 100,
        'inner/dense/kernel': a(3, 2),
        'inner/dense/bias': a(2),  # big-endian there
        'packed/kernel': a(7, 10),  # in 4×4 chunks, shuffled, deflated, with checksums
    }
    same(reading(tmp_path, keras_files.whole('keras2')), expected)


@pytest.mark.parametrize('version', ['keras3', 'keras3_0'])
def test_keras_archive_takes_names_from_its_config(tmp_path, version):
    same(reading(tmp_path, keras_files.archive(version), 'x.keras'))


def test_keras_archive_may_be_deflated(tmp_path):
    with zipfile.ZipFile(tmp_path / 'x.keras', 'w', zipfile.ZIP_DEFLATED) as archive:
        archive.writestr('config.json', keras_files.whole('keras3.config'))
        archive.writestr('model.weights.h5', keras_files.whole('keras3.weights'))
    same(keras.read(tmp_path / 'x.keras'))


def test_weights_h5_takes_names_from_the_file_and_classes_from_its_groups(tmp_path):
    found = reading(tmp_path, keras_files.whole('windows'), 'x.weights.h5')  # layers\batch_normalization\vars, named bn
    names = ('gamma', 'beta', 'moving_mean', 'moving_variance')
    same(found, {f'bn/{name}': np.full(2, i, np.float32) for i, name in enumerate(names)})


def test_weights_h5_without_names_is_refused(tmp_path):
    message = r'x\.weights\.h5 does not say which layer is which .* since Keras 3\.6.*model\.save\(\"model\.keras\"\)'
    with pytest.raises(UserError, match=message):
        reading(tmp_path, keras_files.whole('keras3_0.weights'), 'x.weights.h5')


def test_weights_h5_with_half_a_normalisation_is_refused(tmp_path):
    with pytest.raises(
        UserError, match="'first_bn' is a batch_normalization with 3 variables, so that it has no gamma or"
    ):
        reading(tmp_path, keras_files.whole('keras3.weights'), 'x.weights.h5')


@pytest.mark.parametrize(
    'scale, center, names', [(False, True, ['beta']), (True, False, ['gamma']), (True, True, ['gamma', 'beta'])]
)
def test_variables_follow_the_options_of_a_normalisation(scale, center, names):
    layer = keras.Layer('bn', 'batch_normalization', {'scale': scale, 'center': center})
    names = (*names, 'moving_mean', 'moving_variance')
    assert keras._variables('x', 'bn', 'layers/batch_normalization', layer, len(names)) == names
    with pytest.raises(UserError, match=rf"x: 'bn' is a batch_normalization with 7 variables, expected {names[0]}, "):
        keras._variables('x', 'bn', 'layers/batch_normalization', layer, 7)


@pytest.mark.parametrize(
    'layer, weight, name',
    [
        ('conv1', 'conv1/kernel:0', 'conv1/kernel'),
        ('conv1', 'conv1_2/kernel:0', 'conv1/kernel'),
        ('conv1', 'kernel', 'conv1/kernel'),
        ('conv1', 'tower/conv1/kernel:0', 'conv1/kernel'),
        ('conv1', 'conv1_bn/gamma:0', 'conv1/conv1_bn/gamma'),
        ('mobilenet_1.00_224', 'conv1/kernel:0', 'mobilenet_1.00_224/conv1/kernel'),
        ('mobilenet_1.00_224', 'mobilenet_1.00_224/conv1/kernel', 'mobilenet_1.00_224/conv1/kernel'),
        ('dw', 'dw/kernel', 'dw/depthwise_kernel'),
        ('net', 'net/dw/kernel', 'net/dw/depthwise_kernel'),
        ('', 'temperature:0', 'temperature'),
    ],
)
def test_names_say_the_layer_once(layer, weight, name):
    kinds = {'dw': 'depthwise_conv2d', 'net/dw': 'depthwise_conv2d', 'conv1': 'conv2d'}
    assert keras._plain(layer, weight, kinds) == name


@pytest.mark.parametrize(
    'name, found',
    [
        ('bf16', {'a/kernel': np.array([1, -2.5, 0.1], ml_dtypes.bfloat16)}),
        ('continued', {'a/kernel': np.ones(2, np.float32), 'b/bias': np.zeros(1, np.float32)}),
        ('latest', {'a/kernel': np.arange(6, dtype=np.float32).reshape(2, 3)}),
    ],
)
def test_h5_of_other_kinds(tmp_path, name, found):
    same(reading(tmp_path, keras_files.whole(name)), found)


@pytest.mark.parametrize(
    'name, message',
    [
        ('external', "'kernel:0' in 'a' is a link into another file, which is never opened"),
        ('soft', "'kernel:0' in 'a' is a soft link, which is not followed"),
        ('storage', "the numbers of 'a/kernel:0' are in another file (external storage), which is never opened"),
        ('chunks', "'a/kernel:0' would take 1,099,511,627,776 bytes, which is out of proportion to the file of 2,624"),
        ('late', "'a/kernel:0' would take 1,099,511,627,776 bytes, which is out of proportion to the file of 2,624"),
        ('bomb', "'a/kernel:0' would take 4,194,304 bytes, which is out of proportion to the file of 8,806"),
        ('lzf', "'a/kernel:0' is compressed by lzf"),
        ('loop', 'is damaged (HDF5: groups more than 30 deep)'),
        ('dense', 'the group \'a\' keeps its links in a "dense" heap'),
        ('latest_chunks', "'a/kernel:0' is stored in a way that is not read"),
        ('compound', "'a/kernel:0' is not made of numbers"),
        ('text', "'a/kernel:0' is not made of numbers"),
        (
            'other',
            'is HDF5, but not of Keras: it has neither `layer_names` nor `layers/…/vars`. It holds results/accuracy.',
        ),
    ],
)
def test_h5_refuses(tmp_path, name, message):
    tracemalloc.start()
    with pytest.raises(UserError, match=rf'x\.h5.*{re.escape(message)}'):
        reading(tmp_path, keras_files.whole(name))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**21


def test_h5_gives_up_on_a_group_that_can_be_reached_in_too_many_ways(tmp_path):
    with pytest.raises(UserError, match=r'damaged \(HDF5: its structures point at one another in circles'):
        reading(tmp_path, keras_files.whole('ladder'))  # 25 groups, each with two links to the next: 2²⁵ paths


def test_h5_refuses_a_truncated_file(tmp_path):
    whole = keras_files.whole('keras2')
    for end in range(8, len(whole) - 1, 997):
        with pytest.raises(UserError, match='damaged .*(truncated|asked for)'):
            reading(tmp_path, whole[:end])


def test_keras_refuses_other_files(tmp_path):
    (tmp_path / 'folder.keras').mkdir()
    (tmp_path / 'lfs.h5').write_bytes(b'version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n')
    np.savez(tmp_path / 'x.npz', x=np.ones(2))
    (tmp_path / 'page.h5').write_bytes(b'<!DOCTYPE html><html>404</html>')
    for name, message in {
        'none.h5': 'none.h5.*no such file',
        'folder.keras': 'folder.keras.*a directory',
        'lfs.h5': 'lfs.h5 is no Keras file .*Git LFS pointer',
        'page.h5': 'page.h5 is no Keras file .*a web page',
        'x.npz': r'x\.npz is a zip archive, but no \.keras model: .* it holds x\.npy.*npz:PATH',
    }.items():
        with pytest.raises(UserError, match=message):
            keras.read(tmp_path / name)


def config(layers):
    return json.dumps({'class_name': 'Functional', 'config': {'layers': layers}}).encode()


@pytest.mark.parametrize(
    'text, message',
    [
        (b'{"a": ', 'config.json is not JSON'),
        (b'[' * 100_000, 'config.json is not JSON'),
        (b'[1]', 'config.json holds a list, expected an object'),
        (
            config([1, None, {'config': 3}, {'class_name': 7, 'config': {'name': []}}]),
            'does not say which layer is which',
        ),
    ],
)
def test_keras_archive_refuses_a_config_that_is_none(tmp_path, text, message):
    with pytest.raises(UserError, match=rf'x\.keras.*{message}'):
        reading(tmp_path, keras_files.archive('keras3_0', **{'config.json': text}), 'x.keras')


def test_keras_archive_refuses_two_layers_of_one_name(tmp_path):
    layers = json.loads(keras_files.whole('keras3_0.config'))
    for layer in layers['config']['layers']:
        layer['config']['name'] = 'twin'
    with pytest.raises(UserError, match="has two tensors called 'twin/"):
        data = keras_files.archive('keras3_0', **{'config.json': json.dumps(layers).encode()})
        reading(tmp_path, data, 'x.keras')
