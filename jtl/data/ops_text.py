"""Texts to tokens, by the tokenizer that belongs to the weights.

    encode = tokenizer({'tokenizer.json': …, 'tokenizer_config.json': …})
    encode(['a text', 'another one'], 128)  # {'tokens': int32 [2, 128], 'token_types': int32 [2, 128]}

The files are those of a Hugging Face directory: `tokenizer.json`, or `vocab.txt` of a BERT, and beside it
`tokenizer_config.json`, `special_tokens_map.json` and `sentence_bert_config.json`. They are untrusted: what they can
ask for is limited to the parts that tokenizers of BERT models are made of.

Legend: B texts, T tokens.
"""

import functools
import io
import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jtl.errors import UserError, nearest, printable, some
from jtl.files import parse_json

MOST_BYTES = 64 << 20  # the largest published ones, of 250,000 words and more, have 17 MB
PARTS = {  # not Replace, Split and the like: regular expressions and replacements can take or make more than there is
    'model': ('WordPiece', 'Unigram'),
    'normalizer': ('BertNormalizer', 'Sequence', 'Lowercase', 'StripAccents', 'Strip', 'Precompiled')
    + ('NFC', 'NFD', 'NFKC', 'NFKD'),
    'pre_tokenizer': ('BertPreTokenizer', 'Sequence', 'Whitespace', 'WhitespaceSplit', 'Punctuation', 'Digits')
    + ('Metaspace',),
    'post_processor': ('TemplateProcessing', 'BertProcessing'),
}
WORDPIECE = ('unk_token', 'cls_token', 'sep_token', 'pad_token', 'mask_token')
BERT_OPTIONS = {'do_lower_case': 'lowercase', 'strip_accents': 'strip_accents'} | {
    'tokenize_chinese_chars': 'handle_chinese_chars'
}


class Tokenizer(NamedTuple):
    """Texts -> tokens: a value, to be sent to workers and kept with a run.

    Attributes:
        description: a `tokenizer.json`, which is all there is to it.
        pad: the id of padding; the model's `pad` must be the same.
        size: one more than the largest id; the model's `vocab` must be no less.
        length: the most tokens of a text that the weights were made for, None if nothing says it.
    """

    description: str
    pad: int
    size: int
    length: int | None

    def __call__(
        self,
        texts: Sequence[str],
        max_length: int | None = None,
        pairs: Sequence[str] | None = None,
        fixed: bool = True,
    ) -> dict[str, np.ndarray]:
        """`{'tokens': int32 [B, T], 'token_types': int32 [B, T]}`, special tokens included.

        Args:
            texts: B of them; a literal `[SEP]` or `[PAD]` in one is that token, as it is for Hugging Face's.
            max_length: texts of more tokens lose their ends, of a pair the longer one first; None is `length`, or 512.
            pairs: a second text for each.
            fixed: T is max_length, so that all batches have one shape; else that of the longest text.

        Raises:
            UserError: not texts, or too short a length for the special tokens alone.
        """
        max_length = (self.length or 512) if max_length is None else max_length
        if pairs is not None and len(pairs) != len(texts):
            raise UserError(f'{len(texts)} texts and {len(pairs)} to pair them with: there must be as many.')
        for i, text in enumerate([*texts, *(pairs or ())]):
            if not isinstance(text, str) or not text.isascii() and any('\ud800' <= c <= '\udfff' for c in text):
                raise UserError(f'text {i % len(texts)}: {text!r:.60} is not Unicode text.')
        backend = _sized(self.description, self.pad, max_length, fixed, pairs is not None)
        try:
            found = backend.encode_batch(list(texts if pairs is None else zip(texts, pairs)))
            shape = (len(found), len(found[0].ids) if found else max_length)
            tokens = np.array([x.ids for x in found], np.int32).reshape(shape)  # [B, T]
            token_types = np.array([x.type_ids for x in found], np.int32).reshape(shape)
        except Exception as e:  # the library has no narrower one, for instance for a text that needs a missing [UNK]
            raise UserError(f'the tokenizer cannot encode these texts: {printable(str(e))}.') from e
        return {'tokens': tokens, 'token_types': token_types}


