"""ResNet v1.5 against Hugging Face's, torchvision's and akamaster's, on tensors that went through files."""

import copy

import numpy as np
import pytest

torch = pytest.importorskip('torch')
transformers = pytest.importorskip('transformers')

import parity  # noqa: E402
from torch import nn  # noqa: E402

from jtl.pretrained import source  # noqa: E402
from jtl.pretrained.recognise import recognise  # noqa: E402

RNG = np.random.default_rng(0)
IMAGES = RNG.normal(size=(3, 40, 40, 3)).astype(np.float32)
BATCH = {'image': IMAGES}
PIXELS = torch.from_numpy(IMAGES.transpose(0, 3, 1, 2).copy())


def huggingface(kind, folder):
    config = transformers.ResNetConfig(
        embedding_size=8,
        hidden_sizes=[8, 16, 32] if kind == 'basic' else [32, 64, 128],
        depths=[2, 1, 2],
        layer_type=kind,
        num_labels=7,
    )
    torch.manual_seed(0)
    reference = parity.perturb(transformers.ResNetForImageClassification(config))
    reference.save_pretrained(folder)
    return reference


@pytest.mark.parametrize('kind', ['basic', 'bottleneck'])
def test_resnet_equals_transformers(kind, tmp_path):
    reference = huggingface(kind, tmp_path)
    read = source.read(str(tmp_path))
    tensors, config = read.tensors, read.config
    ours = parity.Ours(tensors, config)
    assert ours.known.dialect.name == 'huggingface'
    outputs, inner = ours(BATCH)
    with torch.no_grad():
        expected = reference(PIXELS, output_hidden_states=True)
    assert parity.difference(outputs['logits'], expected.logits) <= parity.TOLERANCE
    for stage, hidden in enumerate(expected.hidden_states[1:], 1):
        assert parity.difference(inner[f'backbone/stage{stage}'], hidden.permute(0, 2, 3, 1)) <= parity.TOLERANCE

    assert parity.check_swaps(ours, tensors, BATCH) == 40
    again = parity.load_strictly(copy.deepcopy(reference), parity.check_round_trip(ours))
    with torch.no_grad():
        assert torch.equal(again(PIXELS).logits, expected.logits)


# torchvision and akamaster, whose packages are not needed: the published definitions, written plainly.


class Basic(nn.Module):
    def __init__(self, before, width, stride, pad):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(before, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width)
        self.pad, self.stride, self.changes = pad, stride, before != width or stride > 1
        if self.changes and not pad:
            self.downsample = nn.Sequential(nn.Conv2d(before, width, 1, stride, bias=False), nn.BatchNorm2d(width))

    def shortcut(self, x):
        if not self.changes:
            return x
        if not self.pad:
            return self.downsample(x)
        extra = (self.conv2.out_channels - x.shape[1]) // 2
        return nn.functional.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, extra, extra))

    def forward(self, x):
        y = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
        return torch.relu(y + self.shortcut(x))


class Bottleneck(Basic):
    def __init__(self, before, width, stride, pad):
        nn.Module.__init__(self)
        self.conv1, self.bn1 = nn.Conv2d(before, width, 1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width)
        self.conv3, self.bn3 = nn.Conv2d(width, 4 * width, 1, bias=False), nn.BatchNorm2d(4 * width)
        self.pad, self.stride, self.changes = pad, stride, before != 4 * width or stride > 1
        if self.changes:
            layers = nn.Conv2d(before, 4 * width, 1, stride, bias=False), nn.BatchNorm2d(4 * width)
            self.downsample = nn.Sequential(*layers)

    def forward(self, x):
        y = torch.relu(self.bn1(self.conv1(x)))
        y = torch.relu(self.bn2(self.conv2(y)))
        return torch.relu(self.bn3(self.conv3(y)) + self.shortcut(x))


class Net(nn.Module):
    def __init__(self, block, stages, width, cifar, classes=7):
        super().__init__()
        stem = (3, 1, 1) if cifar else (7, 2, 3)
        self.conv1, self.bn1 = nn.Conv2d(3, width, *stem, bias=False), nn.BatchNorm2d(width)
        before, self.cifar = width, cifar
        for i, blocks in enumerate(stages):
            layers = []
            for j in range(blocks):
                layers.append(block(before, width * 2**i, 2 if i and not j else 1, cifar))
                before = width * 2**i * (4 if block is Bottleneck else 1)
            setattr(self, f'layer{i + 1}', nn.Sequential(*layers))
        self.stages = len(stages)
        setattr(self, 'linear' if cifar else 'fc', nn.Linear(before, classes))

    def forward(self, x):
        x, hidden = torch.relu(self.bn1(self.conv1(x))), []
        x = x if self.cifar else nn.functional.max_pool2d(x, 3, 2, 1)
        for i in range(1, self.stages + 1):
            hidden.append(x := getattr(self, f'layer{i}')(x))
        return (self.linear if self.cifar else self.fc)(x.mean((2, 3))), hidden


NETS = {
    'torchvision basic': (Basic, (2, 1, 1, 2), 8, False),
    'torchvision bottleneck': (Bottleneck, (2, 1, 2, 1), 8, False),
    'akamaster': (Basic, (2, 2, 2), 8, True),
}


@pytest.mark.parametrize('name', NETS)
def test_resnet_equals_the_published_definition(name, tmp_path):
    torch.manual_seed(1)
    reference = parity.perturb(Net(*NETS[name]))
    torch.save(nn.DataParallel(reference).state_dict(), tmp_path / 'net.pth')  # names begin with module.
    tensors = parity.arrays(torch.load(tmp_path / 'net.pth', weights_only=True))
    ours = parity.Ours(tensors, {})
    assert ours.known.dialect.name == name.split()[0]
    outputs, inner = ours(BATCH)
    with torch.no_grad():
        logits, hidden = reference(PIXELS)
    assert parity.difference(outputs['logits'], logits) <= parity.TOLERANCE
    for stage, x in enumerate(hidden, 1):
        assert parity.difference(inner[f'backbone/stage{stage}'], x.permute(0, 2, 3, 1)) <= parity.TOLERANCE

    assert parity.check_swaps(ours, tensors, BATCH) == 40
    again = parity.load_strictly(Net(*NETS[name]), parity.check_round_trip(ours))
    with torch.no_grad():
        assert torch.equal(again(PIXELS)[0], logits)


def test_resnet_of_every_name_is_recognised():
    """By its shapes alone: nothing is computed."""
    for depth, (block, stages) in {
        '18': (Basic, (2, 2, 2, 2)),
        '34': (Basic, (3, 4, 6, 3)),
        '50': (Bottleneck, (3, 4, 6, 3)),
        '101': (Bottleneck, (3, 4, 23, 3)),
        '152': (Bottleneck, (3, 8, 36, 3)),
    }.items():
        with torch.device('meta'):
            state = Net(block, stages, 64, False).state_dict()
        names = {name: np.broadcast_to(np.float32(0), x.shape) for name, x in state.items()}
        assert recognise(names, {}, 'x').model == {'name': f'resnet{depth}'}
