"""Keras weights: .h5 of Keras 2 and 3, .weights.h5 and .keras, all under the names that Keras gives its variables.

A tensor is called `layer/variable`, as in `conv1/kernel` or `conv1_bn/moving_mean`; within a model that is used as a
layer, `model/layer/variable`. What the files hold differs:

    .h5           names, as `conv1/conv1/kernel:0` (Keras 2), `conv1/conv1/kernel` or `conv1/kernel` (3)
    .keras        numbers, as `layers/conv2d/vars/0`, and config.json, which has each layer's class, name and options
    .weights.h5   numbers; since Keras 3.6 the name of each layer as well; its class is that of the group, `conv2d_1`

The numbers are the order in which a layer makes its variables, which for the layers in `VARIABLES` we know; variables
of other layers keep their number (`memory/lstm_cell/0`). Keras 3 calls the kernel of a DepthwiseConv2D `kernel`,
Keras 2 `depthwise_kernel`, and so do we. The state of an optimiser, of metrics and of random numbers is left out.
"""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from jtl.errors import UserError, some
from jtl.files import parse_json
from jtl.pretrained.formats import archive, hdf5, hdf5_array

_AFFINE = ('kernel', 'bias')
_NORM = ('gamma', 'beta')
VARIABLES = {  # by class, in the order in which they are made; those after the first may be missing
    'dense': _AFFINE,
    'conv1d': _AFFINE,
    'conv2d': _AFFINE,
    'conv3d': _AFFINE,
    'conv2d_transpose': _AFFINE,
    'einsum_dense': _AFFINE,
    'depthwise_conv2d': ('depthwise_kernel', 'bias'),
    'separable_conv2d': ('depthwise_kernel', 'pointwise_kernel', 'bias'),
    'batch_normalization': (*_NORM, 'moving_mean', 'moving_variance'),
    'layer_normalization': _NORM,
    'group_normalization': _NORM,
    'embedding': ('embeddings',),
    'p_re_lu': ('alpha',),
}
LISTS = ('layers', '_layer_checkpoint_dependencies')  # groups that are no layers; the second is of TensorFlow 2.12
SKIPPED = re.compile(r'(optimizer|[^/]*metrics?|loss_tracker)/.*|(.*/)?(seed_generator|random_generator)/.*')


class Layer(NamedTuple):
    """What config.json says of a layer."""

    name: str
    kind: str
    config: dict


def read(path: Path) -> dict[str, np.ndarray]:
    """The tensors of a Keras file by their names; read-only, memory-mapped where they are stored plainly.

    Raises:
        UserError: no Keras weights, a damaged file, or one that does not say which tensor is which.
    """
    data = archive.mapped(path)
    if data[:8].tobytes() == hdf5.MAGIC:
        found = _read_h5(data, str(path), None)
    elif data[:2].tobytes() == b'PK':
        members = archive.members(path)
        if 'model.weights.h5' not in members or 'config.json' not in members:
            raise UserError(
                f'{path} is a zip archive, but no .keras model: expected config.json and model.weights.h5, it holds '
                f'{some(sorted(members), 5) or "nothing"}. An archive of arrays is npz:PATH.'
            )
        config = parse_json(members['config.json'].read().tobytes(), f'{path}: its config.json')
        found = _read_h5(members['model.weights.h5'].read(), f'{path} (model.weights.h5)', config)
    else:
        raise UserError(f'{path} is no Keras file (.h5, .weights.h5, .keras): {archive.looks_like(data)}.')
    if not found:
        raise UserError(f'{path} is a Keras file without any weights in it.')
    return found


def _read_h5(data: np.ndarray, name: str, config: dict | None) -> dict[str, np.ndarray]:
    contents = hdf5.read(data, name)
    if any(_parts(path)[-2:-1] == ['vars'] for path in contents.arrays):
        named = _numbered(contents, name, config)
    else:
        named = _listed(contents, name)
    found = {}
    for label, array in named:
        if not label.isprintable() or len(label) > 1000:
            raise UserError(f'{name} has a tensor called {_short(label)}: it is damaged.')
        if label in found:
            raise UserError(f'{name} has two tensors called {_short(label)}.')
        found[label] = _numbers(name, array)
    return found


