"""What a person looks at after a run: curves, confusion matrix, the worst mistakes, and one page with all of it.

Drawn with matplotlib's `Figure` directly, not pyplot, which keeps global state. The page holds its pictures inside
(base64) and links to nothing, so that it can be mailed. Names of classes come from other people's data: they are
escaped in the page, and `$` does not start a formula in the figures.

Shapes: N examples of the test split, K classes.
"""

import base64
import html
import json
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure

from jtl.errors import UserError
from jtl.evals import Seen, classification
from jtl.metrics import read as read_rows

TOP = '<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
GREY = '#6b7280'
STYLE = """
:root { color-scheme: light dark; --ink: #1b1f24; --dim: #66707b; --line: #e2e5e9; --soft: #f5f6f8; --bg: #fff }
* { box-sizing: border-box }
body { margin: 0 auto; max-width: 60rem; padding: 2rem 1.25rem 4rem; background: var(--bg); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif; overflow-wrap: anywhere }
h1 { font-size: 1.1rem; margin: 0; color: var(--dim); font-weight: 500 } p { margin: .4rem 0; max-width: 42rem }
h2 { font-size: 1.1rem; margin: 2.75rem 0 .75rem; padding-top: 1rem; border-top: 1px solid var(--line) }
.big { font-size: 3.2rem; line-height: 1.15; font-weight: 650; letter-spacing: -.02em; margin: .35rem 0 0 }
.big small { font-size: 1rem; letter-spacing: 0 } .big small, .dim, th { color: var(--dim); font-weight: 400 }
dl { display: grid; grid-template-columns: repeat(auto-fill, minmax(8.5rem, 1fr)); gap: .6rem; margin: 1.5rem 0 0 }
dl div, pre { background: var(--soft); border-radius: .5rem; padding: .55rem .75rem }
dt { color: var(--dim); font-size: .8rem } dd { margin: 0 } dd, table { font-variant-numeric: tabular-nums }
.plot { display: block; width: 100%; max-width: var(--width) }
.wide { overflow-x: auto } .curves, .mistakes { min-width: 38rem } table { border-collapse: collapse; font-size: .9rem }
th, td { white-space: nowrap; text-align: right; padding: .3rem .8rem; border-bottom: 1px solid var(--line) }
th:first-child, td:first-child { text-align: left; padding-left: 0 }
details { margin-top: 1rem; border-top: 1px solid var(--line); padding-top: 1rem } summary { cursor: pointer }
pre { overflow: auto; max-height: 32rem; font: .78rem/1.5 ui-monospace, Menlo, Consolas, monospace }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e4e7eb; --dim: #98a2ad; --line: #2c3138; --soft: #1c2026; --bg: #121519 }
  .curves, .confusion { filter: invert(1) hue-rotate(180deg); mix-blend-mode: screen } }
"""


def write(run: Path | str, pictures: Callable[[int], np.ndarray | None] | None = None) -> Path:
    """Write curves.png, confusion.png, mistakes.png and report.html into the folder of a run; return the page.

    A part whose data the run does not have (no validation, no test, features for images) is left out.

    Args:
        run: a run's folder, with any of the files that a run leaves.
        pictures: the 'index' of a test example -> its picture, uint8 [H, W] or [H, W, C], or None.
    """
    run = Path(run)
    result, metrics = read_json(run / 'result.json'), read_metrics(run / 'metrics.jsonl')
    page = [_headline(run, result, metrics)]
    if figure := curves(metrics, result.get('step')):
        page += ['<h2>Training</h2>', figure_html(figure, run / 'curves.png')]
    seen = _seen(run)
    if seen is not None:
        found = dict(classification.run(seen))
        if 'confusion' in found:
            drawn = figure_html(confusion(found['confusion'], seen.classes), run / 'confusion.png')
            page += ['<h2>Confusion</h2>', drawn, _confused(found, seen.classes)]
        worst = mistakes(seen, pictures) if pictures and 'confusion' in found else []
        if worst:
            page += ['<h2>Most confident mistakes</h2>', figure_html(_gallery(worst), run / 'mistakes.png')]
        page += ['<h2>Classes</h2>', _per_class(found, seen.classes)]
    page += _details(run, result.get('params') or {})
    head = f'{TOP}<title>{html.escape(run.resolve().name)}</title><style>{STYLE}</style></head><body>'
    text = '\n'.join([head, *page, '</body></html>\n'])
    temporary = run / 'report.tmp'  # the page is there whole or not at all, and then it is written again
    temporary.write_text(text, encoding='utf-8')
    temporary.replace(run / 'report.html')
    return run / 'report.html'


