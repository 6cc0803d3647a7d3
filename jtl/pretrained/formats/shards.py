"""Weights in several files: `….safetensors.index.json` or `….bin.index.json` says which tensor is in which."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from jtl.errors import UserError, some
from jtl.files import read_json


def files(index: Path) -> list[str]:
    """The files that an index names: plain names, as they lie beside it.

    Raises:
        UserError: the index is damaged, or names files elsewhere or other indices.
    """
    return sorted(set(_homes(index).values()))


def read(index: Path, read_one: Callable[[Path], dict[str, Any]]) -> dict[str, Any]:
    """The tensors of all files that an index names.

    Raises:
        UserError: as for `files`; files, or tensors in them, are missing or not listed.
    """
    index, homes = Path(index), _homes(index)
    there = sorted(set(homes.values()))
    if missing := [file for file in there if not (index.parent / file).is_file()]:
        raise UserError(
            f'{index}: beside it are missing {len(missing)} of {len(there)} files: {some(missing, 8)}. '
            'Download them too.'
        )
    tensors = {}
    for file in there:
        found = read_one(index.parent / file)
        listed = {name for name, home in homes.items() if home == file}
        if odd := sorted(listed.symmetric_difference(found)):
            names = some([f'{name[:80]} ({"missing" if name in listed else "not listed"})' for name in odd], 8)
            raise UserError(f'{index.parent / file}: does not hold what {index.name} lists: {names}.')
        tensors.update(found)
    return tensors


def _homes(index: Path) -> dict[str, str]:
    """By the name of each tensor, the file that it is in."""
    homes = read_json(index).get('weight_map')
    if not isinstance(homes, dict) or not homes or not all(isinstance(file, str) for file in homes.values()):
        raise UserError(f'{index}: no weight_map, expected the name of a file for each tensor.')
    for file in sorted(set(homes.values())):
        hidden = not file or file.startswith('.')  # as `..` is
        if hidden or len(file) > 200 or any(c in file for c in '/\\:') or not file.isprintable():
            raise UserError(f'{index}: {file[:100]!r} is no name of a file beside it.')
        if file.endswith('.index.json'):
            raise UserError(f'{index}: {file[:100]!r} is an index, expected a file of weights.')
    return homes
