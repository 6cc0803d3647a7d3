"""BERT against Hugging Face's, through files: tiny, with every parameter away from its initial value."""

import itertools
import json

import jax
import numpy as np
import pytest

from jtl import tree
from jtl.errors import UserError
from jtl.models import build
from jtl.pretrained.formats import safetensors
from jtl.pretrained.names import bert as names
from jtl.pretrained.table import translate

torch = pytest.importorskip('torch')
transformers = pytest.importorskip('transformers')

from parity import TOLERANCE, Ours, check_round_trip, check_swaps, difference, load_strictly, perturb  # noqa: E402

SMALL = {
    'vocab_size': 30,
    'hidden_size': 24,
    'num_hidden_layers': 3,
    'num_attention_heads': 3,
    'intermediate_size': 40,
    'max_position_embeddings': 9,
    'type_vocab_size': 3,
}
BLOCKS = ('block0', 'block1', 'block2')
HUGGINGFACE, *_ = names.DIALECTS


def batch_of(pad=0):
    """Texts of 9, 6, 1 and 4 tokens: ids, kinds and what is real."""
    rng = np.random.default_rng(1)
    tokens, kinds = rng.integers(4, 30, (4, 9)), rng.integers(0, 3, (4, 9))
    real = np.arange(9) < np.array([[9], [6], [1], [4]])
    return np.where(real, tokens, pad).astype(np.int32), np.where(real, kinds, 0).astype(np.int32), real


def reference(model_class='BertForSequenceClassification', **changes):
    """Their model, every parameter perturbed."""
    labels = 2 if model_class == 'BertForQuestionAnswering' else 5  # a start and an end
    config = transformers.BertConfig(**{**SMALL, 'num_labels': labels, **changes})
    torch.manual_seed(0)
    return perturb(getattr(transformers, model_class)(config))


def run_reference(model, pad=0):
    """(outputs, hidden states after the embeddings and each block)."""
    tokens, kinds, real = (torch.tensor(x).long() for x in batch_of(pad))
    with torch.no_grad():
        outputs = model(input_ids=tokens, token_type_ids=kinds, attention_mask=real, output_hidden_states=True)
    return outputs, [np.asarray(x) for x in outputs.hidden_states]


def read(folder):
    """(tensors, config) of a saved model."""
    return safetensors.read(folder / 'model.safetensors'), json.loads((folder / 'config.json').read_text())


def run(model, pad=0):
    """(logits, features, outputs of the embeddings' norm and of each block) of an `Ours`."""
    tokens, kinds, _ = batch_of(pad)
    outputs, inner = model({'tokens': tokens, 'token_types': kinds})
    return outputs['logits'], outputs['features'], [inner[f'backbone/{at}'] for at in ('norm', *BLOCKS)]


@pytest.mark.parametrize(
    'changes',
    [
        {},
        {'hidden_act': 'gelu_new', 'pad_token_id': 3},
        {'hidden_act': 'relu', 'layer_norm_eps': 0.1, 'num_attention_heads': 8},
    ],
    ids=['plain', 'gelu_new, pad 3', 'relu, eps, heads'],
)
def test_bert_logits_and_hidden_states_are_theirs(changes, tmp_path):
    """At padding the hidden states may differ: what stands there, nobody reads."""
    theirs = reference(**changes)
    theirs.save_pretrained(tmp_path)
    pad = changes.get('pad_token_id', 0)
    expected, hidden = run_reference(theirs, pad)
    logits, _, states = run(Ours(*read(tmp_path)), pad)
    assert difference(logits, expected.logits.numpy()) <= TOLERANCE
    real = batch_of()[2]
    assert len(states) == len(hidden) == 4
    for state, wanted in zip(states, hidden):
        assert difference(state[real], wanted[real]) <= TOLERANCE
    if changes:  # and what the config says matters
        plain, _, _ = run(Ours(read(tmp_path)[0], {'num_attention_heads': 3}), pad)
        assert difference(plain, expected.logits.numpy()) > 10 * TOLERANCE


