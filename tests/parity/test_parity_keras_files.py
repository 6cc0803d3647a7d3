"""Keras files as Keras itself writes them, against the weights of the model that was saved."""

import os
from pathlib import Path

os.environ.setdefault('KERAS_BACKEND', 'jax')  # no TensorFlow; read when Keras is imported

import numpy as np  # noqa: E402
import pytest  # noqa: E402

keras = pytest.importorskip('keras')
h5py = pytest.importorskip('h5py')

from jtl.errors import UserError  # noqa: E402
from jtl.pretrained.formats import keras as files  # noqa: E402
from jtl.pretrained.formats import npz  # noqa: E402

PUBLISHED = Path(__file__).resolve().parents[2].parent / 'shared/weights/mobilenet_v1_0.75_224_imagenet/weights.npz'


def perturbed(model, seed=0):
    """The model with every variable at random, so that no two could be confused."""
    rng = np.random.default_rng(seed)
    for variable in model.weights:
        variable.assign(rng.uniform(0.5, 1.5, variable.shape).astype(np.float32))
    return model


def named(model, prefix=''):
    """The model's variables by the names that Keras 2 gave them."""
    found = {}
    for layer in model.layers:
        if isinstance(layer, keras.Model):
            found |= named(layer, f'{prefix}{layer.name}/')
            continue
        depthwise = isinstance(layer, keras.layers.DepthwiseConv2D)
        for variable in layer.weights:
            name = 'depthwise_kernel' if depthwise and variable.name == 'kernel' else variable.name
            found[f'{prefix}{layer.name}/{name}'] = np.asarray(variable)
    return found


def same(found, model):
    expected = named(model)
    assert found.keys() == expected.keys()
    for name, x in expected.items():
        np.testing.assert_array_equal(found[name], x, err_msg=name)


def saved(model, path):
    (model.save_weights if path.name.endswith('.weights.h5') else model.save)(path)
    return files.read(path)


ENDINGS = ('keras', 'h5', 'weights.h5')
MODELS = {
    'MobileNet': (137, 'conv_dw_1/depthwise_kernel (3, 3, 8, 1)', 'conv_pw_13_bn/moving_variance (256,)'),
    'MobileNetV2': (262, 'expanded_conv_depthwise/depthwise_kernel (3, 3, 16, 1)', 'predictions/kernel (1280, 5)'),
}


@pytest.fixture(scope='module')
def models():
    made = {}
    with pytest.MonkeyPatch.context() as patch:  # initialisers are compiled shape by shape, and all is overwritten
        for kind in (keras.initializers.GlorotUniform, keras.initializers.Zeros, keras.initializers.Ones):
            patch.setattr(kind, '__call__', lambda self, shape, dtype=None, **_: np.zeros(shape, np.float32))
        for name in MODELS:
            build = getattr(keras.applications, name)
            alpha = {'MobileNet': 0.25, 'MobileNetV2': 0.35}[name]
            made[name] = perturbed(build(weights=None, alpha=alpha, input_shape=(32, 32, 3), classes=5))
    return made


@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('ending', ENDINGS)
@pytest.mark.parametrize('name', MODELS)
def test_keras_applications_are_read(tmp_path, models, name, ending):
    found = saved(models[name], tmp_path / f'model.{ending}')
    count, *some = MODELS[name]
    assert len(found) == count and {f'{n} {x.shape}' for n, x in found.items()} >= set(some)
    same(found, models[name])


@pytest.mark.skipif(not PUBLISHED.exists(), reason='the published weights are not here')
def test_names_are_those_of_published_weights(models):
    assert named(models['MobileNet']).keys() == npz.read(PUBLISHED).keys()


