"""Texts to tokens. Against transformers' own tokenizers: tests/parity/test_parity_minilm.py."""

import copy
import json
import pickle
import random
import sys
import threading

import numpy as np
import pytest

from jtl.data import ops_text
from jtl.errors import UserError

pytest.importorskip('tokenizers')

WORDS = ['[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]', 'a', 'b', '##c', 'he', '##llo', '.', '我', 'cafe', 'é', 'A']
PAD, UNK, CLS, SEP, MASK, A, B, C, HE, LLO, DOT, I, CAFE, E_ACUTE, CAPITAL = range(len(WORDS))
VOCAB = '\n'.join(WORDS).encode() + b'\n'
FILES = {'vocab.txt': VOCAB}


def described(**changes):
    """The tokenizer.json of the vocabulary, with some parts changed."""
    return {**json.loads(ops_text.tokenizer(FILES).description), **changes}


def as_file(described):
    return {'tokenizer.json': json.dumps(described).encode()}


def test_tokenizer_of_a_vocabulary():
    """By hand: lower case, words cut into the longest pieces that are known, characters of Chinese apart."""
    encode = ops_text.tokenizer(FILES)
    found = encode(['Hello a.', 'abc', '我a我', '', 'xyz [MASK]'], 6)
    expected = [
        [CLS, HE, LLO, A, DOT, SEP],
        [CLS, UNK, SEP, PAD, PAD, PAD],  # a, then ##bc and ##b are not known: neither is the word
        [CLS, I, A, I, SEP, PAD],
        [CLS, SEP, PAD, PAD, PAD, PAD],
        [CLS, UNK, MASK, SEP, PAD, PAD],
    ]
    np.testing.assert_array_equal(found['tokens'], expected)
    assert not found['token_types'].any()
    assert found['tokens'].dtype == found['token_types'].dtype == np.int32
    assert (encode.pad, encode.size, encode.length) == (PAD, len(WORDS), None)


def test_tokenizer_accents_and_case_are_an_option():
    text = ['Café é A']
    uncased = ops_text.tokenizer(FILES)(text, 6)['tokens']
    np.testing.assert_array_equal(uncased, [[CLS, CAFE, UNK, A, SEP, PAD]])  # é is e, which is no word
    cased = {**FILES, 'tokenizer_config.json': b'{"do_lower_case": false}'}
    np.testing.assert_array_equal(
        ops_text.tokenizer(cased)(text, 6)['tokens'], [[CLS, UNK, E_ACUTE, CAPITAL, SEP, PAD]]
    )
    accents = {**FILES, 'tokenizer_config.json': b'{"strip_accents": false}'}
    np.testing.assert_array_equal(ops_text.tokenizer(accents)(text, 6)['tokens'], [[CLS, UNK, E_ACUTE, A, SEP, PAD]])
    lower = {**cased, 'sentence_bert_config.json': b'{"do_lower_case": true}'}
    np.testing.assert_array_equal(ops_text.tokenizer(lower)(text, 6)['tokens'], [[CLS, UNK, E_ACUTE, A, SEP, PAD]])


def test_tokenizer_json_and_vocabulary_agree():
    one, other = ops_text.tokenizer(FILES), ops_text.tokenizer(as_file(described()))
    texts = ['Hello [SEP] a b.', '', '我', 'a' * 101]
    for key, x in one(texts, 5).items():
        np.testing.assert_array_equal(other(texts, 5)[key], x)


def test_tokenizer_json_own_padding_and_length_are_not_used():
    padding = {'strategy': {'Fixed': 1 << 40}, 'direction': 'Left', 'pad_to_multiple_of': None, 'pad_id': 3}
    padding |= {'pad_type_id': 7, 'pad_token': '[SEP]'}
    truncation = {'max_length': 3, 'strategy': 'LongestFirst', 'stride': 0}
    encode = ops_text.tokenizer(as_file(described(padding=padding, truncation=truncation)))
    np.testing.assert_array_equal(encode(['a a a'], 6)['tokens'], [[CLS, A, A, A, SEP, PAD]])


