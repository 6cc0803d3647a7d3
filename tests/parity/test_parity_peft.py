"""LoRA, DoRA and IA³ against peft, on a tiny ViT of transformers: the same weights and adapters, all perturbed."""

import jax
import numpy as np
import pytest

torch = pytest.importorskip('torch')
transformers = pytest.importorskip('transformers')
peft = pytest.importorskip('peft')

import parity  # noqa: E402
from tiny import jit  # noqa: E402

from jtl import tree  # noqa: E402

RNG = np.random.default_rng(0)
BATCH = {'image': RNG.normal(size=(3, 16, 24, 3)).astype(np.float32)}
PIXELS = torch.from_numpy(BATCH['image'].transpose(0, 3, 1, 2).copy())
WEIGHTS = RNG.normal(size=(3, 7)).astype(np.float32)  # of the logits, in the sum that is differentiated
SIZES = {
    'hidden_size': 32,
    'num_hidden_layers': 2,
    'num_attention_heads': 4,
    'intermediate_size': 48,
    'image_size': (16, 24),
    'patch_size': 8,
    'num_labels': 7,
}
PLACES = {  # theirs -> ours
    'vit.embeddings.patch_embeddings.projection': 'patch',
    **{
        f'vit.layers.{i}.{theirs}': f'block{i}/{ours}'
        for i in (0, 1)
        for theirs, ours in (
            *((f'attention.{x[0]}_proj', f'attn/{x}') for x in ('query', 'key', 'value', 'out')),
            *((f'mlp.{x}', f'mlp/{x}') for x in ('fc1', 'fc2')),
        )
    },
}
THEIRS, OURS = r'.*(q_proj|v_proj|fc1|patch_embeddings\.projection)', ('.*attn/(query|value)', '.*mlp/fc1', 'patch')
CASES = {
    'lora': (
        peft.LoraConfig(r=3, lora_alpha=5, target_modules=THEIRS),
        {'lora': {'rank': 3, 'alpha': 5, 'layers': OURS}},
    ),
    'rslora': (
        peft.LoraConfig(r=3, lora_alpha=5, target_modules=THEIRS, use_rslora=True),
        {'lora': {'rank': 3, 'alpha': 5, 'layers': OURS, 'rslora': True}},
    ),
    'dora': (
        peft.LoraConfig(r=3, lora_alpha=5, target_modules=THEIRS, use_dora=True),
        {'lora': {'rank': 3, 'alpha': 5, 'layers': OURS, 'dora': True}},
    ),
    'ia3': (
        peft.IA3Config(target_modules=r'.*(k_proj|v_proj|fc2)', feedforward_modules=r'.*fc2'),
        {'ia3': {}},
    ),
}


def translated(adapted, gradient=False):
    """peft's adapter under our paths: {'lora/backbone/block0/attn/query/a': …}.

    Our magnitude is what peft's has more than ‖W‖, so their gradients are equal.
    """
    found = {}
    for name, x in adapted.named_parameters():
        x = x.grad if gradient else x
        place, _, which = name.removeprefix('base_model.model.').partition('.lora_' if 'lora_' in name else '.ia3_')
        if not which:
            continue
        path, x = f'backbone/{PLACES[place]}', x.detach().numpy()
        if which.startswith('A'):
            found[f'lora/{path}/a'] = x.transpose(2, 3, 1, 0) if x.ndim == 4 else x.T
        elif which.startswith('B'):
            found[f'lora/{path}/b'] = x.reshape(x.shape[:2]).T
        elif which.startswith('magnitude'):
            weight = adapted.get_submodule(f'base_model.model.{place}').base_layer.weight.detach().numpy()
            length = np.sqrt((weight.reshape(len(weight), -1) ** 2).sum(1))
            found[f'lora/{path}/magnitude'] = x.reshape(-1) - (0 if gradient else length)
        else:
            found[f'ia3/{path}/{"input" if len(x) == 1 else "output"}'] = x.reshape(-1)
    return found


@pytest.mark.parametrize('case', CASES)
def test_adapters_equal_peft(case):
    """Logits, the gradient of every leaf of the adapter, and logits after merging."""
    config, options = CASES[case]
    torch.manual_seed(0)
    reference = parity.perturb(transformers.ViTForImageClassification(transformers.ViTConfig(**SIZES)))
    ours = parity.Ours(parity.arrays(reference.state_dict()), reference.config.to_dict(), jit, **options)
    with torch.no_grad():
        plain = reference(PIXELS).logits.numpy()
    adapted = peft.get_peft_model(reference, config).eval()
    parity.shake([(name, x) for name, x in adapted.named_parameters() if 'lora_' in name or 'ia3_' in name], seed=1)
    theirs = adapted(PIXELS).logits
    (theirs * torch.from_numpy(WEIGHTS)).sum().backward()

    params = tree.unflatten({**ours.leaves, **translated(adapted)})
    params = jax.tree.map(lambda x: np.array(x, np.float32), params)
    shapes = jax.eval_shape(lambda: ours.model.init(jax.random.key(0), BATCH))['params']
    assert jax.tree.map(np.shape, params) == jax.tree.map(np.shape, shapes)

    def run(params):
        logits = ours.model.apply({'params': params}, BATCH, train=False)['logits']
        return (logits * WEIGHTS).sum(), logits

    grads, logits = jit(jax.grad(run, has_aux=True))(params)
    assert parity.difference(np.asarray(logits), theirs) <= parity.TOLERANCE
    assert parity.difference(np.asarray(logits), plain) > 100 * parity.TOLERANCE
    grads, expected = tree.flatten(grads), translated(adapted, gradient=True)
    for path, grad in expected.items():
        assert parity.difference(np.asarray(grads[path]), grad) <= parity.TOLERANCE, path

    merged = adapted.merge_and_unload()
    with torch.no_grad():
        theirs = merged(PIXELS).logits
    at = jit(lambda p: ours.model.model.apply({'params': p}, BATCH, train=False)['logits'])
    assert parity.difference(np.asarray(at(ours.model.merge(params))), theirs) <= parity.TOLERANCE
