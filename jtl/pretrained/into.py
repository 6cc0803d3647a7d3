"""Pretrained weights into a fresh model: what must fit, what is adapted, and what becomes of the head."""

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from jtl import models, morph, tree
from jtl.errors import UserError, nearest, some
from jtl.pretrained import resize
from jtl.pretrained.load import Pretrained, is_first_convolution
from jtl.pretrained.shapes import grouped, shapes
from jtl.rules import any_matches, match

PyTree = Any
Shapes = Mapping[str, tuple[int, ...]]

PREFIX_TOKENS = ('class_token', 'distillation_token')
OURS = ('backbone', 'head', 'model')  # what every model has; of other kinds of parameters weights may have none


def into(
    params: PyTree,
    state: PyTree,
    weights: Pretrained,
    classes: tuple[str, ...],
    model: dict,
    batch: Mapping[str, np.ndarray],
) -> tuple[PyTree, PyTree, dict[str, str]]:
    """`(params, state, {path: where it came from})` with the weights in.

    Every parameter outside the head and every statistic of the model must be found, with its shape, and every one of
    the weights must find its place. Position embeddings are resized and the first convolution is made for other
    channels (`jtl.pretrained.resize`). A model that is cut (`depth`) leaves out what comes after. What a method keeps
    in its state besides stays as it is, and so do parameters beside backbone and head (`lora/…`) of a kind that the
    weights have none of. With `config.load.copy` its rules decide instead; with `grow` the weights first grow.

    Args:
        params, state: fresh ones.
        classes: of the head here.
        model: the `config.model` here.
        batch: an example, for the size of its pictures.

    Raises:
        UserError: what is missing, left over or of another shape, all of it.
    """
    if weights.fresh:
        return params, state, dict.fromkeys(tree.flatten({**params, 'model': state.get('model', {})}), 'fresh')
    whole = {**params, 'model': state.get('model', {})}
    mine, head = tree.flatten(whole), weights.head
    if head == 'auto':
        head = 'keep' if weights.copy or (classes == weights.classes and _same_head(mine, weights)) else 'fresh'
    theirs, origin = _offered(mine, weights, classes, model, batch, head)
    here, there = (
        {path: leaf.shape for path, leaf in leaves.items() if head != 'fresh' or not path.startswith('head/')}
        for leaves in (mine, theirs)
    )
    if weights.copy:
        _same_shapes(here, there, origin)
    else:
        spare = _spare(set(there) - set(here), model, weights.model, len(classes), batch)
        kinds = {*OURS, *(path.split('/')[0] for path in there)}
        asked = lambda path: path.split('/')[0] in kinds and not any_matches(weights.missing, path)
        _same(
            {path: shape for path, shape in here.items() if path in there or asked(path)},
            {path: shape for path, shape in there.items() if path not in spare},
            weights,
        )
    taken = {path: theirs[path] for path in here if path in theirs}
    whole = tree.map_paths(lambda path, leaf: taken.get(path, leaf), whole)
    statistics = whole.pop('model')
    origin = {path: origin[path] if path in taken else 'fresh' for path in mine}
    return whole, {**state, 'model': statistics} if statistics else state, origin


def _same_head(mine: Mapping, weights: Pretrained) -> bool:
    """Whether the heads are of one kind: of the same layers, and of the same sizes unless they are to grow."""
    here, there = (
        {path: None if weights.grow else leaf.shape for path, leaf in leaves.items() if path.startswith('head/')}
        for leaves in (mine, weights.leaves())
    )
    return here == there


def _offered(
    mine: Mapping, weights: Pretrained, classes: tuple[str, ...], model: dict, batch: Mapping, head: str
) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """The weights under our paths, made for our model as far as `config.load` says, and where each is from."""
    theirs = weights.leaves()
    origin = {path: f'{weights.uri} {weights.origin.get(path, "")}'.strip() for path in theirs}
    if weights.copy:
        source = copied(mine, theirs, weights.copy)
        theirs = {path: theirs[there] for path, there in source.items()}
        origin = {path: f'{origin[there]}{"" if path == there else f", {there}"}' for path, there in source.items()}
    elif weights.grow:
        theirs, origin = _grown(mine, theirs, origin, weights, model, batch, head)
    made = _adapted(mine, theirs, weights, batch)
    if head == 'names':
        made |= _by_name(mine, theirs, classes, weights)
    for path, (leaf, how) in made.items():
        theirs[path], origin[path] = leaf, f'{origin[path]}, {how}'
    return theirs, origin


