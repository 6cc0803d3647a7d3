"""Pickles that are made to do harm: refused by the name of what they ask for, nothing run, no time or memory taken."""

import pickle
import struct
import time
from pathlib import Path

import numpy as np
import pytest
from torchfiles import WRITERS, Raw, call, code, legacy, name, pickled, tensor, write_legacy, write_members, write_zip

from jtl.errors import UserError
from jtl.pretrained.formats import torch

NUMBERS = np.arange(12, dtype=np.float32)
ONE = {'0': NUMBERS}  # a storage


def refused(path: Path, match: str = 'x.') -> None:
    with pytest.raises(UserError, match=match) as e:
        torch.read(path)
    assert str(e.value).startswith(str(path)) and len(str(e.value)) < 1000


def attacks(marker: Path) -> dict[str, tuple[Raw, str]]:
    """By name: instructions that would create `marker` if they were followed, and what the message must name."""
    shell = f'touch {marker}'
    python = f"open({str(marker)!r}, 'w')"
    system = call(name('os', 'system'), shell)
    built = Raw(code('posix') + code('system') + b'\x93' + code((shell,)) + b'R')
    instance = Raw(b'(' + code(shell) + b'ios\nsystem\n')
    obj = Raw(b'(' + name('os', 'system').code + code(shell) + b'o')
    setattribute = call(name('builtins', 'setattr'), name('torch', 'Tensor'), '__new__', name('os', 'system'))
    nested = Raw(b'B' + struct.pack('<I', len(legacy(system, {}))) + legacy(system, {}))
    return {
        'os.system': (system, r'os\.system'),
        'posix': (built, r'posix\.system'),
        'eval': (call(name('builtins', 'eval'), python), r'builtins\.eval'),
        'exec': (call(name('__builtin__', 'exec'), python), r'__builtin__\.exec'),
        'getattr': (call(name('builtins', 'getattr'), name('os', 'path'), 'os'), r'builtins\.getattr'),
        'subprocess': (call(name('subprocess', 'Popen'), ['touch', str(marker)]), r'subprocess\.Popen'),
        'instance': (instance, r'os\.system'),
        'object': (obj, r'os\.system'),
        'newobj': (Raw(name('subprocess', 'Popen').code + code((shell,)) + b'\x81'), r'subprocess\.Popen'),
        'setattr': (setattribute, r'builtins\.setattr'),
        'torch.load': (call(name('torch', 'load'), str(marker)), r'torch\.load'),
        'bytes': (call(name('torch.storage', '_load_from_bytes'), nested), r'_load_from_bytes'),
        'numpy': (
            call(name('numpy.core.multiarray', '_reconstruct'), name('numpy', 'ndarray'), (0,), 'b'),
            r'numpy\.core\.multiarray\._reconstruct',
        ),
        'dotted': (Raw(code('torch') + code('serialization.os.system') + b'\x93'), r'torch\.serialization\.os\.system'),
        'codecs': (call(name('_codecs', 'decode'), 'x', 'zlib'), r'_codecs\.decode'),
        'encoding': (call(name('_codecs', 'encode'), 'x', 'zlib'), 'another encoding'),
        'extension': (Raw(b'\x82\x01'), 'copyreg'),
        'model': (Raw(name('torchvision.models.resnet', 'ResNet').code + b')\x81' + code({}) + b'b'), 'state_dict'),
        'storage': (call(name('torch', 'FloatStorage'), 10**12), 'may be named only'),
        'reference': (Raw(code(('module', name('torch', 'Tensor'), 'x.py', python)) + b'Q'), 'not to a storage'),
        'any': (Raw(code(system) + b'Q'), r'os\.system'),
        'state': (Raw(code({}) + code(system) + b'b'), r'os\.system'),
        'parameter': (call(name('torch._utils', '_rebuild_parameter'), system, True), r'os\.system'),
        'typed': (
            call(name('torch._tensor', '_rebuild_from_type_v2'), name('torch', 'device'), 0, (shell,), None),
            'unknown make',
        ),
    }


