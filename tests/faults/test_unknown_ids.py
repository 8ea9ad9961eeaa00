"""What a call cannot refuse at the door is marked in its row, and lost nowhere.

A trace knows no ids, and a thread or a callback comes in between: a flag, a NaN
or an error says so, and the other rows are as they would have been.
"""

import dataclasses
import threading
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import kvjax
from tests.faults.one_layer import (
  CONFIG,
  ID,
  PARAMS,
  TWO,
  V,
  fed,
  feed,
  generate,
  new_cache,
  step,
)


def test_an_unknown_id_on_the_device_is_refused_as_overflow_is():
  """The row's chunk is not written, and its neighbour is equal to the bit."""
  bad = TWO.at[0, 1].set(V)

  @jax.jit
  def run(tokens):
    logits, cache = feed(tokens, new_cache(2))
    return logits, step(jnp.asarray([7, 8]), cache)

  logits, (after, cache) = run(bad)
  want, (want_after, _) = run(TWO)
  assert np.isnan(logits[0]).all() and np.isnan(after[0]).all()
  assert cache.overflow.tolist() == [True, False]
  assert cache.length.tolist() == [1, 4]
  np.testing.assert_array_equal(logits[1], want[1])
  np.testing.assert_array_equal(after[1], want_after[1])
  with pytest.raises(ValueError, match=r'Rows \[0\].*outside the vocabulary'):
    kvjax.check(cache)


@pytest.mark.parametrize('dtype', [jnp.int32, jnp.uint32])
def test_a_step_takes_no_unknown_id_of_the_device(dtype):
  logits, cache = step(jnp.asarray([V], dtype))
  assert np.isnan(logits).all() and cache.length.tolist() == [3]
  assert cache.overflow.tolist() == [True]
  logits, cache = step(jnp.asarray([2**32 - 1], jnp.uint32))
  assert np.isnan(logits).all() and cache.length.tolist() == [3]


def test_forward_is_nan_from_an_unknown_id_on():
  forward = jax.jit(lambda tokens: kvjax.forward(CONFIG, PARAMS, tokens))
  logits = np.asarray(forward(TWO.at[1, 1].set(V)))
  np.testing.assert_array_equal(np.isnan(logits).any(-1)[0], [False] * 3)
  np.testing.assert_array_equal(
    np.isnan(logits).all(-1)[1], [False, True, True]
  )
  np.testing.assert_array_equal(logits[1, 0], np.asarray(forward(TWO))[1, 0])


# Two ids of the vocabulary stand for images.
REFUSING = dataclasses.replace(CONFIG, refused_ids=(5, 8))


@pytest.mark.parametrize('bad', [5, 8])
def test_an_id_that_stands_for_an_image_is_refused(bad):
  tokens = np.asarray([[1, bad, 2]])
  message = rf'tokens? has the id {bad}, which stands for an image'
  with pytest.raises(ValueError, match=message):
    kvjax.forward(REFUSING, PARAMS, tokens)
  _, cache = feed(TWO[:1], config=REFUSING)
  for call in (kvjax.prefill, kvjax.extend):
    with pytest.raises(ValueError, match=message):
      call(REFUSING, PARAMS, cache, tokens)
  with pytest.raises(ValueError, match=message):
    step(np.asarray([bad]), cache, config=REFUSING)
  assert cache.length.tolist() == [3]
  np.testing.assert_array_equal(
    kvjax.forward(REFUSING, PARAMS, TWO[:1]),
    kvjax.forward(CONFIG, PARAMS, TWO[:1]),
  )


def test_an_id_that_stands_for_an_image_in_a_trace():
  forward = jax.jit(lambda tokens: kvjax.forward(REFUSING, PARAMS, tokens))
  is_nan = np.isnan(np.asarray(forward(TWO))).all(-1)  # row 1 has 4, 5, 6
  assert is_nan.tolist() == [[False] * 3, [False, True, True]]
  run = jax.jit(lambda tokens: feed(tokens, new_cache(2), config=REFUSING))
  logits, cache = run(TWO)
  assert np.isnan(logits[1]).all() and np.isfinite(logits[0]).all()
  assert cache.overflow.tolist() == [False, True]
  logits, cache = step(jnp.asarray([8]), config=REFUSING)
  assert np.isnan(logits).all() and cache.length.tolist() == [3]


def test_refused_ids_are_whole_numbers():
  for bad in ((1.5,), (-1,), [5]):
    with pytest.raises(ValueError, match='refused_ids'):
      dataclasses.replace(CONFIG, refused_ids=bad)


def test_a_large_negative_id_is_no_token():
  """An int64 below -2**31 would wrap to an id if it were only cast."""
  _, cache = feed(np.asarray([[1, -(2**32) + 5, 2]]))
  assert cache.length.tolist() == [2]
  _, cache = step(np.asarray([-(2**32) + 5]), cache)
  assert cache.length.tolist() == [2]