def tokenizer(files: Mapping[str, bytes]) -> Tokenizer:
    """The tokenizer of some files, by their names: `tokenizer.json` if it is there, else `vocab.txt`.

    Raises:
        UserError: the library is missing, neither file is there, or one of them is damaged or not a BERT's.
    """
    library = _library()
    for name, data in files.items():
        if len(data) > MOST_BYTES:
            raise UserError(
                f'{name} has {len(data):,} bytes, more than any tokenizer: expected {MOST_BYTES:,} at most.'
            )
    options = {
        **_json(files, 'special_tokens_map.json'),
        **_json(files, 'tokenizer_config.json'),
    }
    special = {key: _content(options.get(key)) for key in WORDPIECE}
    if 'tokenizer.json' in files:
        name, described = 'tokenizer.json', _json(files, 'tokenizer.json')
        _check_parts(described)
        described.update(padding=None, truncation=None)  # they are ours to choose
        _override(described.get('normalizer'), options)
    elif 'vocab.txt' in files:
        name, described = 'vocab.txt', _word_piece(files['vocab.txt'], special, options)
    else:
        raise UserError(f'a tokenizer is a tokenizer.json or a vocab.txt, and here is: {some(files, 8) or "nothing"}.')
    sentence = _json(files, 'sentence_bert_config.json')
    if sentence.get('do_lower_case'):
        parts = [part for part in ({'type': 'Lowercase'}, described.get('normalizer')) if part]
        described['normalizer'] = {'type': 'Sequence', 'normalizers': parts}

    backend = _parse(library, json.dumps(described), name)
    pad = next((i for word in (special['pad_token'], '[PAD]', '<pad>') if (i := _id(backend, word)) is not None), None)
    if pad is None:
        raise UserError(f'{name} has no token for padding: neither {special["pad_token"] or "[PAD]"!r} nor <pad>.')
    size = 1 + max(backend.get_vocab(with_added_tokens=True).values())
    _check_ids(backend, size, name)
    lengths = [sentence.get('max_seq_length'), options.get('model_max_length')]
    lengths = [int(n) for n in lengths if isinstance(n, int | float) and 0 < n < 1e6]  # 1e30 says that nothing is known
    return Tokenizer(json.dumps(described), pad, size, min(lengths, default=None))


def _library() -> Any:
    try:
        import tokenizers
    except ImportError as e:
        raise UserError("texts need the tokenizers library: pip install 'jtl[text]', or pip install tokenizers.") from e
    return tokenizers


@functools.lru_cache(maxsize=8)  # a tokenizer is changed when it is given a length: one for each, changed here alone
def _sized(description: str, pad: int, max_length: int, fixed: bool, pair: bool) -> Any:
    backend = _parse(_library(), description, 'tokenizer.json')
    special = backend.num_special_tokens_to_add(pair)
    if max_length <= special:
        raise UserError(f'texts of {max_length} tokens: {special} of them are special, give at least {special + 1}.')
    backend.enable_truncation(max_length)
    backend.enable_padding(pad_id=pad, pad_token=backend.id_to_token(pad), length=max_length if fixed else None)
    return backend


def _parse(library: Any, description: str, name: str) -> Any:
    try:
        return library.Tokenizer.from_str(description)
    except Exception as e:
        raise UserError(f'{name} is not a tokenizer: {printable(str(e) or type(e).__name__)}.') from e


def _json(files: Mapping[str, bytes], name: str) -> dict:
    """A file's object, {} if there is no such file."""
    return parse_json(files[name], name) if name in files else {}


def _content(token: Any) -> str | None:
    """A special token is a string, or an object that describes one."""
    token = token.get('content') if isinstance(token, dict) else token
    return token if isinstance(token, str) else None


def _id(backend: Any, word: str | None) -> int | None:
    return None if word is None else backend.token_to_id(word)


def _check_parts(described: dict) -> None:
    """Refuse parts that no tokenizer of a BERT has."""
    for key, known in PARTS.items():
        parts = [described.get(key)]
        if key == 'model' and isinstance(parts[0], dict) and 'type' not in parts[0]:
            parts = [{**parts[0], 'type': 'WordPiece'}]  # as the first files were written
        while parts:
            part = parts.pop()
            if part is None and key != 'model':
                continue
            kind = part.get('type') if isinstance(part, dict) else None
            if kind not in known:
                said = str(kind)[:60]
                raise UserError(f'tokenizer.json: {key} {kind!r:.60} is not supported: {nearest(said, known)}')
            if kind == 'Sequence':
                inner = part.get(f'{key}s' if key == 'normalizer' else 'pretokenizers')
                parts.extend(inner if isinstance(inner, list) else ())
    processor = described.get('post_processor') or {}
    if processor.get('type') == 'TemplateProcessing':
        for key, texts in (('single', ['A']), ('pair', ['A', 'B'])):
            _check_template(processor, key, texts)


