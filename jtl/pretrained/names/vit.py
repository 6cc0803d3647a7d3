"""Vision Transformers under PyTorch's names: timm's, which are DeiT's own, torchvision's and Hugging Face's."""

import math
import re

import numpy as np

from jtl.errors import UserError, some
from jtl.models import IMAGENET_COLOURS, vit
from jtl.pretrained.settings import Shapes, architecture, check_shapes, chosen, count, eps, number, only
from jtl.pretrained.table import CONV, DENSE, Arrays, Dialect, Row, Way, dense, left_out, norm

FAMILY = 'vit'
BLOCK = 'backbone/block{block}'


def thirds(x: np.ndarray) -> tuple[np.ndarray, ...]:
    """[3 D, …] -> three [D, …]."""
    if not x.ndim or len(x) % 3:
        raise ValueError(f'of shape {x.shape}, which is not three of a size')
    return tuple(np.split(x, 3))


def qkv(weight: str, bias: str) -> tuple[Row, ...]:
    """The rows of a layer that makes queries, keys and values at once: [3 D, D] <-> three [D, D]."""
    kernels, biases = (
        tuple(f'{BLOCK}/attn/{part}/{leaf}' for part in ('query', 'key', 'value')) for leaf in ('kernel', 'bias')
    )
    return (
        Row(weight, kernels, Way('a third, transposed', lambda x: tuple(map(DENSE.here, thirds(x))), _stack)),
        Row(bias, biases, Way('a third', thirds, lambda *x: np.concatenate(x))),
    )


def _stack(*kernels: np.ndarray) -> np.ndarray:
    return np.concatenate([kernel.T for kernel in kernels])


def two_heads(token: str, head: str, teacher: str) -> tuple[Row, ...]:
    """DeiT's class head W₁, b₁ and distillation head W₂, b₂, whose logits are averaged, as one head on both features.

    Ours is [W₁; W₂] / 2 and (b₁ + b₂) / 2; back, both heads get our bias, which gives the same mean. Only a head
    twice as long as the distillation token is made two again, so the token is in the row for the way back.
    """
    wide = lambda x: x.astype(np.promote_types(x.dtype, np.float32))  # halves of small numbers are still numbers
    kernel = lambda w1, w2: np.concatenate([DENSE.here(wide(w1)), DENSE.here(wide(w2))]) / 2
    bias = lambda b1, b2: (wide(b1) + wide(b2)) / 2
    ours = ('backbone/distillation_token', 'head/kernel', 'head/bias')
    theirs = (token, f'{head}.weight', f'{head}.bias', f'{teacher}.weight', f'{teacher}.bias')
    return (
        Row((theirs[1], theirs[3]), ours[1], Way('two heads side by side, halved', kernel, refused)),
        Row((theirs[2], theirs[4]), ours[2], Way('mean of two heads', bias, refused)),
        Row(theirs, ours, Way('', refused, split_head)),
    )


def split_head(token: np.ndarray, kernel: np.ndarray, bias: np.ndarray) -> tuple[np.ndarray, ...]:
    """The way back of `two_heads`."""
    if len(kernel) != 2 * token.shape[-1]:
        raise ValueError('a head on one token')
    w1, w2 = np.split(2 * kernel, 2)
    return token, w1.T, bias, w2.T, bias


def refused(*arrays: np.ndarray) -> tuple:
    """A way that cannot be gone."""
    raise ValueError('not in this direction')


