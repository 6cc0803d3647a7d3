"""What the pickles of `torch.save` are made of: storages, tensors, and the few harmless things that lie beside them.

`CALLS` is all that such a pickle may ask for. The functions are ours and check what they are given, which is as hostile
as the file: they copy nothing, since a call takes five bytes of a pickle and may be repeated.
"""

import math
import sys
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from jtl.errors import UserError
from jtl.pretrained.formats.unpickle import INERT, Global

DTYPES = {
    **{name: np.dtype(name) for name in ('float64', 'float32', 'float16', 'complex64', 'complex128', 'bool')},
    **{name: np.dtype(name) for name in ('uint8', 'int8', 'int16', 'uint16', 'int32', 'uint32', 'int64', 'uint64')},
    **{name: np.dtype(getattr(ml_dtypes, name)) for name in ('bfloat16', 'float8_e4m3fn', 'float8_e5m2')},
    **{name: np.dtype(getattr(ml_dtypes, name)) for name in ('float8_e4m3fnuz', 'float8_e5m2fnuz', 'float8_e8m0fnu')},
}
_STORAGES = {
    **{'DoubleStorage': 'float64', 'FloatStorage': 'float32', 'HalfStorage': 'float16', 'BFloat16Storage': 'bfloat16'},
    **{'ByteStorage': 'uint8', 'CharStorage': 'int8', 'ShortStorage': 'int16', 'IntStorage': 'int32'},
    **{'LongStorage': 'int64', 'BoolStorage': 'bool'},
    **{'ComplexFloatStorage': 'complex64', 'ComplexDoubleStorage': 'complex128'},
}


class Storage(NamedTuple):
    """Where numbers are: `count` of a dtype (bytes if it has none), from `first` on, in what is stored under `key`."""

    key: str
    dtype: np.dtype | None
    count: int
    first: int = 0

    @property
    def size(self) -> int:
        """Bytes of all of it."""
        return self.count * (self.dtype.itemsize if self.dtype else 1)

    @property
    def begin(self) -> int:
        """The byte from which on it is meant."""
        return self.first * (self.dtype.itemsize if self.dtype else 1)


class Tensor(NamedTuple):
    """A strided view of a storage; offset and strides count elements."""

    storage: Storage
    dtype: np.dtype
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    conjugate: bool
    negative: bool


def storage_of(reference: Any) -> Storage:
    """('storage', class, key, device, count[, (key of the view, first, count)]), the only reference in use."""
    if type(reference) is not tuple or not 5 <= len(reference) <= 6 or reference[0] != 'storage':
        raise ValueError('a reference that is not to a storage')
    _, kind, key, _, count, *view = reference
    if type(kind) is not Global or kind not in _KINDS or type(key) is not str or len(key) > 99 or not _sizes(count):
        raise ValueError('a storage without a kind, a key or a length')
    if view in ([], [None]):
        return Storage(key, _KINDS[kind], count)
    if type(view[0]) is not tuple or len(view[0]) != 3 or not _sizes(*view[0][1:]) or sum(view[0][1:]) > count:
        raise ValueError('a view beyond its storage')
    return Storage(key, _KINDS[kind], count, view[0][1])


def _sizes(*values: Any) -> bool:
    return all(type(value) is int and 0 <= value < 2**48 for value in values)


def _tensor(storage: Any, offset: Any, shape: Any, strides: Any, *rest: Any) -> Tensor:
    """torch._utils._rebuild_tensor(storage, offset, shape, strides), and _v2 with requires_grad, hooks and metadata."""
    marks = rest[2] if len(rest) > 2 and rest[2] is not None else {}
    if type(storage) is not Storage or storage.dtype is None or type(marks) is not dict or len(rest) > 3:
        raise ValueError('a tensor without a storage')
    return _strided(storage, storage.dtype, offset, shape, strides, marks)


def _tensor_of_bytes(
    storage: Any, offset: Any, shape: Any, strides: Any, grad: Any, hooks: Any, dtype: Any, marks: Any = None
) -> Tensor:
    """torch._utils._rebuild_tensor_v3: for dtypes that have no storage class, such as float8."""
    if type(storage) is not Storage or type(dtype) is not Global or dtype.name not in DTYPES:
        raise ValueError('a tensor without a storage or a dtype')
    if marks is not None and type(marks) is not dict:
        raise ValueError('metadata that is no mapping')
    return _strided(storage, DTYPES[dtype.name], offset, shape, strides, marks or {})


def _strided(storage: Storage, dtype: np.dtype, offset: Any, shape: Any, strides: Any, marks: dict) -> Tensor:
    if type(shape) is not tuple or type(strides) is not tuple or len(shape) != len(strides) or len(shape) > 32:
        raise ValueError('a tensor whose shape and strides do not fit')
    if not _sizes(offset, *shape, *strides) or math.prod(n for n in shape if n) >= 2**48:
        raise ValueError('a tensor of negative or enormous size')
    if len(marks) > 2 or set(marks) - {'conj', 'neg'}:
        raise UserError('a tensor with a property that is not read; save a plain copy of it: tensor.clone()')
    return Tensor(storage, dtype, offset, shape, strides, bool(marks.get('conj')), bool(marks.get('neg')))


