"""A pickle read as data: the instructions are followed, but no class is looked up and no code of the file is run.

A pickle is a small program for a stack machine. Two of its instructions make it dangerous: one looks a function up by
module and name, another calls it. Here a looked-up name must be in a table, and what is called is the table's function,
ours, on arguments that it checks. Everything else that can come out is numbers, text, lists, dictionaries, `INERT`.

Files that lie are stopped too: nothing is allocated by a declared length, and the number of objects is bounded by the
size of the file.
"""

import codecs
import struct
from collections.abc import Callable, Mapping
from typing import Any, BinaryIO, NamedTuple

from jtl.errors import UserError, printable

INERT = object()  # stands for what holds no tensors: a set, a namespace, a NumPy number
STEPS = 2**23  # of any pickle; one of 10,000 tensors has half a million


class Global(NamedTuple):
    """A name that the pickle looked up: never imported."""

    module: str
    name: str


class Rules(NamedTuple):
    """What a pickle may ask for.

    Attributes:
        calls: by name, our function for it; None if it may be named but not called.
        persistent: makes something of a reference to what is stored outside of the pickle.
        refuse: (name) -> the end of a message, why one that is not in `calls` is not built and what to do.
    """

    calls: Mapping[Global, Callable | None]
    persistent: Callable[[Any], Any]
    refuse: Callable[[Global], str]


class _Machine(NamedTuple):
    file: BinaryIO
    size: int
    rules: Rules
    stack: list
    marks: list[int]
    memo: dict[int, Any]


def load(file: BinaryIO, size: int, rules: Rules) -> Any:
    """The value of the pickle that begins where `file` is; leaves `file` behind its end.

    Args:
        size: bytes of the whole file: no string may be longer, and objects are counted against it.

    Raises:
        UserError: the pickle asks for a name that is not allowed. The message lacks the file's name.
        ValueError: it is no pickle, or damaged.
    """
    machine, made, most = _Machine(file, size, rules, [], [], {}), 0, 2**17 + size // 4  # objects of about 100 bytes
    try:
        for _ in range(STEPS):
            code = file.read(1)
            if code == b'.':
                return machine.stack.pop()
            if code in _MAKING:
                made += 1
                if made > most:
                    raise ValueError('more objects than its size justifies')
            step = _STEPS.get(code)
            if step is None:
                raise ValueError(f'no instruction {code!r}' if code else 'it ends too early')
            step(machine)
    except (IndexError, KeyError, TypeError, OverflowError, AttributeError, struct.error) as e:
        raise ValueError(f'instruction {code!r} at byte {file.tell()}: {type(e).__name__}') from None
    raise ValueError(f'more than {STEPS:,} instructions')


def _take(m: _Machine, count: int) -> bytes:
    data = m.file.read(count) if 0 <= count <= m.size else b''
    if len(data) != count:
        raise ValueError(f'{count:,} bytes expected at byte {m.file.tell():,}, which are not there')
    return data


def _number(m: _Machine, size: int, signed: bool = False) -> int:
    return int.from_bytes(_take(m, size), 'little', signed=signed)


def _long(m: _Machine, size: int) -> int:
    if size > 255:
        raise ValueError(f'a whole number of {size:,} bytes')
    return _number(m, size, signed=True)


def _line(m: _Machine) -> bytes:
    line = m.file.readline(min(m.size, 2**20))
    if not line.endswith(b'\n'):
        raise ValueError('a line without an end')
    return line[:-1]


def _text(data: bytes) -> str:
    """Text of Python 2, where it had no encoding."""
    try:
        return data.decode()
    except UnicodeDecodeError:
        return data.decode('latin-1')


def _quoted(m: _Machine) -> str:
    line = _line(m).strip()
    if len(line) < 2 or line[:1] not in b'"\'' or line[-1:] != line[:1]:
        raise ValueError('text without quotes')
    return _text(codecs.escape_decode(line[1:-1])[0])


def _int_line(m: _Machine) -> int | bool:
    line = _line(m)
    return {b'00': False, b'01': True}[line] if line in (b'00', b'01') else int(line.rstrip(b'L'))


def _marked(m: _Machine) -> list:
    start = m.marks.pop()
    if start > len(m.stack):
        raise ValueError('a mark beyond the stack')
    items = m.stack[start:]
    del m.stack[start:]
    return items


def _several(m: _Machine, count: int) -> tuple:
    if len(m.stack) < count:
        raise ValueError('the stack is too short')
    items = tuple(m.stack[-count:])
    del m.stack[-count:]
    return items


def _key(key: Any) -> Any:
    """Keys that nothing can be gained by: no tuples, whose hash may take for ever, no numbers chosen to collide."""
    if type(key) in (str, bytes, bool, type(None)) or (type(key) is int and abs(key) < 2**60):
        return key
    return object()


def _fill(target: Any, items: list) -> None:
    """Dictionary items, keys and values in turn."""
    if target is INERT:
        return
    if type(target) is not dict or len(items) % 2:
        raise ValueError('items for what is no dictionary')
    target.update(zip(map(_key, items[::2]), items[1::2]))


def _extend(target: Any, items: list) -> None:
    if target is INERT:
        return
    if type(target) is not list:
        raise ValueError('items for what is no list')
    target.extend(items)


def _dict(items: list) -> dict:
    made = {}
    _fill(made, items)
    return made


def _look_up(m: _Machine, module: Any, name: Any) -> None:
    if type(module) is not str or type(name) is not str:
        raise ValueError('a name that is no text')
    found = Global(module, name)
    if found not in m.rules.calls:
        raise UserError(f'the pickle asks for {printable(f"{module}.{name}")}: {m.rules.refuse(found)}')
    m.stack.append(found)


