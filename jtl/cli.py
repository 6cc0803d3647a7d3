"""`jtl COMMAND …`: one table of commands, each imported only when it is asked for."""

import importlib
import sys

from jtl.errors import UserError, exit_status, nearest

COMMANDS = {  # name: (module, function(arguments) -> exit status, what it does)
    'train': ('jtl.main', 'main', 'train from a config; the same as python -m jtl.main'),
    'eval': ('jtl.predict', 'eval_main', 'evaluate a finished run, on its test split or on other data'),
    'predict': ('jtl.predict', 'predict_main', 'classes of pictures or texts, by a finished run'),
    'inspect': ('jtl.pretrained.inspect', 'main', 'what is in a checkpoint, and what model it is taken for'),
    'convert': ('jtl.pretrained.convert', 'main', 'write weights as another library names them, or as a run'),
    'average': ('jtl.averaging.command', 'main', 'soups, SWA, WiSE-FT and ensembles of finished runs'),
    'compare': ('jtl.comparison.command', 'main', 'ways to fine-tune, compared at equal budget'),
    'features': ('jtl.probe.extract', 'main', 'features of a frozen backbone, computed once and kept'),
    'probe': ('jtl.probe.fit', 'main', 'the best head on frozen features, written as a run'),
    'advise': ('jtl.probe.advise', 'main', 'which source to transfer from, which block, and what it costs'),
    'prepare': ('jtl.data.prepare', 'main', 'download and prepare a data set of the TFDS catalogue'),
}


def usage() -> str:
    width = max(map(len, COMMANDS))
    lines = [f'  {name:{width}}  {what}' for name, (_, _, what) in COMMANDS.items()]
    return '\n'.join(['usage: jtl COMMAND …', '', *lines, '', '`jtl COMMAND --help` says more.'])


def main(argv: list[str] | None = None) -> int:
    """Runs a command; returns the exit status: 2 for a user's mistake, told without a traceback unless --debug."""
    argv = sys.argv[1:] if argv is None else argv
    if not argv or argv[0] in ('-h', '--help', 'help'):
        print(usage())
        return 0 if argv else 2
    return exit_status(lambda: _run(*argv), '--debug' in argv)


def _run(name: str, *arguments: str) -> int | None:
    if name not in COMMANDS:
        raise UserError(f'no command {name!r}; {nearest(name, COMMANDS)}')
    module, function, _ = COMMANDS[name]
    return getattr(importlib.import_module(module), function)(arguments)


if __name__ == '__main__':
    sys.exit(main())
