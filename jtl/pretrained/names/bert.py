"""BERT under Hugging Face's names, those of sentence-transformers included."""

import re
from collections.abc import Mapping

from jtl.errors import UserError, nearest
from jtl.models import bert
from jtl.pretrained.table import DENSE, Arrays, Dialect, Row, left_out, some

FAMILY = 'bert'


def dense(theirs: str, ours: str) -> tuple[Row, ...]:
    """The rows of a linear layer."""
    return Row(f'{theirs}.weight', f'{ours}/kernel', DENSE), Row(f'{theirs}.bias', f'{ours}/bias')


def norm(theirs: str, ours: str) -> tuple[Row, ...]:
    """The rows of a LayerNorm; files from before 2019 say gamma and beta."""
    return (
        Row(f'{theirs}.weight', f'{ours}/scale'),
        Row(f'{theirs}.bias', f'{ours}/bias'),
        Row(f'{theirs}.gamma', f'{ours}/scale'),
        Row(f'{theirs}.beta', f'{ours}/bias'),
    )


THEIRS = '[bert.]encoder.layer.{i}'
OURS = 'backbone/block{i}'
LANGUAGE = (  # heads of the pretraining
    'cls.predictions.bias',
    'cls.predictions.decoder.{part:weight|bias}',
    'cls.predictions.transform.dense.{part:weight|bias}',
    'cls.predictions.transform.LayerNorm.{part:weight|bias|gamma|beta}',
    'cls.seq_relationship.{part:weight|bias}',
)
HUGGINGFACE = (
    Row('[bert.]embeddings.word_embeddings.weight', 'backbone/word/embedding'),
    Row('[bert.]embeddings.position_embeddings.weight', 'backbone/position/embedding'),
    Row('[bert.]embeddings.token_type_embeddings.weight', 'backbone/token_type/embedding'),
    *norm('[bert.]embeddings.LayerNorm', 'backbone/norm'),
    *dense(f'{THEIRS}.attention.self.{{part:query|key|value}}', f'{OURS}/attn/{{part}}'),
    *dense(f'{THEIRS}.attention.output.dense', f'{OURS}/attn/out'),
    *norm(f'{THEIRS}.attention.output.LayerNorm', f'{OURS}/norm1'),
    *dense(f'{THEIRS}.intermediate.dense', f'{OURS}/mlp/fc1'),
    *dense(f'{THEIRS}.output.dense', f'{OURS}/mlp/fc2'),
    *norm(f'{THEIRS}.output.LayerNorm', f'{OURS}/norm2'),
    *dense('[bert.]pooler.dense', 'backbone/pooler'),
    *dense('classifier', 'head'),
    left_out('[bert.]embeddings.{part:position_ids|token_type_ids}', 'a constant'),
    *(left_out(name, 'predicts words and next sentences') for name in LANGUAGE),
    left_out('qa_outputs.{part:weight|bias}', 'finds answers in a text'),
)

ACTIVATIONS = {
    'gelu': 'gelu',
    'gelu_python': 'gelu',
    'gelu_new': 'gelu_tanh',
    'gelu_fast': 'gelu_tanh',
    'gelu_pytorch_tanh': 'gelu_tanh',
    'relu': 'relu',
}
ONLY = {'model_type': 'bert', 'position_embedding_type': 'absolute', 'is_decoder': False}
POOLS = {'cls': 'token', 'mean': 'mean'}


