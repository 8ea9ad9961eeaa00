"""Blocks of llama.cpp, byte for byte."""

import hashlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import kvjax

# SHA-256 of what gguf 0.19 writes for `sample`, and bytes of 32 features.
TYPES = {
  'q8_0': ('08bf9c36282af380', 34),
  'q4_0': ('75476e01283434ce', 18),
  'q4_1': ('1cff7d8067fd38b7', 20),
  'q5_0': ('58e09eb43e1dd519', 22),
}


def sample():
  """Normal numbers, an outlier, and a token of zeros."""
  x = np.random.default_rng(0).standard_normal((6, 128)).astype(np.float32)
  x[1, 5], x[2] = 40, 0
  return x


def as_file(name, x):
  """Returns a token's leaves as llama.cpp has its blocks, `[n, bytes]`."""
  codec = kvjax.GGML(name)
  encoded = jax.jit(lambda x: codec.encode(x, None))(jnp.asarray(x))
  count = x.shape[1] // 32
  parts = [
    np.ascontiguousarray(encoded[leaf])
    .view(np.uint8)
    .reshape(len(x), count, -1)
    for leaf in ('scale', 'zero', 'plane', 'codes')
    if leaf in encoded
  ]
  return np.concatenate(parts, axis=-1).reshape(len(x), -1)


@pytest.mark.parametrize('name', TYPES)
def test_golden_bytes(name):
  digest, size = TYPES[name]
  found = as_file(name, sample())
  assert found.shape == (6, 4 * size)
  assert hashlib.sha256(found.tobytes()).hexdigest()[:16] == digest


@pytest.mark.parametrize('name', TYPES)
def test_bytes_and_numbers_are_those_of_gguf(name):
  """4,000 tokens; of float16 numbers many are halfway between two codes."""
  quants = pytest.importorskip('gguf.quants')
  kind = getattr(pytest.importorskip('gguf').GGMLQuantizationType, name.upper())
  x = np.random.default_rng(0).standard_normal((4000, 128)).astype(np.float32)
  for values in (x, x.astype(np.float16).astype(np.float32), sample()):
    want = quants.quantize(values, kind)
    np.testing.assert_array_equal(as_file(name, values), want)
  codec = kvjax.GGML(name)
  found = codec.decode(codec.encode(jnp.asarray(values), None))
  np.testing.assert_allclose(found, quants.dequantize(want, kind), rtol=1e-6)


def test_halves_are_rounded_away_from_zero():
  x = np.zeros((1, 32), np.float32)
  x[0, :5] = 127, 0.5, 1.5, -2.5, 3.4
  encoded = kvjax.GGML('q8_0').encode(jnp.asarray(x), None)
  np.testing.assert_array_equal(encoded['codes'][0, :5], [127, 1, 2, -3, 3])


def test_the_low_half_of_a_byte_is_the_earlier_feature():
  x = np.full((1, 32), -8.0, np.float32)
  x[0, 0], x[0, 16] = 3, 5
  codes = kvjax.GGML('q4_0').encode(jnp.asarray(x), None)['codes']
  assert codes[0, 0] == (3 + 8) + 16 * (5 + 8)


def test_refusals():
  with pytest.raises(ValueError, match="'q6_k' must be one of q8_0, q4_0"):
    kvjax.GGML('q6_k')
  with pytest.raises(ValueError, match='32 do not divide a stream of 48'):
    kvjax.GGML('q4_0').leaves(48, jnp.float32)
