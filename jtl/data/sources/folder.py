"""`folder:PATH`: pictures sorted into one folder per class, in a directory or a .zip.

Either ROOT/CLASS/*.jpg, which has a training split only, or ROOT/{train,val,test}/CLASS/*.jpg. Both may sit inside one
extra folder, as they do in most downloaded archives. Pictures may lie deeper (CLASS/images/*.jpg). A zip is read in
place, never extracted.
"""

import os
import struct
import zipfile
import zlib
from dataclasses import dataclass

from jtl.data import source
from jtl.data.source import Source, Split
from jtl.errors import UserError

_LARGEST = 1 << 28  # bytes of one picture file in a zip, unpacked
_SIDECARS = ('.txt', '.csv', '.tsv', '.json', '.xml', '.md', '.html', '.yaml', '.yml', '.db', '.ini')  # never pictures


def read(path: str) -> Source:
    """The labels are the class folders' names, sorted; files are in the order of their names."""
    path = source.require_path(path, 'a directory or .zip of class folders')
    if os.path.isdir(path):
        opener, (files, folders) = _File(path), _list_directory(path)
    else:
        opener, (files, folders) = _list_zip(path)
    names, files = _classes_of(*_without_wrapper(files, folders), path)
    classes, labels = source.index_classes(names, path)
    train = files['train']
    channels = source.count_channels(
        (opener(train[i]), opener.name(train[i])) for i in source.first_of_each(labels['train'])
    )
    splits = {split: Split(labels[split], _Pictures(opener, files[split], channels)) for split in files}
    read_from = [opener.name(name) for split in files.values() for name in split] if os.path.isdir(path) else [path]
    return Source(splits, classes, channels, tuple(read_from))


# A path is a tuple of its parts; `files` maps the path that decides the class to the name under which it is opened.


def _list_directory(root: str) -> tuple[dict, set]:
    files, folders = {}, set()
    for folder, subfolders, names in os.walk(root, followlinks=True):
        subfolders[:] = [name for name in subfolders if not _hidden(name)]
        parts = () if folder == root else tuple(os.path.relpath(folder, root).split(os.sep))
        folders |= {(*parts, name) for name in subfolders}
        files |= {(*parts, name): '/'.join((*parts, name)) for name in names if not _hidden(name)}
    return files, folders


def _list_zip(path: str) -> tuple['_Member', tuple[dict, set]]:
    try:
        with zipfile.ZipFile(path) as archive:
            infos = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError) as e:
        raise UserError(f'{path} is neither a directory nor a readable zip file: {e}.') from e
    files, folders, members = {}, set(), {}
    for info in infos:
        parts = tuple(part for part in info.filename.split('/') if part)
        if any(_hidden(part) for part in parts):
            continue
        folders |= {parts[:n] for n in range(1, len(parts) + info.is_dir())}
        if not info.is_dir():
            files[parts] = info.filename
            members[info.filename] = (info.header_offset, info.compress_size, info.compress_type, info.CRC)
        if info.flag_bits & 1:
            raise UserError(f'{path} is encrypted ({info.filename}): unpack it and give the folder instead.')
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise UserError(f'{path}: {info.filename} is compressed by method {info.compress_type}; use deflate.')
    return _Member(path, members), (files, folders)


def _hidden(name: str) -> bool:
    return name.startswith('.') or name in ('__MACOSX', 'Thumbs.db', 'desktop.ini')


def _without_wrapper(files: dict, folders: set) -> tuple[dict, set]:
    """Drop the one folder that all the others are in, unless it is a split or a class itself."""
    top = {parts[0] for parts in folders}
    if len(top) != 1 or source.split_name(*top) or all(len(parts) == 1 for parts in folders):
        return files, folders
    inside = {parts[1:]: name for parts, name in files.items() if len(parts) > 1}
    return inside, {parts[1:] for parts in folders if len(parts) > 1}


