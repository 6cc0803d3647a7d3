"""MobileNets against Hugging Face, Keras, and plain PyTorch after the definitions of torchvision, timm and Gluon.

Tiny widths, every parameter and statistic drawn at random, an even and an odd picture, weights through files. The
largest difference is at most 1e-4 of the largest reference number, in the logits and after every block.
"""

import functools
import os

os.environ.setdefault('KERAS_BACKEND', 'jax')  # before keras is imported

import numpy as np
import pytest
from tiny import jit

from jtl.pretrained.recognise import recognise
from jtl.pretrained.shapes import shapes

torch = pytest.importorskip('torch')
transformers = pytest.importorskip('transformers')
safetensors = pytest.importorskip('safetensors.numpy')
import parity  # noqa: E402

nn, F = torch.nn, torch.nn.functional

Ours = functools.partial(parity.Ours, jit=jit)
CLASSES = 7
# Of `parity.perturb`, by what the kernels are at first: about 0, PyTorch's, Keras's. Without residuals (v1) a signal
# dies if it is lower; with them (v2) rounding grows towards the tolerance if it is higher.
GAIN = {'v1': {'zero': 3.6, 'torch': 2.0, 'keras': 1.8}, 'v2': {'zero': 2.8, 'torch': 1.7, 'keras': 1.8}}
SIZES = (64, 40), (45, 51)  # some layer of each sees an odd height, an even width, and so on
V2 = 8, (16, 8, 24, 16, 24, 16, 32), 40  # the stem's channels, those of each stage, the last layer's


def pictures(size):
    """[B, H, W, 3]"""
    return np.random.default_rng(1).normal(size=(2, *size, 3)).astype(np.float32)


def check(ours, reference, tensors):
    """Outputs alike at both sizes; the way back has the same bits, and the reference understands it.

    Args:
        reference: picture [B, H, W, 3], tensors -> logits [B, K], {path of ours: [B, H, W, C]}.
    """
    found = {path: leaf.shape for path, leaf in ours.leaves.items()}
    assert found == shapes(ours.known.model, CLASSES, {'image': pictures(SIZES[0])})
    for size in SIZES:
        x = pictures(size)
        expected, hidden = reference(x, tensors)
        outputs, inner = ours({'image': x})
        assert parity.difference(outputs['logits'], expected) <= parity.TOLERANCE
        assert hidden
        for path, block in hidden.items():
            assert parity.difference(inner[f'backbone/{path}'], block) <= parity.TOLERANCE, path
    exported = parity.check_round_trip(ours)
    np.testing.assert_array_equal(reference(x, exported)[0], expected)
    for name, leaf in exported.items():
        np.testing.assert_array_equal(leaf, tensors[name])
    assert set(exported) == {name for name in tensors if not name.endswith('num_batches_tracked')}


def check_swaps(ours, tensors):
    assert parity.check_swaps(ours, tensors, {'image': pictures(SIZES[0])}, most=1000) > 100


def through_torch(module, hooked):
    """`reference` of a PyTorch module that is read and written by name; `hooked` names the outputs that we compare."""

    def reference(x, tensors):
        state = {name: torch.from_numpy(np.array(leaf)) for name, leaf in tensors.items()}
        counts = {k: v for k, v in module.state_dict().items() if k.endswith('num_batches_tracked')}
        module.load_state_dict({**counts, **state}, strict=True)
        hidden, modules = {}, dict(module.named_modules())
        keep = lambda path: lambda _, inputs, output: hidden.update({path: output.permute(0, 2, 3, 1).numpy()})
        hooks = [modules[name].register_forward_hook(keep(path)) for path, name in hooked.items()]
        with torch.no_grad():
            logits = module(torch.from_numpy(x).permute(0, 3, 1, 2))
        for hook in hooks:
            hook.remove()
        return getattr(logits, 'logits', logits).numpy(), hidden

    return reference


def saved(module, folder):
    """A module's tensors, through a file."""
    path = folder / 'model.safetensors'
    safetensors.save_file({k: v.numpy() for k, v in module.state_dict().items()}, path)
    return safetensors.load_file(path)


# Hugging Face


def huggingface(version, folder, **kwargs):
    Config = getattr(transformers, f'MobileNetV{version}Config')
    Model = getattr(transformers, f'MobileNetV{version}ForImageClassification')
    config = Config(num_labels=CLASSES, min_depth=4, **kwargs)
    module = parity.perturb(Model(config), gain=GAIN[f'v{version}']['zero'])
    module.save_pretrained(folder)
    return module, safetensors.load_file(folder / 'model.safetensors'), config.to_dict()


