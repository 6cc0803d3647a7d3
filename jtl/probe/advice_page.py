"""The page of `jtl advise`: the ranking with its intervals, every source's layers, their likeness, and what it costs.

Pictures are drawn as in `jtl.report`, and the page holds them inside.
"""

import html
import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, NullLocator

from jtl import metrics, report
from jtl.probe import ranking

COLOURS = ('#2563eb', '#d97706', '#059669', '#9333ea', '#dc2626', '#0891b2', '#65a30d', '#be185d')
STYLE = """
h2 + p { margin-top: -.25rem } ol { padding-left: 1.3rem; max-width: 44rem } ol li { margin: .35rem 0 }
.ranking, .layers, .likeness, .cost { min-width: 34rem }
@media (prefers-color-scheme: dark) { .ranking, .layers, .likeness, .cost {
  filter: invert(1) hue-rotate(180deg); mix-blend-mode: screen } }
"""


def write(workdir: Path, found: Mapping) -> Path:
    """Writes ranking.png, layers.png, likeness.png, cost.png and advice.html; returns the page."""
    best = found['sources'][found['ranking'][0]['source']]
    page = [_headline(found, best), '<h2>Ranking</h2>', report.figure_html(ranked(found), workdir / 'ranking.png')]
    page += [_scores(found), '<h2>Layers</h2>', f'<p class="dim">{LAYERS}</p>']
    page.append(report.figure_html(layers(found), workdir / 'layers.png'))
    if len(best['layers']) > 1:
        page += [f'<h2>How alike the layers of {html.escape(best["name"])} are</h2>']
        page += [f'<p class="dim">{LIKENESS}</p>', report.figure_html(likeness(best), workdir / 'likeness.png')]
    if any(one['cost'] for one in found['sources'].values()):
        page += ['<h2>Cost</h2>', f'<p class="dim">{html.escape(_budget(found))}</p>']
        page += [report.figure_html(cost(found), workdir / 'cost.png'), _costs(found)]
    if found['check']:
        page += ['<h2>Was it right?</h2>', _checked(found)]
    shown = json.dumps(metrics.finite(found), indent=1, ensure_ascii=False)
    page.append(f'<details><summary>advice.json</summary><pre>{html.escape(shown)}</pre></details>')
    title = html.escape(f'Advice on {short(found["data"]["uri"])}')
    head = f'{report.TOP}<title>{title}</title><style>{report.STYLE}{STYLE}</style></head><body>'
    temporary = workdir / 'advice.tmp'
    temporary.write_text('\n'.join([head, *page, '</body></html>\n']), encoding='utf-8')
    temporary.replace(workdir / 'advice.html')
    return workdir / 'advice.html'


LAYERS = (
    'Leave-one-out accuracy of a ridge on each block, from the input to the features, with its interval; the ring is '
    'the best block. The ranking above also answers for having to choose the block.'
)
LIKENESS = (
    'Centred kernel alignment: 1 where two layers arrange the examples alike, 0 where they have nothing in common. '
    'Neighbours that are alike offer the same choice.'
)


def ranked(found: Mapping) -> Figure:
    """A line a source: ridge with its interval, nearest neighbours, and fine-tuning where it is predicted."""
    rows = [found['sources'][row['source']] for row in found['ranking']]
    figure = Figure(figsize=(8, 1.3 + 0.6 * len(rows)), layout='constrained')
    ax = figure.subplots()
    for y, one in enumerate(rows):
        colour, x, p = COLOURS[y % len(COLOURS)], one['ridge'], one['predicted']
        ax.plot([100 * x['low'], 100 * x['high']], [y, y], color=colour, lw=7, alpha=0.25, solid_capstyle='butt')
        ax.plot(100 * x['value'], y, 'o', color=colour, ms=9)
        ax.plot(100 * one['knn']['value'], y, 'D', color='w', mec=colour, ms=6)
        if p['value'] is not None:
            ax.plot([100 * p['low'], 100 * p['high']], [y + 0.26] * 2, color=report.GREY, lw=1.2)
            ax.plot(100 * p['value'], y + 0.26, 's', color=report.GREY, ms=5)
    if found['data']['majority']:
        ax.axvline(100 * found['data']['majority'], color=report.GREY, lw=1, ls='--')
    ax.set_yticks(range(len(rows)), [f'{report.plain_text(one["name"], 34)}\n{one["best"]}' for one in rows])
    ax.set_ylim(len(rows) - 0.45, -0.55)
    report.tidy(ax, '', 'accuracy, % (leave-one-out)')
    ax.tick_params(axis='y', labelsize=9, colors='#1b1f24', length=0)
    marks = [('o', 'ridge'), ('d', 'nearest neighbours')]
    marks += [('s', 'fine-tuning, predicted')] * any(one['predicted']['value'] is not None for one in rows)
    keys = [Line2D([], [], ls='', marker=m, color=report.GREY, mfc='w' if m == 'd' else None) for m, _ in marks]
    keys.append(Line2D([], [], color=report.GREY, lw=1, ls='--'))
    named = [*(name for _, name in marks), 'most frequent class']
    figure.legend(keys, named, loc='outside upper left', ncols=4, frameon=False, fontsize=8.5)
    return figure