def _classes_of(files: dict, folders: set, root: str) -> tuple[dict, dict]:
    """(split -> class name of each file, split -> file names), sorted by path."""
    splits = _split_folders(folders, root)
    depth = 2 if splits else 1  # number of leading parts that make a class folder
    names, found = {}, {}
    for parts in sorted(files):
        extension = os.path.splitext(parts[-1])[1].lower()
        if extension in _SIDECARS:
            continue
        if extension not in source.IMAGE_EXTENSIONS:
            raise UserError(
                f'{root}: {files[parts]} is not a picture (expected {" ".join(source.IMAGE_EXTENSIONS)}): '
                'convert it, or move it away.'
            )
        if len(parts) <= depth:
            raise UserError(f'{root}: the picture {files[parts]} is in no class folder: expected CLASS/{parts[-1]}.')
        split = splits[parts[0]] if splits else 'train'
        names.setdefault(split, []).append(parts[depth - 1])
        found.setdefault(split, []).append(files[parts])
    filled = {parts[:depth] for parts in files if os.path.splitext(parts[-1])[1].lower() in source.IMAGE_EXTENSIONS}
    for parts in sorted(folders):
        if len(parts) == depth and parts not in filled:
            raise UserError(f'{root}: class folder {"/".join(parts)} has no pictures: fill it or delete it.')
    for folder, split in splits.items():
        if split not in found:
            raise UserError(f'{root}: the folder {folder} has no class folders: expected {folder}/CLASS/*.jpg.')
    if not found:
        raise UserError(f'{root} has no class folders: expected CLASS/*.jpg or train/CLASS/*.jpg.')
    return names, {split: tuple(paths) for split, paths in found.items()}


def _split_folders(folders: set, root: str) -> dict[str, str]:
    """Top folder -> split, or {} if the top folders are classes. A folder called 'test' may well be a class."""
    top = {parts[0] for parts in folders}
    parents = {parts[0] for parts in folders if len(parts) > 1}
    splits = {name: source.split_name(name) for name in sorted(top) if source.split_name(name)}
    if not splits or (not splits.keys() & parents and splits.keys() != top):
        return {}
    others = ', '.join(sorted(top - set(splits)))
    if others:
        raise UserError(f'{root} has split folders ({", ".join(splits)}) and others ({others}) side by side.')
    if len(set(splits.values())) < len(splits):
        raise UserError(f'{root} has two folders for one split: {", ".join(splits)}.')
    if 'train' not in splits.values():
        raise UserError(f'{root} has no train folder, only: {", ".join(splits)}.')
    return splits


@dataclass(frozen=True)
class _Pictures:
    """i -> the decoded picture."""

    opener: '_File | _Member'
    files: tuple[str, ...]
    channels: int

    def __call__(self, i: int) -> dict:
        file = self.files[i]
        return {'image': source.decode_image(self.opener(file), self.opener.name(file), self.channels)}


@dataclass(frozen=True)
class _File:
    """Name in a directory -> path."""

    root: str

    def name(self, file: str) -> str:
        return os.path.join(self.root, file)

    __call__ = name


@dataclass(frozen=True)
class _Member:
    """Name in a zip -> bytes.

    Holds no open file, only where each member starts, so it can be pickled and used by any number of threads and
    processes at once, without each of them parsing the archive's directory again.
    """

    path: str
    members: dict[str, tuple[int, int, int, int]]  # name -> offset of its header, compressed size, method, CRC-32

    def name(self, file: str) -> str:
        return f'{self.path}/{file}'

    def __call__(self, file: str) -> bytes:
        offset, size, method, crc = self.members[file]
        try:
            with open(self.path, 'rb') as f:
                f.seek(offset)
                # A local header is 30 bytes, the last four being the lengths of the name and the extra field after it.
                name_length, extra_length = struct.unpack('<26xHH', f.read(30))
                f.seek(name_length + extra_length, os.SEEK_CUR)
                data = f.read(size)
            if method == zipfile.ZIP_DEFLATED:
                data = zlib.decompressobj(wbits=-15).decompress(data, _LARGEST)  # no more, whatever the archive says
        except (OSError, struct.error, zlib.error) as e:
            raise UserError(f'cannot read {self.name(file)}: the zip file is damaged ({e}).') from e
        if zlib.crc32(data) != crc:
            raise UserError(f'cannot read {self.name(file)}: wrong checksum, the zip file is damaged.')
        return data