def read_metrics(path: Path) -> dict[str, dict[str, tuple[np.ndarray, np.ndarray]]]:
    """metrics.jsonl as {split: {name: (steps, values)}}; a last line cut off by a crash is passed over."""
    points = {}
    for row in read_rows(path) if path.exists() else ():
        for name, value in row.items():
            if name not in ('step', 'split') and isinstance(value, (int, float, type(None))):
                points.setdefault(row['split'], {}).setdefault(name, []).append((row['step'], value))
    read = lambda pairs: tuple(np.asarray(x, np.float64) for x in zip(*pairs))  # null becomes NaN
    return {split: {name: read(pairs) for name, pairs in named.items()} for split, named in points.items()}


def curves(metrics: dict, selected: int | None = None) -> Figure | None:
    """Loss, accuracy and learning rate over the steps, train and validation; a dotted line at the selected step."""
    panels = {'loss': 'Loss', 'accuracy': 'Accuracy', 'lr': 'Learning rate'}
    here = [name for name in panels if any(name in metrics.get(split, ()) for split in ('train', 'val'))]
    if not here:
        return None
    figure = Figure(figsize=(3.6 * len(here) + 0.4, 3.0), layout='constrained')
    for ax, name in zip(figure.subplots(1, len(here), squeeze=False)[0], here):
        for split, colour in (('train', '#9aa5b1'), ('val', '#2563eb')):
            if name in metrics.get(split, ()):
                steps, values = metrics[split][name]
                ax.plot(steps, values, '.-' if len(steps) <= 30 else '-', color=colour, lw=1.6, label=split)
        if selected is not None:
            ax.axvline(selected, color=GREY, lw=0.9, ls=':', label='selected')
        tidy(ax, panels[name], 'step')
        if name == here[0]:
            ax.legend(frameon=False, fontsize=8)
    return figure