TIMM = (
    *two_heads('dist_token', 'head', 'head_dist'),
    Row('cls_token', 'backbone/class_token'),
    Row('dist_token', 'backbone/distillation_token'),
    Row('pos_embed', 'backbone/position'),
    Row('patch_embed.proj.weight', 'backbone/patch/kernel', CONV),
    Row('patch_embed.proj.bias', 'backbone/patch/bias'),
    *norm('blocks.{block}.norm{i}', f'{BLOCK}/norm{{i}}'),
    *qkv('blocks.{block}.attn.qkv.weight', 'blocks.{block}.attn.qkv.bias'),
    *dense('blocks.{block}.attn.proj', f'{BLOCK}/attn/out'),
    *dense('blocks.{block}.mlp.fc{i}', f'{BLOCK}/mlp/fc{{i}}'),
    *norm('norm', 'backbone/norm'),
    *norm('fc_norm', 'backbone/fc_norm'),
    *dense('pre_logits.fc', 'backbone/pre_logits'),
    *dense('head', 'head'),
)
LAYERS = 'encoder.layers.encoder_layer_{block}'
TORCHVISION = (
    Row('class_token', 'backbone/class_token'),
    Row('encoder.pos_embedding', 'backbone/position'),
    Row('conv_proj.weight', 'backbone/patch/kernel', CONV),
    Row('conv_proj.bias', 'backbone/patch/bias'),
    *norm(f'{LAYERS}.ln_{{i}}', f'{BLOCK}/norm{{i}}'),
    *qkv(f'{LAYERS}.self_attention.in_proj_weight', f'{LAYERS}.self_attention.in_proj_bias'),
    *dense(f'{LAYERS}.self_attention.out_proj', f'{BLOCK}/attn/out'),
    *dense(f'{LAYERS}.mlp.0', f'{BLOCK}/mlp/fc1'),  # since torchvision 0.12
    *dense(f'{LAYERS}.mlp.3', f'{BLOCK}/mlp/fc2'),
    *dense(f'{LAYERS}.mlp.linear_{{i}}', f'{BLOCK}/mlp/fc{{i}}'),  # before, and in its published files
    *norm('encoder.ln', 'backbone/norm'),
    *dense('heads.pre_logits', 'backbone/pre_logits'),
    *dense('heads.head', 'head'),
)


def huggingface_rows(base: str, layers: tuple[Row, ...]) -> tuple[Row, ...]:
    """The rows of a `base`, `vit` or `deit`, around those of its layers."""
    outer = (
        *two_heads(f'[{base}.]embeddings.distillation_token', 'cls_classifier', 'distillation_classifier'),
        Row(f'[{base}.]embeddings.cls_token', 'backbone/class_token'),
        Row(f'[{base}.]embeddings.distillation_token', 'backbone/distillation_token'),
        Row(f'[{base}.]embeddings.position_embeddings', 'backbone/position'),
        Row(f'[{base}.]embeddings.patch_embeddings.projection.weight', 'backbone/patch/kernel', CONV),
        Row(f'[{base}.]embeddings.patch_embeddings.projection.bias', 'backbone/patch/bias'),
        *norm(f'[{base}.]layernorm', 'backbone/norm'),
        *dense(f'[{base}.]pooler.dense', 'backbone/pre_logits'),
        *dense('classifier', 'head'),
        left_out(f'[{base}.]embeddings.mask_token', 'for masked pre-training'),
        left_out('decoder.{i}.weight', 'for masked pre-training'),
        left_out('decoder.{i}.bias', 'for masked pre-training'),
    )
    rows = [row._replace(theirs=f'[{base}.]{row.theirs}') for row in layers]
    return (*(row for row in outer if base == 'deit' or 'distillation' not in f'{row.theirs} {row.ours}'), *rows)


LAYER = 'encoder.layer.{block}'
CLASSIC = (  # what is in files, whatever the version
    *norm(f'{LAYER}.layernorm_before', f'{BLOCK}/norm1'),
    *norm(f'{LAYER}.layernorm_after', f'{BLOCK}/norm2'),
    *dense(f'{LAYER}.attention.attention.{{part:query|key|value}}', f'{BLOCK}/attn/{{part}}'),
    *dense(f'{LAYER}.attention.output.dense', f'{BLOCK}/attn/out'),
    *dense(f'{LAYER}.intermediate.dense', f'{BLOCK}/mlp/fc1'),
    *dense(f'{LAYER}.output.dense', f'{BLOCK}/mlp/fc2'),
)
MEMORY = (  # the names of modules since transformers 5, which `torch.save(model.state_dict())` writes
    *norm('layers.{block}.layernorm_before', f'{BLOCK}/norm1'),
    *norm('layers.{block}.layernorm_after', f'{BLOCK}/norm2'),
    *dense('layers.{block}.attention.q_proj', f'{BLOCK}/attn/query'),
    *dense('layers.{block}.attention.k_proj', f'{BLOCK}/attn/key'),
    *dense('layers.{block}.attention.v_proj', f'{BLOCK}/attn/value'),
    *dense('layers.{block}.attention.o_proj', f'{BLOCK}/attn/out'),
    *dense('layers.{block}.mlp.fc{i}', f'{BLOCK}/mlp/fc{{i}}'),
)


