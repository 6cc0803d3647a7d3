"""What processes that train together say to each other, and which rows each of them makes.

Alone, all of it does nothing; between real processes, see `e2e/test_many_hosts.py`.
"""

import numpy as np
import pytest
import tiny

from jtl import hosts
from jtl.data import load, source
from jtl.data.pipeline import Inputs, PlainBatch, Preprocess, Share, TrainBatch
from jtl.errors import UserError

LABELS = (np.arange(40) % 4).astype(np.int32)
INDEX = np.arange(5, 32)  # 27 examples


class Source:
    """`get`, noting which examples it was asked for."""

    def __init__(self):
        self.read = []

    def __call__(self, i):
        self.read.append(i)
        return {'image': np.full((2, 2, 1), i, np.uint8)}


def train(share=Share(), get=None, batch_size=12):  # noqa: B008 (never changed)
    return TrainBatch(
        Inputs(get or Source(), Preprocess(), (('pad_crop', 1), 'flip')), LABELS, INDEX, batch_size, 0, share
    )


def plain(share=Share(), get=None, batch_size=12):  # noqa: B008
    return PlainBatch(Inputs(get or Source(), Preprocess()), LABELS, INDEX, batch_size, share)


def whole(parts):
    return {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}


# Alone.


def test_told_alone_is_a_call():
    value, calls = object(), []
    assert hosts.told(lambda: calls.append(1) or value) is value and calls == [1]
    with pytest.raises(UserError, match='^broken$'):
        hosts.told(lambda: (_ for _ in ()).throw(UserError('broken')))


def test_agreed_alone_agrees():
    hosts.agreed('The config', {'lr': float('nan')})  # which does not equal itself


def test_asked_anywhere_alone_is_the_question_itself():
    stop = lambda: True
    assert hosts.asked_anywhere(stop) is stop
    assert hosts.is_first()


# A share of every batch.


@pytest.mark.parametrize('parts', [2, 3, 4])
@pytest.mark.parametrize('make', [train, plain])
def test_shares_in_order_are_the_whole_batch(make, parts):
    for k in range(3):
        one, shares = make(Share(devices=parts))(k), [make(Share(part, parts, parts))(k) for part in range(parts)]
        for key, value in whole(shares).items():
            np.testing.assert_array_equal(value, one[key])
            assert value.dtype == one[key].dtype
        assert len({len(share['label']) for share in shares}) == 1


@pytest.mark.parametrize('make', [train, plain])
def test_a_share_reads_its_own_rows_alone(make):
    reads = []
    for part in range(3):
        get = Source()
        share = make(Share(part, 3, 3), get)(1)
        assert sorted(get.read) == sorted(share['index'].tolist())
        reads.append(set(get.read))
    assert len(set.union(*reads)) == sum(map(len, reads)) == 12


def test_padding_goes_to_the_last_shares_and_reads_one_example():
    # the third batch of 27 in twelves has 3 rows; to a power of two it is 4, to a multiple of 6 devices it is 6
    shares = [plain(Share(part, 3, devices=6))(2) for part in range(3)]
    assert [share['mask'].tolist() for share in shares] == [[1, 1], [1, 0], [0, 0]]
    assert [share['index'].tolist() for share in shares] == [[29, 30], [31, 31], [31, 31]]


def test_each_process_opens_the_pictures_of_its_own_rows(tmp_path, monkeypatch):
    opened, decode = [], source.decode_image
    monkeypatch.setattr(
        source, 'decode_image', lambda data, name, *rest: opened.append(name) or decode(data, name, *rest)
    )
    name = f'folder:{tiny.pictures(tmp_path / "pictures")}'
    data = load(name, preprocess=Preprocess(), batch_size=8, seed=0, cache_mb=0, threads=0)  # nothing is kept
    seen = []
    for part in (0, 1):
        opened.clear()
        (batch,) = data.train(0, 1, Share(part, 2))
        assert len(opened) == len(set(opened)) == len(batch['label']) == 4
        seen += opened
    assert len(set(seen)) == 8