@pytest.mark.parametrize('place', ['top', 'wrapper', 'beside', 'first'])
@pytest.mark.parametrize('attack', attacks(Path('x')))
@pytest.mark.parametrize('write', WRITERS.values(), ids=WRITERS)
def test_read_runs_nothing_and_names_what_was_asked_for(tmp_path, write, attack, place):
    harm, match = attacks(tmp_path / 'marker')[attack]
    path, weights = tmp_path / 'x.pth', {'w': tensor('0', (12,))}
    tops = {'top': harm, 'wrapper': {'state_dict': harm}, 'beside': {'w': tensor('0', (12,)), 'x': harm}}
    write(path, tops.get(place, weights), ONE)
    if place == 'first' and write is write_legacy:
        path.write_bytes(pickled(harm) + path.read_bytes())
    elif place == 'first':
        write_members(path, {'archive/data.pkl': pickled({0: harm} | weights), 'archive/data/0': NUMBERS.tobytes()})
    refused(path, match)
    assert not (tmp_path / 'marker').exists()


@pytest.mark.parametrize('attack', ['os.system', 'posix', 'eval', 'instance', 'object'])
def test_pickle_itself_follows_these_attacks(tmp_path, attack):
    harm, _ = attacks(tmp_path / 'marker')[attack]
    pickle.loads(pickled(harm))
    assert (tmp_path / 'marker').exists()


@pytest.mark.parametrize(
    'bomb',
    {
        'names': b'c' + b'x' * 10**6,
        'memo': b'}r\xff\xff\xff\xff.',
        'memo text': b'}p' + b'9' * 4000 + b'\n.',
        'bytes': b'\x8e' + b'\xff' * 8 + b'x',
        'text': b'X\xff\xff\xff\xffx',
        'long': b'\x8b\xff\xff\xff\x7f',
        'negative long': b'\x8b\xff\xff\xff\xff',
        'digits': b'I' + b'9' * 10**6 + b'\n.',
        'frame': b'\x80\x04\x95' + b'\xff' * 8 + b'N.',
        'deep': b'(' * 10**5 + b't' * 10**5 + b'.',
        'deep lists': b']' * 10**5 + b'a' * (10**5 - 1) + b'.',
        'deep key': b'}(' + b')' + b'\x85' * 10**5 + b'Nu.',
        'doubled': b')' + b'2\x86' * 10**4 + b'.',
        'doubled key': b'}(' + b')' + b'2\x86' * 100 + b'Nu.',
        'doubled dictionaries': b'}' + b'2q\x000}X\x01\x00\x00\x00ah\x00sX\x01\x00\x00\x00bh\x00s' * 100 + b'.',
        'itself': b'}q\x00X\x01\x00\x00\x00ah\x00s.',
        'list in itself': b']q\x00h\x00a.',
        'many': b'}' * 10**6 + b'.',
        'marks': b'(' * 10**6 + b'.',
        'stack': b'N' * 10**6 + b'.',
        'empty': b'.',
        'pop': b'0' * 9 + b'.',
        'no mark': b't.',
        'build': b'b.',
        'set': b'\x8f(' + b')' + b'\x90.',
        'counter': b'}(' + b'K\x01NK\x02N' * 999 + b'uq\x00' + b'0ccollections\nCounter\nh\x00\x85R' * 999 + b'.',
        'arguments': b'(' + b'N' * 10**5 + b'tq\x000' + b'cargparse\nNamespace\nh\x00R0' * 10**4 + b'.',
    }.items(),
    ids=lambda item: item[0],
)
def test_read_survives_pickles_without_end(tmp_path, bomb):
    path = write_members(tmp_path / 'x.pth', {'archive/data.pkl': bomb[1]})
    began = time.perf_counter()
    refused(path)
    old = tmp_path / 'x.th'
    old.write_bytes(legacy({}, {})[:-4] + bomb[1])
    refused(old)
    assert time.perf_counter() - began < 5


def test_read_survives_mappings_that_are_shared_without_end(tmp_path):
    """Sixty mappings, each twice in the next: 2^60 names."""
    w = tensor('0', (12,)).code
    nest = b'}' + code('w') + w + b's'
    for i in range(60):
        place = struct.pack('<I', i)
        nest += b'r' + place + b'0}' + b''.join(code(key) + b'j' + place + b's' for key in 'ab')
    path = write_zip(tmp_path / 'x.pth', {'w': tensor('0', (12,)), 'x': Raw(nest)}, ONE)
    refused(path, 'at two places')
    path = write_zip(tmp_path / 'x.pth', {'w': tensor('0', (12,)), 'n' * 2000: tensor('0', (12,))}, ONE)
    refused(path, 'no name for a tensor')
