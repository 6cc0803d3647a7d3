"""What a config may say, and how configs are compared and changed."""

import numpy as np
import pytest
from ml_collections import ConfigDict

from jtl.config import Config, as_json, differences, override, parse, parse_arg, plain
from jtl.errors import UserError

LEAST = {'data': {'name': 'digits'}, 'model': {'name': 'mlp'}, 'steps': 3}
HEAD, ALL = (('head/.*', 1.0), ('.*', None)), (('.*', 1.0),)


def test_parse_fills_in_defaults():
    config = parse(LEAST)
    assert (config.batch_size, config.select, config.epochs) == (128, 'accuracy', None)
    assert config.method == {'name': 'supervised'} and config.rule_phases == ((None, ALL),)


def test_parse_takes_config_dicts_lists_and_numpy_numbers():
    config = ConfigDict({**LEAST, 'rules': [['.*', 1]], 'seed': np.int64(3), 'optim': {'lr': np.float32(0.5)}})
    assert parse(config) == parse({**LEAST, 'rules': (('.*', 1),), 'seed': 3, 'optim': {'lr': 0.5}})


def test_parse_takes_phases_in_place_of_rules():
    phases = ((2, HEAD), (None, ALL))
    assert parse({**LEAST, 'phases': phases}).rule_phases == phases


def test_parse_takes_the_model_of_init():
    assert parse({'data': {'name': 'digits'}, 'init': 'runs/source', 'steps': 1}).model == {}


@pytest.mark.parametrize(
    'change, message',
    [
        ({'stepz': 3}, r"unknown key config\.stepz: did you mean 'steps'\? Known: batch_size, .*tensorboard"),
        ({'steps': None}, r'give one of config\.steps and config\.epochs'),
        ({'epochs': 2.0}, r'give one of config\.steps and config\.epochs'),
        ({'steps': '3'}, r"config\.steps: '3' should be int"),
        ({'steps': 2.5}, r'config\.steps: 2\.5 should be int'),
        ({'steps': True}, r'config\.steps: True should be int'),
        ({'steps': 0}, r'config\.steps: 0 should be at least 1'),
        ({'batch_size': 0}, r'config\.batch_size: 0 should be at least 1'),
        ({'steps': None, 'epochs': 0.0}, r'config\.epochs: 0\.0 should be above 0'),
        ({'steps': None, 'epochs': float('inf')}, r'config\.epochs: inf'),
        ({'steps': None, 'epochs': float('nan')}, r'config\.epochs: nan'),
        ({'seed': -1}, r'config\.seed: -1 should be at least 0'),
        ({'seed': 1 << 32}, r'config\.seed: 4294967296 should be below 2\*\*32'),
        ({'checkpoint_every': -1}, r'config\.checkpoint_every: -1 should be at least 0'),
        ({'log_every': 0}, r'config\.log_every: 0 should be at least 1'),
        ({'patience': 0}, r'config\.patience: 0 should be at least 1'),
        ({'report': 1}, r'config\.report: 1 should be bool'),
        (
            {'evals': 'classification'},
            r"config\.evals: 'classification' should be tuple.*, e\.g\. \('classification',\)",
        ),
        ({'data': 'digits'}, r"config\.data: 'digits' should be Mapping"),
        ({'data': {}}, r'missing key config\.data\.name'),
        ({'model': {}}, r'missing key config\.model\.name'),
        ({'rules': ALL, 'phases': ((None, ALL),)}, r'give one of config\.rules and config\.phases'),
        (
            {'rules': ('.*', 1.0)},
            r"config\.rules: expected a name, or \(\('regex', multiplier\), …\), got \('\.\*', 1\.0\)",
        ),
        ({'rules': (('.*', 'fast'),)}, r'config\.rules: expected'),
        ({'phases': (1, 2)}, r'config\.phases: expected \(\(until, rules\), …'),
        ({'phases': (('2', HEAD), (None, ALL))}, r'config\.phases: expected'),
    ],
)
def test_parse_refuses(change, message):
    with pytest.raises(UserError, match=message):
        parse({**LEAST, **change})