UNBUILT = {  # what part of a name shows a network that we do not build
    'register tokens': 'reg_token register_tokens',
    'a layer scale': 'ls1 ls2 gamma_1 layer_scale1 lambda1',
    'attention pooling': 'attn_pool MAPHead_0 probe',
    'normalised queries and keys': 'q_norm k_norm',
    'relative positions': 'rel_pos_bias relative_position_bias_table relative_position_bias',
    'a norm before the blocks': 'norm_pre pre_layrnorm',
    'a gated MLP': 'w12 fc1_g weights_in',
    'a convolutional stem': 'conv_root backbone root',
    'blocks stacked in one array': 'encoderblock',
}
UNSAID = {  # of timm's names, what neither the tensors nor config.json show
    'norms after the attention and the MLP': r'vit_.*_rpn_.*',
    'a gelu that is approximated': r'vit_(base_patch32|so400m_patch16)_siglip_gap_.*|vit_large_patch16_siglip_gap_512',
    'that gelu and 16 heads of 96': r'vit_giantopt_.*',
    '2 heads of 32': r'test_vit',
}
ACTIVATIONS = {'gelu': 'gelu', 'gelu_new': 'gelu_tanh', 'gelu_pytorch_tanh': 'gelu_tanh', 'gelu_tanh': 'gelu_tanh'}
POOLS = {'token': 'token', 'cls': 'token', 'avg': 'mean'}


def refuse(tensors: Arrays) -> None:
    """Say what a network has that we do not build."""
    for name in tensors:
        for what, parts in UNBUILT.items():
            if not set(parts.split()).isdisjoint(re.split('[./]', name)):
                raise UserError(f'{name}: a Vision Transformer with {what} is not supported.')


def settings_timm(tensors: Arrays, config: dict) -> dict:
    """The kind of pooling from the configuration, else from the tokens and norms that there are."""
    refuse(tensors)
    for what, names in UNSAID.items():
        if re.fullmatch(names, architecture(config)):
            raise UserError(f'config.json: architecture={architecture(config)!r}, with {what}, is not supported.')
    args = config.get('model_args')
    args = {**config, **(args if isinstance(args, dict) else {})}
    only(args, no_embed_class=False)
    mean = 'fc_norm.weight' in tensors or 'cls_token' not in tensors
    pool = chosen(args, 'global_pool', POOLS, 'avg' if mean else 'token')
    settings = {'pool': 'both' if pool == 'token' and 'dist_token' in tensors else pool}
    settings['activation'] = chosen(args, 'act_layer', ACTIVATIONS, 'gelu')
    return settings | given_heads(args, 'num_heads')


def settings_torchvision(tensors: Arrays, config: dict) -> dict:
    refuse(tensors)
    return {'pool': 'token'}


def settings_huggingface(tensors: Arrays, config: dict) -> dict:
    """What config.json says, with the defaults of `ViTConfig`."""
    refuse(tensors)
    if any('pooler.dense' in name for name in tensors):
        only(config, pooler_act='tanh')
    settings = {
        'pool': 'both' if any(name.startswith('distillation_classifier') for name in tensors) else 'token',
        'activation': chosen(config, 'hidden_act', ACTIVATIONS, 'gelu'),
        'eps': eps(config, 'layer_norm_eps', 1e-12),
    }
    return settings | given_heads(config, 'num_attention_heads')


def given_heads(config: dict, key: str) -> dict:
    """`{'heads': …}` if the configuration says it."""
    heads = number(config, key, None, 1)
    return {'heads': heads} if heads else {}


def seen(tensors: Arrays, position: str, patch: str, axis: int) -> dict:
    """`{'size': …}` of the square pictures that a position embedding is for; {} if it does not show."""
    rows = next((x.shape[1] for name, x in tensors.items() if name.endswith(position) and x.ndim == 3), 0)
    side = next((x.shape[axis] for name, x in tensors.items() if name.endswith(patch) and x.ndim == 4), 0)
    grid = next((math.isqrt(n) for n in (rows, rows - 1, rows - 2) if n > 0 and math.isqrt(n) ** 2 == n), 0)
    return {'size': grid * side} if grid * side else {}


def preprocess_timm(tensors: Arrays, config: dict) -> dict:
    """DeiT's own mean and standard deviation, else 0.5; a crop of 0.9 at 224, the whole picture from 384 on."""
    size = seen(tensors, 'pos_embed', 'patch_embed.proj.weight', 2)
    deit = 'dist_token' in tensors or architecture(config).startswith('deit')
    crop = {'crop': 1.0} if size.get('size', 224) >= 384 else {}
    return {**vit.preprocess('_b16'), **size, **crop, **(IMAGENET_COLOURS if deit else {})}


