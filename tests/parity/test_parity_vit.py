"""ViT and DeiT against Hugging Face's, timm's and torchvision's, on tensors that went through files."""

import copy
import functools
import json
import math

import numpy as np
import pytest

torch = pytest.importorskip('torch')
transformers = pytest.importorskip('transformers')

import parity  # noqa: E402
from safetensors.numpy import load_file, save_file  # noqa: E402
from torch import nn  # noqa: E402

from jtl.pretrained.names import vit  # noqa: E402
from jtl.pretrained.table import export  # noqa: E402

RNG = np.random.default_rng(0)
IMAGES = RNG.normal(size=(3, 16, 24, 3)).astype(np.float32)
BATCH = {'image': IMAGES}
PIXELS = torch.from_numpy(IMAGES.transpose(0, 3, 1, 2).copy())
SIZES = {  # 2·3 patches, an MLP that is not 4 times as wide
    'hidden_size': 32,
    'num_hidden_layers': 2,
    'num_attention_heads': 4,
    'intermediate_size': 48,
    'image_size': (16, 24),
    'patch_size': 8,
    'num_labels': 7,
}
VARIANTS = {
    'plain': {},
    'tanh, no bias, large eps': {'hidden_act': 'gelu_new', 'qkv_bias': False, 'layer_norm_eps': 0.1},
}
CLASSES = {
    'vit': transformers.ViTForImageClassification,
    'deit': transformers.DeiTForImageClassification,
    'teacher': transformers.DeiTForImageClassificationWithTeacher,
}


def saved(kind, folder, **changes):
    """A reference in a folder as `save_pretrained` writes it; the reference, its tensors, its config.json."""
    config = (transformers.ViTConfig if kind == 'vit' else transformers.DeiTConfig)(**{**SIZES, **changes})
    torch.manual_seed(0)
    reference = parity.perturb(CLASSES[kind](config))
    reference.save_pretrained(folder)
    return reference, load_file(folder / 'model.safetensors'), json.loads((folder / 'config.json').read_text())


def run(reference, **kwargs):
    with torch.no_grad():
        return reference(PIXELS, **kwargs)


def unseen(what):
    """The logits are the mean of two heads: which bias belongs to which does not matter, there or here."""
    return 'bias' in what and all('classifier' in name or 'head' in name for name in what.split(' for '))


check_swaps = functools.partial(parity.check_swaps, batch=BATCH, most=1000, unseen=unseen)


@pytest.mark.parametrize(
    'kind, variant',
    [('vit', 'plain'), ('vit', 'tanh, no bias, large eps'), ('deit', 'plain'), ('teacher', 'tanh, no bias, large eps')],
)
def test_vit_equals_transformers(kind, variant, tmp_path):
    reference, tensors, config = saved(kind, tmp_path, **VARIANTS[variant])
    ours = parity.Ours(tensors, config)
    assert ours.known.dialect.name == 'huggingface' + ('' if kind == 'vit' else '-deit')
    assert ours.model.backbone.pool == ('both' if kind == 'teacher' else 'token')
    outputs, inner = ours(BATCH)
    expected = run(reference, output_hidden_states=True)
    assert parity.difference(outputs['logits'], expected.logits) <= parity.TOLERANCE
    for block, hidden in enumerate(expected.hidden_states[1:]):
        assert parity.difference(inner[f'backbone/block{block}'], hidden) <= parity.TOLERANCE
    with torch.no_grad():
        last = reference.base_model.layernorm(expected.hidden_states[-1])
    assert parity.difference(inner['backbone/norm'], last) <= parity.TOLERANCE


@pytest.mark.parametrize('kind, mistakes', [('vit', 39), ('teacher', 42)])
def test_vit_of_transformers_catches_a_swap(kind, mistakes, tmp_path):
    """Every pair of neighbours of one shape, and every square one transposed."""
    _, tensors, config = saved(kind, tmp_path)
    assert check_swaps(parity.Ours(tensors, config), tensors) == mistakes


