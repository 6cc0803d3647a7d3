"""Weights in several files: `….safetensors.index.json` or `….bin.index.json` says which tensor is in which."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from jtl.errors import UserError
from jtl.pretrained.formats import archive


def read(index: Path, read_one: Callable[[Path], dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """The tensors of all files that an index names, which lie beside it.

    Raises:
        UserError: the index is damaged or names files elsewhere; files, or tensors in them, are missing or not listed.
    """
    index = Path(index)
    where = archive.json_object(archive.mapped(index).tobytes(), str(index)).get('weight_map')
    if not isinstance(where, dict) or not where or not all(isinstance(shard, str) for shard in where.values()):
        raise UserError(f'{index}: no weight_map, expected the name of a file for each tensor.')
    shards = sorted(set(where.values()))
    for shard in shards:
        if shard in ('', '.', '..') or any(c in shard for c in '/\\:\0') or not shard.isprintable():
            raise UserError(f'{index}: {shard[:100]!r} is no name of a file beside it.')
        if shard.endswith('.index.json'):
            raise UserError(f'{index}: {shard[:100]!r} is an index, expected a file of weights.')
    if missing := [shard[:100] for shard in shards if not (index.parent / shard).is_file()]:
        which = f'{len(missing)} of {len(shards)} files: {", ".join(missing)}'
        raise UserError(f'{index}: beside it are missing {which}. Download them too.')
    tensors = {}
    for shard in shards:
        found = read_one(index.parent / shard)
        listed = {name for name, home in where.items() if home == shard}
        if odd := sorted(listed.symmetric_difference(found)):
            names = ', '.join(f'{name[:100]} ({"missing" if name in listed else "not listed"})' for name in odd[:8])
            raise UserError(f'{index.parent / shard}: does not hold what {index.name} lists: {names}.')
        tensors.update(found)
    return tensors
