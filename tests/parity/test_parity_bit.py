"""BiT against Hugging Face's, and Google's and timm's published definitions, on tensors that went through files."""

import copy
import json

import numpy as np
import pytest

torch = pytest.importorskip('torch')
transformers = pytest.importorskip('transformers')

import parity  # noqa: E402
from safetensors.numpy import load_file  # noqa: E402
from torch import nn  # noqa: E402
from torch.nn import functional  # noqa: E402

from jtl.errors import UserError  # noqa: E402
from jtl.pretrained.recognise import recognise  # noqa: E402
from jtl.pretrained.table import export  # noqa: E402

RNG = np.random.default_rng(0)
IMAGES = RNG.normal(size=(3, 41, 38, 3)).astype(np.float32)  # odd and even halves
BATCH = {'image': IMAGES}
PIXELS = torch.from_numpy(IMAGES.transpose(0, 3, 1, 2).copy())


def huggingface(folder, shrink=1.0, **changes):
    """A tiny BiT saved to a folder; `shrink` makes its kernels so small that eps shows."""
    config = {'embedding_size': 8, 'hidden_sizes': [32, 64, 128], 'depths': [2, 1, 3], 'num_groups': 4, 'num_labels': 7}
    torch.manual_seed(0)
    reference = parity.perturb(transformers.BitForImageClassification(transformers.BitConfig(**{**config, **changes})))
    with torch.no_grad():
        for x in reference.bit.parameters():
            x.mul_(shrink if x.ndim == 4 else 1)
    reference.save_pretrained(folder)
    tensors, config = load_file(folder / 'model.safetensors'), json.loads((folder / 'config.json').read_text())
    with torch.no_grad():
        return reference, tensors, config, reference(PIXELS, output_hidden_states=True)


def test_bit_equals_transformers(tmp_path):
    reference, tensors, config, expected = huggingface(tmp_path)
    ours = parity.Ours(tensors, config)
    assert (ours.known.family, ours.known.dialect.name) == ('bit', 'huggingface')
    outputs, inner = ours(BATCH)
    assert parity.difference(outputs['logits'], expected.logits) <= parity.TOLERANCE
    for module, hidden in zip(('stem', 'stage1', 'stage2', 'stage3'), expected.hidden_states, strict=True):
        assert parity.difference(inner[f'backbone/{module}'], hidden.permute(0, 2, 3, 1)) <= parity.TOLERANCE

    bare = recognise(
        {name.removeprefix('bit.'): x for name, x in tensors.items() if 'classifier' not in name}, config, 'x'
    )
    assert set(bare.translation.leaves) == {path for path in ours.leaves if not path.startswith('head/')}  # of BitModel

    assert parity.check_swaps(ours, tensors, BATCH) == 40
    again = parity.load_strictly(copy.deepcopy(reference), parity.check_round_trip(ours))
    with torch.no_grad():
        assert torch.equal(again(PIXELS).logits, expected.logits)


@pytest.mark.parametrize('depth', [1, 2])
def test_bit_cut_equals_transformers(depth, tmp_path):
    """relu of the next stage's first GroupNorm, averaged; and what was cut is recognised as what it is."""
    reference, tensors, config, expected = huggingface(tmp_path)
    ours = parity.Ours({name: x for name, x in tensors.items() if 'classifier' not in name}, config, depth=depth)
    with torch.no_grad():
        opening = reference.bit.encoder.stages[depth].layers[0].norm1(expected.hidden_states[depth])
    assert parity.difference(ours(BATCH)[0]['features'], opening.mean((2, 3))) <= parity.TOLERANCE

    kept = {path: x for path, x in ours.leaves.items() if f'stage{depth + 1}' not in path or 'block0/gn1' in path}
    kept = {path: x for path, x in kept.items() if f'stage{depth + 2}' not in path and '/norm/' not in path}
    assert recognise(export(kept, ours.known.dialect), config, 'x').model['depth'] == depth


def test_bit_eps_of_the_standardisation_is_the_librarys(tmp_path):
    """Kernels with a variance of about 1e-8: with Google's eps the network would be another."""
    _, tensors, config, expected = huggingface(tmp_path, shrink=1e-3)
    variances = [x.var((1, 2, 3)).mean() for x in tensors.values() if x.ndim == 4]
    assert 1e-9 < np.median(variances) < 1e-6
    ours, google = parity.Ours(tensors, config), parity.Ours(tensors, config, std_eps=1e-10)
    assert parity.difference(ours(BATCH)[0]['logits'], expected.logits) <= parity.TOLERANCE
    assert parity.difference(google(BATCH)[0]['logits'], expected.logits) > 100 * parity.TOLERANCE