def _check_template(processor: dict, key: str, texts: list[str]) -> None:
    """Refuse templates that repeat or drop a text, or name special tokens that they do not describe."""
    try:
        pieces = [pair for piece in processor[key] for pair in piece.items()]
        special = [processor['special_tokens'][piece['id']] for kind, piece in pieces if kind == 'SpecialToken']
        fine = [piece['id'] for kind, piece in pieces if kind == 'Sequence'] == texts
        fine = fine and all(len(token['ids']) == len(token['tokens']) for token in special)
    except (TypeError, KeyError, AttributeError):
        fine = False
    if not fine:
        expected = ' and '.join(texts)
        raise UserError(f'tokenizer.json: post_processor.{key} is no template of {expected} and special tokens.')


def _override(normalizer: Any, options: dict) -> None:
    """What tokenizer_config.json says goes before what is in tokenizer.json, as it does for Hugging Face's."""
    if isinstance(normalizer, dict) and normalizer.get('type') == 'BertNormalizer':
        given = {ours: options[key] for key, ours in BERT_OPTIONS.items() if isinstance(options.get(key), bool)}
        normalizer.update(given)


def _word_piece(vocab: bytes, special: dict[str, str | None], options: dict) -> dict:
    """BERT's tokenizer in the form of a tokenizer.json; uncased unless the options say otherwise."""
    try:
        words = [line.rstrip('\n') for line in io.TextIOWrapper(io.BytesIO(vocab), encoding='utf-8')]
    except UnicodeDecodeError as e:
        raise UserError(f'vocab.txt is not UTF-8: {e}.') from e
    ids = {word: i for i, word in enumerate(words)}
    special = {key: special[key] or f'[{key[:-6].upper()}]' for key in WORDPIECE}  # unk_token: [UNK]
    for key in ('unk_token', 'cls_token', 'sep_token'):
        if special[key] not in ids:
            raise UserError(f'vocab.txt lacks {printable(special[key])}, the {key}: is it the vocabulary of a BERT?')
    token = lambda key, kind: {'SpecialToken': {'id': special[key], 'type_id': kind}}
    text = lambda name, kind: {'Sequence': {'id': name, 'type_id': kind}}
    single = [token('cls_token', 0), text('A', 0), token('sep_token', 0)]
    ends = {word: {'id': word, 'ids': [ids[word]], 'tokens': [word]} for word in (special[k] for k in WORDPIECE[1:3])}
    flags = dict.fromkeys(('single_word', 'lstrip', 'rstrip', 'normalized'), False)
    known = sorted({ids[word]: word for word in special.values() if word in ids}.items())
    normalizer = {'type': 'BertNormalizer', 'clean_text': True, 'handle_chinese_chars': True}
    normalizer |= {'strip_accents': None, 'lowercase': True}
    _override(normalizer, options)
    return {
        'version': '1.0',
        'added_tokens': [{'id': i, 'content': word, 'special': True, **flags} for i, word in known],
        'normalizer': normalizer,
        'pre_tokenizer': {'type': 'BertPreTokenizer'},
        'post_processor': {
            'type': 'TemplateProcessing',
            'single': single,
            'pair': [*single, text('B', 1), token('sep_token', 1)],
            'special_tokens': ends,
        },
        'decoder': {'type': 'WordPiece', 'prefix': '##', 'cleanup': True},
        'model': {
            'type': 'WordPiece',
            'unk_token': special['unk_token'],
            'continuing_subword_prefix': '##',
            'max_input_chars_per_word': 100,
            'vocab': ids,
        },
    }


def _check_ids(backend: Any, size: int, name: str) -> None:
    """Refuse ids that are no rows of a table, and special tokens that the vocabulary does not have."""
    try:
        used = backend.encode('', '').ids
    except Exception as e:
        raise UserError(f'{name} cannot encode an empty text: {printable(str(e))}.') from e
    if size > 1 << 24 or max(used, default=0) >= size:
        raise UserError(f'{name}: ids up to {max(size - 1, *used)} are no rows of a vocabulary.')