def test_bert_model_features_are_their_pooler_output(tmp_path):
    theirs = reference('BertModel')
    theirs.save_pretrained(tmp_path)
    tensors, config = read(tmp_path)
    assert all(not name.startswith('bert.') for name in tensors)
    _, features, _ = run(Ours(tensors, config))
    assert difference(features, run_reference(theirs)[0].pooler_output.numpy()) <= TOLERANCE


@pytest.mark.parametrize('model_class', ['BertForPreTraining', 'BertForQuestionAnswering'])
def test_bert_of_other_tasks_gives_its_backbone(model_class, tmp_path):
    """Their heads are left out by name; without a pooler the features are the first token."""
    theirs = reference(model_class)
    theirs.save_pretrained(tmp_path)
    tensors, config = read(tmp_path)
    left = translate(tensors, HUGGINGFACE).left
    assert left and all(name.startswith(('cls.', 'qa_outputs.')) for name in left)
    model = Ours(tensors, config)
    assert model.model.backbone.pool == ('pooler' if model_class == 'BertForPreTraining' else 'token')
    _, hidden = run_reference(theirs)
    real = batch_of()[2]
    assert difference(run(model)[2][-1][real], hidden[-1][real]) <= TOLERANCE


def test_bert_old_names_of_norms_are_read(tmp_path):
    theirs = reference()
    theirs.save_pretrained(tmp_path)
    tensors, config = read(tmp_path)
    expected = translate(tensors, HUGGINGFACE).leaves
    old = {
        name.replace('LayerNorm.weight', 'LayerNorm.gamma').replace('LayerNorm.bias', 'LayerNorm.beta'): x
        for name, x in tensors.items()
    }
    old['bert.embeddings.position_ids'] = np.arange(9)[None]
    assert sum(name.endswith('gamma') for name in old) == 7
    found = translate(old, HUGGINGFACE)
    assert not found.unknown and list(found.left) == ['bert.embeddings.position_ids']
    assert found.leaves.keys() == expected.keys()
    for path in expected:
        np.testing.assert_array_equal(found.leaves[path], expected[path])


def test_bert_round_trip_is_exact_and_strict(tmp_path):
    theirs = reference()
    theirs.save_pretrained(tmp_path)
    tensors, config = read(tmp_path)
    written = check_round_trip(Ours(tensors, config))
    assert written.keys() == tensors.keys()
    for name in tensors:
        np.testing.assert_array_equal(written[name], tensors[name])
    safetensors.write(tmp_path / 'ours.safetensors', written)
    again = transformers.BertForSequenceClassification(transformers.BertConfig(**SMALL, num_labels=5))
    load_strictly(again, safetensors.read(tmp_path / 'ours.safetensors'))
    np.testing.assert_array_equal(run_reference(again)[0].logits, run_reference(theirs)[0].logits)


def test_bert_catches_every_swap_and_transposition(tmp_path):
    """Every pair of tensors of one shape, and every square one on its side, moves the logits beyond the tolerance.

    But the bias of the keys adds the same to all the scores of a query, which softmax does not see: those are looked at
    by name.
    """
    reference().save_pretrained(tmp_path)
    tensors, config = read(tmp_path)
    model = Ours(tensors, config)
    for i in range(3):
        bias = model.leaves[f'backbone/block{i}/attn/key/bias']
        np.testing.assert_array_equal(bias, tensors[f'bert.encoder.layer.{i}.attention.self.key.bias'])
    tokens, kinds, _ = batch_of()
    tried = check_swaps(
        model,
        tensors,
        {'tokens': tokens, 'token_types': kinds},
        most=10_000,
        unseen=lambda what: all(name.endswith('key.bias') for name in what.split(' for ')),
        pairs=lambda names: itertools.combinations(names, 2),
    )
    assert tried > 500