def test_tokenizer_pairs_have_types_and_the_longer_is_cut():
    encode = ops_text.tokenizer(FILES)
    found = encode(['a', 'a a a a'], 7, ['b b', 'b'])
    np.testing.assert_array_equal(found['tokens'], [[CLS, A, SEP, B, B, SEP, PAD], [CLS, A, A, A, SEP, B, SEP]])
    np.testing.assert_array_equal(found['token_types'], [[0, 0, 0, 1, 1, 1, 0], [0, 0, 0, 0, 0, 1, 1]])
    with pytest.raises(UserError, match='2 texts and 1 to pair'):
        encode(['a', 'b'], 7, ['a'])


def test_tokenizer_length_is_fixed_or_the_longest():
    encode = ops_text.tokenizer({**FILES, 'tokenizer_config.json': b'{"model_max_length": 9}'})
    assert encode(['a', 'a b'])['tokens'].shape == (2, 9)
    assert encode(['a', 'a b'], fixed=False)['tokens'].shape == (2, 4)
    assert encode(['a ' * 99], fixed=False)['tokens'].shape == (1, 9)
    assert encode([], 5)['tokens'].shape == (0, 5)


@pytest.mark.parametrize(
    'options, sentence, expected',
    [
        ({'model_max_length': 512}, {'max_seq_length': 256}, 256),
        ({'model_max_length': 1e30}, {}, None),
        ({'model_max_length': 1e30}, {'max_seq_length': 128}, 128),
        ({'model_max_length': 'many'}, {'max_seq_length': None}, None),
    ],
)
def test_tokenizer_length_of_the_weights(options, sentence, expected):
    files = {'tokenizer_config.json': options, 'sentence_bert_config.json': sentence}
    files = {name: json.dumps(value).encode() for name, value in files.items()}
    assert ops_text.tokenizer({**FILES, **files}).length == expected


@pytest.mark.parametrize('token', ['a', {'content': 'a', '__type': 'AddedToken'}])
def test_tokenizer_pad_is_the_one_that_is_named(token):
    options = json.dumps({'pad_token': token}).encode()
    for name in ('tokenizer_config.json', 'special_tokens_map.json'):
        encode = ops_text.tokenizer({**FILES, name: options})
        assert encode.pad == A
        np.testing.assert_array_equal(encode(['b'], 4)['tokens'], [[CLS, B, SEP, A]])


def test_tokenizer_vocabulary_has_a_word_a_line_and_no_other_breaks():
    """Characters that Python also calls line breaks are words of some vocabularies; some have Windows' line ends."""
    words = [*WORDS[:5], '\u2028', '\x85', 'b']
    for end in ('\n', '\r\n'):
        encode = ops_text.tokenizer({'vocab.txt': end.join(words).encode()})
        assert encode.size == 8
        np.testing.assert_array_equal(encode(['b'], 3)['tokens'], [[CLS, 7, SEP]])