def _call(m: _Machine) -> None:
    function, arguments = _several(m, 2)
    if type(function) is not Global or type(arguments) is not tuple or len(arguments) > 9:
        raise ValueError('a call of what is no function')
    ours = m.rules.calls[function]
    if ours is None:
        raise UserError(f'the pickle calls {function.module}.{function.name}: it may be named only; nothing was run')
    m.stack.append(ours(*arguments))


def _call_keywords(m: _Machine) -> None:
    if m.stack.pop() != {}:
        raise ValueError('a call with keywords')
    _call(m)


def _instance(m: _Machine) -> None:
    """The oldest way to make an object: refused, or the same as a call."""
    _look_up(m, _line(m).decode(), _line(m).decode())
    function = m.stack.pop()
    m.stack += [function, tuple(_marked(m))]
    _call(m)


def _extension(m: _Machine) -> None:
    raise UserError('the pickle asks for something by a number of the copyreg registry; nothing was run')


def _memoise(m: _Machine, index: int) -> None:
    if not 0 <= index < 2**32:
        raise ValueError('a place beyond the memo')
    m.memo[index] = m.stack[-1]


_push = lambda value: lambda m: m.stack.append(value(m))
_STEPS = {
    b'\x80': lambda m: _take(m, 1),  # PROTO
    b'\x95': lambda m: _take(m, 8),  # FRAME: its length is of no use
    b'(': lambda m: m.marks.append(len(m.stack)),
    b'0': lambda m: m.stack.pop(),
    b'1': _marked,
    b'2': _push(lambda m: m.stack[-1]),
    b'N': _push(lambda m: None),
    b'\x88': _push(lambda m: True),
    b'\x89': _push(lambda m: False),
    b'I': _push(_int_line),
    b'L': _push(_int_line),
    b'J': _push(lambda m: _number(m, 4, signed=True)),
    b'K': _push(lambda m: _number(m, 1)),
    b'M': _push(lambda m: _number(m, 2)),
    b'\x8a': _push(lambda m: _long(m, _number(m, 1))),
    b'\x8b': _push(lambda m: _long(m, _number(m, 4))),
    b'F': _push(lambda m: float(_line(m))),
    b'G': _push(lambda m: struct.unpack('>d', _take(m, 8))[0]),
    b'S': _push(_quoted),
    b'T': _push(lambda m: _text(_take(m, _number(m, 4)))),
    b'U': _push(lambda m: _text(_take(m, _number(m, 1)))),
    b'V': _push(lambda m: _line(m).decode('raw-unicode-escape')),
    b'X': _push(lambda m: _take(m, _number(m, 4)).decode('utf-8', 'surrogatepass')),
    b'\x8c': _push(lambda m: _take(m, _number(m, 1)).decode('utf-8', 'surrogatepass')),
    b'\x8d': _push(lambda m: _take(m, _number(m, 8)).decode('utf-8', 'surrogatepass')),
    b'B': _push(lambda m: _take(m, _number(m, 4))),
    b'C': _push(lambda m: _take(m, _number(m, 1))),
    b'\x8e': _push(lambda m: _take(m, _number(m, 8))),
    b'\x96': _push(lambda m: _take(m, _number(m, 8))),  # BYTEARRAY8
    b')': _push(lambda m: ()),
    b't': _push(lambda m: tuple(_marked(m))),
    b'\x85': _push(lambda m: _several(m, 1)),
    b'\x86': _push(lambda m: _several(m, 2)),
    b'\x87': _push(lambda m: _several(m, 3)),
    b']': _push(lambda m: []),
    b'l': _push(_marked),
    b'a': lambda m: _extend(m.stack[-2], [m.stack.pop()]),
    b'e': lambda m: _extend(*(lambda items: (m.stack[-1], items))(_marked(m))),
    b'}': _push(lambda m: {}),
    b'd': _push(lambda m: _dict(_marked(m))),
    b's': lambda m: _fill(m.stack[-3], list(_several(m, 2))),
    b'u': lambda m: _fill(*(lambda items: (m.stack[-1], items))(_marked(m))),
    b'\x8f': _push(lambda m: INERT),  # EMPTY_SET
    b'\x90': lambda m: _marked(m),  # ADDITEMS
    b'\x91': _push(lambda m: (_marked(m), INERT)[1]),  # FROZENSET
    b'q': lambda m: _memoise(m, _number(m, 1)),
    b'r': lambda m: _memoise(m, _number(m, 4)),
    b'p': lambda m: _memoise(m, int(_line(m))),
    b'\x94': lambda m: _memoise(m, len(m.memo)),
    b'h': _push(lambda m: m.memo[_number(m, 1)]),
    b'j': _push(lambda m: m.memo[_number(m, 4)]),
    b'g': _push(lambda m: m.memo[int(_line(m))]),
    b'c': lambda m: _look_up(m, _line(m).decode(), _line(m).decode()),
    b'\x93': lambda m: _look_up(m, *_several(m, 2)),
    b'R': _call,
    b'\x81': _call,  # NEWOBJ
    b'\x92': _call_keywords,  # NEWOBJ_EX
    b'i': _instance,
    b'b': lambda m: m.stack.pop(),  # BUILD: attributes of an object, which are no tensors of its own
    b'Q': _push(lambda m: m.rules.persistent(m.stack.pop())),
    b'\x82': _extension,
    b'\x83': _extension,
    b'\x84': _extension,
}
_MAKING = frozenset(b'%c' % c for c in b'()t\x85\x86\x87]l}dsqrp\x94RQ\x81ci\x93BCXTUSV\x8c')
