"""A sweep: many plain runs from one config.

A config file with `sweep(config)` yields `(name, overrides)` in order: each is a plain run in `WORKDIR/name`, with the
config's values replaced by dotted key. `init` may be the name of an earlier run. With `summary(workdir)`, which
returns a text to print, the file says what the runs show together.
"""

import contextlib
import sys
from collections.abc import Callable, Container, Iterator, Mapping
from pathlib import Path
from types import ModuleType

from ml_collections import ConfigDict
from tqdm import tqdm

from jtl import hosts
from jtl.config import override, parse
from jtl.errors import UserError
from jtl.plan import check_sections
from jtl.train import train


def run(module: ModuleType, config: ConfigDict, workdir: Path, stop: Callable[[], bool]) -> str:
    """Trains what is not trained yet, and returns the summary."""
    runs = list(module.sweep(config))
    hosts.told(lambda: check(runs, workdir))
    names = {name for name, _ in runs}
    everything = {}
    for name, overrides in runs:
        with _naming(name):
            everything[name] = _values(config, overrides, names, workdir)
    results = {}
    bar = tqdm(
        everything.items(), unit='run', disable=not (hosts.is_first() and sys.stderr.isatty()), dynamic_ncols=True
    )
    for i, (name, values) in enumerate(bar):
        bar.set_description(name)
        if hosts.is_first() and bar.disable and (i % 50 == 0 or not results):
            print(f'run {i + 1} of {len(runs)}: {name}', flush=True)
        with _naming(name):
            results[name] = train(values, workdir / name, stop=stop, quiet=True)
    if hasattr(module, 'summary'):
        return hosts.told(lambda: module.summary(workdir))
    return '\n'.join(outcome(workdir / name, result) for name, result in results.items())


@contextlib.contextmanager
def _naming(name: str) -> Iterator[None]:
    """Says which run an error is of."""
    try:
        yield
    except UserError as e:
        raise type(e)(f'run {name}: {e}') from e


def _values(config: ConfigDict, overrides: Mapping, names: Container[str], workdir: Path) -> dict:
    """The config of one run, checked before the first of them starts."""
    values = override(config, overrides)
    if values.get('guard', False) is not False:
        raise UserError('config.guard: guards a single run; a sweep has baselines of its own.')
    if values.get('init') in names:
        values['init'] = str(workdir / values['init'])
    parsed = parse(values)
    if parsed.model:
        check_sections(parsed)
    return values


def check(runs: list[tuple[str, dict]], workdir: Path) -> None:
    """Names are unique relative paths, and the folder holds no run that is not in the sweep."""
    names = [name for name, _ in runs]
    if len(set(names)) < len(names):
        raise UserError(f'sweep: two runs are called {next(n for n in names if names.count(n) > 1)!r}.')
    for name in names:
        if Path(name).is_absolute() or '..' in Path(name).parts or not name:
            raise UserError(f'sweep: {name!r} should be a path below the --workdir.')
    found = {str(p.parent.relative_to(workdir)) for p in workdir.rglob('config.json')}
    if strangers := sorted(found - set(names)):
        raise UserError(
            f'--workdir {workdir}: holds runs that are not of this sweep, e.g. {strangers[0]}; name a new one.'
        )


def outcome(workdir: Path, result: dict) -> str:
    """A line on how a run ended."""
    said = [f'{workdir}: step {result["step"]}']
    for split in ('val', 'test'):
        if split in result and result[split].get('accuracy') is not None:
            said.append(f'{split} accuracy {100 * result[split]["accuracy"]:.2f} %')
    said.append(f'{result["seconds"]:.0f} s, {result["examples_per_second"]:.0f} examples/s')
    if (workdir / 'report.html').exists():
        said.append(str(workdir / 'report.html'))
    return ', '.join(said)
