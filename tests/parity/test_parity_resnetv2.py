"""ResNet v2 against Gluon's and timm's published definitions, written plainly, on tensors that went through files."""

import numpy as np
import pytest

torch = pytest.importorskip('torch')

import parity  # noqa: E402
from torch import nn  # noqa: E402
from torch.nn import functional  # noqa: E402

from jtl.errors import UserError  # noqa: E402
from jtl.pretrained.recognise import recognise  # noqa: E402
from jtl.pretrained.table import export, translate  # noqa: E402

RNG = np.random.default_rng(0)
IMAGES = RNG.normal(size=(3, 40, 40, 3)).astype(np.float32)
BATCH = {'image': IMAGES}
PIXELS = torch.from_numpy(IMAGES.transpose(0, 3, 1, 2).copy())
NETS = {'basic': ((2, 1, 3), 8), 'bottleneck': ((3, 1, 2), 8)}


class Gluon:
    """ResNetV2 of Gluon: names count the layers of a scope in the order in which they are made, not in which they run.

    Args:
        tensors: by name; empty to make them. A dict that is run has each of its tensors used, and once.
    """

    def __init__(self, tensors, net='resnetv24_'):
        self.tensors, self.net, self.made, self.used = tensors, net, {}, []
        self.making = not tensors

    def name(self, scope, kind):
        number = self.made[scope, kind] = self.made.get((scope, kind), -1) + 1
        return f'{self.net}{scope}{kind}{number}'

    def tensor(self, name, *shape):
        if self.making:
            low, high = (0.5, 1.5) if name.endswith(('gamma', 'var')) else (-0.3, 0.3)
            x = RNG.uniform(low, high, shape).astype(np.float32)
            x = x * (40 / x[0].size) ** 0.5 if len(shape) > 1 else x
            fixed = {f'{self.net}batchnorm0_gamma': np.ones_like(x), f'{self.net}batchnorm0_beta': np.zeros_like(x)}
            self.tensors[name] = fixed.get(name, x)
        assert name not in self.used and self.tensors[name].shape == shape, name
        self.used.append(name)
        return torch.from_numpy(np.array(self.tensors[name]))

    def norm(self, scope):
        name = self.name(scope, 'batchnorm')
        leaves = lambda c: [self.tensor(f'{name}_{x}', c) for x in ('running_mean', 'running_var', 'gamma', 'beta')]
        return lambda x: functional.batch_norm(x, *leaves(x.shape[1]), eps=1e-5)

    def conv(self, scope, channels, size, stride=1):
        name = self.name(scope, 'conv')
        weight = lambda c: self.tensor(f'{name}_weight', channels, c, size, size)
        return lambda x: functional.conv2d(x, weight(x.shape[1]), stride=stride, padding=size // 2)

    def block(self, scope, kind, width, stride, changes):
        out = 4 * width if kind == 'bottleneck' else width
        if kind == 'bottleneck':
            layers = [(width, 1, 1), (width, 3, stride), (out, 1, 1)]
        else:
            layers = [(width, 3, stride), (width, 3, 1)]
        made = [(self.norm(scope), self.conv(scope, *layer)) for layer in layers]
        shortcut = self.conv(scope, out, 1, stride) if changes else None

        def run(x):
            y = torch.relu(made[0][0](x))
            x = shortcut(y) if changes else x
            y = made[0][1](y)
            for norm, conv in made[1:]:
                y = conv(torch.relu(norm(y)))
            return x + y

        return run

    def __call__(self, x, kind, stages, width, classes=7):
        """`(logits, the output of each stage)`."""
        x = self.norm('')(x)
        x = torch.relu(self.norm('')(self.conv('', width, 7, 2)(x)))
        x, hidden, before = functional.max_pool2d(x, 3, 2, 1), [], width
        for i, blocks in enumerate(stages):
            inner = width * 2**i
            out = inner * (4 if kind == 'bottleneck' else 1)
            for j in range(blocks):
                x = self.block(f'stage{i + 1}_', kind, inner, 2 if i and not j else 1, not j and before != out)(x)
            hidden.append(x)
            before = out
        x = torch.relu(self.norm('')(x)).mean((2, 3))
        name = self.name('', 'dense')
        weight, bias = self.tensor(f'{name}_weight', classes, x.shape[1]), self.tensor(f'{name}_bias', classes)
        assert set(self.used) == set(self.tensors)
        return functional.linear(x, weight, bias), hidden


def gluon(kind, folder):
    """Tensors through a file, and what the original makes of them."""
    tensors = {}
    Gluon(tensors)(PIXELS, kind, *NETS[kind])
    np.savez(folder / 'net.npz', **tensors)
    tensors = dict(np.load(folder / 'net.npz'))
    return tensors, *Gluon(tensors)(PIXELS, kind, *NETS[kind])


@pytest.mark.parametrize('kind', NETS)
def test_resnetv2_equals_gluon(kind, tmp_path):
    tensors, logits, hidden = gluon(kind, tmp_path)
    ours = parity.Ours(tensors, {})
    assert ours.known.family == 'resnetv2'
    assert ours.known.dialect.name == {'basic': 'gluon-basic', 'bottleneck': 'gluon'}[kind]
    outputs, inner = ours(BATCH)
    assert parity.difference(outputs['logits'], logits) <= parity.TOLERANCE
    for stage, x in enumerate(hidden, 1):
        assert parity.difference(inner[f'backbone/stage{stage}'], x.permute(0, 2, 3, 1)) <= parity.TOLERANCE

    mistakes = dict(parity.swaps(tensors, 40))
    assert len(mistakes) == 40
    for what, wrong in mistakes.items():
        if any(
            wrong[f'resnetv24_batchnorm0_{x}'] is not tensors[f'resnetv24_batchnorm0_{x}'] for x in ('gamma', 'beta')
        ):
            assert recognise(wrong, {}, 'x').translation.unknown, what  # the image is neither scaled nor shifted
            continue
        moved = parity.difference(ours(BATCH, wrong)[0]['logits'], outputs['logits'])
        assert not moved <= 10 * parity.TOLERANCE, what  # or NaN

    written = parity.check_round_trip(ours)
    assert {name.replace('resnetv20_', 'resnetv24_') for name in written} == set(tensors)
    again = Gluon(written, 'resnetv20_')(PIXELS, kind, *NETS[kind])
    assert torch.equal(again[0], logits)


@pytest.mark.parametrize('depth', [1, 2])
def test_resnetv2_cut_equals_gluon(depth, tmp_path):
    """relu of the next stage's first BatchNorm, averaged; and what was cut is recognised as what it is."""
    tensors, _, hidden = gluon('bottleneck', tmp_path)
    tensors = {name: x for name, x in tensors.items() if 'dense' not in name}
    ours = parity.Ours(tensors, {}, depth=depth)
    name = f'resnetv24_stage{depth + 1}_batchnorm0'
    norm = [torch.from_numpy(tensors[f'{name}_{x}']) for x in ('running_mean', 'running_var', 'gamma', 'beta')]
    expected = torch.relu(functional.batch_norm(hidden[depth - 1], *norm, eps=1e-5)).mean((2, 3))
    assert parity.difference(ours(BATCH)[0]['features'], expected) <= parity.TOLERANCE

    kept = {path: x for path, x in ours.leaves.items() if f'stage{depth + 1}' not in path or 'block0/bn1' in path}
    kept = {path: x for path, x in kept.items() if f'stage{depth + 2}' not in path and '/norm/' not in path}
    again = recognise(export(kept, ours.known.dialect), {}, 'x')
    assert again.model['depth'] == depth and again.model['stages'] == (*NETS['bottleneck'][0][:depth], 1)
    assert translate(export(kept, ours.known.dialect), ours.known.dialect).leaves.keys() == kept.keys()


class Block(nn.Module):
    """timm's, whose BatchNorm has the relu in it."""

    def __init__(self, kind, before, width, stride):
        super().__init__()
        out = 4 * width if kind == 'bottleneck' else width
        if kind == 'bottleneck':
            layers = [(before, width, 1, 1), (width, width, 3, stride), (width, out, 1, 1)]
        else:
            layers = [(before, width, 3, stride), (width, width, 3, 1)]
        for i, (a, b, size, step) in enumerate(layers, 1):
            setattr(self, f'norm{i}', nn.BatchNorm2d(a))
            setattr(self, f'conv{i}', nn.Conv2d(a, b, size, step, size // 2, bias=False))
        self.layers = len(layers)
        if stride > 1 or before != out:
            self.downsample = nn.Sequential()
            self.downsample.add_module('conv', nn.Conv2d(before, out, 1, stride, bias=False))

    def forward(self, x):
        y = torch.relu(self.norm1(x))
        x = self.downsample(y) if hasattr(self, 'downsample') else x
        y = self.conv1(y)
        for i in range(2, self.layers + 1):
            y = getattr(self, f'conv{i}')(torch.relu(getattr(self, f'norm{i}')(y)))
        return x + y


class Timm(nn.Module):
    def __init__(self, kind, stages, width, classes=7):
        super().__init__()
        self.stem, self.stages, self.head = nn.Module(), nn.Sequential(), nn.Module()
        self.stem.conv = nn.Conv2d(3, width, 7, 2, 3, bias=False)
        before = width
        for i, blocks in enumerate(stages):
            stage = nn.Module()
            stage.blocks = nn.Sequential()
            for j in range(blocks):
                stage.blocks.append(Block(kind, before, width * 2**i, 2 if i and not j else 1))
                before = width * 2**i * (4 if kind == 'bottleneck' else 1)
            self.stages.append(stage)
        self.norm = nn.BatchNorm2d(before)
        self.head.fc = nn.Conv2d(before, classes, 1)

    def forward(self, x):
        x, hidden = functional.max_pool2d(self.stem.conv(x), 3, 2, 1), []
        for stage in self.stages:
            hidden.append(x := stage.blocks(x))
        return self.head.fc(torch.relu(self.norm(x)).mean((2, 3), keepdim=True)).flatten(1), hidden


@pytest.mark.parametrize('kind', NETS)
def test_resnetv2_equals_timm(kind, tmp_path):
    torch.manual_seed(1)
    reference = parity.perturb(Timm(kind, *NETS[kind]))
    torch.save(reference.state_dict(), tmp_path / 'net.pth')
    tensors = parity.arrays(torch.load(tmp_path / 'net.pth', weights_only=True))
    ours = parity.Ours(tensors, {})
    assert (ours.known.family, ours.known.dialect.name) == ('resnetv2', 'timm') and ours.model.backbone.stem == 'plain'
    outputs, inner = ours(BATCH)
    with torch.no_grad():
        logits, hidden = reference(PIXELS)
    assert parity.difference(outputs['logits'], logits) <= parity.TOLERANCE
    for stage, x in enumerate(hidden, 1):
        assert parity.difference(inner[f'backbone/stage{stage}'], x.permute(0, 2, 3, 1)) <= parity.TOLERANCE

    assert parity.check_swaps(ours, tensors, BATCH) == 40
    again = parity.load_strictly(Timm(kind, *NETS[kind]), parity.check_round_trip(ours))
    with torch.no_grad():
        assert torch.equal(again(PIXELS)[0], logits)


def test_resnetv2_of_every_name_is_recognised():
    """By its shapes alone: nothing is computed."""
    for variant, kind, stages in (
        ('18', 'basic', (2, 2, 2, 2)),
        ('34', 'basic', (3, 4, 6, 3)),
        ('50', 'bottleneck', (3, 4, 6, 3)),
        ('101', 'bottleneck', (3, 4, 23, 3)),
        ('152', 'bottleneck', (3, 8, 36, 3)),
    ):
        with torch.device('meta'):
            state = Timm(kind, stages, 64).state_dict()
        names = {name: np.broadcast_to(np.float32(0), x.shape) for name, x in state.items()}
        assert recognise(names, {}, 'x').model == {'name': f'resnetv2_{variant}', 'stem': 'plain'}


@pytest.mark.parametrize(
    'old, new, message',
    [
        ('stem.conv.weight', 'stem.conv1.weight', 'whose stem or first block is missing'),  # resnetv2_50d
        ('stages.0.blocks.0.conv2.weight', np.zeros((16, 16, 3, 3), np.float32), r'widths.*\(3, 3, 16, 16\)'),
    ],
)
def test_resnetv2_variants_that_are_not_built_are_refused(old, new, message):
    tensors = parity.arrays(Timm('bottleneck', (1, 1), 8).state_dict())
    tensors |= {new: tensors.pop(old)} if isinstance(new, str) else {old: new}
    with pytest.raises(UserError, match=message):
        recognise(tensors, {}, 'x')
