"""Bytes and buffers of compiled programs, against arithmetic."""

import dataclasses
import importlib
from unittest import mock

import jax
import jax.numpy as jnp
import pytest

import kvjax
from kvjax import memory
from tests.compiler import as_users_do

BUFFERS = importlib.import_module('kvjax.memory.compiled.assignment')
CACHE = jax.ShapeDtypeStruct((3, 5, 128, 64), jnp.float32)  # 491,520 bytes
TOKEN = jax.ShapeDtypeStruct((3, 5, 64), jnp.float32)  # 3,840 bytes


def step(cache, token, position):
  cache = cache.at[:, :, position].set(token, mode='drop')
  with jax.named_scope('scores'):
    scores = jnp.einsum('BKH,BKSH->BKS', token, cache)
  with jax.named_scope('mix'):
    return cache, jnp.einsum('BKS,BKSH->BKH', jnp.exp(scores), cache)


def program(donate=True):
  donated = ['cache'] if donate else []
  position = jax.ShapeDtypeStruct((), jnp.int32)
  jitted = jax.jit(step, donate_argnames=donated)
  return as_users_do(jitted.lower(CACHE, TOKEN, position))


@pytest.mark.parametrize(
  'donate', [pytest.param(True, id='donated'), pytest.param(False, id='kept')]
)
def test_equals_arithmetic(donate):
  found = memory.measure(program(donate))
  cache, token = 3 * 5 * 128 * 64 * 4, 3 * 5 * 64 * 4
  assert found.arguments == cache + token + 4
  assert found.outputs == cache + token + 2 * 8  # and the tuple's pointers
  assert found.alias == (cache if donate else 0)
  # One row of scores, [B, K, S], and what XLA needs beside it.
  assert 3 * 5 * 128 * 4 <= found.temporaries < cache
  rest = found.outputs - found.alias + found.temporaries
  assert found.peak == found.arguments + rest
  assert all(type(x) is int for x in dataclasses.astuple(found)[:5])


def test_the_cpu_has_no_counters():
  assert memory.measure(program()).devices == {}


def test_an_accelerator_shows_its_counters():
  device = jax.local_devices()[0]
  compiled = program()

  class Counting:  # a device like the program's, that counts
    __hash__ = device.__hash__
    __eq__ = device.__eq__
    __str__ = lambda self: 'gpu:0'
    memory_stats = lambda self: {'bytes_in_use': 3}

  with mock.patch.object(jax, 'local_devices', lambda: [Counting()]):
    found = memory.measure(compiled).devices
  assert found == {'gpu:0': {'bytes_in_use': 3}}


def test_only_compiled_programs():
  with pytest.raises(TypeError, match='lower'):
    memory.measure(jax.jit(step))  # pyright: ignore


def test_rows_add_up_to_the_stable_fields():
  compiled = program()
  found, rows = memory.measure(compiled), memory.buffers(compiled)
  inputs = {
    row.allocation: row.bytes
    for row in rows
    if row.kind in ('parameter', 'aliased')
  }
  assert sum(inputs.values()) == found.arguments
  ends = [r.offset + r.bytes for r in rows if r.kind == 'temporary']
  assert max(ends) == found.temporaries  # one allocation, on CPU
  assert sorted(rows, key=lambda row: -row.bytes) == list(rows)
  assert len(set(rows)) == len(rows)


def test_a_row_says_where_it_lies_and_what_fills_it():
  rows = memory.buffers(program())
  cache = next(row for row in rows if row.op_name == 'cache')
  assert (cache.kind, cache.opcode, cache.dtype) == (
    'aliased',
    'parameter',
    'f32',
  )
  assert (cache.shape, cache.bytes, cache.offset) == (
    (3, 5, 128, 64),
    491_520,
    0,
  )
  scores = 'f32', 3 * 5 * 128 * 4, 'jit(step)/mix/exp'
  assert scores in {(row.dtype, row.bytes, row.op_name) for row in rows}


def test_another_wire_format_raises_and_says_what_still_works():
  with mock.patch.object(BUFFERS, '_SIZES', {}):
    with pytest.raises(memory.EncodingError, match='measure.*still works'):
      memory.buffers(program())


def test_numbers_that_do_not_add_up_raise():
  wrong = mock.patch.object(BUFFERS, '_assignment', lambda *_: ([], 7))
  with wrong, pytest.raises(memory.EncodingError, match='7 bytes'):
    memory.buffers(program())


def test_rules_of_a_compiled_call_need_a_mesh():
  llama = kvjax.load_config('llama-3-8b')
  with pytest.raises(ValueError, match='need a mesh: give mesh='):
    memory.compile_call(
      llama, batch_size=1, capacity=8, rules=kvjax.sharding.Rules(heads='x')
    )
