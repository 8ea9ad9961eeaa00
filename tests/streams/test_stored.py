"""What is stored, and what of it a kernel may read in place."""

import jax.numpy as jnp
import numpy as np
import pytest

import kvjax
from kvjax.streams.stored import Stored, pack, unpack

X = np.random.default_rng(0).standard_normal((2, 3, 5, 64)).astype(np.float32)


def test_bytes_have_neighbouring_features_where_a_run_is_one():
  """A plane: bit i of byte j is that of feature 8 j + i."""
  bits = np.random.default_rng(0).integers(0, 2, (3, 64), np.uint8)
  want = np.packbits(bits, axis=-1, bitorder='little')
  np.testing.assert_array_equal(pack(jnp.asarray(bits), 1, 1), want)


@pytest.mark.parametrize(('bits', 'run'), [(4, 16), (4, 32), (2, 4), (2, 16)])
def test_byte_i_of_a_run_has_features_i_and_every_run_beyond(bits, run):
  codes = np.random.default_rng(0).integers(0, 2**bits, (3, 64), np.uint8)
  packed = np.asarray(pack(jnp.asarray(codes), bits, run))
  count = 8 // bits
  for byte in range(64 // count):
    block, i = divmod(byte, run)
    features = block * run * count + i + run * np.arange(count)
    want = (codes[:, features] << (bits * np.arange(count))).sum(axis=1)
    np.testing.assert_array_equal(packed[:, byte], want)
  np.testing.assert_array_equal(unpack(jnp.asarray(packed), bits, run), codes)


def test_groups_of_tokens_and_features_follow_from_shapes():
  """(32, 1) is a scale a channel of 32 tokens, (S, H) one for the stream."""
  codes = np.arange(4 * 6, dtype=np.int8).reshape(1, 1, 4, 6)
  for tokens, features in ((1, 6), (1, 2), (2, 1), (4, 6), (2, 3)):
    shape = 1, 1, 4 // tokens, 6 // features
    scale = 1 + np.arange(np.prod(shape), dtype=np.float16).reshape(shape)
    zero = -scale
    wide = np.kron(scale[0, 0], np.ones((tokens, features)))
    found = Stored(*map(jnp.asarray, (codes, scale, zero))).decode()
    np.testing.assert_array_equal(found[0, 0], codes[0, 0] * wide - wide)


IN_PLACE = {
  'float32': (kvjax.Plain(), 'float32'),
  'int8': (kvjax.Int8(), 'int8'),
  'turned int8': (kvjax.Hadamard(kvjax.Int8()), 'int8'),
  'int8 by blocks': (kvjax.GGML('q8_0'), ''),
  'bytes': (kvjax.Affine(bits=8), ''),
  'packed': (kvjax.Affine(bits=4), ''),
  'levels': (kvjax.LloydMax(bits=4), ''),
  'bits of floats': (kvjax.Float8(), ''),
}


@pytest.mark.parametrize(('codec', 'want'), IN_PLACE.values(), ids=IN_PLACE)
def test_kernels_read_floats_and_int8_with_one_scale_alone(codec, want):
  stored = codec.stored(codec.encode(jnp.asarray(X), jnp.float32))
  assert stored.in_place_type == want


def test_a_narrow_scale_or_one_of_groups_is_not_read_in_place():
  codes = jnp.zeros((1, 1, 2, 4), jnp.int8)
  scale = jnp.ones((1, 1, 2), jnp.float16)
  assert not Stored(codes, scale).in_place_type
  wide = scale.astype(jnp.float32)
  assert Stored(codes, wide).in_place_type == 'int8'
  assert not Stored(codes, wide[..., None]).in_place_type


GROUPED = {
  'packed': (kvjax.Affine(), True),
  'two bits': (kvjax.Affine(bits=2), True),
  'bytes, turned': (kvjax.Hadamard(kvjax.Affine(bits=8, zero=False)), True),
  'q8_0': (kvjax.GGML('q8_0'), True),
  'q4_1': (kvjax.GGML('q4_1'), True),
  'a plane': (kvjax.GGML('q5_0'), False),
  'levels': (kvjax.LloydMax(), False),
  'a scale a token': (kvjax.Int8(), False),
  'bits of floats': (kvjax.Float8(), False),
}


@pytest.mark.parametrize(('codec', 'want'), GROUPED.values(), ids=GROUPED)
def test_the_library_reads_float16_numbers_of_groups(codec, want):
  stored = codec.stored(codec.encode(jnp.asarray(X), jnp.float32))
  assert stored.has_groups_of_features == want
  assert stored.width == X.shape[-1]


def test_groups_of_tokens_are_none_of_features():
  codes = jnp.zeros((1, 1, 4, 8), jnp.uint8)
  scale = jnp.ones((1, 1, 1, 16), jnp.float16)
  assert not Stored(codes, scale, bits=4).has_groups_of_features
  token = jnp.ones((1, 1, 4, 1), jnp.float16)
  assert Stored(codes, token, bits=4).has_groups_of_features
  assert not Stored(codes, token, scale, bits=4).has_groups_of_features
  wide = token.astype(jnp.float32)
  assert not Stored(codes, wide, bits=4).has_groups_of_features