@pytest.mark.parametrize('kind', CLASSES)
def test_vit_goes_back_to_transformers(kind, tmp_path):
    """As a folder that `from_pretrained` takes, and under the names of the modules in memory."""
    reference, tensors, config = saved(kind, tmp_path / 'a')
    ours = parity.Ours(tensors, config)
    expected = run(reference).logits
    written = parity.check_round_trip(ours)
    assert written.keys() == tensors.keys()

    (tmp_path / 'b').mkdir()
    save_file(written, tmp_path / 'b' / 'model.safetensors', {'format': 'pt'})
    (tmp_path / 'b' / 'config.json').write_text(json.dumps(config))
    again, report = CLASSES[kind].from_pretrained(tmp_path / 'b', output_loading_info=True)
    assert not any(report.values()), report
    np.testing.assert_allclose(run(again.eval()).logits, expected, rtol=0, atol=1e-6)

    memory = next(d for d in vit.DIALECTS if d.name == ('transformers5' if kind == 'vit' else 'transformers5-deit'))
    again = parity.load_strictly(copy.deepcopy(reference), export(ours.leaves, memory))
    np.testing.assert_allclose(run(again).logits, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize('kind', ['vit', 'teacher'])
def test_vit_reads_the_names_of_modules_in_memory(kind, tmp_path):
    reference, tensors, config = saved(kind, tmp_path)
    torch.save(reference.state_dict(), tmp_path / 'x.pt')
    memory = parity.Ours(parity.arrays(torch.load(tmp_path / 'x.pt', weights_only=True)), config)
    files = parity.Ours(tensors, config)
    assert memory.known.dialect.name.startswith('transformers5') and memory.known.model == files.known.model
    assert memory.leaves.keys() == files.leaves.keys()
    for path in files.leaves:
        np.testing.assert_array_equal(memory.leaves[path], files.leaves[path])
    parity.check_round_trip(memory)


@pytest.mark.parametrize('kind', ['vit', 'deit'])
def test_vit_with_a_pooler_equals_transformers(kind, tmp_path):
    """`ViTModel`: features are tanh(Dense(class token)), and no name has the prefix `vit.`."""
    config, made = {
        'vit': (transformers.ViTConfig, transformers.ViTModel),
        'deit': (transformers.DeiTConfig, transformers.DeiTModel),
    }[kind]
    torch.manual_seed(0)
    reference = parity.perturb(made(config(**SIZES, pooler_output_size=20)))
    reference.save_pretrained(tmp_path)
    tensors, config = load_file(tmp_path / 'model.safetensors'), json.loads((tmp_path / 'config.json').read_text())
    ours = parity.Ours(tensors, config)
    assert ours.model.backbone.pre_logits == 20
    outputs, inner = ours(BATCH)
    expected = run(reference)
    assert parity.difference(outputs['features'], expected.pooler_output) <= parity.TOLERANCE
    assert parity.difference(inner['backbone/norm'], expected.last_hidden_state) <= parity.TOLERANCE
    assert check_swaps(ours, tensors, most=10, key='features') == 10
    (tmp_path / 'b').mkdir()
    save_file(parity.check_round_trip(ours), tmp_path / 'b' / 'model.safetensors', {'format': 'pt'})
    (tmp_path / 'b' / 'config.json').write_text(json.dumps(config))
    again, report = made.from_pretrained(tmp_path / 'b', output_loading_info=True)
    assert not any(report.values()), report
    assert torch.equal(run(again.eval()).pooler_output, expected.pooler_output)


def test_vit_cut_gives_the_normalised_hidden_state(tmp_path):
    reference, tensors, config = saved('vit', tmp_path)
    features = parity.Ours(tensors, config, depth=1)(BATCH)[0]['features']
    with torch.no_grad():
        hidden = reference(PIXELS, output_hidden_states=True).hidden_states[1]
        expected = reference.vit.layernorm(hidden)[:, 0]
    assert parity.difference(features, expected) <= parity.TOLERANCE


# timm's and torchvision's, whose packages are not needed: the published definitions, written plainly.


class TimmAttention(nn.Module):
    def __init__(self, width, heads, bias):
        super().__init__()
        self.heads, self.qkv, self.proj = heads, nn.Linear(width, 3 * width, bias), nn.Linear(width, width)

    def forward(self, x):
        batch, tokens, width = x.shape
        q, k, v = self.qkv(x).reshape(batch, tokens, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        weights = (q @ k.transpose(-2, -1) / math.sqrt(width // self.heads)).softmax(-1)
        return self.proj((weights @ v).transpose(1, 2).reshape(batch, tokens, width))


class TimmBlock(nn.Module):
    def __init__(self, width, heads, hidden, bias):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width, 1e-6), nn.LayerNorm(width, 1e-6)
        self.attn = TimmAttention(width, heads, bias)
        self.mlp = nn.ModuleDict({'fc1': nn.Linear(width, hidden), 'fc2': nn.Linear(hidden, width)})

    def forward(self, x):
        x = x + self.attn(self.norm1(x))
        return x + self.mlp['fc2'](nn.functional.gelu(self.mlp['fc1'](self.norm2(x))))


class Timm(nn.Module):
    def __init__(self, token=True, distilled=False, pool='token', fc_norm=False, pre_logits=0, bias=True, width=128):
        super().__init__()
        self.token, self.pool = token, pool
        self.patch_embed = nn.ModuleDict({'proj': nn.Conv2d(3, width, 8, 8)})
        if token:
            self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        if distilled:
            self.dist_token = nn.Parameter(torch.zeros(1, 1, width))
            self.head_dist = nn.Linear(width, 7)
        self.pos_embed = nn.Parameter(torch.zeros(1, 6 + token + distilled, width))
        self.blocks = nn.ModuleList(TimmBlock(width, 2, 96, bias) for _ in range(2))
        if fc_norm:
            self.fc_norm = nn.LayerNorm(width, 1e-6)
        else:
            self.norm = nn.LayerNorm(width, 1e-6)
        if pre_logits:
            self.pre_logits = nn.ModuleDict({'fc': nn.Linear(width, pre_logits)})
        self.head = nn.Linear(pre_logits or width, 7)

    def forward(self, x):
        x = self.patch_embed['proj'](x).flatten(2).transpose(1, 2)
        tokens = [t for t in (getattr(self, 'cls_token', None), getattr(self, 'dist_token', None)) if t is not None]
        x = torch.cat([*(t.expand(len(x), -1, -1) for t in tokens), x], 1) + self.pos_embed
        self.hidden = []
        for block in self.blocks:
            x = block(x)
            self.hidden.append(x)
        x = self.norm(x) if hasattr(self, 'norm') else x
        if hasattr(self, 'head_dist'):
            return (self.head(x[:, 0]) + self.head_dist(x[:, 1])) / 2
        x = x[:, 0] if self.pool == 'token' else x[:, len(tokens) :].mean(1)
        x = self.fc_norm(x) if hasattr(self, 'fc_norm') else x
        x = torch.tanh(self.pre_logits['fc'](x)) if hasattr(self, 'pre_logits') else x
        return self.head(x)


class TorchvisionBlock(nn.Module):
    def __init__(self, width, old):
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(width, 1e-6), nn.LayerNorm(width, 1e-6)
        self.self_attention = nn.MultiheadAttention(width, 2, batch_first=True)
        names = ('linear_1', 'linear_2') if old else ('0', '3')
        self.mlp = nn.ModuleDict(dict(zip(names, (nn.Linear(width, 96), nn.Linear(96, width)))))

    def forward(self, x):
        y = self.ln_1(x)
        x = x + self.self_attention(y, y, y, need_weights=False)[0]
        first, second = self.mlp.values()
        return x + second(nn.functional.gelu(first(self.ln_2(x))))


class Torchvision(nn.Module):
    def __init__(self, old=False, pre_logits=0, width=128):
        super().__init__()
        self.class_token = nn.Parameter(torch.zeros(1, 1, width))
        self.conv_proj = nn.Conv2d(3, width, 8, 8)
        self.encoder = nn.Module()
        self.encoder.pos_embedding = nn.Parameter(torch.zeros(1, 7, width))
        self.encoder.layers = nn.ModuleDict({f'encoder_layer_{i}': TorchvisionBlock(width, old) for i in range(2)})
        self.encoder.ln = nn.LayerNorm(width, 1e-6)
        layers = {'pre_logits': nn.Linear(width, pre_logits)} if pre_logits else {}
        self.heads = nn.ModuleDict({**layers, 'head': nn.Linear(pre_logits or width, 7)})

    def forward(self, x):
        x = self.conv_proj(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.class_token.expand(len(x), -1, -1), x], 1) + self.encoder.pos_embedding
        self.hidden = []
        for block in self.encoder.layers.values():
            x = block(x)
            self.hidden.append(x)
        x = self.encoder.ln(x)[:, 0]
        if 'pre_logits' in self.heads:
            x = torch.tanh(self.heads['pre_logits'](x))
        return self.heads['head'](x)


PLAIN = {
    'timm': (Timm, {}, {}),
    'timm, pre_logits': (Timm, {'pre_logits': 20}, {}),
    'timm, fc_norm': (Timm, {'pool': 'avg', 'fc_norm': True}, {}),
    'timm, mean by its config': (Timm, {'pool': 'avg'}, {'global_pool': 'avg'}),
    'timm, no class token': (Timm, {'token': False, 'pool': 'avg', 'bias': False}, {}),
    'timm, no class token, fc_norm': (Timm, {'token': False, 'pool': 'avg', 'fc_norm': True}, {}),
    'timm, distilled': (Timm, {'distilled': True}, {}),
    'timm, heads by its config': (Timm, {'width': 30}, {'model_args': {'num_heads': 2}}),
    'torchvision': (Torchvision, {}, {}),
    'torchvision, old': (Torchvision, {'old': True}, {}),
    'torchvision, pre_logits': (Torchvision, {'pre_logits': 20}, {}),
}


@pytest.mark.parametrize('case', PLAIN)
def test_vit_equals_plain_torch(case, tmp_path):
    made, kwargs, config = PLAIN[case]
    torch.manual_seed(0)
    reference = parity.perturb(made(**kwargs))
    save_file(parity.arrays(reference.state_dict()), tmp_path / 'x.safetensors')
    tensors = load_file(tmp_path / 'x.safetensors')
    ours = parity.Ours(tensors, config)
    assert ours.known.dialect.name == case.split(',')[0]
    outputs, inner = ours(BATCH)
    expected = run(reference)
    assert parity.difference(outputs['logits'], expected) <= parity.TOLERANCE
    for block, hidden in enumerate(reference.hidden):
        assert parity.difference(inner[f'backbone/block{block}'], hidden) <= parity.TOLERANCE

    written = parity.check_round_trip(ours)
    if case != 'torchvision, old':  # whose names are read and no longer written
        again = parity.load_strictly(copy.deepcopy(reference), written)
        np.testing.assert_allclose(run(again), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    'case, mistakes', [('timm, fc_norm', 23), ('timm, distilled', 26), ('torchvision, pre_logits', 23)]
)
def test_vit_of_plain_torch_catches_a_swap(case, mistakes):
    made, kwargs, config = PLAIN[case]
    torch.manual_seed(0)
    tensors = parity.arrays(parity.perturb(made(**kwargs)).state_dict())
    assert check_swaps(parity.Ours(tensors, config), tensors) == mistakes