@pytest.mark.parametrize(
    'config, message',
    [
        ({'position_embedding_type': 'relative_key'}, "position_embedding_type='relative_key' is not supported"),
        ({'model_type': 'roberta'}, "model_type='roberta' is not supported, only 'bert'"),
        ({'is_decoder': True}, 'is_decoder=True'),
        ({'hidden_act': 'gelu_nwe'}, "hidden_act='gelu_nwe' is not supported: did you mean 'gelu_new'"),
        ({'num_attention_heads': 0}, 'num_attention_heads=0 should be'),
        ({'num_attention_heads': '3'}, "num_attention_heads='3' should be"),
        ({'layer_norm_eps': float('nan')}, 'layer_norm_eps=nan should be'),
        ({'pooling': {'pooling_mode_max_tokens': True}}, r"\['max'\] is not supported, only one of: cls, mean"),
        ({'pooling': {'pooling_mode': ['mean', 'cls']}}, 'is not supported'),
        ({'pooling': {'pooling_mode': [['mean']]}}, 'is not supported'),
        ({'pooling': 3}, '1_Pooling/config.json'),
    ],
)
def test_bert_settings_refuse_what_is_not_built(config, message):
    with pytest.raises(UserError, match=message):
        names.settings({}, config)


def test_bert_settings_refuse_a_roberta_without_a_config():
    tensors = {'embeddings.position_embeddings.weight': np.ones((514, 8))}
    assert names.settings(tensors, {}) == {}
    with pytest.raises(UserError, match='RoBERTa'):
        names.settings({**tensors, 'embeddings.token_type_embeddings.weight': np.ones((1, 8))}, {})


@pytest.mark.parametrize(
    'pooling, pool',
    [
        ({'pooling_mode_cls_token': False, 'pooling_mode_mean_tokens': True, 'word_embedding_dimension': 384}, 'mean'),
        ({'pooling_mode_cls_token': True, 'include_prompt': True}, 'token'),
        ({'pooling_mode': 'mean', 'embedding_dimension': 384}, 'mean'),
        ({'pooling_mode': ['cls']}, 'token'),
    ],
)
def test_bert_pooling_of_sentence_transformers_is_read(pooling, pool):
    assert names.settings({}, {'pooling': pooling}) == {'pool': pool}


def shapes_of(name, **kwargs):
    model = build(name, 2, **kwargs)
    tokens = {'tokens': np.ones((1, 3), np.int32)}
    params = jax.eval_shape(lambda: model.init(jax.random.key(0), tokens, train=False))['params']
    return {path: leaf.shape for path, leaf in tree.flatten(params).items()}


@pytest.mark.parametrize('name', ['bert_tiny', 'bert_base', 'bert_large', 'bert_minilm_l6', 'bert_minilm_l12'])
def test_bert_model_names_the_published_ones_without_a_config(name):
    pool = {'pool': 'mean'} if 'minilm' in name else {}
    assert names.model(shapes_of(name), pool) == {'name': name}
    cased = names.model(shapes_of(name, vocab=28996), {**pool, 'pad': 1})
    assert cased == {'name': name, 'vocab': 28996, 'pad': 1}


def test_bert_model_of_other_sizes_says_what_differs():
    kwargs = {'vocab': 31, 'positions': 9, 'types': 1, 'width': 24, 'depth': 3, 'heads': 3, 'mlp': 40, 'pool': 'token'}
    assert names.model(shapes_of('bert', **kwargs), {'heads': 3}) == {'name': 'bert', **kwargs}
    with pytest.raises(UserError, match='width of 24.*a config.json with num_attention_heads.*: 128 has 2'):
        names.model(shapes_of('bert', **kwargs), {})


def test_bert_model_of_a_part_is_still_recognised():
    shapes = {path: shape for path, shape in shapes_of('bert_base').items() if 'word' not in path and 'fc1' not in path}
    assert names.model(shapes, {}) == {'name': 'bert_base'}
    with pytest.raises(UserError, match='a BERT has embeddings and blocks'):
        names.model({'head/kernel': (3, 2)}, {})
    with pytest.raises(UserError, match=r'backbone/norm/scale is of shape \(\), expected at least one axis'):
        names.model({'backbone/norm/scale': (), 'backbone/block0/norm1/scale': ()}, {})
