"""Facts about latent attention: one token at a time, in pieces, in bytes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import kvjax
from tests.facts import tiny

CONFIG = tiny.decoder(tiny.MLA)
WIDTHS = {'latent': 11, 'rotary': 4}


def test_one_at_a_time():
  """T-45: 300 tokens of 2 rows one at a time equal prefill, to 1e-5.

  The peer allows 5e-3, in half precision.
  """
  ids, params = tiny.tokens(2, 300), tiny.params(CONFIG)
  empty = kvjax.init_cache(CONFIG, 2, 300)
  want, _ = kvjax.extend(CONFIG, params, empty, ids)

  def step(cache, token):
    logits, cache = kvjax.decode_step(CONFIG, params, cache, token)
    return cache, logits

  _, got = jax.jit(lambda c, t: jax.lax.scan(step, c, t))(empty, ids.T)
  tiny.close(jnp.swapaxes(got, 0, 1), want)
  tiny.close(want, kvjax.forward(CONFIG, params, ids))


@pytest.mark.parametrize('size', [256, 128, 64])
def test_pieces(size):
  """T-46: 512 tokens in pieces of 256, 128 and 64 equal one call."""
  ids, params = tiny.tokens(1, 512), tiny.params(CONFIG)
  want = kvjax.forward(CONFIG, params, ids)
  cache, found = kvjax.init_cache(CONFIG, 1, 512), []
  for start in range(0, 512, size):
    piece = ids[:, start : start + size]
    logits, cache = kvjax.extend(CONFIG, params, cache, piece)
    found.append(logits)
  tiny.close(jnp.concatenate(found, axis=1), want)


def test_bytes_per_token():
  """T-48: in 2 bytes a number one token is (rank + rotary) x 2 bytes."""
  sizes = []
  for capacity in (8, 9):
    cache = kvjax.init_cache(CONFIG, 1, capacity, 'bfloat16')
    sizes.append(sum(x.nbytes for x in jax.tree.leaves(cache.stores)))
  assert sizes[1] - sizes[0] == sum(WIDTHS.values()) * 2


def test_nothing_is_expanded():
  """T-49: a step at 8192 slots needs no more than at 1024: under 1 %.

  Of the keys and values of all heads of those slots, were they expanded.
  """
  sizes = []
  for capacity in (1024, 8192):
    cache = jax.eval_shape(lambda c=capacity: kvjax.init_cache(CONFIG, 2, c))
    token = jax.ShapeDtypeStruct((2,), jnp.int32)
    step = jax.jit(
      lambda c, t: kvjax.decode_step(
        CONFIG,
        tiny.params(CONFIG),
        c,
        t,
        options=kvjax.DecodeOptions(form='absorbed'),
      ),
      donate_argnums=0,
    )
    found = step.lower(cache, token).compile().memory_analysis()
    sizes.append(found.temp_size_in_bytes)
  variant = tiny.MLA
  width = variant.key_width + variant.rotary.width + variant.value_width
  expanded = 2 * (8192 - 1024) * variant.num_heads * width * 4
  assert sizes[1] - sizes[0] < 0.01 * expanded


@pytest.mark.parametrize(
  'size', [pytest.param(1, id='decode'), pytest.param(5, id='chunk')]
)
def test_chunks_that_straddle_the_wrap(size):
  """T-52: 4 sinks, window 16, 100 tokens by 5 and by 1: equal, wraps too."""
  kind = kvjax.Sinks(sinks=4, window=16)
  config = tiny.decoder()
  ids, params = tiny.tokens(1, 100), tiny.params(config)
  want = kvjax.forward(tiny.as_seen(config, kind), params, ids)
  cache, found = kvjax.init_cache(config, 1, 100, kinds=kind), []
  for start in range(0, 100, size):
    logits, cache = kvjax.extend(
      config, params, cache, ids[:, start : start + size]
    )
    found.append(logits)
    slot_positions = np.asarray(cache.books[0].positions)
    assert np.sort(slot_positions[0, 0])[-1] == start + size - 1
  tiny.close(jnp.concatenate(found, axis=1), want)
