"""The record of a run: one JSON object a line in `metrics.jsonl`; TensorBoard is an optional mirror."""

import importlib.util
import json
import math
from collections.abc import Mapping
from pathlib import Path

from jtl.errors import UserError

LOWER_IS_BETTER = ('loss', 'robust_loss', 'ece')  # of what evaluators give


class Writer:
    """Appends rows `{"step": …, "split": …, name: number, …}`; without a folder, nowhere."""

    def __init__(self, folder: Path | None, from_step: int = 0, again: str | None = None, tensorboard: bool = False):
        """Drops rows that a run which was cut short will write again.

        Args:
            from_step: those of later steps;
            again: and those of `from_step` itself and this split.
        """
        self._path = folder and folder / 'metrics.jsonl'
        self._mirror = _tensorboard(folder, from_step) if folder and tensorboard else None
        if folder and self._path.exists():
            kept = [row for row in read(self._path) if row['step'] <= from_step]
            kept = [row for row in kept if (row['step'], row['split']) != (from_step, again)]
            temporary = self._path.with_suffix('.tmp')  # a kill leaves the old file or the new one
            temporary.write_text(''.join(json.dumps(row) + '\n' for row in kept))
            temporary.replace(self._path)

    def write(self, step: int, split: str, values: Mapping[str, float]) -> None:
        if self._path is None:
            return
        with self._path.open('a') as f:
            f.write(json.dumps(finite({'step': step, 'split': split, **values})) + '\n')
        if self._mirror:
            for name, value in values.items():
                self._mirror.add_scalar(f'{split}/{name}', value, step)
            self._mirror.flush()


def read(path: Path) -> list[dict]:
    """The rows written so far; a last line cut short by a kill is left out.

    Raises:
        UserError: another line is not a row.
    """
    lines = path.read_text(errors='replace').splitlines()
    rows = []
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
            fine = isinstance(row['step'], int) and isinstance(row['split'], str)
        except (ValueError, KeyError, TypeError):
            fine = False
        if fine:
            rows.append(row)
        elif number < len(lines):
            raise UserError(f'{path}: line {number} is not as it was written.')
    return rows


def _tensorboard(folder: Path, from_step: int):
    from tensorboardX import SummaryWriter

    return SummaryWriter(str(folder / 'tensorboard'), purge_step=from_step + 1 if from_step else None)


def check_tensorboard() -> None:
    """Refuses `config.tensorboard` where it is not installed."""
    if importlib.util.find_spec('tensorboardX') is None:
        raise UserError("config.tensorboard needs tensorboardX: pip install 'jtl[tensorboard]'.")


def scalars(values: Mapping) -> dict[str, float]:
    """The entries that are single numbers."""
    return {k: float(v) for k, v in values.items() if not getattr(v, 'ndim', 0)}


def first_not_finite(values: Mapping[str, float]) -> str | None:
    """The name of a NaN or infinite value, if there is one."""
    return next((name for name, value in values.items() if not math.isfinite(value)), None)


def finite(value):
    """For JSON, which has no NaN: numbers that are not finite as None, throughout nested dicts and lists."""
    if isinstance(value, Mapping):
        return {k: finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