def preprocess_torchvision(tensors: Arrays, config: dict) -> dict:
    """Resized to 256 bilinearly, of which 224 are kept; its larger ones are bicubic and whole."""
    size = seen(tensors, 'pos_embedding', 'conv_proj.weight', 2)
    small = size.get('size', 224) < 384
    how = {'interpolation': 'bilinear', 'crop': 0.875} if small else {'interpolation': 'bicubic', 'crop': 1.0}
    return {**vit.preprocess('_b16'), **size, **IMAGENET_COLOURS, **how}


def preprocess_huggingface(tensors: Arrays, config: dict) -> dict:
    """`DeiTImageProcessor` if there is a distillation token, else `ViTImageProcessor`, where they are told nothing."""
    size = seen(tensors, 'position_embeddings', 'patch_embeddings.projection.weight', 2)
    base = {**vit.preprocess('_b16'), **size, 'resize': 'squash', 'centre': 'floor'}
    if any(name.endswith('distillation_token') for name in tensors):
        return {**base, **IMAGENET_COLOURS, 'crop': 0.875}
    return {**base, 'interpolation': 'bilinear', 'crop': 1.0}


DIALECTS = (
    Dialect('timm', TIMM, settings_timm, preprocess_timm),
    Dialect('torchvision', TORCHVISION, settings_torchvision, preprocess_torchvision, antialias=False),
    *(
        Dialect(name + suffix, huggingface_rows(base, layers), settings_huggingface, preprocess_huggingface, False)
        for name, layers in (('huggingface', CLASSIC), ('transformers5', MEMORY))
        for base, suffix in (('vit', ''), ('deit', '-deit'))
    ),
)

HEADS = {1152: 16, 1280: 16, 1408: 16, 1664: 16, 1792: 16}  # by width, where they are not D / 64


def model(shapes: Shapes, settings: dict) -> dict:
    """`config.model` for the shapes of our leaves.

    Raises:
        UserError: no ViT that we build has them, or nothing says how many heads there are.
    """
    check_shapes(shapes)
    shapes = {path.removeprefix('backbone/'): shape for path, shape in shapes.items() if path.startswith('backbone/')}
    blocks = [int(match[1]) for path in shapes if (match := re.match(r'block(\d+)/', path))]
    found = lambda pattern: next((shape for path, shape in shapes.items() if re.fullmatch(pattern, path)), None)
    wide = found(r'patch/.*|position|class_token|norm/.*|block\d+/norm\d/.*')
    if not wide or not blocks:
        raise UserError(f'no Vision Transformer: no blocks, or no width, in {some(list(shapes)) or "nothing"}.')
    width, patch = wide[-1], found('patch/kernel') or (16, 16)
    query, hidden = found(r'block\d+/attn/query/kernel'), found(r'block\d+/mlp/fc1/(kernel|bias)') or (4 * width,)
    heads = settings.get('heads') or HEADS.get(width) or (0 if width % 64 else width // 64)
    if len(set(patch[:2])) != 1 or query not in (None, (width, width)):
        raise UserError(
            f'no Vision Transformer that we build has backbone/patch/kernel {patch} and queries {query}: '
            f'expected square patches, and queries {(width, width)}.'
        )
    if not heads:
        raise UserError(f'no shape shows how many heads a width of {width} is shared by, and no configuration says it.')
    sizes = {'width': width, 'depth': count(blocks, 'backbone/block'), 'heads': heads}
    ratio = hidden[-1] / width
    size = next((name for name, known in vit.SIZES.items() if known == sizes and ratio == 4), None)
    named = {'name': f'vit_{size}{patch[0]}'} if size else {'name': 'vit', 'patch': patch[0], **sizes}
    others = {
        'mlp_ratio': int(ratio) if ratio == int(ratio) else ratio,
        'class_token': 'class_token' in shapes or settings.get('pool', 'token') != 'mean',
        'distilled': 'distillation_token' in shapes,
        'fc_norm': any(path.startswith('fc_norm/') for path in shapes),
        'pre_logits': (found('pre_logits/(kernel|bias)') or (None,))[-1],
        'qkv_bias': query is None or found(r'block\d+/attn/(query|key|value)/bias') is not None,
        **{key: settings[key] for key in ('pool', 'activation', 'eps') if key in settings},
    }
    built = {**named, **{key: value for key, value in others.items() if value != getattr(vit.ViT, key)}}
    vit.backbone(named['name'].removeprefix('vit'), **{key: value for key, value in built.items() if key != 'name'})
    return built