def test_parse_needs_data():
    with pytest.raises(UserError, match=r'missing key config\.data'):
        parse({'steps': 3})


def test_parse_refuses_tensorboard_where_it_is_not_installed(monkeypatch):
    monkeypatch.setattr('importlib.util.find_spec', lambda name: None)
    with pytest.raises(UserError, match='tensorboardX'):
        parse({**LEAST, 'tensorboard': True})


def test_plain_makes_equal_configs_equal_values():
    config = ConfigDict({'a': [1, [2]], 'b': {'c': np.float64(0.5)}})
    value = plain(config)
    assert value == {'a': (1, (2,)), 'b': {'c': 0.5}}
    assert type(value['b']) is dict and type(value['b']['c']) is float


def test_as_json_is_what_is_read_back():
    written = as_json(parse({**LEAST, 'rules': HEAD}))
    assert written['rules'] == [['head/.*', 1.0], ['.*', None]] and written['log_every'] == 50
    assert set(written) == set(Config.__dataclass_fields__)
    assert as_json(parse(written | {'rules': HEAD})) == written  # what config.json says can be run again


def test_as_json_refuses_what_json_cannot_hold():
    with pytest.raises(UserError, match='function is not JSON serializable'):
        as_json(parse({**LEAST, 'optim': {'lr': lambda step: 0.1}}))


def test_differences_names_every_value_that_differs():
    old = {'seed': 0, 'optim': {'lr': 0.1, 'name': 'sgd'}, 'model': {'name': 'mlp'}, 'init': None}
    new = {'seed': 0, 'optim': {'lr': 0.2, 'name': 'sgd', 'clip': 1.0}, 'model': 3, 'init': None}
    assert differences(old, new) == [
        "config.model: {'name': 'mlp'} -> 3",
        'config.optim.clip: None -> 1.0',
        'config.optim.lr: 0.1 -> 0.2',
    ]
    assert differences(old, old) == []


def test_override_replaces_by_dotted_key_in_a_copy():
    config = {'seed': 0, 'optim': {'lr': 0.1}, 'data': {'name': 'a', 'val': 0.2}}
    changed = override(config, {'optim.lr': 0.5, 'model.head.init': 'zeros', 'data': {'name': 'b'}})
    assert changed == {
        'seed': 0,
        'optim': {'lr': 0.5},
        'data': {'name': 'b'},
        'model': {'head': {'init': 'zeros'}},
    }
    assert config['optim'] == {'lr': 0.1}


def test_override_refuses_a_key_inside_a_number():
    with pytest.raises(UserError, match=r'config\.seed\.x: config\.seed is 3, not a section'):
        override({'seed': 3}, {'seed.x': 1})


def test_parse_arg_takes_the_types_of_the_defaults():
    arg = parse_arg('model=vit_ti16,steps=5,smoke,rate=1e-2', model='mlp', steps=1, smoke=False, rate=0.1, other='x')
    assert arg.to_dict() == {'model': 'vit_ti16', 'steps': 5, 'smoke': True, 'rate': 0.01, 'other': 'x'}
    assert parse_arg('smoke=false', smoke=True).smoke is False
    assert parse_arg(None, steps=1).steps == parse_arg('', steps=1).steps == 1


@pytest.mark.parametrize(
    'text, message',
    [
        ('modle=x', "config argument 'modle' is unknown: did you mean 'model'"),
        ('steps=many', "config argument 'steps=many': expected int"),
        ('steps', "config argument 'steps'"),
        ('model', "config argument 'model': expected model=VALUE"),
        ('smoke=maybe', "config argument 'smoke=maybe': expected bool"),
    ],
)
def test_parse_arg_refuses(text, message):
    with pytest.raises(UserError, match=message):
        parse_arg(text, model='mlp', steps=1, smoke=False)
