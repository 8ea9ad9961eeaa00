"""Codecs: what is stored, to the bit, and how far from it one reads."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import kvjax
from tests.facts import tiny


def test_eight_bits_saturate_and_answer():
  """A cast alone gives NaN from 465 up; queries stay as they are."""
  x = jnp.asarray([1.0, 448.0, 465.0, -1e6])
  got = kvjax.Plain().encode(x, jnp.float8_e4m3fn)
  np.testing.assert_array_equal(
    got.astype(jnp.float32), [1.0, 448.0, 448.0, -448.0]
  )
  config, tokens = tiny.decoder(), tiny.tokens(2, 6)
  cache = kvjax.init_cache(config, 2, 8, dtype=jnp.float8_e4m3fn)
  logits, _ = kvjax.extend(config, tiny.params(config), cache, tokens)
  want = kvjax.forward(config, tiny.params(config), tokens)
  assert np.abs(logits - want).max() < 0.1 * np.abs(want).max()


def test_integers_are_refused():
  with pytest.raises(ValueError, match='dtype=int8.*codec=kvjax.Int8'):
    kvjax.init_cache(tiny.decoder(), 1, 8, dtype=jnp.int8)


def test_golden(maybe_jit):
  x = jnp.asarray([[127.0, -127.0, 63.6, 0.4], [0.0, 0.0, 0.0, 0.0]])
  encode = maybe_jit(lambda x: kvjax.Int8().encode(x, jnp.bfloat16))
  got = encode(x)
  codes = np.asarray([[127, -127, 64, 0], [0, 0, 0, 0]], np.int8)
  np.testing.assert_array_equal(got['codes'], codes)
  np.testing.assert_array_equal(got['scale'], [1.0, 1.0])
  assert got['scale'].dtype == jnp.float32
  np.testing.assert_array_equal(kvjax.Int8().decode(got), codes)


def test_within_half_a_scale(maybe_jit):
  x = jax.random.normal(jax.random.key(0), (2, 3, 5, 17)) * 40
  codec = kvjax.Int8()
  encoded = maybe_jit(lambda x: codec.encode(x, x.dtype))(x)
  scale = np.abs(x).max(-1) / 127
  np.testing.assert_allclose(encoded['scale'], scale, rtol=1e-6)
  wrong = np.abs(np.asarray(codec.decode(encoded)) - x)
  assert (wrong <= scale[..., None] * 0.5001).all()


def test_each_token_of_each_head_by_itself():
  """A large token costs a small one in the same store nothing."""
  x = jnp.ones((1, 2, 3, 5)).at[0, 0, 1].set(1e4).at[0, 1].multiply(7)
  got = kvjax.Int8().decode(kvjax.Int8().encode(x, jnp.float32))
  np.testing.assert_allclose(got, x, rtol=1e-6)


def test_bytes():
  """H + 4 bytes a token and head; MLA's rotary part stays as it is."""
  for variant, dtype, want in (
    (tiny.GQA, 'float32', 3 * (10 + 4 + 7 + 4)),
    (tiny.MLA, 'bfloat16', 11 + 4 + 4 * 2),
  ):
    sizes = [
      sum(
        x.nbytes
        for x in jax.tree.leaves(
          kvjax.init_cache(
            tiny.decoder(variant), 1, n, dtype, codec=kvjax.Int8()
          ).stores
        )
      )
      for n in (5, 6)
    ]
    assert sizes[1] - sizes[0] == want


def test_old_codes_never_change():
  config = tiny.decoder()
  ids = tiny.tokens(2, 8)
  cache = kvjax.init_cache(config, 2, 11, codec=kvjax.Int8())
  _, some = tiny.feed(config, cache, ids, (3,))
  _, more = tiny.feed(config, some, ids * 0, (4, 4))
  early = lambda c: jax.tree.map(lambda x: x[:, :, :3], c.stores)
  tiny.alike(early(some), early(more))


def test_casts_and_no_more(maybe_jit):
  x = jax.random.normal(jax.random.key(0), (2, 3, 5))
  got = maybe_jit(lambda x: kvjax.Plain().encode(x, jnp.bfloat16))(x)
  np.testing.assert_array_equal(got, x.astype(jnp.bfloat16))
  np.testing.assert_array_equal(kvjax.Plain().decode(got), got)
