"""Every argument of a compiled step belongs to a line of its plan, exactly."""

import jax
import jax.numpy as jnp
import pytest

import kvjax
from kvjax.memory import plan, reconcile

ATTENTION = kvjax.Grouped(
  4, 2, 8, rotary=kvjax.Rotary(8), qk_norm=kvjax.Norm(), projection_bias=True
)
EXPERTS = kvjax.Experts(5, 2, 7, shared=kvjax.MLP(6), correction=True)
CONFIG = kvjax.ModelConfig(
  31,
  12,
  (kvjax.Layer(ATTENTION, kvjax.MLP(17)), kvjax.Layer(ATTENTION, EXPERTS)),
  positions=64,
)
KINDS = [kvjax.Ring(window=9), kvjax.Paged(page=4)]


@pytest.fixture(scope='module')
def rows():
  def step(params, cache, token):
    return kvjax.decode_step(CONFIG, params, cache, token, kernel='blockwise')

  init = lambda: kvjax.init_cache(
    CONFIG, 3, 20, kinds=KINDS, codec=kvjax.Int8()
  )
  cache = jax.eval_shape(init)
  params = jax.eval_shape(
    lambda: kvjax.quantize(kvjax.init_params(CONFIG, jax.random.key(0)))
  )
  token = jax.ShapeDtypeStruct((3,), jnp.int32)
  jitted = jax.jit(step, donate_argnames='cache')
  planned = plan(
    CONFIG,
    batch_size=3,
    capacity=20,
    kinds=KINDS,
    codec=kvjax.Int8(),
    param_dtype='int8',
  )
  compiled = jitted.lower(params, cache, token).compile()
  with pytest.raises(
    ValueError, match="no argument 'state'.*has cache, params"
  ):
    reconcile(planned, compiled, cache='state')
  return reconcile(planned, compiled)


def test_no_byte_of_an_argument_is_unaccounted_for(rows):
  kept = [row for row in rows if row.part in ('params', 'cache')]
  assert {row.name: row.unaccounted for row in kept} == {
    row.name: 0 for row in kept
  }
  names = ' '.join(row.name for row in kept)
  for name in ('attention', 'mlp', 'experts', 'norms', 'scales', 'page tables'):
    assert name in names


def test_a_line_of_the_step_has_the_buffer_that_pays_for_it(rows):
  paid = {row.name: row for row in rows if row.assigned is not None}
  query = paid['query (one layer, then dead)']
  assert query.planned == query.assigned == 3 * 4 * 8 * 4
  assert '/query/' in query.where
  logits = paid['logits, the result']
  assert logits.planned == logits.assigned == 3 * 31 * 4
  assert 'temporaries in all' in paid