def _numbers(name: str, array: hdf5.Array) -> np.ndarray:
    x = hdf5_array.read(array)
    if x.dtype == 'V2' and array.attributes.get('dtype') == 'bfloat16':
        return x.view(ml_dtypes.bfloat16)
    if x.dtype.kind not in 'biuf':
        raise UserError(f'{name}: {array.path!r} holds {x.dtype}, expected numbers.')
    return x


# Names that are in the file.


def _listed(contents: hdf5.Contents, name: str) -> Iterable[tuple[str, hdf5.Array]]:
    """`(name, array)` of a .h5 file, in which each group has a list of the names of its weights."""
    root = 'model_weights' if 'model_weights' in contents.groups else ''
    layers = _texts(contents.groups[root], 'layer_names')
    if layers is None:
        raise UserError(
            f'{name} is HDF5, but not of Keras: it has neither `layer_names` nor `layers/…/vars`. It holds '
            f'{some(sorted(contents.arrays), 5) or "no arrays"}. Save the model with model.save("model.keras").'
        )
    model = contents.groups[''].get('model_config')
    known = _layers(parse_json(model.encode(), f'{name}: its model_config'), '') if isinstance(model, str) else {}
    kinds = {layer.name: layer.kind for layer in known.values()}
    for layer in [*layers, 'top_level_model_weights']:
        group = f'{root}/{layer}' if root else layer
        if group not in contents.groups:
            if layer in layers:
                raise UserError(f'{name} lists the layer {_short(layer)}, but there is no such group: it is damaged.')
            continue
        for weight in _texts(contents.groups[group], 'weight_names') or ():
            if (array := contents.arrays.get(f'{group}/{weight}')) is None:
                raise UserError(f'{name} lists {_short(weight)} of {_short(layer)}, but there is none: it is damaged.')
            yield _plain(layer if layer in layers else '', weight, kinds), array


def _texts(attributes: dict[str, Any], key: str) -> list[str] | None:
    """A list of texts; one that is too long for an attribute is continued in `key0`, `key1`, …"""
    if key in attributes:
        found = attributes[key]
    elif f'{key}0' in attributes:
        found, i = [], 0
        while f'{key}{i}' in attributes:
            found += part if isinstance(part := attributes[f'{key}{i}'], list) else []
            i += 1
    else:
        return None
    return [text for text in found if isinstance(text, str)] if isinstance(found, list) else []


def _plain(layer: str, weight: str, kinds: dict[str, str]) -> str:
    """`conv1`, `conv1/kernel:0` -> `conv1/kernel`; the layer is not said twice, nor as `conv1_1`, its scope."""
    parts = re.sub(r':\d+$', '', weight).split('/')
    scopes = [i for i, part in enumerate(parts[:-1]) if re.fullmatch(rf'{re.escape(layer)}(_\d+)?', part)]
    if layer and scopes:
        parts = parts[scopes[-1] + 1 :]
    owner = '/'.join([layer, *parts[:-1]]).strip('/')
    if parts[-1] == 'kernel' and kinds.get(owner) == 'depthwise_conv2d':
        parts[-1] = 'depthwise_kernel'
    return f'{owner}/{parts[-1]}' if owner else parts[-1]


# Variables that are numbered.


def _numbered(contents: hdf5.Contents, name: str, config: dict | None) -> Iterable[tuple[str, hdf5.Array]]:
    """`(name, array)` of a file in which each layer's variables are `…/vars/0`, `…/vars/1`, …"""
    known = {} if config is None else _layers(config, 'layers/')
    said = {}
    for path, attributes in contents.groups.items():
        *owner, last = _parts(path)
        if last == 'vars' and isinstance(attributes.get('name'), str):
            said['/'.join(owner)] = attributes['name']
    counts: dict[str, int] = {}
    wanted = {}
    for path, array in contents.arrays.items():
        parts = _parts(path)
        if parts[-2:-1] != ['vars'] or SKIPPED.fullmatch('/'.join(parts)):
            continue
        owner = '/'.join(parts[:-2])
        wanted[(owner, parts[-1])] = array
        counts[owner] = counts.get(owner, 0) + 1
    for (owner, number), array in wanted.items():
        layer = known.get(_current(owner))
        label = _label(name, owner, said, known)
        variables = _variables(name, label, owner, layer, counts[owner])
        variable = variables[int(number)] if number.isdecimal() and int(number) < len(variables) else number
        yield f'{label}/{variable}'.lstrip('/'), array


