"""`jtl eval RUN` and `jtl predict RUN FILE…`: a finished run at work. They need the run's folder alone."""

import argparse
import functools
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import jax
import numpy as np

from jtl import evals, metrics, run
from jtl.data import Data, Preprocess, load, ops_text
from jtl.data.pipeline import stack
from jtl.data.source import decode_image
from jtl.errors import UserError, nearest, printable
from jtl.method import Method
from jtl.plan import make_method, normalisation

BATCH = 64


def method_of(fitted: run.Run) -> Method:
    """The method that a run was trained by."""
    keys = (fitted.model, fitted.method, normalisation(preprocessing(fitted)))
    model, method, preprocess = map(json.dumps, keys)
    return make_method(model, method, len(fitted.classes), preprocess)


def predictor(fitted: run.Run) -> Callable[[dict], dict]:
    """batch -> outputs, compiled, with the run's parameters."""
    predict = functools.partial(jax.jit(method_of(fitted).predict), *jax.device_put((fitted.params, fitted.state)))

    def checked(batch: dict) -> dict:
        try:
            return predict(batch)
        except UserError:
            raise
        except Exception as e:  # from tracing the model with these shapes
            given = ', '.join(f'{k} {v.shape[1:]}' for k, v in batch.items() if k in ('image', 'features', 'tokens'))
            raise UserError(f'{fitted.path}: the model cannot take {given}: {str(e).splitlines()[0]}') from e

    return checked


# jtl eval


def eval_main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog='jtl eval', description='Evaluate a finished run.')
    parser.add_argument('run', metavar='RUN', help="the run's folder")
    parser.add_argument('--data', metavar='URI', help='other data with the same classes, e.g. folder:PATH, all of it')
    parser.add_argument('--split', help='of the data (default: test, else val, else all there is)')
    parser.add_argument('--json', action='store_true', help='print all values as JSON')
    parser.add_argument('--debug', action='store_true', help='show the traceback of an error')
    args = parser.parse_args(arguments)
    split, values = evaluate(run.read(args.run), args.data, args.split)
    if args.json:
        print(json.dumps(metrics.finite({'split': split, **{k: np.asarray(v).tolist() for k, v in values.items()}})))
    else:
        width = max(map(len, metrics.scalars(values)))
        print(f'{args.run} on {args.data or "its own data"}, split {split}:')
        print('\n'.join(f'  {name:{width}}  {value:.4f}' for name, value in metrics.scalars(values).items()))
    return 0


def evaluate(fitted: run.Run, uri: str | None = None, split: str | None = None) -> tuple[str, dict]:
    """`(split, values by name)` of a run on its own data, or on `uri`, whose classes must be among the run's.

    Of data without a test and a validation split, all examples are used.
    """
    options = {'name': uri, 'val': 0.0, 'test': 0.0} if uri else {**fitted.config['data'], 'augment': ()}
    if not options['name']:
        raise UserError(f'{fitted.path}: was made by jtl convert and has no data of its own: give --data=URI.')
    preprocess = preprocessing(fitted)
    data = load(**options, preprocess=preprocess, batch_size=BATCH, seed=fitted.config['seed'])
    split = split or next(name for name in ('test', 'val', 'train') if name in data.sizes)
    if split not in data.sizes:
        raise UserError(f'--split {split}: {options["name"]} has no such split; {nearest(split, data.sizes)}')
    batches = functools.partial(_relabelled, data, split, fitted.classes, fitted.multi_label)
    about = (method_of(fitted), fitted.params, fitted.state, normalisation(preprocess))
    seen = evals.Seen({}, fitted.classes, predictor(fitted), batches, *about)
    return split, evals.measure(fitted.config['evals'], seen)[0]


