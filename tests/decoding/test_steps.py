"""prefill, extend, decode_step: rows, padding, refusals, no waiting."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import kvjax
from kvjax.decoding import advance
from tests.facts import tiny

CONFIG = tiny.decoder()
PARAMS = tiny.params(CONFIG)


def empty(batch=2, capacity=13, **more):
  """Returns an empty cache."""
  return kvjax.init_cache(CONFIG, batch, capacity, **more)


def test_prefill_is_the_last_row_of_extend():
  ids = tiny.tokens(2, 5)
  whole, a = kvjax.extend(CONFIG, PARAMS, empty(), ids, [5, 3])
  last, b = kvjax.prefill(CONFIG, PARAMS, empty(), ids, [5, 3])
  tiny.close(last, np.asarray(whole)[[0, 1], [4, 2]], 1e-6)
  tiny.alike(tiny.counters(a), tiny.counters(b))


def test_negative_ids_take_no_room():
  ids = jnp.pad(tiny.tokens(2, 3), ((0, 0), (0, 12)), constant_values=-1)
  _, cache = kvjax.extend(CONFIG, PARAMS, empty(capacity=np.int64(4)), ids)
  assert cache.length.tolist() == [3, 3]


def test_negative_ids_are_no_tokens():
  """In the middle, too: positions count tokens, wherever they stand."""
  ids = tiny.tokens(1, 5)
  holes = (
    jnp.stack([ids[0], ids[0]])
    .at[1, :]
    .set(jnp.asarray([-1, ids[0, 0], -7, ids[0, 1], ids[0, 2]]))
  )
  got, cache = kvjax.extend(CONFIG, PARAMS, empty(), holes)
  assert cache.length.tolist() == [5, 3]
  want = kvjax.forward(CONFIG, PARAMS, ids)
  tiny.close(np.asarray(got)[1, [1, 3, 4]], want[0, :3])
  tiny.close(
    np.asarray(kvjax.forward(CONFIG, PARAMS, holes))[1, [1, 3, 4]],
    want[0, :3],
  )


def test_inactive_rows_stand_still():
  ids = tiny.tokens(2, 5)
  _, cache = kvjax.extend(CONFIG, PARAMS, empty(), ids)
  active = jnp.asarray([True, False])
  _, after = kvjax.decode_step(
    CONFIG, PARAMS, cache, ids[:, 0], active, donate=False
  )
  assert after.length.tolist() == [6, 5]
  row = lambda c: jax.tree.map(lambda x: x[1], (c.books, c.stores))
  tiny.alike(row(after), row(cache))
  assert not np.asarray(after.overflow).any()


def test_inactive_rows_cannot_overflow():
  _, cache = kvjax.extend(CONFIG, PARAMS, empty(capacity=5), tiny.tokens(2, 5))
  token, off = jnp.asarray([1, -1], jnp.int32), jnp.zeros(2, bool)
  _, after = kvjax.decode_step(CONFIG, PARAMS, cache, token, off)
  assert not np.asarray(after.overflow).any()


def test_left_and_right_padding_agree():
  ids = tiny.tokens(2, 5)
  left = ids.at[1].set(jnp.roll(ids[1], 2))
  a, one = kvjax.prefill(CONFIG, PARAMS, empty(), ids, [5, 3])
  b, two = kvjax.prefill(CONFIG, PARAMS, empty(), left, [5, 3], padding='left')
  tiny.close(a, b, 1e-6)
  tiny.alike(tiny.counters(one), tiny.counters(two))


def test_attention_weights():
  """Those of extend, by position, are those of forward."""
  ids = tiny.tokens(2, 5)
  _, (want,) = kvjax.forward(CONFIG, PARAMS, ids, attention_layers=[0])
  _, _, ((got, slot_positions),) = kvjax.extend(
    CONFIG, PARAMS, empty(), ids, attention_layers=[0]
  )
  assert slot_positions[0, 0, :5].tolist() == [*range(5)]
  tiny.close(got[..., :5], want)
  np.testing.assert_allclose(want.sum(-1), 1, rtol=1e-6)


def test_a_jit_may_close_over_a_cache():
  """Its lengths are known while tracing; what does not fit is refused."""
  ids = tiny.tokens(2, 3)
  want, cache = kvjax.extend(CONFIG, PARAMS, empty(capacity=5), ids)
  first = empty(capacity=5)
  got, _ = jax.jit(lambda x: kvjax.extend(CONFIG, PARAMS, first, x))(ids)
  tiny.close(got, want, 1e-6)
  with pytest.raises(ValueError, match='3 tokens do not fit'):
    jax.jit(lambda x: kvjax.extend(CONFIG, PARAMS, cache, x))(ids)
  back = jax.jit(lambda: kvjax.rewind(cache, [2, 1]))()
  assert back.length.tolist() == [2, 1]
  with pytest.raises(ValueError, match='cannot rewind to 4'):
    jax.jit(lambda: kvjax.rewind(cache, 4))()


def test_decode_never_waits():
  """No step looks at a value: it works on what is not there yet."""
  cache = jax.eval_shape(empty)
  token = jax.ShapeDtypeStruct((2,), jnp.int32)
  step = jax.jit(lambda c, t: kvjax.decode_step(CONFIG, PARAMS, c, t))
  chex.assert_shape(step.eval_shape(cache, token)[0], (2, tiny.VOCAB))
  with jax.transfer_guard_device_to_host('disallow'):
    ids = jnp.zeros(2, jnp.int32)
    kvjax.decode_step(CONFIG, PARAMS, empty(), ids)


def call(name, cache=None, ids=None, **more):
  """Calls one of the three."""
  cache = empty() if cache is None else cache
  ids = tiny.tokens(2, 3) if ids is None else ids
  return getattr(kvjax, name)(CONFIG, PARAMS, cache, ids, **more)


@pytest.mark.parametrize('name', ['prefill', 'extend'])
def test_lengths(name):
  for lengths, message in (
    ([3, 4], r'lengths=\[3, 4\] must .* 0 and the 3 tokens'),
    ([-1, 2], r'lengths=\[-1, 2\] must .* between 0'),
    ([2], r'shape \[1\]; it must be .* integers \[2\]'),
    ([1.0, 2.0], 'dtype float64; it must be an array of integers'),
  ):
    with pytest.raises(ValueError, match=message):
      call(name, lengths=lengths)


@pytest.mark.parametrize('name', ['prefill', 'extend'])
def test_tokens_and_padding(name):
  with pytest.raises(ValueError, match="padding='up' must be 'right' or"):
    call(name, padding='up')
  with pytest.raises(
    ValueError, match='dtype float32; it must be an array of integers'
  ):
    call(name, ids=jnp.zeros((2, 3)))
  with pytest.raises(ValueError, match='it must be'):
    call(name, ids=tiny.tokens(3, 3))
  with pytest.raises(ValueError, match='it must be'):
    call(name, ids=tiny.tokens(2, 3)[0])


def test_a_source_that_nobody_reads():
  with pytest.raises(ValueError, match='has no encoder: drop encoded='):
    call('prefill', encoded=object())
  with pytest.raises(ValueError, match='has no encoder; nothing'):
    kvjax.encode(CONFIG, PARAMS, tiny.tokens(2, 3))


def test_no_tokens_and_layers_that_are_not_there():
  for name in ('prefill', 'extend'):
    with pytest.raises(ValueError, match=r'shape \(2, 0\): feed at least'):
      call(name, ids=jnp.zeros((2, 0), jnp.int32))
  for layers in ((-1,), (0, 5)):
    with pytest.raises(ValueError, match=r'must .* \[0, 1\)'):
      call('extend', attention_layers=layers)


def test_decode_step_shape():
  with pytest.raises(ValueError, match='it must be'):
    call('decode_step', ids=tiny.tokens(2, 1))


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    pytest.param(
      {'batch': 0}, 'batch_size=0 must be a positive integer', id='batch=0'
    ),
    pytest.param(
      {'capacity': -1},
      'capacity=-1 must be a positive integer',
      id='capacity=-1',
    ),
    pytest.param(
      {'capacity': 2.5},
      'capacity=2.5 must be a positive integer',
      id='capacity=2.5',
    ),
    pytest.param(
      {'kinds': [None, None]},
      '2 kinds for 1 layers: give one kind',
      id='kinds=[None,None]',
    ),
  ],
)
def test_init_cache(options, message):
  with pytest.raises(ValueError, match=message):
    empty(**options)


def test_no_exact_cache():
  both = kvjax.Visibility(causal=False)
  config = tiny.decoder(kvjax.Grouped(2, 1, 5, visibility=both))
  with pytest.raises(ValueError, match='causal=False has no exact cache'):
    kvjax.init_cache(config, 1, 5)
  config = tiny.decoder(kvjax.Grouped(2, 1, 5))
  kind = kvjax.Sinks(sinks=1, window=3, renumber=True)
  with pytest.raises(ValueError, match='needs rotary.*renumber=False'):
    kvjax.init_cache(config, 1, 5, kinds=kind)


def test_python_traces_equal_layers_once(monkeypatch):
  """And what differs, and what others read, for itself."""
  traced = []
  own = advance._LayerPrograms.run_own

  def count(self, layer, *args):
    traced.append(layer.mlp.hidden)
    return own(self, layer, *args)

  monkeypatch.setattr(advance._LayerPrograms, 'run_own', count)
  layer = CONFIG.layers[0]
  wide = dataclasses.replace(layer, mlp=kvjax.MLP(12))
  shares = dataclasses.replace(layer.attention, shared_from=3)
  reader = kvjax.Layer(shares, kvjax.MLP(14))
  layers = (layer, layer, wide, layer, reader, layer)
  config = dataclasses.replace(CONFIG, layers=layers)
  params, ids = tiny.params(config), tiny.tokens(2, 5)
  cache = kvjax.init_cache(config, 2, 8)
  got, _ = jax.jit(lambda c: kvjax.extend(config, params, c, ids))(cache)
  assert traced == [11, 12, 11]
  tiny.close(got, kvjax.forward(config, params, ids))