def layers(found: Mapping) -> Figure:
    """Ridge accuracy of every block with its band, sources side by side over relative depth."""
    figure = Figure(figsize=(9, 4.6), layout='constrained')
    ax = figure.subplots()
    for i, row in enumerate(found['ranking']):
        one, colour = found['sources'][row['source']], COLOURS[i % len(COLOURS)]
        x = np.linspace(0, 1, len(one['layers'])) if len(one['layers']) > 1 else np.ones(1)
        value, low, high = (100 * np.array([layer['ridge'][key] for layer in one['layers']]) for key in ORDER)
        ax.fill_between(x, low, high, color=colour, alpha=0.13, lw=0)
        ax.plot(
            x, value, '.-', color=colour, lw=1.8, ms=6, label=f'{report.plain_text(one["name"], 34)}: {one["best"]}'
        )
        at = [layer['name'] for layer in one['layers']].index(one['best'])
        ax.plot(x[at], value[at], 'o', ms=12, mfc='none', mec=colour, mew=1.8)
    report.tidy(ax, '', 'depth')
    ax.set_ylabel('ridge accuracy, %', color=report.GREY)
    ax.set_xticks([0, 0.25, 0.5, 0.75, 1], ['first block', '¼', '½', '¾', 'features'])
    ax.margins(y=0.12)
    ax.set_ylim(top=min(ax.get_ylim()[1], 101))
    ax.legend(frameon=False, fontsize=9, loc='best')
    return figure


TIMES = {float(f'{n}e{e}'): f'{float(f"{n}e{e}"):g} s' for e in (-3, -2, -1, 0, 1) for n in (1, 2, 5) if n * 10**e < 50}
TIMES |= {60.0 * n: f'{n} min' for n in (1, 2, 5, 10, 20)} | {3600.0 * n: f'{n} h' for n in (1, 2, 5, 10, 24, 48, 100)}
ORDER = ('value', 'low', 'high')


def likeness(one: Mapping) -> Figure:
    """CKA of each layer with each, [P, P], and beside it what each is worth."""
    names, matrix = [layer['name'] for layer in one['layers']], np.array(one['cka'], float)
    P = len(names)
    side = float(np.clip(0.28 * P + 1.6, 4.0, 9))
    figure = Figure(figsize=(side + 2.6, side), layout='constrained')
    ax, bars = figure.subplots(1, 2, width_ratios=(side, 1.7), sharey=True)
    image = ax.imshow(matrix, cmap='magma_r', vmin=0, vmax=1, aspect='auto')
    size = float(np.clip(11 - P / 8, 5, 9))
    ax.set_xticks(range(P), [report.plain_text(name) for name in names], rotation=90, fontsize=size)
    ax.set_yticks(range(P), [report.plain_text(name) for name in names], fontsize=size)
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    bar = figure.colorbar(image, ax=ax, location='left', fraction=0.04, pad=0.02)
    bar.ax.tick_params(labelsize=8, colors=report.GREY)
    bar.outline.set_visible(False)
    value = np.array([100 * layer['ridge']['value'] for layer in one['layers']])
    best = names.index(one['best'])
    bars.barh(range(P), value, color=[COLOURS[0] if i == best else '#c7cdd4' for i in range(P)], height=0.72)
    bars.set_xlim(max(value.min() - 8, 0), min(value.max() + 3, 103))
    report.tidy(bars, '', 'ridge, %')
    bars.spines['left'].set_visible(False)
    bars.tick_params(axis='y', length=0, labelleft=False)
    bars.grid(axis='y', visible=False)
    return figure