def confusion(matrix: np.ndarray, classes: tuple[str, ...]) -> Figure:
    """The confusion matrix [K, K], rows = true: colour is the share of the row, numbers are counts (few classes).

    Colour goes with the square root of the share, so that a class mistaken in one case of twenty is still seen.
    """
    K = len(matrix)
    side = float(np.clip(0.45 * K + 1.5, 3.6, 13))
    figure = Figure(figsize=(side + 0.8, side), layout='constrained')
    ax = figure.subplots()
    share = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    image = ax.imshow(share, cmap='Blues', norm=PowerNorm(0.5, 0, 1))
    ticks = range(0, K, -(-K // 100))  # beyond 100 classes, not every name
    names, size = [plain_text(classes[k]) for k in ticks], float(np.clip(13 - K / 6, 5, 9))
    ax.set_xticks(ticks, names, rotation=90 if max(map(len, names)) * 0.075 > (side - 1.5) / K else 0, fontsize=size)
    ax.set_yticks(ticks, names, fontsize=size)
    ax.tick_params(length=0)
    ax.set_xlabel('predicted', color=GREY)
    ax.set_ylabel('true', color=GREY)
    ax.spines[:].set_visible(False)
    if K <= 20:
        for i, j in np.argwhere(matrix):
            ax.text(j, i, matrix[i, j], ha='center', va='center', fontsize=8, color='w' if share[i, j] > 0.4 else 'k')
    bar = figure.colorbar(image, ax=ax, fraction=0.04, pad=0.02, ticks=[0, 0.05, 0.25, 0.5, 1])
    bar.ax.set_yticklabels(['0', '5 %', '25 %', '50 %', '100 %'], fontsize=8, color=GREY)
    bar.outline.set_visible(False)
    return figure


def mistakes(seen: Seen, pictures: Callable, most: int = 12) -> list[tuple[np.ndarray, str, str, float]]:
    """The wrong predictions with the highest probability: (picture, true name, predicted name, probability)."""
    logits, label, index = (seen.outputs[key] for key in ('logits', 'label', 'index'))
    with np.errstate(all='ignore'):
        p = np.exp(logits - np.logaddexp.reduce(logits, axis=1, keepdims=True))  # [N, K]
    predicted, sure = p.argmax(1), p.max(1)
    wrong, worst = np.flatnonzero((predicted != label) & np.isfinite(sure)), []
    for i in wrong[np.argsort(-sure[wrong], kind='stable')][:most]:
        if (picture := pictures(int(index[i]))) is not None:
            picture = np.asarray(picture, np.uint8)
            picture = picture[..., 0] if picture.ndim == 3 and picture.shape[-1] == 1 else picture
            worst.append((picture, seen.classes[label[i]], seen.classes[predicted[i]], float(sure[i])))
    return worst


def comparison(lines: list[dict], label: str, unit: str, level: float | None, title: str) -> Figure:
    """Means with 95 % intervals across numbers of labels, a line per method (rows of `jtl.compare.table`)."""
    xs = list(dict.fromkeys(line['across'] for line in lines))
    log = all(isinstance(x, (int, float)) and x > 0 for x in xs)
    figure = Figure(figsize=(7, 4.3), layout='constrained')
    ax = figure.subplots()
    for method in dict.fromkeys(line['method'] for line in lines):
        rows = [line for line in lines if line['method'] == method]
        x = [line['across'] if log else xs.index(line['across']) for line in rows]
        y, half = (100 * np.array([line[key] for line in rows]) for key in ('mean', 'half'))
        (drawn,) = ax.plot(x, y, marker='o', markersize=5, lw=1.8, label=plain_text(method))
        ax.fill_between(x, *np.clip((y - half, y + half), 0, 100), color=drawn.get_color(), alpha=0.15, lw=0)
    if level is not None:
        ax.axhline(100 * level, color=GREY, lw=1, ls='--', label='most frequent class')
    if log:
        ax.set_xscale('log')
    ax.set_xticks(xs if log else range(len(xs)), [plain_text(str(x)) for x in xs])
    ax.minorticks_off()
    tidy(ax, title, unit)
    ax.set_ylabel(label, color=GREY)
    ax.legend(frameon=False, fontsize=9)
    return figure


def save(figure: Figure, path: Path) -> None:
    """Write a figure as PNG; a script that the font lacks is drawn as boxes, without a warning each."""
    with warnings.catch_warnings():
        warnings.filterwarnings('ignore', 'Glyph')
        figure.savefig(path, dpi=150)


def tidy(ax, title: str, xlabel: str) -> None:
    ax.set_title(plain_text(title, 80), fontsize=10, loc='left')
    ax.set_xlabel(plain_text(xlabel, 80), color=GREY)
    ax.spines[['top', 'right']].set_visible(False)
    ax.grid(alpha=0.25, lw=0.6)
    ax.tick_params(labelsize=8, colors=GREY)


def plain_text(name: str, most: int = 20) -> str:
    """A name for a figure: shortened, and with no formula in it."""
    return (name if len(name) <= most else name[: most - 1] + '…').replace('$', r'\$')


def _gallery(worst: list) -> Figure:
    """True class → predicted class, probability; transparent, so as to sit on a light page and a dark one."""
    columns = min(len(worst), 4)
    rows = -(-len(worst) // columns)
    figure = Figure(figsize=(2.2 * columns, 2.6 * rows), layout='constrained', facecolor='none')
    for ax in figure.subplots(rows, columns, squeeze=False).flat:
        ax.axis('off')
    for ax, (picture, true, predicted, p) in zip(figure.axes, worst):
        ax.imshow(picture, cmap='gray', vmin=0, vmax=255, interpolation='nearest')
        ax.set_title(f'{plain_text(true)}\n→ {plain_text(predicted)}  {100 * p:.0f} %', fontsize=10.5, color='#808893')
    return figure


def _headline(run: Path, result: dict, metrics: dict) -> str:
    test, val, params = (result.get(key) or {} for key in ('test', 'val', 'params'))
    split, best = ('test', test) if test.get('accuracy') is not None else ('validation', val)
    parts = [f'<h1>{html.escape(run.resolve().name)}</h1>']
    if best.get('accuracy') is not None:
        parts.append(f'<p class="big">{100 * best["accuracy"]:.1f} % <small>{split} accuracy</small></p>')
    parts.append(f'<p class="dim">{_selected(result, metrics)}</p>')
    tiles = {f'test {k}': v for k, v in test.items()} | {f'validation {k}': v for k, v in val.items()}
    tiles = {k: v for k, v in tiles.items() if k != f'{split} accuracy'}
    tiles |= {'parameters': params.get('total'), 'of these trained': params.get('trainable')}
    tiles |= {k.replace('_', ' '): result.get(k) for k in ('seconds', 'compile_seconds', 'examples_per_second')}
    shown = [(k.replace('_', ' '), v) for k, v in tiles.items() if isinstance(v, (int, float))]
    cells = ''.join(f'<div><dt>{html.escape(k)}</dt><dd>{_number(v)}</dd></div>' for k, v in shown)
    return '\n'.join([*parts, f'<dl>{cells}</dl>'])


def _selected(result: dict, metrics: dict) -> str:
    """Which step's parameters these are, and by what: told from the curves, not from what was meant."""
    steps, accuracy = metrics.get('val', {}).get('accuracy', ((), ()))
    if (step := result.get('step')) is None:
        return ''
    if step in steps and np.max(accuracy[steps == step]) >= np.fmax.reduce(accuracy):
        return f'Parameters of step {step}, the best validation accuracy of {len(steps)} evaluations.'
    return f'Parameters of step {step}' + ('.' if len(steps) else '; nothing was selected on a validation split.')


def _confused(found: dict, classes: tuple[str, ...], most: int = 8) -> str:
    """The pairs of classes most often mistaken for one another: what to read where the matrix is large."""
    wrong = found['confusion'] * (1 - np.eye(len(classes), dtype=int))
    order = np.argsort(-wrong, axis=None, kind='stable')[:most]
    pairs = [(i, j) for i, j in zip(*np.unravel_index(order, wrong.shape)) if wrong[i, j]]
    rows = [(classes[i], classes[j], wrong[i, j], f'{100 * wrong[i, j] / found["support"][i]:.0f} %') for i, j in pairs]
    return (
        table_html(('true', 'most often taken for', 'times', 'of the class'), rows) if rows else '<p>No mistakes.</p>'
    )


def _per_class(found: dict, classes: tuple[str, ...]) -> str:
    names = ('precision', 'recall', 'f1')
    rows = [(c, *(f'{found[n][k]:.3f}' for n in names), found['support'][k]) for k, c in enumerate(classes)]
    return table_html(('class', *names, 'examples'), rows)


def table_html(head: tuple, rows: list[tuple]) -> str:
    line = lambda tag, row: '<tr>' + ''.join(f'<{tag}>{html.escape(str(x))}</{tag}>' for x in row) + '</tr>'
    return '<div class="wide"><table>' + line('th', head) + ''.join(line('td', row) for row in rows) + '</table></div>'


def _details(run: Path, params: dict) -> list[str]:
    counted = f': {params["total"]:,} in all, {params["trainable"]:,} trained' if len(params) > 1 else ''
    return [
        f'<details><summary>{title}</summary><pre>{html.escape((run / file).read_text("utf-8"))}</pre></details>'
        for file, title in (('params.txt', f'Parameters{counted}'), ('config.json', 'Config'))
        if (run / file).exists()
    ]


def _seen(run: Path) -> Seen | None:
    """predictions.npz and the names of the classes, or None without labelled predictions."""
    if not (run / 'predictions.npz').exists():
        return None
    with np.load(run / 'predictions.npz') as arrays:
        outputs = {key: arrays[key] for key in arrays.files}
    if not {'logits', 'label', 'index'} <= outputs.keys() or not len(outputs['label']):
        return None
    K, classes = outputs['logits'].shape[-1], read_json(run / 'model' / 'model.json').get('classes') or ()
    return Seen(outputs, tuple(map(str, classes if len(classes) == K else range(K))), None, None)


def figure_html(figure: Figure, path: Path) -> str:
    save(figure, path)
    inside = 'data:image/png;base64,' + base64.b64encode(path.read_bytes()).decode()
    style = f'--width: {figure.get_size_inches()[0] * 85:.0f}px'
    return f'<div class="wide"><img class="plot {path.stem}" style="{style}" alt="{path.stem}" src="{inside}"></div>'


def _number(x: float) -> str:
    return f'{x:,}' if isinstance(x, int) else f'{x:,.{0 if abs(x) >= 100 else 1 if abs(x) >= 10 else 3}f}'


def read_json(path: Path) -> dict:
    """The content of a file, {} if there is none."""
    try:
        return json.loads(path.read_text(encoding='utf-8')) if path.exists() else {}
    except ValueError as e:
        raise UserError(f'{path}: not valid JSON ({e}); was it cut off? Delete it to have the run done again.') from e