@pytest.mark.parametrize('padding', [True, False])
def test_mobilenetv1_equals_huggingface(tmp_path, padding):
    module, tensors, config = huggingface(1, tmp_path, depth_multiplier=0.2, tf_padding=padding)
    ours = Ours(tensors, config)
    assert ours.known.dialect.name == 'huggingface' and ours.known.model['name'] == 'mobilenetv1'
    hooked = {f'block{i // 2}/{("depthwise", "pointwise")[i % 2]}': f'mobilenet_v1.layer.{i}' for i in range(26)}
    check(ours, through_torch(module, {**hooked, 'stem': 'mobilenet_v1.conv_stem'}), tensors)
    if padding:
        check_swaps(ours, tensors)


@pytest.mark.parametrize('padding, expansion, eps', [(True, True, 1e-3), (False, False, 1e-2)])
def test_mobilenetv2_equals_huggingface(tmp_path, padding, expansion, eps):
    module, tensors, config = huggingface(
        2, tmp_path, depth_multiplier=0.3, depth_divisible_by=4, tf_padding=padding, first_layer_is_expansion=expansion,
        expand_ratio=3, layer_norm_eps=eps, finegrained_output=False,
    )  # fmt: skip
    ours = Ours(tensors, config)
    assert ours.known.dialect.name == 'huggingface' and ours.known.model['name'] == 'mobilenetv2'
    hooked = {f'block{i + 1}': f'mobilenet_v2.layer.{i}' for i in range(16)}
    hooked |= {'block0': 'mobilenet_v2.conv_stem', 'last': 'mobilenet_v2.conv_1x1'}
    check(ours, through_torch(module, hooked), tensors)
    if padding:
        check_swaps(ours, tensors)


# torchvision and timm, from their definitions


def conv(inputs, outputs, kernel=1, stride=1, groups=1):
    return nn.Conv2d(inputs, outputs, kernel, stride, (kernel - 1) // 2, groups=groups, bias=False)


def layer(inputs, outputs, kernel=1, stride=1, groups=1):
    return nn.Sequential(conv(inputs, outputs, kernel, stride, groups), nn.BatchNorm2d(outputs), nn.ReLU6())


def inverted(channels, repeats=(1, 2, 3, 4, 3, 3, 1), strides=(1, 2, 2, 2, 1, 2, 1)):
    """`(stage, channels, stride)` of each block."""
    stages = enumerate(zip(channels, repeats, strides))
    return [(stage, c, s if i == 0 else 1) for stage, (c, n, s) in stages for i in range(n)]


class TorchvisionBlock(nn.Module):
    def __init__(self, inputs, outputs, stride, expansion):
        super().__init__()
        self.add, inner = stride == 1 and inputs == outputs, inputs * expansion
        widen = [layer(inputs, inner)] if expansion > 1 else []
        narrow = [layer(inner, inner, 3, stride, inner), conv(inner, outputs), nn.BatchNorm2d(outputs)]
        self.conv = nn.Sequential(*widen, *narrow)

    def forward(self, x):
        return x + self.conv(x) if self.add else self.conv(x)


class Torchvision(nn.Module):
    def __init__(self, stem, channels, last):
        super().__init__()
        blocks, inputs = [], stem
        for i, (_, outputs, stride) in enumerate(inverted(channels)):
            blocks.append(TorchvisionBlock(inputs, outputs, stride, 6 if i else 1))
            inputs = outputs
        self.features = nn.Sequential(layer(3, stem, 3, 2), *blocks, layer(inputs, last))
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(last, CLASSES))

    def forward(self, x):
        return self.classifier(self.features(x).mean((2, 3)))


def test_mobilenetv2_equals_torchvision(tmp_path):
    module = parity.perturb(Torchvision(*V2), gain=GAIN['v2']['torch'])
    tensors = saved(module, tmp_path)
    ours = Ours(tensors, {})
    assert ours.known.dialect.name == 'torchvision'
    hooked = {f'block{i}': f'features.{i + 1}' for i in range(17)}
    check(ours, through_torch(module, {**hooked, 'stem': 'features.0', 'last': 'features.18'}), tensors)
    check_swaps(ours, tensors)


class TimmBlock(nn.Module):
    """DepthwiseSeparableConv (`expansion` 0: v1; 1: the first block of v2, without an activation at its end), or
    InvertedResidual."""

    def __init__(self, inputs, outputs, stride, expansion):
        super().__init__()
        self.expansion, inner = expansion, inputs * max(expansion, 1)
        self.add = expansion and stride == 1 and inputs == outputs
        if expansion > 1:
            self.conv_pw, self.bn1 = conv(inputs, inner), nn.BatchNorm2d(inner)
            self.conv_dw, self.bn2 = conv(inner, inner, 3, stride, inner), nn.BatchNorm2d(inner)
            self.conv_pwl, self.bn3 = conv(inner, outputs), nn.BatchNorm2d(outputs)
        else:
            self.conv_dw, self.bn1 = conv(inputs, inputs, 3, stride, inputs), nn.BatchNorm2d(inputs)
            self.conv_pw, self.bn2 = conv(inputs, outputs), nn.BatchNorm2d(outputs)

    def forward(self, x):
        if self.expansion > 1:
            y = F.relu6(self.bn1(self.conv_pw(x)))
            y = self.bn3(self.conv_pwl(F.relu6(self.bn2(self.conv_dw(y)))))
        else:
            y = self.bn2(self.conv_pw(F.relu6(self.bn1(self.conv_dw(x)))))
            y = y if self.expansion else F.relu6(y)
        return x + y if self.add else y