@pytest.mark.parametrize(
  'filters',
  [{}, {'temperature': 1.0}, {'temperature': 1.0, 'top_p': 0.5}],
  ids=['greedy', 'plain', 'top_p'],
)
@pytest.mark.parametrize('value', [np.inf, -np.inf, np.nan])
def test_a_row_without_a_distribution_gives_no_token(value, filters):
  logits = jnp.full((1, V), -jnp.inf).at[0, 3].set(value)
  tokens, _ = generate(1, logits, **filters)
  assert tokens.tolist() == [[-1]]


@pytest.mark.parametrize('temperature', [0.0, 1.0, 1e30, 3e38])
def test_the_only_token_that_a_mask_leaves(temperature):
  logits = jnp.full((1, V), -jnp.inf).at[0, 7].set(0.0)
  tokens, _ = generate(1, logits, temperature=temperature, seed=3)
  assert tokens.tolist() == [[7]]


def test_take_of_rows_that_do_not_exist_in_a_trace():
  """They come back empty and flagged, and the others as they were."""
  take = jax.jit(lambda cache, rows: kvjax.take(cache, rows))
  cache = take(fed(2)[1], jnp.asarray([5, -1, 1]))
  assert cache.length.tolist() == [0, 0, 3]
  assert cache.overflow.tolist() == [True, True, False]
  logits, _ = step(jnp.asarray([7, 7, 7]), cache)
  assert np.isnan(logits[:2]).all() and np.isfinite(logits[2]).all()


def test_a_donated_cache_is_named_everywhere():
  _, cache = fed()
  step(ID, cache)
  assert 'donated' in repr(cache)
  for call in (kvjax.inspect, kvjax.earliest, kvjax.fork, kvjax.check):
    with pytest.raises(kvjax.DonatedCacheError, match='was donated'):
      call(cache)


def test_threads_that_race_to_donate_a_cache():
  """One thread wins; the others raise DonatedCacheError and nothing else."""
  _, cache = fed()
  step(ID, kvjax.fork(cache))  # compiles
  barrier = threading.Barrier(8)

  def run():
    barrier.wait()
    return step(ID, cache)

  with ThreadPoolExecutor(8) as pool:
    calls = [pool.submit(run) for _ in range(8)]
  errors = [type(call.exception()) for call in calls if call.exception()]
  assert errors == [kvjax.DonatedCacheError] * 7


def test_what_was_generated_survives_a_callback_that_raises():
  """The caller's cache was donated, so the error carries the newest one."""
  calls = []

  def stream(tokens):
    calls.append(tokens)
    if len(calls) == 2:
      raise RuntimeError('the reader is gone')

  with pytest.raises(RuntimeError, match='the reader is gone') as caught:
    generate(5, block=2, stream=stream)
  tokens, cache = caught.value.partial
  want, _ = generate(5, block=2)
  np.testing.assert_array_equal(tokens[0, :3], want[0, :3])
  assert tokens[0, 3:].tolist() == [-1, -1]
  assert cache.length.tolist() == [5]
  logits, _ = step(tokens[:, 2], cache)
  assert int(logits.argmax()) == int(want[0, 3])


def test_an_id_of_padding_is_no_token():
  """Padding may hold any number, an id beyond the vocabulary too."""
  padded = np.asarray([[1, 2, 99], [4, 5, 6]])
  logits, cache = feed(padded, new_cache(2), lengths=[2, 3])
  assert cache.length.tolist() == [2, 3] and not cache.overflow.any()
  want, _ = feed(TWO, new_cache(2), lengths=[2, 3])
  np.testing.assert_array_equal(logits[1], want[1])
  uncached = kvjax.forward(CONFIG, PARAMS, padded, lengths=[2, 3])
  assert np.isfinite(uncached[0, :2]).all() and np.isfinite(uncached[1]).all()
  active = np.asarray([False, True])
  _, cache = step(np.asarray([99, 3]), fed(2)[1], active=active)
  assert cache.length.tolist() == [3, 4]


def test_an_impossible_length_hides_no_unknown_id():
  """An id beyond int32 would wrap to one of the vocabulary in a cast."""
  tokens = jnp.asarray([[2**31 + 5, 1, 2], [3, 4, 5]], jnp.uint32)
  run = jax.jit(
    lambda lengths: kvjax.extend(CONFIG, PARAMS, new_cache(2), tokens, lengths)
  )
  logits, cache = run(jnp.asarray([3, 3]))
  assert cache.overflow.tolist() == [True, False]
  assert np.isnan(logits[0]).all() and np.isfinite(logits[1]).all()