def cost(found: Mapping) -> Figure:
    """What can be had for how long: the ridge, and fine-tuning where it is predicted; time on a logarithmic axis."""
    figure = Figure(figsize=(8, 4.2), layout='constrained')
    ax = figure.subplots()
    known = False
    for i, row in enumerate(found['ranking']):
        one, colour = found['sources'][row['source']], COLOURS[i % len(COLOURS)]
        if not one['cost']:
            continue
        total, x, p = one['cost']['total'], one['ridge'], one['predicted']
        style = {'color': colour, 'ms': 8, 'lw': 1.5, 'capsize': 3}
        ax.errorbar(
            total['ridge'], 100 * x['value'], yerr=_reach(x), fmt='o', label=report.plain_text(one['name'], 34), **style
        )
        if p['value'] is None:
            ax.axvline(total['full'], color=colour, lw=1.5, ls=(0, (1, 2)))
            continue
        known = True
        ax.errorbar(total['full'], 100 * p['value'], yerr=_reach(p), fmt='s', **style)
        ax.plot([total['ridge'], total['full']], [100 * x['value'], 100 * p['value']], color=colour, lw=1, ls=':')
    ax.set_xscale('log')
    ax.xaxis.set_major_locator(FixedLocator(list(TIMES)))
    ax.xaxis.set_major_formatter(lambda s, _: TIMES[s])
    ax.xaxis.set_minor_locator(NullLocator())
    mark = 'full fine-tuning ■, predicted' if known else 'full fine-tuning: dotted line, accuracy not predicted'
    report.tidy(ax, '', '')
    ax.set_xlabel(f'time in all. Pass and ridge: ●; {_epochs(found)} of {mark}', color=report.GREY)
    ax.set_ylabel('accuracy, %', color=report.GREY)
    ax.margins(x=0.1, y=0.14)
    ax.set_ylim(top=min(ax.get_ylim()[1], 101))
    ax.legend(frameon=False, fontsize=9, loc='best')
    return figure


def _headline(found: Mapping, best: Mapping) -> str:
    data, escape = found['data'], html.escape
    ridge = best['ridge']
    parts = [f'<h1>Advice on {escape(short(data["uri"]))}</h1>']
    parts.append(f'<p class="big">{escape(best["name"])} <small>{escape(best["best"])}, ridge</small></p>')
    parts.append('<ol>' + ''.join(f'<li>{escape(text)}</li>' for text in found['reasons']) + '</ol>')
    tiles = {
        'ridge accuracy': f'{100 * ridge["value"]:.1f} %',
        f'{100 * found["confidence"]:g} % interval': f'{100 * ridge["low"]:.1f} – {100 * ridge["high"]:.1f} %',
        'examples': f'{data["used"]:,}' + ('' if data['used'] == data['examples'] else f' of {data["examples"]:,}'),
        'classes': len(data['classes']),
        'sources': len(found['sources']),
    }
    cells = ''.join(f'<div><dt>{escape(k)}</dt><dd>{escape(str(v))}</dd></div>' for k, v in tiles.items())
    return '\n'.join([*parts, f'<dl>{cells}</dl>'])


def _scores(found: Mapping) -> str:
    head = ('source', 'ridge', *ranking.SCORES.values())
    rows = []
    for row in found['ranking']:
        one = found['sources'][row['source']]
        of = lambda name, one=one: one['knn'] if name == 'knn' else one['scores'][name]
        scores = ['–' if of(name) is None else ranking.between(of(name)) for name in ranking.SCORES]
        rows.append((one['name'], ranking.between(one['ridge']), *scores))
    return report.table_html(head, rows)


def _costs(found: Mapping) -> str:
    head = ('source', 'step: full', 'head', 'head, cached', 'forward', 'in all: full', 'head', 'head, cached', 'ridge')
    rows = []
    for row in found['ranking']:
        one = found['sources'][row['source']]
        if x := one['cost']:
            steps = [f'{1000 * x[key]:.3g} ms' for key in ('full', 'head', 'cached', 'forward')]
            rows.append(
                (one['name'], *steps, *(ranking.seconds(x['total'][k]) for k in ('full', 'head', 'cached', 'ridge')))
            )
    return report.table_html(head, rows)


def _checked(found: Mapping) -> str:
    head = ('source', 'method', 'predicted', 'test accuracy', 'in the interval', 'seconds')
    rows = []
    for one in found['check']['runs']:
        predicted = '–' if one['predicted'] is None else ranking.between(one['predicted'])
        within = {None: '–', True: 'yes', False: 'no'}[one['within']]
        name = found['sources'][one['source']]['name']
        rows.append((name, one['method'], predicted, ranking.between(one['accuracy']), within, f'{one["seconds"]:.1f}'))
    said = ''.join(f'<li>{html.escape(text)}</li>' for text in found['check']['said'])
    return report.table_html(head, rows) + f'<ol>{said}</ol>'


def _budget(found: Mapping) -> str:
    one = next(one['cost'] for one in found['sources'].values() if one['cost'])
    steps = f'Steps of {one["batch_size"]} examples, median of {one["repeats"]}'
    where = f'{found["hardware"]}, {one.get("measured", "")[:10]}'
    return f'{steps}, on {where}; decoding left out. In all: {_epochs(found)} of training, or one pass and a ridge.'


def _epochs(found: Mapping) -> str:
    return f'{next(one["cost"] for one in found["sources"].values() if one["cost"])["epochs"]:.3g} epochs'


def _reach(x: Mapping) -> list[list[float]]:
    """Lengths of error bars, down and up."""
    return [[100 * max(x['value'] - x['low'], 0)], [100 * max(x['high'] - x['value'], 0)]]


def short(uri: str) -> str:
    """`folder:/home/me/cats.zip` -> `cats.zip`."""
    return Path(uri.rpartition(':')[2]).name or uri