def copied(mine: Iterable[str], theirs: Iterable[str], rules: Sequence[tuple[str, str | None]]) -> dict[str, str]:
    """Which of their leaves goes into which of ours, by path; what stays fresh is not there.

    copied(['block0/bias', 'block0/kernel'], ['block4/kernel'], (('.*bias', None), (r'block0/(.*)', r'block4/\\1')))
    == {'block0/kernel': 'block4/kernel'}

    Raises:
        UserError: a rule matches nothing, a path has no rule, or a template names what is not there.
    """
    chosen = match([(rule[0], rule) for rule in rules], mine, 'config.load.copy', "('.*', None)")
    theirs, found = set(theirs), {}
    for path, (regex, template) in chosen.items():
        if template is None:
            continue
        found[path] = re.fullmatch(regex, path).expand(template)
        if found[path] not in theirs:
            known = theirs if len(theirs) < 20 else difflib.get_close_matches(found[path], theirs, n=3, cutoff=0)
            raise UserError(
                f'config.load.copy: {regex!r} takes {path} from {found[path]!r}, which the weights do not have. '
                + nearest(found[path], known)
            )
    return found


def _grown(
    mine: Mapping, theirs: Mapping, origin: Mapping, weights: Pretrained, model: dict, batch: Mapping, head: str
) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Theirs as those of our larger model, and where they are from."""
    theirs = {path: leaf for path, leaf in theirs.items() if head != 'fresh' or not path.startswith('head/')}
    morph.check(weights.model, model)
    lost = [p for p in shapes(weights.model, 1, batch) if p not in theirs and not p.startswith('head/')]
    if lost:
        raise UserError(
            f'config.load.grow: only whole weights can grow, and {weights.uri} lacks {len(lost)} of {weights.model}:\n'
            + '\n'.join(grouped(lost))
        )
    grown = morph.grow(theirs, mine, weights.model, model, weights.grow_noise)
    origin = {path: origin.get(path, f'{weights.uri}, a new layer') for path in grown}
    wider = [path for path, leaf in grown.items() if path in theirs and leaf.shape != theirs[path].shape]
    return grown, {**origin, **{path: f'{origin[path]}, grown from {theirs[path].shape}' for path in wider}}


def _adapted(mine: Mapping, theirs: Mapping, weights: Pretrained, batch: Mapping) -> dict[str, tuple[np.ndarray, str]]:
    """Position embedding and first convolution, where ours have another size: `{path: (leaf, how)}`."""
    made = {}
    for path in theirs.keys() & mine.keys():
        old, new = theirs[path].shape, mine[path].shape
        if len(old) != len(new):
            continue
        if is_first_convolution(path) and old[2] != new[2] and (*old[:2], old[3]) == (*new[:2], new[3]):
            how = f'channels {old[2]} → {new[2]}'
            made[path] = resize.first_convolution(theirs[path], new[2]), how
        elif path == 'backbone/position' and 'image' in batch and old[2] == new[2]:
            patch = mine['backbone/patch/kernel'].shape[:2]
            grid = tuple(side // p for side, p in zip(batch['image'].shape[1:3], patch))
            if old == new and (grid[0] == grid[1] or not weights.origin):  # a former run may have had any grid
                continue
            before, after = (sum(f'backbone/{name}' in leaves for name in PREFIX_TOKENS) for leaves in (theirs, mine))
            fresh = np.asarray(mine[path][:, :after]) if after > before else None
            leaf = resize.position(theirs[path], before, after, None, grid, weights.antialias, fresh)
            made[path] = leaf, f'{old[1]} → {new[1]} tokens'
    return made


def _by_name(
    mine: Mapping, theirs: Mapping, classes: tuple[str, ...], weights: Pretrained
) -> dict[str, tuple[np.ndarray, str]]:
    """The head, class by class: columns of theirs for the names that agree, fresh ones for the others."""
    if not weights.classes:
        raise UserError(
            f'config.load.head: nothing says what the classes of {weights.uri} are called; '
            'config.load.labels names a file that does.'
        )
    column = columns(weights.classes)
    pairs = [(i, column[spelt(name)]) for i, name in enumerate(classes) if spelt(name) in column]
    if not pairs:
        raise UserError(
            f'config.load.head: none of the classes here is one of {weights.uri}: {some(list(classes))} there: '
            f'{some(list(weights.classes))}.'
        )
    here, there = map(list, zip(*pairs))
    made = {}
    for path in ('head/kernel', 'head/bias'):
        if path in mine and path in theirs and mine[path].shape[:-1] == theirs[path].shape[:-1]:
            leaf = np.array(mine[path])
            leaf[..., here] = theirs[path][..., there]
            made[path] = leaf, f'{len(pairs)} of {len(classes)} classes by name'
    return made


def columns(classes: Iterable[str]) -> dict[str, int]:
    """Which class a name means: a whole name, or one of several between commas; none if it could mean two.

    columns(('crane', 'cardigan, corgi', 'cardigan', 'crane')) == {'cardigan': 2, 'corgi': 1}
    """
    whole, parts = {}, {}
    for i, names in enumerate(classes):
        whole.setdefault(spelt(names), []).append(i)
        for name in names.split(',') if ',' in names else ():
            parts.setdefault(spelt(name), []).append(i)
    return {name: found[0] for name, found in {**parts, **whole}.items() if len(found) == 1}


def spelt(name: str) -> str:
    """Without case, and with one space for any spaces, `_` and `-`."""
    return re.sub(r'[\s_-]+', ' ', name).strip().casefold()


def _spare(extra: set[str], model: dict, full: dict, num_classes: int, batch: Mapping) -> set[str]:
    """Those of the paths that only the weights have which this model may leave out.

    They are what `config.model.depth` cuts off, and what the model's file calls spare.
    """
    if not extra:
        return set()
    backbone = models.build(num_classes=num_classes, **model).backbone
    spare = {path for path in extra if any_matches(getattr(backbone, 'SPARE', ()), path)}
    if extra - spare and model.get('depth') not in (None, full.get('depth')):
        whole = {key: value for key, value in {**model, 'depth': full.get('depth')}.items() if value is not None}
        spare |= set(shapes(whole, num_classes, batch)) - set(shapes(model, num_classes, batch))
    return spare


def _same(mine: Shapes, theirs: Shapes, weights: Pretrained) -> None:
    missing, extra = sorted(set(mine) - set(theirs)), sorted(set(theirs) - set(mine))
    reshaped = [f'{p} is {theirs[p]} there, {mine[p]} here' for p in sorted(mine) if mine[p] != theirs.get(p, mine[p])]
    if not missing and not extra and not reshaped:
        return
    said = [f'{len(missing)} missing:', *grouped(missing)] if missing else []
    said += [f'{len(extra)} left over:', *grouped(extra)] if extra else []
    said += [f'{len(reshaped)} of another shape:', *(f'  {line}' for line in reshaped)] if reshaped else []
    if any(line.startswith('head/') for line in reshaped):
        said.append("config.load.head: 'fresh' starts a new head, 'names' takes the classes whose names agree.")
    elif any(line.startswith('head/') for line in (*missing, *extra)):
        said.append("config.load.head: 'fresh' starts a new head; config.model.head is of another kind than theirs.")
    if any(path.split('/')[0] not in OURS for path in extra):
        said.append('Theirs has an adapter: keep it in config.model, or `jtl convert --to=run:DIR --merge` first.')
    if missing and not extra and not reshaped and (whole := _whole(missing)):
        said.append(f'config.model.depth={whole} uses the part that is whole.')
    raise UserError(
        f'config.init: {weights.uri} looks like {weights.model}; it does not fit config.model:\n' + '\n'.join(said)
    )


def _same_shapes(mine: Shapes, theirs: Shapes, origin: Mapping[str, str]) -> None:
    """Refuses copies that have another shape than what they are to replace."""
    wrong = [f'  {p} is {mine[p]} here, {theirs[p]} there: {origin[p]}' for p in sorted(theirs) if mine[p] != theirs[p]]
    if wrong:
        said = 'config.load.copy: another shape than what it is to replace; the template None leaves that fresh:\n'
        raise UserError(said + '\n'.join(wrong))


def _whole(missing: list[str]) -> int | None:
    """How many stages, or blocks, come before the first that is missing something, if nothing else is."""
    found = [re.fullmatch(r'(?:model/batch_stats/)?backbone/(stage|block)(\d+)/.*', path) for path in missing]
    if not all(found):
        return None
    first = min(int(match[2]) for match in found)
    return first - 1 if found[0][1] == 'stage' else first  # stages are counted from 1, blocks from 0