def _label(name: str, owner: str, said: dict[str, str], known: dict[str, Layer]) -> str:
    """`layers/sequential/layers/dense` -> `sequential/fancy`, by what the file or the config calls them."""
    parts, label = owner.split('/') if owner else [], []
    for i, part in enumerate(parts):
        here = '/'.join(parts[: i + 1])
        called = said.get(here) or (layer.name if (layer := known.get(_current(here))) else None)
        if called is None and i and parts[i - 1] in LISTS:
            raise UserError(
                f'{name} does not say which layer is which ({here!r} has no name): .weights.h5 files have names since '
                'Keras 3.6. Load it in Keras and save it by model.save("model.keras").'
            )
        if called is not None or part not in LISTS:
            label.append(called or part)
    return '/'.join(label)


def _variables(name: str, label: str, owner: str, layer: Layer | None, count: int) -> tuple[str, ...]:
    """The names of a layer's variables in their order; none for a layer that is not known."""
    kind = layer.kind if layer else re.sub(r'_\d+$', '', owner.rsplit('/', 1)[-1])
    names = VARIABLES.get(kind, ())
    options = layer.config if layer else {}
    without = {'gamma': 'scale', 'beta': 'center', 'bias': 'use_bias'}
    there = tuple(n for n in names if options.get(without.get(n, ''), True) is not False)
    if len(there) == count or not names:
        return there
    if layer is None and count == len(names) - names.count('bias'):
        return tuple(n for n in names if n != 'bias')
    if layer is None and kind == 'batch_normalization' and count == 2:
        return names[2:]
    if layer is None and 'gamma' in names and count == len(names) - 1:
        raise UserError(
            f'{name}: {_short(label)} is a {kind} with {count} variables, so that it has no gamma or no beta, but the '
            'file does not say which. Load it in Keras and save it by model.save("model.keras").'
        )
    raise UserError(f'{name}: {_short(label)} is a {kind} with {count} variables, expected {", ".join(there)}.')


def _layers(config: dict, prefix: str, above: str = '') -> dict[str, Layer]:
    """The layers of a model's config, and of the models in it, by their groups: `layers/conv2d_1`.

    Groups are the class in snake case, counted from the second on. Without a prefix, by their names instead.
    """
    found, counts = {}, {}
    inner = config.get('config')
    entries = inner.get('layers') if isinstance(inner, dict) else inner  # a list in the oldest files
    for entry in entries if isinstance(entries, list) else ():
        if not isinstance(entry, dict) or not isinstance(entry.get('config'), dict | list):
            continue
        options = entry['config'] if isinstance(entry['config'], dict) else {}
        called, kind = str(options.get('name', '')), _snake(str(entry.get('class_name', '')))
        counts[kind] = counts.get(kind, -1) + 1
        group = f'{kind}_{counts[kind]}' if counts[kind] else kind
        here = above + (f'{prefix}{group}' if prefix else called)
        label = called if prefix else here
        found[here] = Layer(label, kind, options)
        if here.count('/') < 64:  # groups of HDF5 files are not as deep: no recursion without end
            found.update(_layers(entry, prefix, f'{here}/'))
    return found


def _snake(name: str) -> str:
    """`BatchNormalization` -> `batch_normalization`, as Keras does it."""
    name = re.sub(r'(.)([A-Z][a-z]+)', r'\1_\2', re.sub(r'\W+', '', name))
    return re.sub(r'([a-z])([A-Z])', r'\1_\2', name).lower()


def _current(owner: str) -> str:
    return '/'.join('layers' if part in LISTS else part for part in owner.split('/'))


def _parts(path: str) -> list[str]:
    return path.replace('\\', '/').split('/')  # Keras 2.12 on Windows


def _short(name: str) -> str:
    return repr(name[:100])