def _relabelled(data: Data, split: str, classes: tuple[str, ...], multi_label: bool) -> Iterator[dict]:
    """The batches of a split, with labels as numbers among the run's classes."""
    if data.multi_label != multi_label:
        kinds = ('one label', 'several labels')
        raise UserError(f'the data has {kinds[data.multi_label]} for each example; the run has {kinds[multi_label]}.')
    for name in data.classes:
        if name not in classes:
            raise UserError(f'class {name!r} of the data is not one that the run knows; {nearest(name, classes)}')
    position = np.array([classes.index(name) for name in data.classes])
    for batch in data.plain(split):
        label = batch['label']
        if label.ndim == 1:
            label = position[label].astype(np.int32)
        else:
            label = np.zeros((len(label), len(classes)), np.float32)
            label[:, position] = batch['label']
        yield {**batch, 'label': label}


# jtl predict


def predict_main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog='jtl predict', description='The classes of new examples, by a finished run.')
    parser.add_argument('run', metavar='RUN', help="the run's folder")
    parser.add_argument(
        'files', metavar='FILE', nargs='+', help='pictures, or files with a text a line (a pair with a tab)'
    )
    parser.add_argument('--top', type=int, default=3, help='how many classes to name (default: 3)')
    parser.add_argument('--json', action='store_true', help='print a JSON object a line')
    parser.add_argument('--debug', action='store_true', help='show the traceback of an error')
    args = parser.parse_args(arguments)
    fitted = run.read(args.run)
    if args.top < 1:
        raise UserError(f'--top {args.top}: should be at least 1.')
    for file, probabilities in zip(*probabilities_of(fitted, args.files)):
        order = np.argsort(-probabilities)[: args.top]
        named = {fitted.classes[k]: float(probabilities[k]) for k in order}
        if args.json:
            print(json.dumps({'file': file, 'classes': named}))
        else:
            print(f'{printable(file)}: ' + ', '.join(f'{printable(name)} {100 * p:.1f} %' for name, p in named.items()))
    return 0


def probabilities_of(fitted: run.Run, files: Sequence[str]) -> tuple[list[str], np.ndarray]:
    """What was found in the files, pictures or lines of text, and the probabilities of its classes, [N, K].

    By softmax, or by sigmoid if the run was multi-label.
    """
    preprocess = preprocessing(fitted)
    if preprocess.tokenizer is None and preprocess.channels is None:
        raise UserError(f'{fitted.path}: this run works on features, not pictures; use jtl eval --data=npz:… or csv:….')
    names, examples = [], []  # all of them, before any work
    for file in files:
        if not Path(file).is_file():
            raise UserError(f'{file}: no such file.')
        if preprocess.tokenizer:
            for i, text in _lines(file):
                names.append(f'{file}:{i}')
                examples.append(preprocess.tokens(text))
        else:
            picture = decode_image(Path(file).read_bytes(), file, preprocess.channels)
            names.append(file)
            examples.append({'image': preprocess.fit(picture)})
    predict, rows = predictor(fitted), []
    for i in range(0, len(examples), BATCH):
        part = examples[i : i + BATCH]
        padded = part + [part[-1]] * (min(BATCH, len(examples)) - len(part))  # one shape, one compilation
        logits = np.asarray(predict(stack(padded, preprocess))['logits'])[: len(part)]
        rows.append(jax.nn.sigmoid(logits) if fitted.multi_label else jax.nn.softmax(logits))
    return names, np.concatenate(rows)


def preprocessing(fitted: run.Run) -> Preprocess:
    """What a run's model expects of pictures or texts."""
    tokenizer = ops_text.tokenizer(fitted.tokenizer) if fitted.tokenizer else None
    return Preprocess(**fitted.preprocess, tokenizer=tokenizer)


def _lines(file: str) -> Iterator[tuple[int, list[str]]]:
    """`(number, [text] or a pair of them)` of each line that is not empty."""
    try:
        with open(file, encoding='utf-8-sig') as f:
            lines = [line.rstrip('\n') for line in f]
    except UnicodeDecodeError as e:
        raise UserError(f'{file}: cannot be read as UTF-8 text: {e}.') from e
    texts = [(i, line.split('\t', 1)) for i, line in enumerate(lines, 1) if line.strip()]
    if not texts:
        raise UserError(f'{file}: holds no text.')
    yield from texts
