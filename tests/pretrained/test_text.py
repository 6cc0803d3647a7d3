"""Sentences: a BERT's weights and its tokenizer from a folder, trained on a table, kept with the run, predicting."""

import json

import jax
import numpy as np
import pytest

from jtl import models, run, tree
from jtl.cli import main
from jtl.data import Preprocess, load
from jtl.errors import UserError
from jtl.guard import guard
from jtl.predict import evaluate
from jtl.pretrained.formats import safetensors
from jtl.pretrained.names.bert import DIALECTS
from jtl.pretrained.table import export
from jtl.train import train

WORDS = ['[PAD]', '[UNK]', '[CLS]', '[SEP]', 'good', 'bad', 'very', 'film', 'a', '##ly']
BERT = {'vocab_size': len(WORDS), 'max_position_embeddings': 12, 'type_vocab_size': 2, 'hidden_size': 64}
BERT |= {'num_hidden_layers': 1, 'num_attention_heads': 2, 'intermediate_size': 32, 'model_type': 'bert'}


@pytest.fixture(scope='module')
def weights(tmp_path_factory):
    """A Hugging Face directory."""
    folder = tmp_path_factory.mktemp('bert')
    model = {'name': 'bert', 'vocab': len(WORDS), 'positions': 12, 'width': 64, 'depth': 1, 'heads': 2, 'mlp': 32}
    built = models.build(num_classes=2, **model)
    params = built.init(jax.random.key(0), {'tokens': np.zeros((1, 4), np.int32)}, train=False)['params']
    leaves = {path: np.asarray(leaf) for path, leaf in tree.flatten(params).items() if path.startswith('backbone/')}
    safetensors.write(folder / 'model.safetensors', export(leaves, DIALECTS[0]))
    (folder / 'config.json').write_text(json.dumps(BERT))
    (folder / 'vocab.txt').write_text('\n'.join(WORDS))
    return folder


@pytest.fixture(scope='module')
def table(tmp_path_factory):
    path = tmp_path_factory.mktemp('table') / 'films.csv'
    rows = [f'{"very " * (i % 3)}{word} a film,{word}' for i in range(12) for word in ('good', 'bad')]
    path.write_text('\n'.join(['text,label', *rows]))
    return f'csv:{path}'


def config(table, weights, **more):
    return {
        'data': {'name': table, 'val': 0.2, 'test': 0.2},
        'init': str(weights),
        'batch_size': 8,
        'steps': 40,
        'eval_every': 20,
        'optim': {'name': 'adamw', 'lr': 1e-2},
        'report': True,
        **more,
    }


@pytest.fixture(scope='module')
def fitted(table, weights, tmp_path_factory):
    folder = tmp_path_factory.mktemp('run') / 'run'
    return folder, train(config(table, weights), folder, quiet=True)


def test_train_learns_the_sentences_of_a_table(fitted):
    assert fitted[1]['test']['accuracy'] == 1.0  # of two classes that a word tells apart


def test_train_keeps_the_tokenizer_with_the_run(fitted, weights):
    assert (fitted[0] / 'model' / 'vocab.txt').read_bytes() == (weights / 'vocab.txt').read_bytes()
    said = json.loads((fitted[0] / 'model' / 'model.json').read_text())['preprocess']
    assert said['length'] == 8 and 'tokenizer' not in said  # [CLS] very very good a film [SEP], a multiple of 8


def test_predict_and_eval_need_the_folder_of_the_run_alone(fitted, table, tmp_path, capsys):
    texts = tmp_path / 'texts.txt'
    texts.write_text('\ufeffa very good film\n\nbad\u2028film\n')  # a byte-order mark; one line, not two
    assert main(['predict', str(fitted[0]), str(texts), '--json']) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row['file'] for row in rows] == [f'{texts}:1', f'{texts}:3']
    assert [max(row['classes'], key=row['classes'].get) for row in rows] == ['good', 'bad']
    assert evaluate(run.read(fitted[0]), table)[1]['accuracy'] == 1.0


def test_a_run_on_text_is_a_start_for_another(fitted, table, tmp_path):
    train(config(table, fitted[0], steps=1), tmp_path / 'next', quiet=True)
    assert (tmp_path / 'next' / 'model' / 'vocab.txt').exists()
    origins = (tmp_path / 'next' / 'params.txt').read_text().splitlines()
    assert all(str(fitted[0]) in line for line in origins[1:-1])


def test_guard_trains_a_model_of_text_from_scratch(fitted, table, tmp_path):
    given = config(table, fitted[0], steps=2, eval_every=2, report=False)
    _, found = guard(given, tmp_path / 'run', seeds=1, rates=(1.0,))
    assert found['examples'] == 4 and found['verdict'] == 'cannot be told'
    scratch = tmp_path / 'run' / 'guard' / 'scratch' / 'lr=0.01' / 'seed=0'
    origins = (scratch / 'params.txt').read_text().splitlines()
    assert all(line.endswith('trained  fresh') for line in origins[1:-1])
    model = lambda folder: {p.name: p.read_bytes() for p in (folder / 'model').iterdir()}
    assert model(scratch) == model(tmp_path / 'run') and 'vocab.txt' in model(scratch)


def test_load_tokenises_pairs(weights, tmp_path):
    from jtl.data.ops_text import tokenizer

    rows = ['text,text2,label', *['good film,bad,x', 'film,film,y'] * 10]
    (tmp_path / 'pairs.csv').write_text('\n'.join(rows))
    preprocess = Preprocess(tokenizer=tokenizer({'vocab.txt': (weights / 'vocab.txt').read_bytes()}))
    data = load(f'csv:{tmp_path / "pairs.csv"}', preprocess=preprocess, batch_size=4, seed=0, val=0.0, test=0.0)
    batch = next(data.plain('train'))
    row = [2, 4, 7, 3, 5, 3, 0, 0]  # [CLS] good film [SEP] bad [SEP] and padding
    assert batch['tokens'][batch['label'] == 0][0].tolist() == row
    assert batch['token_types'][batch['label'] == 0][0].tolist() == [0, 0, 0, 0, 1, 1, 0, 0]


@pytest.mark.parametrize(
    'more, message',
    [
        ({'init': None, 'model': {'name': 'bert'}}, r'holds texts: they need a model of text with its tokenizer'),
        ({'method': {'name': 'supervised', 'mixup': 0.2}}, r'config\.method\.mixup: .* words cannot be mixed'),
        ({'model': {'name': 'resnet20'}}, r'the data holds texts, and resnet20 does not read them'),
        ({'data': {'name': 'digits'}}, r"Bert reads 'tokens', and the batch has only: .*image"),
        ({'preprocess': {'length': 2}}, r'config\.preprocess\.length: 2 should be at least 3'),
        ({'preprocess': {'length': 13}}, r'13'),
        ({'data': {'name': 'TABLE', 'augment': ('flip',)}}, r'config\.data\.augment: .* holds texts, not pictures'),
    ],
)
def test_train_refuses_what_texts_cannot_have(more, message, table, weights, tmp_path):
    given = config(table, weights, **more)
    given['data'] = {**given['data'], 'name': given['data']['name'].replace('TABLE', table)}
    with pytest.raises(UserError, match=message):
        train(given, tmp_path / 'run', quiet=True)
    assert not (tmp_path / 'run').exists()