def _parameter(data: Any, *rest: Any) -> Tensor:
    if type(data) is not Tensor or len(rest) > 3:
        raise ValueError('a parameter without a tensor')
    return data


def _tensor_with_attributes(function: Any, kind: Any, arguments: Any, state: Any) -> Tensor:
    """torch._tensor._rebuild_from_type_v2: the tensor, without the attributes."""
    build = _BUILD.get(function) if type(function) is Global else None
    if build is None or type(arguments) is not tuple or len(arguments) > 9:
        raise ValueError('a tensor of an unknown make')
    return build(*arguments)


def _ordered(pairs: Any = None) -> dict:
    """collections.OrderedDict, empty or from a list of pairs as Python 2 wrote it. The list is used up."""
    if pairs is None:
        return {}
    if type(pairs) is not list or not all(type(pair) in (list, tuple) and len(pair) == 2 for pair in pairs):
        raise ValueError('a mapping whose items are no pairs')
    made = {key: value for key, value in pairs if type(key) is str}
    pairs.clear()
    return made


def _size(sizes: Any = ()) -> tuple:
    if type(sizes) is not tuple:
        raise ValueError('a shape that is no tuple')
    return sizes


def _latin(text: Any, encoding: Any) -> object:
    """_codecs.encode, by which Python 3 writes the bytes of a NumPy number for Python 2."""
    if type(text) is not str or encoding not in ('latin1', 'latin-1'):
        raise ValueError('text in another encoding than Latin-1')
    return INERT


_inert = lambda *arguments: INERT
_UNTYPED = (Global('torch.storage', 'UntypedStorage'), Global('torch', 'UntypedStorage'))
_KINDS = {Global('torch', name): DTYPES[dtype] for name, dtype in _STORAGES.items()} | dict.fromkeys(_UNTYPED)
_BUILD = {
    Global('torch._utils', '_rebuild_tensor'): _tensor,
    Global('torch._utils', '_rebuild_tensor_v2'): _tensor,
    Global('torch._utils', '_rebuild_tensor_v3'): _tensor_of_bytes,
}
CALLS = {
    **dict.fromkeys(_KINDS),
    **{Global('torch', name): None for name in DTYPES},
    **{Global('torch.storage', 'TypedStorage'): None, Global('torch', 'Tensor'): None},
    Global('torch.nn.parameter', 'Parameter'): _parameter,
    **_BUILD,
    Global('torch._utils', '_rebuild_parameter'): _parameter,
    Global('torch._utils', '_rebuild_parameter_with_state'): _parameter,
    Global('torch._tensor', '_rebuild_from_type_v2'): _tensor_with_attributes,
    Global('torch', 'Size'): _size,
    Global('torch', 'device'): _inert,
    Global('collections', 'OrderedDict'): _ordered,
    Global('collections', 'Counter'): _inert,
    **{Global(module, kind): _inert for module in ('builtins', '__builtin__') for kind in ('set', 'frozenset')},
    Global('argparse', 'Namespace'): _inert,
    Global('numpy', 'dtype'): _inert,
    Global('numpy.core.multiarray', 'scalar'): _inert,
    Global('numpy._core.multiarray', 'scalar'): _inert,
    Global('_codecs', 'encode'): _latin,
}
_KNOWN = {
    '_rebuild_qtensor': 'a quantised tensor, which is not read: dequantize() it first',
    '_rebuild_sparse_tensor': 'a sparse tensor, which is not read: save its to_dense()',
    '_rebuild_sparse_csr_tensor': 'a sparse tensor, which is not read: save its to_dense()',
    '_rebuild_nested_tensor': 'a nested tensor, which is not read: save its parts',
    '_rebuild_meta_tensor_no_storage': 'a tensor of the meta device, which has no numbers',
    '_load_from_bytes': 'weights written by pickle.dump, which is not read: save them with torch.save',
    '_reconstruct': 'a NumPy array, where tensors are expected; nothing was run',
    '_frombuffer': 'a NumPy array, where tensors are expected; nothing was run',
}


def why(asked: Global) -> str:
    """Why a name is refused, and what can be done: the end of a message."""
    if asked.name in _KNOWN:
        return _KNOWN[asked.name]
    root = asked.module.split('.')[0]
    foreign = asked.name[:1].isupper() and root not in sys.stdlib_module_names
    if foreign or root in ('torch', 'torchvision', '__main__'):
        return (
            'that is no tensor; nothing was run. If the file holds a whole model, save its weights alone, where its '
            "code is: torch.save(model.state_dict(), 'weights.pth')"
        )
    return 'that is no part of a tensor and may do harm; nothing was run'
