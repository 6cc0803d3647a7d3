"""BERT under Hugging Face's names, those of sentence-transformers included."""

import re

from jtl.errors import UserError, some
from jtl.models import bert
from jtl.pretrained.settings import Shapes, check_shapes, chosen, count, eps, number, only
from jtl.pretrained.table import Arrays, Dialect, Row, dense, left_out, norm

FAMILY = 'bert'


def layer_norm(theirs: str, ours: str) -> tuple[Row, ...]:
    """The rows of a LayerNorm; files from before 2019 say gamma and beta."""
    return *norm(theirs, ours), *norm(theirs, ours, '.gamma', '.beta')


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
    *layer_norm('[bert.]embeddings.LayerNorm', 'backbone/norm'),
    *dense(f'{THEIRS}.attention.self.{{part:query|key|value}}', f'{OURS}/attn/{{part}}'),
    *dense(f'{THEIRS}.attention.output.dense', f'{OURS}/attn/out'),
    *layer_norm(f'{THEIRS}.attention.output.LayerNorm', f'{OURS}/norm1'),
    *dense(f'{THEIRS}.intermediate.dense', f'{OURS}/mlp/fc1'),
    *dense(f'{THEIRS}.output.dense', f'{OURS}/mlp/fc2'),
    *layer_norm(f'{THEIRS}.output.LayerNorm', f'{OURS}/norm2'),
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
POOLS = {'cls': 'token', 'mean': 'mean'}


def settings(tensors: Arrays, config: dict) -> dict:
    """heads, activation, eps, pad and pool from `config.json` and, under `pooling`, `1_Pooling/config.json`.

    Dropout is a choice of whoever trains, and not taken from there.
    """
    only(config, model_type='bert', position_embedding_type='absolute', is_decoder=False)
    rows = {name.removeprefix('bert.'): x.shape[:1] for name, x in tensors.items()}
    tables = [rows.get(f'embeddings.{name}_embeddings.weight') for name in ('position', 'token_type')]
    if tables == [(514,), (1,)]:
        raise UserError('514 positions and one type of token are those of RoBERTa, which is not supported, only BERT.')
    found = {
        'heads': number(config, 'num_attention_heads', None, 1),
        'eps': eps(config, 'layer_norm_eps', None),
        'pad': number(config, 'pad_token_id', None, 0),
    }
    found = {key: value for key, value in found.items() if value is not None}
    if config.get('hidden_act') is not None:
        found['activation'] = chosen(config, 'hidden_act', ACTIVATIONS, 'gelu')
    if 'pooling' in config:
        found['pool'] = _pool(config['pooling'])
    return found


def _pool(pooling: dict) -> str:
    """What `1_Pooling/config.json` of sentence-transformers asks for, in its old form, a switch a mode, or its new."""
    modes = pooling.get('pooling_mode') if isinstance(pooling, dict) else None
    if modes is None and isinstance(pooling, dict):
        modes = [re.sub('pooling_mode_|_tokens?', '', key) for key, on in pooling.items() if on is True]
        modes = [mode for mode in modes if mode != 'include_prompt']
    modes = [modes] if isinstance(modes, str) else modes
    if not isinstance(modes, list) or len(modes) != 1 or str(modes[0]) not in POOLS:
        raise UserError(f'1_Pooling/config.json: {modes!r} is not supported, only one of: {", ".join(POOLS)}.')
    return POOLS[str(modes[0])]


DIALECTS = (Dialect('huggingface', HUGGINGFACE, settings),)

HEADS = {known['width']: known['heads'] for known in bert.VARIANTS.values() if known} | {312: 12}  # 312: TinyBERT


def model(shapes: Shapes, settings: dict) -> dict:
    """`config.model` for the shapes of our leaves.

    No shape shows the number of heads: where the settings do not say it, it is that of the published models of the same
    width. The features are the pooler's where there is one, and the first token else, unless the settings say it.

    Raises:
        UserError: no BERT that we build has them, or the number of heads is anyone's guess.
    """
    check_shapes(shapes)
    size = lambda path, axis: (*shapes.get(f'backbone/{path}', ()), None, None)[axis]
    matches = (re.match(r'backbone/block(\d+)/', path) for path in shapes)
    depth = count((int(match[1]) for match in matches if match), 'backbone/block')
    width = size('norm/scale', 0) or size('block0/norm1/scale', 0) or size('word/embedding', 1)
    if not width or not depth:
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
        'depth': depth,
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
