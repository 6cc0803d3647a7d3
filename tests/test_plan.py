"""Methods around methods, by a config."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from jtl.config import override, parse
from jtl.errors import UserError
from jtl.methods.l2sp import l2sp
from jtl.methods.sam import sam
from jtl.methods.supervised import supervised
from jtl.models import build
from jtl.plan import make_method, make_plan

MODEL = {'name': 'mlp', 'hidden': [8]}
BATCH = {'features': np.random.default_rng(0).normal(size=(6, 5)).astype(np.float32), 'label': np.arange(6) % 3}


def made(**options):
    return make_method(json.dumps(MODEL), json.dumps(options), 3)


def gradient(method):
    params, state = method.init(jax.random.key(0), BATCH)
    params, state = method.prepare(params, state, (), jax.random.key(1))
    params = jax.tree.map(lambda x: x + 0.1, params)
    return method.grads(method.loss)(params, state, BATCH, jax.random.key(2), jnp.int32(0))[0]


def same(a, b):
    return all(np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b)))


def test_mappings_in_a_method_are_methods_around_it():
    plain = supervised(build('mlp', 3, hidden=(8,)), label_smoothing=0.1)
    both = made(label_smoothing=0.1, l2sp={'alpha': 0.5}, sam={'rho': 0.2})
    assert same(gradient(both), gradient(sam(l2sp(plain, alpha=0.5), rho=0.2)))
    assert not same(gradient(both), gradient(made(label_smoothing=0.1, sam={'rho': 0.2})))
    assert not same(gradient(both), gradient(made(label_smoothing=0.1, l2sp={'alpha': 0.5})))


def test_the_order_in_a_config_does_not_matter():
    assert same(gradient(made(sam={}, l2sp={})), gradient(made(l2sp={}, sam={})))


def test_a_method_around_another_that_is_none_is_none():
    assert same(gradient(made(sam=None, l2sp={})), gradient(made(l2sp={})))


def test_dotted_keys_put_a_method_around_another():
    values = override(tiny.CONFIG, {'method.sam.rho': 0.1})
    assert make_plan(parse(values)).method is not make_plan(parse(tiny.CONFIG)).method
    assert make_plan(parse(values)).method is make_plan(parse(values)).method  # and share compiled steps


@pytest.mark.parametrize(
    ('method', 'message'),
    [
        ({'sma': {}}, r"config\.method: 'sma': unknown; did you mean 'sam'"),
        ({'sam': {'roh': 0.1}}, r"unknown key config\.method\.sam\.roh: did you mean 'rho'"),
        ({'sam': {'rho': 'big'}}, r"config\.method\.sam\.rho: 'big' should be float"),
        ({'sam': True}, r'config\.method\.sam: True should be a mapping of its options; {} for the defaults'),
        ({'sam': {'method': 1}}, r'unknown key config\.method\.sam\.method'),
        ({'name': 'sam'}, r"config\.method\.name: 'sam' is a method around another: config\.method\.sam"),
        ({'supervised': {}}, r"config\.method: 'supervised' is no method around another: config\.method\.name"),
    ],
)  # fmt: skip
def test_wrong_methods_are_refused(method, message):
    with pytest.raises(UserError, match=message):
        make_plan(parse({**tiny.CONFIG, 'method': method}))
