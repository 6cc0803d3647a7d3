"""`python -m jtl.main --config=configs/FILE.py[:ARG] [--workdir=DIR] [--config.KEY=VALUE …]`"""

import datetime
import importlib.util
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

from absl import flags
from ml_collections import ConfigDict, config_flags

from jtl.errors import UserError

USAGE = f"""{__doc__}

  --config    a config file; what comes after a colon is given to its get_config
  --workdir   the run's folder; the same command goes on with the run in it (default: runs/DATE-CONFIG)
  --config.…  replaces a value, e.g. --config.optim.lr=3e-4 --config.data.name=folder:pictures
  --debug     shows the traceback of an error

Exit status: 0 done, or stopped by a signal and saved; 2 something given is wrong.
"""


def main(argv: list[str] | None = None) -> int:
    """Runs a config, or every run of its sweep, by command-line arguments; returns the exit status."""
    argv = sys.argv[1:] if argv is None else argv
    if '--help' in argv or '-h' in argv:
        print(USAGE)
        return 0
    try:
        return _main(argv)
    except UserError as e:
        if '--debug' in argv:
            raise
        print(f'jtl: {e}', file=sys.stderr)
        return 2


def _main(argv: list[str]) -> int:
    config, path, workdir = _parse(['jtl', *argv])
    from jtl import sweep  # JAX is imported only now, so that a wrong flag is answered at once
    from jtl.train import Stopped, train

    module = load_file(path)
    workdir = workdir or _dated(path)
    print(f'Run folder: {workdir}')
    stop = _on_signal()
    try:
        if hasattr(module, 'sweep'):
            print(sweep.run(module, config, workdir, stop))
        else:
            print(sweep.outcome(workdir, train(config, workdir, stop=stop)))
    except Stopped as e:
        print(f'{workdir}: {e}. The same command with --workdir={workdir} goes on.')
    return 0


def _parse(argv: list[str]) -> tuple[ConfigDict, Path, Path | None]:
    """`(config, its file, the workdir or None)`."""
    values = flags.FlagValues()
    flag = config_flags.DEFINE_config_file(
        'config', None, '', flag_values=values, lock_config=False, accept_new_attributes=True, sys_argv=argv
    )
    workdir = flags.DEFINE_string('workdir', None, '', flag_values=values)
    flags.DEFINE_bool('debug', False, '', flag_values=values)
    path = _config_path(argv)
    load_file(path)  # its own errors, before the flag wraps them
    try:
        left_over = values(argv)[1:]
        config = flag.value
    except KeyError as e:
        raise UserError(f'--config: a section that is not in {path}: {e.args[0]}') from e
    except (flags.Error, OSError, ValueError, TypeError) as e:
        raise UserError(str(e)) from e
    if left_over:
        raise UserError(f'unexpected argument {left_over[0]!r}; values are given as --config.KEY=VALUE.')
    if not isinstance(config, ConfigDict):
        raise UserError(f'{path}: get_config should return an ml_collections.ConfigDict, not {type(config).__name__}.')
    return config, path, Path(workdir.value) if workdir.value else None


def _config_path(argv: list[str]) -> Path:
    given = [b if a == '--config' else a[9:] for a, b in zip(argv, [*argv[1:], '']) if a.split('=')[0] == '--config']
    if not given or not given[-1]:
        raise UserError('no config: give --config=configs/FILE.py, for example configs/quickstart.py.')
    path = Path(given[-1].split(':')[0])
    if not path.is_file():
        from jtl.errors import nearest

        files = [str(p) for p in (path.parent if path.parent.is_dir() else Path('configs')).glob('*.py')]
        raise UserError(f'--config: {path} does not exist; {nearest(str(path), files)}')
    return path


def load_file(path: Path) -> ModuleType:
    """The config file as a module."""
    spec = importlib.util.spec_from_file_location(f'config_{path.stem}', path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not hasattr(module, 'get_config'):
        raise UserError(f'{path}: has no function get_config.')
    return module


def _dated(config: Path) -> Path:
    """`runs/2026-01-31-120000-NAME`."""
    return Path('runs') / f'{datetime.datetime.now():%Y-%m-%d-%H%M%S}-{config.stem}'


def _on_signal() -> Callable[[], bool]:
    """Asks the run to stop and save at the first SIGTERM or SIGINT; the second has its usual effect."""
    asked = []

    def handler(number, frame):
        asked.append(number)
        for s in (signal.SIGTERM, signal.SIGINT):
            signal.signal(s, signal.SIG_DFL)
        print('Stopping after this step; once more stops at once.', file=sys.stderr, flush=True)

    for s in (signal.SIGTERM, signal.SIGINT):
        signal.signal(s, handler)
    return lambda: bool(asked)


if __name__ == '__main__':
    sys.exit(main())