def test_tokenizer_is_a_value_for_workers_and_threads():
    encode = ops_text.tokenizer(FILES)
    again = pickle.loads(pickle.dumps(encode))
    assert again == encode and hash(again) == hash(encode)
    wrong = []

    def work(length):
        for _ in range(50):
            wrong.extend(again(['a a a a a a a a a'], length)['tokens'].shape != (1, length) for _ in range(3))

    threads = [threading.Thread(target=work, args=(length,)) for length in range(3, 11)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(wrong) == 8 * 150 and not any(wrong)


@pytest.mark.parametrize('text', [None, 3, float('nan'), b'a', '\ud800'])
def test_tokenizer_refuses_what_is_no_text(text):
    with pytest.raises(UserError, match='text 1: .* is not Unicode text'):
        ops_text.tokenizer(FILES)(['a', text], 5)


def test_tokenizer_of_sentence_pieces_is_read():
    """As the multilingual MiniLM has it: pieces with scores, another padding than 0, and <s> … </s>."""
    ends = {word: {'id': word, 'ids': [i], 'tokens': [word]} for i, word in ((0, '<s>'), (2, '</s>'))}
    special = lambda word: {'SpecialToken': {'id': word, 'type_id': 0}}
    text = lambda name: {'Sequence': {'id': name, 'type_id': 0}}
    single = [special('<s>'), text('A'), special('</s>')]
    pair = [*single, special('</s>'), text('B'), special('</s>')]
    pieces = ['<s>', '<pad>', '</s>', '<unk>', '▁he', 'llo', '▁a']
    metaspace = {'type': 'Metaspace', 'replacement': '▁', 'prepend_scheme': 'always', 'split': True}
    changed = described(
        added_tokens=[],
        normalizer={'type': 'Sequence', 'normalizers': [{'type': 'NFKC'}]},
        pre_tokenizer={'type': 'Sequence', 'pretokenizers': [{'type': 'WhitespaceSplit'}, metaspace]},
        model={'type': 'Unigram', 'unk_id': 3, 'vocab': [[piece, -1.0] for piece in pieces]},
        post_processor={'type': 'TemplateProcessing', 'single': single, 'pair': pair, 'special_tokens': ends},
    )
    encode = ops_text.tokenizer(as_file(changed))
    assert (encode.pad, encode.size) == (1, 7)
    np.testing.assert_array_equal(encode(['hello a'], 6)['tokens'], [[0, 4, 5, 6, 2, 1]])
    np.testing.assert_array_equal(encode(['a'], 6, ['a'])['tokens'], [[0, 6, 2, 2, 6, 2]])


def test_tokenizer_refuses_a_length_of_special_tokens_alone():
    encode = ops_text.tokenizer(FILES)
    assert encode(['a'], 3)['tokens'].shape == (1, 3)
    with pytest.raises(UserError, match='2 of them are special, give at least 3'):
        encode(['a'], 2)
    with pytest.raises(UserError, match='3 of them are special, give at least 4'):
        encode(['a'], 3, ['b'])


def test_tokenizer_without_the_library_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, 'tokenizers', None)
    with pytest.raises(UserError, match=r"pip install 'jtl\[text\]'"):
        ops_text.tokenizer(FILES)


@pytest.mark.parametrize(
    'files, message',
    [
        ({}, 'a tokenizer.json or a vocab.txt, and here is: nothing'),
        ({'vocab.json': b'{}'}, 'a tokenizer.json or a vocab.txt, and here is: vocab.json'),
        ({'tokenizer.json': b'{'}, 'tokenizer.json is not JSON'),
        ({'tokenizer.json': b'\xff\xfe\x00'}, 'tokenizer.json is not JSON'),
        ({'tokenizer.json': b'[' * 100_000}, 'tokenizer.json is not JSON'),
        ({'tokenizer.json': b'[]'}, 'holds a list, expected an object'),
        ({'tokenizer.json': b'{}'}, 'model None is not supported'),
        ({'tokenizer.json': b'{"model": {"type": "BPE"}}'}, "model 'BPE' is not supported: .*WordPiece"),
        ({'tokenizer.json': b'{"model": {"type": "WordPiece"}}'}, 'tokenizer.json is not a tokenizer'),
        ({**FILES, 'tokenizer_config.json': b'null'}, 'tokenizer_config.json holds a NoneType'),
        ({'vocab.txt': b'\xff'}, 'vocab.txt is not UTF-8'),
        ({'vocab.txt': b'a\nb\n'}, r'vocab.txt lacks \[UNK\], the unk_token'),
        ({'vocab.txt': b'[UNK]\n[CLS]\n[SEP]\n'}, r"vocab.txt has no token for padding: neither '\[PAD\]'"),
    ],
)
def test_tokenizer_bad_files_are_named(files, message):
    with pytest.raises(UserError, match=message):
        ops_text.tokenizer(files)


def test_tokenizer_too_large_a_file_is_refused_unread(monkeypatch):
    monkeypatch.setattr(ops_text, 'MOST_BYTES', 20)
    with pytest.raises(UserError, match='vocab.txt has .* bytes'):
        ops_text.tokenizer(FILES)