@pytest.mark.parametrize(
    'change, message',
    [
        ({'layer_type': 'bottleneck'}, "layer_type='bottleneck' is not supported"),
        ({'global_padding': 'SAME'}, "global_padding='SAME'"),
        ({'embedding_dynamic_padding': True}, 'embedding_dynamic_padding=True'),
        ({'output_stride': 16}, 'output_stride=16'),
        ({'hidden_act': 'gelu'}, "hidden_act='gelu'"),
    ],
)
def test_bit_variants_that_are_not_built_are_refused(change, message, tmp_path):
    _, tensors, config, _ = huggingface(tmp_path)
    with pytest.raises(UserError, match=message):
        recognise(tensors, {**config, **change}, 'x')


# Google and timm, whose packages are not needed: the published definitions, written plainly.


def standardised(x, weight, eps, stride=1):
    """Convolution by a kernel [O, I, h, w] of mean 0 and variance 1 for each output."""
    mean, var = weight.mean((1, 2, 3), keepdim=True), weight.var((1, 2, 3), unbiased=False, keepdim=True)
    return functional.conv2d(x, (weight - mean) / torch.sqrt(var + eps), stride=stride, padding=weight.shape[2] // 2)


def google(tensors, x, stages, width, classes=7):
    """`(logits, the output of each stage)`; empty `tensors` are made first."""
    making, used = not tensors, []

    def tensor(name, *shape):
        if making:
            low, high = (0.5, 1.5) if name.endswith('gamma') else (-0.3, 0.3)
            tensors[name] = RNG.uniform(low, high, shape).astype(np.float32)
        assert name not in used and tensors[name].shape == shape, name
        used.append(name)
        return torch.from_numpy(np.array(tensors[name]))

    def conv(name, x, out, size, stride=1):
        weight = tensor(f'{name}/standardized_conv2d/kernel', size, size, x.shape[1], out)
        return standardised(x, weight.permute(3, 2, 0, 1), 1e-10, stride)

    def norm(name, x):
        gamma, beta = (tensor(f'{name}/group_norm/{leaf}', x.shape[1]) for leaf in ('gamma', 'beta'))
        return torch.relu(functional.group_norm(x, 32, gamma, beta, 1e-5))

    x = functional.pad(conv('resnet/root_block', x, width, 7, 2), (1, 1, 1, 1))
    x, hidden = functional.max_pool2d(x, 3, 2), []
    for i, blocks in enumerate(stages):
        inner = width * 2**i
        for j in range(blocks):
            name, stride = f'resnet/block{i + 1}/unit{j + 1:02}', 2 if i and not j else 1
            y = norm(f'{name}/a', x)
            x = conv(f'{name}/a/proj', y, 4 * inner, 1, stride) if not j else x
            y = norm(f'{name}/b', conv(f'{name}/a', y, inner, 1))
            y = norm(f'{name}/c', conv(f'{name}/b', y, inner, 3, stride))
            x = x + conv(f'{name}/c', y, 4 * inner, 1)
        hidden.append(x)
    x = norm('resnet', x).mean((2, 3))
    kernel = tensor('resnet/head/conv2d/kernel', 1, 1, x.shape[1], classes)[0, 0]
    bias = tensor('resnet/head/conv2d/bias', classes)
    assert set(used) == set(tensors)
    return x @ kernel + bias, hidden


def test_bit_equals_google(tmp_path):
    """With units 10 and 11, whose names have no leading zero."""
    net, tensors = ((2, 11), 32), {}
    google(tensors, PIXELS, *net)
    assert 'resnet/block2/unit11/c/group_norm/beta' in tensors and 'resnet/block2/unit01/a/group_norm/beta' in tensors
    np.savez(tmp_path / 'net.npz', **tensors)
    tensors = dict(np.load(tmp_path / 'net.npz'))
    logits, hidden = google(tensors, PIXELS, *net)
    ours = parity.Ours(tensors, {})
    assert (ours.known.family, ours.known.dialect.name) == ('bit', 'google')
    outputs, inner = ours(BATCH)
    assert parity.difference(outputs['logits'], logits) <= parity.TOLERANCE
    for stage, x in enumerate(hidden, 1):
        assert parity.difference(inner[f'backbone/stage{stage}'], x.permute(0, 2, 3, 1)) <= parity.TOLERANCE

    assert parity.check_swaps(ours, tensors, BATCH) == 40
    written = parity.check_round_trip(ours)
    assert written.keys() == tensors.keys()
    assert torch.equal(google(written, PIXELS, *net)[0], logits)


class Std(nn.Conv2d):
    """timm's StdConv2d in BiT."""

    def forward(self, x):
        return standardised(x, self.weight, 1e-8, self.stride)


class Block(nn.Module):
    def __init__(self, before, width, stride, first):
        super().__init__()
        self.norm1, self.conv1 = nn.GroupNorm(32, before), Std(before, width, 1, bias=False)
        self.norm2, self.conv2 = nn.GroupNorm(32, width), Std(width, width, 3, stride, bias=False)
        self.norm3, self.conv3 = nn.GroupNorm(32, width), Std(width, 4 * width, 1, bias=False)
        if first:
            self.downsample = nn.Sequential()
            self.downsample.add_module('conv', Std(before, 4 * width, 1, stride, bias=False))

    def forward(self, x):
        y = torch.relu(self.norm1(x))
        x = self.downsample(y) if hasattr(self, 'downsample') else x
        y = self.conv2(torch.relu(self.norm2(self.conv1(y))))
        return x + self.conv3(torch.relu(self.norm3(y)))


class Timm(nn.Module):
    def __init__(self, stages, width, classes=7):
        super().__init__()
        self.stem, self.stages, self.head = nn.Module(), nn.Sequential(), nn.Module()
        self.stem.conv = Std(3, width, 7, 2, bias=False)
        before = width
        for i, blocks in enumerate(stages):
            stage = nn.Module()
            stage.blocks = nn.Sequential()
            for j in range(blocks):
                stage.blocks.append(Block(before, width * 2**i, 2 if i and not j else 1, j == 0))
                before = 4 * width * 2**i
            self.stages.append(stage)
        self.norm = nn.GroupNorm(32, before)
        self.head.fc = nn.Conv2d(before, classes, 1)

    def forward(self, x):
        x = functional.max_pool2d(functional.pad(self.stem.conv(x), (1, 1, 1, 1)), 3, 2)
        for stage in self.stages:
            x = stage.blocks(x)
        return self.head.fc(torch.relu(self.norm(x)).mean((2, 3), keepdim=True)).flatten(1)


def test_bit_equals_timm(tmp_path):
    torch.manual_seed(1)
    reference = parity.perturb(Timm((2, 2), 32))
    torch.save(reference.state_dict(), tmp_path / 'net.pth')
    tensors = parity.arrays(torch.load(tmp_path / 'net.pth', weights_only=True))
    ours = parity.Ours(tensors, {})
    assert (ours.known.family, ours.known.dialect.name) == ('bit', 'timm') and ours.model.backbone.std_eps == 1e-8
    outputs, inner = ours(BATCH)
    with torch.no_grad():
        x = functional.max_pool2d(functional.pad(reference.stem.conv(PIXELS), (1, 1, 1, 1)), 3, 2)
        for i, stage in enumerate(reference.stages, 1):
            x = stage.blocks(x)
            assert parity.difference(inner[f'backbone/stage{i}'], x.permute(0, 2, 3, 1)) <= parity.TOLERANCE
        logits = reference(PIXELS)
    assert parity.difference(outputs['logits'], logits) <= parity.TOLERANCE

    assert parity.check_swaps(ours, tensors, BATCH) == 37  # all there are
    again = parity.load_strictly(Timm((2, 2), 32), parity.check_round_trip(ours))
    with torch.no_grad():
        assert torch.equal(again(PIXELS), logits)


def test_bit_of_every_name_is_recognised():
    """By its shapes alone: nothing is computed."""
    for variant, stages, width in (
        ('r50x1', (3, 4, 6, 3), 64),
        ('r50x3', (3, 4, 6, 3), 192),
        ('r101x1', (3, 4, 23, 3), 64),
        ('r101x3', (3, 4, 23, 3), 192),
        ('r152x2', (3, 8, 36, 3), 128),
        ('r152x4', (3, 8, 36, 3), 256),
    ):
        with torch.device('meta'):
            state = Timm(stages, width, 1000).state_dict()
        names = {name: np.broadcast_to(np.float32(0), x.shape) for name, x in state.items()}
        assert recognise(names, {}, 'x').model == {'name': f'bit_{variant}', 'std_eps': 1e-8}
