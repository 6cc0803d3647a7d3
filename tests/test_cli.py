"""`jtl COMMAND`: the table of commands."""

import json
import subprocess
import sys

import pytest

from jtl import cli


def test_help_lists_the_commands(capsys):
    assert cli.main(['--help']) == 0
    said = capsys.readouterr().out
    for name, (_, _, what) in cli.COMMANDS.items():
        assert f'  {name}' in said and what in said


def test_no_command_is_a_mistake(capsys):
    assert cli.main([]) == 2
    assert 'usage: jtl COMMAND' in capsys.readouterr().out


def test_an_unknown_command_suggests_the_nearest(capsys):
    assert cli.main(['trian', '--config=x']) == 2
    assert capsys.readouterr().err == (
        "jtl: no command 'trian'; did you mean 'train'? Known: advise, average, compare, convert, eval, features, "
        'inspect, predict, prepare, probe, train.\n'
    )


@pytest.mark.parametrize('command', cli.COMMANDS)
def test_every_command_has_help(command, capsys):
    try:
        status = cli.main([command, '--help'])
    except SystemExit as e:  # argparse
        status = e.code
    assert status == 0 and '--' in capsys.readouterr().out


def test_a_command_gets_the_rest_of_the_line(capsys):
    assert cli.main(['train', '--config=no/such/file.py']) == 2
    assert 'no/such/file.py does not exist' in capsys.readouterr().err


def test_help_imports_neither_jax_nor_tensorflow_datasets():
    code = (
        'import json, sys; from jtl import cli; status = cli.main(["--help"]);'
        'print(json.dumps([status, [m for m in ("jax", "flax", "tensorflow_datasets", "grain") if m in sys.modules]]))'
    )
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout.splitlines()[-1]) == [0, []]


def test_python_m_jtl_is_jtl():
    done = subprocess.run([sys.executable, '-m', 'jtl', 'evl'], capture_output=True, text=True)
    assert done.returncode == 2 and "did you mean 'eval'" in done.stderr and 'Traceback' not in done.stderr