@pytest.mark.parametrize(
    'changes, message',
    [
        (
            {'normalizer': {'type': 'Replace', 'pattern': {'String': 'a'}, 'content': 'aa'}},
            "normalizer 'Replace' is not supported",
        ),
        (
            {'normalizer': {'type': 'Sequence', 'normalizers': [{'type': 'NFC'}, {'type': 'Prepend', 'prepend': 'a'}]}},
            "normalizer 'Prepend'",
        ),
        (
            {
                'pre_tokenizer': {
                    'type': 'Split',
                    'pattern': {'Regex': '(a+)+b'},
                    'behavior': 'Isolated',
                    'invert': False,
                }
            },
            "pre_tokenizer 'Split' is not supported",
        ),
        ({'post_processor': {'type': 'TemplateProcessing'}}, 'post_processor.single is no template of A and special'),
        ({'added_tokens': [{'id': 2**32 - 2, 'content': 'x'}]}, 'tokenizer.json'),
    ],
)
def test_tokenizer_parts_that_no_bert_has_are_refused(changes, message):
    with pytest.raises(UserError, match=message):
        ops_text.tokenizer(as_file(described(**changes)))


def test_tokenizer_templates_that_would_multiply_a_text_are_refused():
    for key in ('single', 'pair'):
        changed = described()
        changed['post_processor'][key] *= 2
        with pytest.raises(UserError, match=f'post_processor.{key} is no template'):
            ops_text.tokenizer(as_file(changed))
        changed = described()
        changed['post_processor'][key][0] = {'SpecialToken': {'id': '[XXX]', 'type_id': 0}}
        with pytest.raises(UserError, match=f'post_processor.{key} is no template'):
            ops_text.tokenizer(as_file(changed))


def test_tokenizer_ids_outside_the_vocabulary_are_refused():
    changed = described()
    changed['post_processor']['special_tokens']['[SEP]']['ids'] = [999]
    with pytest.raises(UserError, match='ids up to 999 are no rows'):
        ops_text.tokenizer(as_file(changed))
    changed = described()
    changed['model']['vocab']['a'] = 2**31
    with pytest.raises(UserError, match='are no rows'):
        ops_text.tokenizer(as_file(changed))


ODD = (None, True, 0, -1, 2**31, 2**32, 2**64, 1e300, '', '[SEP]', 'A', 'x' * 1000, [], {}, [[]], 'Sequence', '\ud800')


def mutated(rng, whole):
    """A tokenizer.json with one to three values or stretches of bytes that are not as they were."""
    if rng.random() < 0.5:
        data = bytearray(json.dumps(whole).encode())
        for _ in range(rng.randint(1, 3)):
            at = rng.randrange(len(data))
            data[at : at + rng.choice((0, 1, 1, 20))] = rng.randbytes(rng.choice((0, 1, 3)))
        return bytes(data)
    whole = copy.deepcopy(whole)
    for _ in range(rng.randint(1, 3)):
        node = whole
        while True:
            key = rng.choice(list(node) if isinstance(node, dict) else range(len(node)))
            if not isinstance(node[key], dict | list) or not node[key] or rng.random() < 0.2:
                break
            node = node[key]
        node[key] = rng.choice((*ODD, [node[key]] * 2))
    return json.dumps(whole).encode()


def test_tokenizer_mutated_files_are_refused_or_work():
    """2,000 files: a UserError, or int32 tokens of the shape that was asked for, with ids below `size`."""
    rng, whole, worked = random.Random(0), described(), 0
    for _ in range(2000):
        data = mutated(rng, whole)
        try:
            encode = ops_text.tokenizer({'tokenizer.json': data})
            found = encode(['hello a b.', '', 'x [MASK]'], 6)
            pairs = encode(['hello', 'a'], 9, ['b', 'b'], fixed=False)
        except UserError:
            continue
        worked += 1
        assert found['tokens'].shape == found['token_types'].shape == (3, 6)
        assert min(found['tokens'].min(), pairs['tokens'].min()) >= 0
        assert max(found['tokens'].max(), pairs['tokens'].max()) < encode.size
    assert 50 < worked < 1900
