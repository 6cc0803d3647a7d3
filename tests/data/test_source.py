"""Decoding and the checks that all sources share."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from jtl.data import source
from jtl.errors import UserError


def encode(picture, format='png', **options):
    buffer = io.BytesIO()
    picture.save(buffer, format, **options)
    return buffer.getvalue()


GRAY = np.arange(12, dtype=np.uint8).reshape(3, 4) * 20
RGB = np.random.default_rng(0).integers(0, 256, (3, 4, 3), dtype=np.uint8)


def test_decode_image_keeps_pixels():
    np.testing.assert_array_equal(source.decode_image(encode(Image.fromarray(RGB)), 'a', 3), RGB)
    np.testing.assert_array_equal(source.decode_image(encode(Image.fromarray(GRAY)), 'a', 1), GRAY[..., None])


def test_decode_image_turns_gray_into_rgb_and_back():
    data = encode(Image.fromarray(GRAY))
    np.testing.assert_array_equal(source.decode_image(data, 'a', 3), np.repeat(GRAY[..., None], 3, -1))
    data = encode(Image.fromarray(RGB))
    np.testing.assert_array_equal(source.decode_image(data, 'a', 1)[..., 0], Image.fromarray(RGB).convert('L'))


def test_decode_image_takes_bytes_path_and_file(tmp_path):
    path = tmp_path / 'a.png'
    Image.fromarray(RGB).save(path)
    with open(path, 'rb') as f:
        for data in (path.read_bytes(), str(path), f):
            np.testing.assert_array_equal(source.decode_image(data, 'a', 3), RGB)


def test_decode_image_drops_alpha_without_blending():
    transparent = np.dstack([RGB, np.zeros((3, 4), np.uint8)])
    np.testing.assert_array_equal(source.decode_image(encode(Image.fromarray(transparent, 'RGBA')), 'a', 3), RGB)
    gray = np.dstack([GRAY, np.zeros((3, 4), np.uint8)])
    np.testing.assert_array_equal(source.decode_image(encode(Image.fromarray(gray, 'LA')), 'a', 1)[..., 0], GRAY)


def test_decode_image_scales_16_bits():
    # 0x1234 // 256 = 0x12 = 18 and 0xFFFF // 256 = 255; clipping would give 255 and 255.
    data = encode(Image.fromarray(np.array([[0x1234, 0xFFFF]], np.uint16)))
    np.testing.assert_array_equal(source.decode_image(data, 'a', 1)[..., 0], [[18, 255]])


@pytest.mark.parametrize('mode, format', [('P', 'gif'), ('CMYK', 'jpeg'), ('1', 'png'), ('L', 'webp'), ('P', 'png')])
def test_decode_image_converts_modes(mode, format):
    image = source.decode_image(encode(Image.fromarray(RGB).convert(mode), format), 'a', 3)
    assert image.shape == (3, 4, 3) and image.dtype == np.uint8


def test_decode_image_turns_upright():
    exif = Image.Exif()
    exif[0x0112] = 6  # shown upright after a clockwise quarter turn
    data = encode(Image.fromarray(RGB), 'png', exif=exif)
    np.testing.assert_array_equal(source.decode_image(data, 'a', 3), np.rot90(RGB, -1))


def test_decode_image_names_broken_files():
    data = encode(Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)), 'jpeg')
    with pytest.raises(UserError, match='cannot decode cat.jpg: .*truncated'):
        source.decode_image(data[: len(data) // 2], 'cat.jpg', 3)
    for junk in (b'', b'hello', b'\x89PNG\r\n\x1a\n'):
        with pytest.raises(UserError, match='cat.jpg'):
            source.decode_image(junk, 'cat.jpg', 3)
    with pytest.raises(UserError, match='cannot read'):
        source.decode_image('/nowhere/cat.jpg', 'cat.jpg', 3)


@pytest.mark.parametrize('side, message', [(10_000, '10000×10000 pixels'), (50_000, 'too large')])
@pytest.mark.filterwarnings('ignore::PIL.Image.DecompressionBombWarning')
def test_decode_image_refuses_bombs(side, message):
    def chunk(name, body):
        return struct.pack('>I', len(body)) + name + body + struct.pack('>I', zlib.crc32(name + body))

    header = struct.pack('>IIBBBBB', side, side, 8, 0, 0, 0, 0)
    data = b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', header) + chunk(b'IDAT', zlib.compress(b'0')) + chunk(b'IEND', b'')
    with pytest.raises(UserError, match=f'bomb.png .*{message}|bomb.png has {message}'):
        source.decode_image(data, 'bomb.png', 1)


def test_split_name_knows_the_usual_spellings():
    assert [source.split_name(n) for n in ('Training', 'train', ' VALID ', 'validation', 'dev', 'Testing')] == [
        'train', 'train', 'val', 'val', 'val', 'test',
    ]  # fmt: skip
    assert source.split_name('extra') is None


def test_require_path_suggests_a_sibling(tmp_path):
    (tmp_path / 'flowers').mkdir()
    assert source.require_path(str(tmp_path / 'flowers'), 'x') == str(tmp_path / 'flowers')
    with pytest.raises(UserError, match="no 'flwers' in .* did you mean 'flowers'"):
        source.require_path(str(tmp_path / 'flwers'), 'x')
    with pytest.raises(UserError, match="no 'flwers' in .* did you mean 'flowers'"):
        source.require_path(str(tmp_path / 'flwers' / 'deep' / 'er'), 'x')
    with pytest.raises(UserError, match='no path given'):
        source.require_path('', 'x')


def test_index_classes_uses_the_training_split():
    classes, labels = source.index_classes({'train': ['b', 'a', 'b'], 'test': ['b']}, 'x')
    assert classes == ('a', 'b')
    np.testing.assert_array_equal(labels['train'], [1, 0, 1])
    np.testing.assert_array_equal(labels['test'], [1])
    assert labels['train'].dtype == np.int32
    with pytest.raises(UserError, match="x: class 'rosse' is in split 'val' but not in train: did you mean 'rose'"):
        source.index_classes({'train': ['rose', 'lily'], 'val': ['rosse']}, 'x')
    with pytest.raises(UserError, match='x has no training split, only: test'):
        source.index_classes({'test': ['a']}, 'x')


def test_sorted_names_counts():
    assert source.sorted_names(['10', '9', '9']) == ('9', '10')
    assert source.sorted_names(['10', '9', 'x']) == ('10', '9', 'x')