class Timm(nn.Module):
    def __init__(self, stem, blocks, last):
        super().__init__()
        self.conv_stem, self.bn1 = conv(3, stem, 3, 2), nn.BatchNorm2d(stem)
        stages, inputs = [[] for _ in range(blocks[-1][0] + 1)], stem
        for i, (stage, outputs, stride) in enumerate(blocks):
            stages[stage].append(TimmBlock(inputs, outputs, stride, 0 if last is None else 6 if i else 1))
            inputs = outputs
        self.blocks = nn.Sequential(*(nn.Sequential(*stage) for stage in stages))
        if last is not None:
            self.conv_head, self.bn2 = conv(inputs, last), nn.BatchNorm2d(last)
        self.classifier = nn.Linear(last or inputs, CLASSES)

    def forward(self, x):
        x = self.blocks(F.relu6(self.bn1(self.conv_stem(x))))
        x = F.relu6(self.bn2(self.conv_head(x))) if hasattr(self, 'conv_head') else x
        return self.classifier(x.mean((2, 3)))


TIMM = {
    'v1': ((8, inverted((16, 16, 24, 24, 32), (1, 2, 2, 6, 2), (1, 2, 2, 2, 2)), None), 'timm'),
    'v2': ((8, inverted((16, 8, 24, 16, 24, 16, 32)), 40), 'timm'),
    'v2_110d': ((8, inverted(V2[1], (1, 3, 4, 5, 4, 4, 1)), 40), 'timm-110d'),
    'v2_120d': ((8, inverted(V2[1], (1, 3, 5, 6, 5, 5, 1)), 40), 'timm-120d'),
}


@pytest.mark.parametrize('case', TIMM)
def test_mobilenet_equals_timm(tmp_path, case):
    (stem, blocks, last), dialect = TIMM[case]
    module = parity.perturb(Timm(stem, blocks, last), gain=GAIN[case[:2]]['torch'])
    tensors = saved(module, tmp_path)
    ours = Ours(tensors, {})
    assert ours.known.dialect.name == dialect and ours.known.family == f'mobilenet{case[:2]}'
    places = [f'blocks.{stage}.{i}' for stage, blocks in enumerate(module.blocks) for i in range(len(blocks))]
    check(ours, through_torch(module, {f'block{i}': place for i, place in enumerate(places)}), tensors)
    if case in ('v1', 'v2'):
        check_swaps(ours, tensors)


# Gluon, from its definition: the layers are numbered in the order in which they are made


