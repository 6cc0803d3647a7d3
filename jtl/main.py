"""`python -m jtl.main --config=configs/FILE.py[:ARG] [--workdir=DIR] [--config.KEY=VALUE …]`"""

import datetime
import functools
import importlib.util
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags

from jtl import launch
from jtl.config import override
from jtl.errors import UserError, exit_status, nearest

USAGE = f"""{__doc__}

  --config    a config file; what comes after a colon is given to its get_config
  --workdir   the run's folder; the same command goes on with the run in it (default: runs/DATE-CONFIG)
  --config.…  replaces or adds a value, e.g. --config.optim.lr=3e-4 --config.data.name=folder:pictures
              --config.steps=None --config.epochs=5 --config.rules="(('head/.*', 1.0), ('.*', None))"
              --config.guard=True trains baselines as well, and says whether the weights of config.init helped
  --debug     shows the traceback of an error

Exit status: 0 done, or stopped by a signal and saved; 2 something given is wrong; 3 done, and --config.guard found that
transfer hurt; 4 another process of a run of several was lost.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a config, or every run of its sweep, by command-line arguments; returns the exit status."""
    argv = sys.argv[1:] if argv is None else argv
    if '--help' in argv or '-h' in argv:
        print(USAGE)
        return 0
    run = functools.partial(exit_status, lambda: _main(argv), '--debug' in argv)
    return exit_status(lambda: launch.together(run), '--debug' in argv)


def _main(argv: Sequence[str]) -> int:
    module, config, path, workdir = parse_command(argv)
    stop = on_signal()
    from jtl import guard, hosts, sweep  # JAX is imported only now, so that a wrong flag is answered at once
    from jtl.train import Stopped, train

    workdir = workdir or hosts.told(lambda: _dated(path))
    say = print if hosts.is_first() else lambda text: None
    say(f'Run folder: {workdir}')
    try:
        if hasattr(module, 'sweep'):
            say(sweep.run(module, config, workdir, stop))
        elif (options := guard.options(config)) is not None:
            result, found = guard.guard(config, workdir, stop=stop, **options)
            say(f'{sweep.outcome(workdir, result)}\n{found["line"]}')
            return launch.HURT if found['verdict'] == 'hurt' else 0
        else:
            say(sweep.outcome(workdir, train(config, workdir, stop=stop)))
    except Stopped as e:
        say(f'{workdir}: {e}. The same command with --workdir={workdir} goes on.')
    return 0


def parse_command(argv: Sequence[str]) -> tuple[ModuleType, ConfigDict, Path, Path | None]:
    """`(the config file as a module, its config with what the flags replace, its path, the workdir or None)`."""
    given, rest = _config_flag(argv)
    file, colon, arg = given.partition(':')
    if not file:
        raise UserError('no config: give --config=configs/FILE.py, for example configs/quickstart.py.')
    workdir, overrides = _flags(rest)
    path = Path(file)
    if not path.is_file():
        files = [str(p) for p in (path.parent if path.parent.is_dir() else Path('configs')).glob('*.py')]
        raise UserError(f'--config: {path} does not exist; {nearest(str(path), files)}')
    module = load_file(path)
    config = told(path, module.get_config, *([arg] if colon else []))
    if not isinstance(config, ConfigDict):
        raise UserError(f'{path}: get_config should return an ml_collections.ConfigDict, not {type(config).__name__}.')
    return module, ConfigDict(override(config, overrides)), path, Path(workdir) if workdir else None


def _config_flag(argv: Sequence[str]) -> tuple[str, list[str]]:
    """The value of the last `--config=VALUE` or `--config VALUE`, and all other arguments."""
    value, rest, argv = '', [], list(argv)
    while argv:
        word = argv.pop(0)
        if word.startswith('--config='):
            value = word.removeprefix('--config=')
        elif word == '--config' and argv:
            value = argv.pop(0)
        else:
            rest.append(word)
    return value, rest


def _flags(argv: Sequence[str]) -> tuple[str | None, dict[str, Any]]:
    """`(workdir, {dotted key: value})`.

    The flags of `config_flags` are laid over an empty config, whose every key is new: a value is then whatever Python
    literal it spells, else text, and `None` may replace a number. The types are checked with the keys, by signature.
    """
    empty: dict[str, Any] = {}
    for word in argv:
        if word.startswith('--config.'):
            *sections, key = word.partition('=')[0].split('.')[1:]
            if not all((*sections, key)):
                raise UserError(f'{word}: no key; values are given as --config.KEY=VALUE.')
            node = empty
            for section in sections:
                node = node.setdefault(section, {})
    values = flags.FlagValues()
    workdir = flags.DEFINE_string('workdir', None, '', flag_values=values)
    flags.DEFINE_bool('debug', False, '', flag_values=values)
    try:
        config_flags.DEFINE_config_dict(
            'config',
            ConfigDict(empty),
            flag_values=values,
            lock_config=False,
            accept_new_attributes=True,
            sys_argv=['jtl', *argv],
        )
        left_over = values(['jtl', *argv])[1:]
    except (flags.Error, ValueError, TypeError, KeyError) as e:
        raise UserError(str(e)) from e
    if left_over:
        raise UserError(f'unexpected argument {left_over[0]!r}; values are given as --config.KEY=VALUE.')
    return workdir.value, config_flags.get_override_values(values['config'])


def load_file(path: Path) -> ModuleType:
    """The config file as a module."""
    spec = importlib.util.spec_from_file_location(f'config_{path.stem}', path)
    if spec is None:
        raise UserError(f'{path}: a config is a Python file, NAME.py.')
    module = importlib.util.module_from_spec(spec)
    told(path, spec.loader.exec_module, module)
    if not hasattr(module, 'get_config'):
        raise UserError(f'{path}: has no function get_config.')
    return module


def told(path: Path, fn: Callable, *args: Any) -> Any:
    """`fn(*args)`, which runs code of the config file, with what goes wrong in it as an error that says where."""
    try:
        return fn(*args)
    except UserError:
        raise
    except Exception as e:
        lines = [frame.lineno for frame in traceback.extract_tb(e.__traceback__) if frame.filename == str(path)]
        where = f'{path}, line {lines[-1]}' if lines else str(path)
        raise UserError(f'{where}: {type(e).__name__}: {e}') from e


def _dated(config: Path) -> Path:
    """`runs/2026-01-31-120000-NAME`."""
    return Path('runs') / f'{datetime.datetime.now():%Y-%m-%d-%H%M%S}-{config.stem}'


def on_signal() -> Callable[[], bool]:
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