def settings(tensors: Arrays, config: dict) -> dict:
    """heads, activation, eps, pad and pool from `config.json` and, under `pooling`, `1_Pooling/config.json`.

    Dropout is a choice of whoever trains, and not taken from there.
    """
    for key, ours in ONLY.items():
        if config.get(key, ours) != ours:
            raise UserError(f'config.json: {key}={config[key]!r} is not supported, only {ours!r}.')
    rows = {name.removeprefix('bert.'): x.shape[:1] for name, x in tensors.items()}
    tables = [rows.get(f'embeddings.{name}_embeddings.weight') for name in ('position', 'token_type')]
    if tables == [(514,), (1,)]:
        raise UserError('514 positions and one type of token are those of RoBERTa, which is not supported, only BERT.')
    found = {}
    if 'num_attention_heads' in config:
        found['heads'] = _number(config, 'num_attention_heads', int, 1)
    if 'layer_norm_eps' in config:
        found['eps'] = float(_number(config, 'layer_norm_eps', (int, float), 0))
    if config.get('pad_token_id') is not None:
        found['pad'] = _number(config, 'pad_token_id', int, 0)
    if 'hidden_act' in config:
        name = str(config['hidden_act'])
        if name not in ACTIVATIONS:
            raise UserError(f'config.json: unknown hidden_act {name!r}: {nearest(name, ACTIVATIONS)}')
        found['activation'] = ACTIVATIONS[name]
    if 'pooling' in config:
        found['pool'] = _pool(config['pooling'])
    return found


def _number(config: dict, key: str, kind: type | tuple, least: float) -> int | float:
    value = config[key]
    if not isinstance(value, kind) or isinstance(value, bool) or not value >= least:
        raise UserError(f'config.json: {key}={value!r} should be a number of at least {least}.')
    return value


def _pool(pooling: dict) -> str:
    """What `1_Pooling/config.json` of sentence-transformers asks for, in its old form, a switch a mode, or its new."""
    modes = pooling.get('pooling_mode') if isinstance(pooling, dict) else None
    if modes is None and isinstance(pooling, dict):
        modes = [re.sub('pooling_mode_|_tokens?', '', key) for key, on in pooling.items() if on is True]
        modes = [mode for mode in modes if mode != 'include_prompt']
    modes = [modes] if isinstance(modes, str) else modes
    if not isinstance(modes, list) or len(modes) != 1 or modes[0] not in POOLS:
        raise UserError(f'1_Pooling/config.json: {modes!r} is not supported, only one of: {", ".join(POOLS)}.')
    return POOLS[modes[0]]


DIALECTS = (Dialect('huggingface', HUGGINGFACE, settings),)

HEADS = {known['width']: known['heads'] for known in bert.VARIANTS.values() if known} | {312: 12}  # 312: TinyBERT


def model(shapes: Mapping[str, tuple[int, ...]], settings: dict) -> dict:
    """`config.model` for the shapes of our leaves.

    No shape shows the number of heads: where the settings do not say it, it is that of the published models of the same
    width. The features are the pooler's where there is one, and the first token else, unless the settings say it.

    Raises:
        UserError: no BERT that we build has them, or the number of heads is anyone's guess.
    """
    size = lambda path, axis: (*shapes.get(f'backbone/{path}', ()), None, None)[axis]
    blocks = {found[1] for path in shapes if (found := re.match(r'backbone/block(\d+)/', path))}
    width = size('norm/scale', 0) or size('block0/norm1/scale', 0) or size('word/embedding', 1)
    if not width or not blocks:
        raise UserError(f'a BERT has embeddings and blocks, and these are only {some(list(shapes))}.')
    if 'heads' not in settings and width not in HEADS:
        known = ', '.join(f'{w} has {n}' for w, n in HEADS.items())
        raise UserError(
            f'no shape shows how many heads a width of {width} is shared by: put a config.json with '
            f'num_attention_heads beside the weights. Known without: {known}.'
        )
    hidden = size('block0/mlp/fc1/bias', 0)
    found = {
        'vocab': size('word/embedding', 0),
        'positions': size('position/embedding', 0),
        'types': size('token_type/embedding', 0),
        'width': width,
        'depth': len(blocks),
        'heads': HEADS.get(width),
        'mlp': None if hidden == 4 * width else hidden,
        'pool': 'pooler' if 'backbone/pooler/kernel' in shapes else 'token',
        **settings,
    }
    found = {key: value for key, value in found.items() if value is not None}
    same = lambda known: known and all(found[key] == known[key] for key in ('width', 'depth', 'heads'))
    variant = next((variant for variant, known in bert.VARIANTS.items() if same(known)), '')
    standard = bert.backbone(variant)
    return {'name': f'bert{variant}', **{key: value for key, value in found.items() if value != getattr(standard, key)}}