class Store(dict):
    """Gluon's parameters by their names, made when they are first asked for."""

    def get(self, name, *shape):
        if name not in self:
            self[name] = np.full(shape, name.endswith('gamma'), np.float32)
        return torch.from_numpy(np.array(self[name]))

    def layer(self, x, scope, i, outputs, kernel=1, stride=1, depthwise=False, activation=F.relu6):
        inputs = x.shape[1]
        weight = self.get(f'{scope}conv{i}_weight', outputs, 1 if depthwise else inputs, kernel, kernel)
        x = F.conv2d(x, weight, None, stride, (kernel - 1) // 2, groups=inputs if depthwise else 1)
        names = ('running_mean', 'running_var', 'gamma', 'beta')
        x = F.batch_norm(x, *(self.get(f'{scope}batchnorm{i}_{name}', outputs) for name in names), eps=1e-5)
        return activation(x) if activation else x


def gluon_v1(x, tensors):
    store, hidden = Store(tensors), {}
    x = torch.from_numpy(x).permute(0, 3, 1, 2)
    x = store.layer(x, 'mobilenet0_', 0, 8, 3, 2, activation=F.relu)
    for i, (_, outputs, stride) in enumerate(inverted((16, 16, 24, 24, 32), (1, 2, 2, 6, 2), (1, 2, 2, 2, 2))):
        x = store.layer(x, 'mobilenet0_', 2 * i + 1, x.shape[1], 3, stride, True, F.relu)
        x = store.layer(x, 'mobilenet0_', 2 * i + 2, outputs, activation=F.relu)
        hidden[f'block{i}'] = x.permute(0, 2, 3, 1).numpy()
    kernel, bias = store.get('mobilenet0_dense0_weight', CLASSES, 32), store.get('mobilenet0_dense0_bias', CLASSES)
    tensors.update(store)
    return F.linear(x.mean((2, 3)), kernel, bias).numpy(), hidden


def gluon_v2(x, tensors, net='mobilenetv20_'):
    store, hidden = Store(tensors), {}
    x = torch.from_numpy(x).permute(0, 3, 1, 2)
    x = store.layer(x, f'{net}features_', 0, 8, 3, 2)
    for i, (_, outputs, stride) in enumerate(inverted((16, 8, 24, 16, 24, 16, 32))):
        scope, inner = f'{net}features_linearbottleneck{i}_', x.shape[1] * (6 if i else 1)
        y = store.layer(x, scope, 0, inner)
        y = store.layer(y, scope, 1, inner, 3, stride, True)
        y = store.layer(y, scope, 2, outputs, activation=None)
        x = x + y if x.shape == y.shape else y
        hidden[f'block{i}'] = x.permute(0, 2, 3, 1).numpy()
    x = store.layer(x, f'{net}features_', 1, 40)
    kernel = store.get(f'{net}output_pred_weight', CLASSES, 40, 1, 1)
    tensors.update(store)
    return F.conv2d(x.mean((2, 3), keepdim=True), kernel)[:, :, 0, 0].numpy(), hidden


@pytest.mark.parametrize('version, reference', [('v1', gluon_v1), ('v2', gluon_v2)])
def test_mobilenet_equals_gluon(tmp_path, version, reference):
    reference(pictures((32, 32)), tensors := {})  # makes them
    parity.shake(((name, torch.from_numpy(x)) for name, x in tensors.items()), gain=GAIN[version]['zero'])
    np.savez(tmp_path / 'weights.npz', **tensors)
    tensors = dict(np.load(tmp_path / 'weights.npz'))
    ours = Ours(tensors, {})
    assert ours.known.dialect.name == 'gluon' and ours.known.family == f'mobilenet{version}'
    check(ours, reference, tensors)
    check_swaps(ours, tensors)


# Keras


@pytest.mark.parametrize('version, alpha', [('v1', 0.25), ('v2', 0.35)])
def test_mobilenet_equals_keras(tmp_path, version, alpha):
    keras = pytest.importorskip('keras')
    make = getattr(keras.applications, 'MobileNet' if version == 'v1' else 'MobileNetV2')
    hidden = {'stem': 'conv1_relu' if version == 'v1' else 'Conv1_relu'}
    if version == 'v1':
        hidden |= {f'block{i}': f'conv_pw_{i + 1}_relu' for i in range(13)}
    else:
        hidden |= {'block0': 'expanded_conv_project_BN', 'block1': 'block_1_project_BN', 'block2': 'block_2_add'}
        hidden |= {'block3': 'block_3_project_BN', 'block16': 'block_16_project_BN', 'last': 'out_relu'}

    @functools.cache
    def module(size):  # Keras computes its padding when it is built
        net = make((*size, 3), alpha=alpha, classes=CLASSES, weights=None, classifier_activation=None)
        net = keras.Model(net.input, [net.output, *(net.get_layer(name).output for name in hidden.values())])
        return net, jit(lambda *args: net.stateless_call(*args, training=False)[0])

    def reference(x, tensors):
        net, forward = module(x.shape[1:3])
        values = [
            [tensors.get(named(v), v.value) for v in vs]
            for vs in (net.trainable_variables, net.non_trainable_variables)
        ]
        logits, *found = forward(*values, x)
        return np.asarray(logits), dict(zip(hidden, map(np.asarray, found)))

    named = lambda v: v.path.replace('/kernel', '/depthwise_kernel') if '_d' in v.path else v.path
    net, _ = module(SIZES[0])
    tensors = {named(v): np.array(v.value) for v in net.variables if 'seed_generator' not in v.path}
    outputs = lambda name: 2 if name.endswith('depthwise_kernel') else -1  # [h, w, C, 1] or [h, w, in, out]
    views = ((name, torch.from_numpy(x).movedim(outputs(name), 0)) for name, x in tensors.items())
    parity.shake(views, gain=GAIN[version]['keras'])
    np.savez(tmp_path / 'weights.npz', **tensors)
    tensors = dict(np.load(tmp_path / 'weights.npz'))
    ours = Ours(tensors, {})
    assert ours.known.dialect.name == 'keras' and ours.known.model['name'] == f'mobilenet{version}_{alpha}'
    check(ours, reference, tensors)
    check_swaps(ours, tensors)
    later = {name.replace('depthwise_kernel', 'kernel'): x for name, x in tensors.items()}  # its name in Keras 3
    assert recognise(later, {}, 'the test').translation.leaves.keys() == ours.known.translation.leaves.keys()
