"""What torch.save writes is read bit for bit as torch.load reads it: every dtype, layout and format."""

import argparse
import collections
import functools

import numpy as np
import pytest

torch = pytest.importorskip('torch')

from jtl.errors import UserError  # noqa: E402
from jtl.pretrained.formats import safetensors  # noqa: E402
from jtl.pretrained.formats import torch as ours  # noqa: E402

FORMATS = {
    'zip': functools.partial(torch.save, _use_new_zipfile_serialization=True),
    'legacy': functools.partial(torch.save, _use_new_zipfile_serialization=False),
    'zip, protocol 4': functools.partial(torch.save, pickle_protocol=4),
    'legacy, protocol 5': functools.partial(torch.save, pickle_protocol=5, _use_new_zipfile_serialization=False),
}
DTYPES = (
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.complex64, torch.complex128, torch.bool),
    *(torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.uint16, torch.uint32, torch.uint64),
    *(torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e4m3fnuz, torch.float8_e5m2fnuz, torch.float8_e8m0fnu),
)


def bits(x: torch.Tensor) -> bytes:
    return x.detach().resolve_conj().resolve_neg().contiguous().clone().view(-1).untyped_storage().tolist()


def assert_same(read: dict, expected: dict) -> None:
    assert list(read) == list(expected)
    for name, x in expected.items():
        assert read[name].shape == tuple(x.shape), name
        assert str(read[name].dtype) == str(x.dtype).removeprefix('torch.'), name
        assert list(read[name].tobytes()) == bits(x), name


def random(dtype: torch.dtype, *shape: int) -> torch.Tensor:
    """Any bits at all, NaN among them; booleans 0 or 1."""
    size = torch.empty(shape, dtype=dtype).nbytes
    raw = torch.randint(0, 2 if dtype is torch.bool else 256, (size,), dtype=torch.uint8)
    return raw.view(dtype).reshape(shape)


@pytest.fixture(params=FORMATS)
def save(request):
    torch.manual_seed(0)
    return FORMATS[request.param]


def test_read_has_the_bits_of_torch_for_every_dtype(tmp_path, save):
    tensors = {str(dtype): random(dtype, 3, 5) for dtype in DTYPES}
    save(tensors, tmp_path / 'x.pth')
    assert_same(ours.read(tmp_path / 'x.pth'), tensors)


def test_read_has_the_bits_of_torch_for_every_layout(tmp_path, save):
    x = torch.randn(4, 6)
    weight = torch.nn.Parameter(torch.randn(2))
    weight.note = 'kept by torch'
    buffer = torch.randn(2)
    buffer.note = 'kept by torch'
    tensors = {
        'x': x,
        'tied': x,
        'row': x[1],
        'column': x[:, 1],
        'every second': x[::2, 1::2],
        'turned': x.T,
        'expanded': x[:1].expand(5, 6),
        'channels last': torch.randn(2, 3, 4, 5).contiguous(memory_format=torch.channels_last),
        'scalar': torch.tensor(3.5),
        'none': torch.empty(0, 3),
        'none of a view': x[:, :0],
        'parameter': torch.nn.Parameter(torch.randn(3)),
        'parameter with state': weight,
        'buffer with state': buffer,
        'conjugate': torch.randn(3, dtype=torch.complex64).conj(),
        'negative': torch.randn(3, dtype=torch.complex64).conj().imag,
    }
    save(tensors, tmp_path / 'x.pth')
    read = ours.read(tmp_path / 'x.pth')
    assert_same(read, tensors)
    assert np.shares_memory(read['x'], read['tied']) and np.shares_memory(read['x'], read['turned'])


def test_read_has_the_state_of_a_model_among_the_rest_of_its_training(tmp_path, save):
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.Linear(4, 2))
    optimiser = torch.optim.AdamW(model.parameters())
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimiser, [3, 5])
    model(torch.randn(2, 3, 5, 6)).sum().backward()
    optimiser.step()
    checkpoint = {
        'epoch': 3,
        'arch': 'resnet18',
        'state_dict': model.state_dict(),
        'best_acc1': torch.tensor(71.5),
        'best': np.float64(71.5),
        'loss': np.float32(0.5),
        'optimizer': optimiser.state_dict(),
        'scheduler': schedule.state_dict(),
        'args': argparse.Namespace(lr=0.1, sizes=[1, 2], dtype=torch.float32, device=torch.device('cpu')),
        'rng': torch.get_rng_state(),
        'classes': {'cat', 'dog'},
        'shape': torch.Size([1, 2]),
        'count': collections.Counter('abc'),
    }
    save(checkpoint, tmp_path / 'x.pth')
    assert_same(ours.read(tmp_path / 'x.pth'), model.state_dict())


@pytest.mark.parametrize('what', ['model', 'sparse', 'quantised', 'meta', 'array'])
def test_read_refuses_by_name_what_is_no_plain_tensor(tmp_path, save, what):
    made, match = {
        'model': lambda: (torch.nn.Linear(2, 2), r'torch\.nn\.modules\.linear\.Linear.*state_dict'),
        'sparse': lambda: ({'w': torch.eye(2).to_sparse()}, 'sparse'),
        'quantised': lambda: ({'w': torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8)}, 'quantised|QInt8'),
        'meta': lambda: ({'w': torch.empty(2, device='meta')}, 'meta'),
        'array': lambda: ({'w': np.ones(2)}, 'NumPy array'),
    }[what]()
    save(made, tmp_path / 'x.pth')
    with pytest.raises(UserError, match=match):
        ours.read(tmp_path / 'x.pth')


def test_read_refuses_torchscript(tmp_path):
    torch.jit.script(torch.nn.Linear(2, 2)).save(tmp_path / 'x.pt')
    with pytest.raises(UserError, match='TorchScript'):
        ours.read(tmp_path / 'x.pt')


def test_read_takes_archives_without_checksums(tmp_path):
    torch.serialization.set_crc32_options(False)
    try:
        torch.save({'w': torch.ones(3)}, tmp_path / 'x.pth')
    finally:
        torch.serialization.set_crc32_options(True)
    assert_same(ours.read(tmp_path / 'x.pth'), {'w': torch.ones(3)})


def test_safetensors_are_read_and_written_as_torch_does(tmp_path):
    library = pytest.importorskip('safetensors.torch')
    tensors = {str(dtype): random(dtype, 3, 5) for dtype in DTYPES if 'fnuz' not in str(dtype)}
    del tensors['torch.complex128']
    tensors |= {'scalar': torch.tensor(3.5), 'none': torch.empty(0, 3)}
    library.save_file(tensors, tmp_path / 'x.safetensors')
    read = safetensors.read(tmp_path / 'x.safetensors')
    assert_same({name: read[name] for name in tensors}, tensors)
    safetensors.write(tmp_path / 'y.safetensors', read)
    loaded = library.load_file(tmp_path / 'y.safetensors')
    assert all(bits(loaded[name]) == bits(x) and loaded[name].shape == x.shape for name, x in tensors.items())