def unusual():
    """Models within a model, normalisation without scale, separable convolutions, and a trained optimiser."""
    K = keras.layers
    inner = keras.Sequential(
        [keras.Input((4,)), K.Dense(3, name='fancy'), K.LayerNormalization(center=False)], name='top'
    )
    x = image = keras.Input((6, 6, 2))
    x = K.SeparableConv2D(4, 3, name='separable')(x)
    x = K.BatchNormalization(center=False, name='norm')(x)
    x = K.Dropout(0.5, name='drop', seed=1)(x)
    x = K.GroupNormalization(2, scale=False, name='groups')(K.PReLU(name='slope')(x))
    model = keras.Model(image, inner(K.GlobalAveragePooling2D()(x)), name='whole')
    model.compile('adam', 'mse', metrics=['mae'])
    model.fit(np.zeros((2, 6, 6, 2)), np.zeros((2, 3)), verbose=0)
    return perturbed(model)


@pytest.mark.filterwarnings('ignore')
def test_unusual_layers_are_read(tmp_path):
    model = unusual()
    for ending in ('keras', 'h5'):
        same(saved(model, tmp_path / f'model.{ending}'), model)
    with pytest.raises(UserError, match='no gamma or no beta'):  # the file cannot say which
        saved(model, tmp_path / 'model.weights.h5')


def test_layers_that_are_not_known_keep_their_numbers(tmp_path):
    model = perturbed(keras.Sequential([keras.Input((3, 2)), keras.layers.LSTM(2, name='memory')]))
    found = saved(model, tmp_path / 'model.keras')
    assert set(found) == {'memory/lstm_cell/0', 'memory/lstm_cell/1', 'memory/lstm_cell/2'}
    found = saved(model, tmp_path / 'model.h5')  # which has names
    assert set(found) == {f'memory/lstm_cell/{name}' for name in ('kernel', 'recurrent_kernel', 'bias')}


def test_bfloat16_is_read(tmp_path):
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2, name='fc', dtype='bfloat16')])
    for ending in ('keras', 'weights.h5'):
        found = saved(model, tmp_path / f'model.{ending}')
        assert found['fc/kernel'].dtype == 'bfloat16'
        np.testing.assert_array_equal(found['fc/kernel'], np.asarray(model.layers[0].kernel))


def test_h5_arrays_of_every_kind_are_read(tmp_path):
    rng = np.random.default_rng(0)
    arrays = {
        code: (100 * rng.normal(size=(3, 5))).astype(code) for code in ('<f2', '>f4', '<f8', '>i2', 'u1', '<i8', '?')
    }
    arrays |= {'scalar': np.float32(3), 'empty': np.zeros((0, 4), np.float32)}
    packed = {
        'gzip': {'compression': 'gzip'},
        'all': {'compression': 9, 'shuffle': True, 'fletcher32': True},
        'plain': {},
    }
    for libver in ('earliest', 'v110', 'latest'):
        with h5py.File(tmp_path / 'x.h5', 'w', libver=libver) as file:
            for name, x in arrays.items():
                group = file.create_group(name)
                group.attrs['weight_names'] = [f'{name}/kernel:0']
                group.create_dataset(f'{name}/kernel:0', data=x)
            for name, options in packed.items() if libver == 'earliest' else ():
                group = file.create_group(name)
                group.attrs['weight_names'] = np.array([b'kernel:0'])  # fixed length, as Keras 2 wrote it
                group.create_dataset('kernel:0', data=rng.normal(size=(30, 50)), chunks=(7, 9), **options)
            file.attrs['layer_names'] = list(file)
            expected = {
                f'{name}/kernel': group[w][()] for name, group in file.items() for w in group.attrs['weight_names']
            }
        if libver != 'earliest':  # more than eight groups are in a heap
            with pytest.raises(UserError, match='keeps its links in a "dense" heap'):
                files.read(tmp_path / 'x.h5')
            continue
        found = files.read(tmp_path / 'x.h5')
        assert found.keys() == expected.keys() and len(found) == 12
        for name, x in expected.items():
            assert found[name].dtype.isnative and found[name].shape == np.shape(x)
            np.testing.assert_array_equal(found[name], x)
