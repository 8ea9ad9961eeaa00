"""What kernels are given: numbers, positions, pages, views, and a library."""

import unittest

import jax
import jax.numpy as jnp
import numpy as np

import kvjax
from kvjax import kernels
from kvjax.native import build, load
from kvjax.streams.view import contiguous_view

BATCH, SLOTS = 2, 37


def build_or_skip():
  """Builds the library, or skips a module: to be its `setUpModule`."""
  if load.missing():
    try:
      build.build()
    except build.BuildError as error:
      raise unittest.SkipTest(str(error)) from error
    load.missing.cache_clear()


def draw(shape, slots=SLOTS):
  """Returns normal queries, keys and values in NumPy."""
  heads, groups, tokens, width, value = shape
  rng = np.random.default_rng(sum(shape))
  sizes = (heads, groups, tokens, width), (heads, slots, width)
  return [
    rng.standard_normal((BATCH, *size), dtype=np.float32)
    for size in (*sizes, (heads, slots, value))
  ]


def book(length, tokens, slots=SLOTS):
  """Returns query positions `[B, T]` and slots' positions `[B, S]`."""
  slot_positions = np.full((BATCH, slots), -1, np.int32)
  slot_positions[0, :length] = np.arange(length)
  slot_positions[1, slots - length // 2 :] = np.arange(length // 2)[::-1]
  last = np.array([[length], [length // 2]], np.int32)
  positions = last - np.arange(tokens, 0, -1, dtype=np.int32)
  return np.maximum(positions, -1), slot_positions


def poison(x, slot_positions):
  """Returns streams `[B, K, S, H]`, NaN in every slot without a token."""
  return np.where(slot_positions[:, None, :, None] < 0, np.nan, x)


def ordered(length, slots=SLOTS):
  """Returns positions `[B, S]` of rows of a length and half of it."""
  index = np.arange(slots, dtype=np.int32)
  return np.where(index < [[length], [length // 2]], index, -1)


def in_pages(streams, slot_positions, page):
  """Returns pools of `[B, K, S, H]`, of positions `[B, S]`, and the table.

  Pages lie in no order, rows share the first, what is empty is in none; no row
  has the pool's last one.
  """
  columns = -(-slot_positions.shape[1] // page)
  order = np.random.default_rng(page).permutation(2 * columns)
  table = order.reshape(2, columns).astype(np.int32)
  table[1, 0] = table[0, 0]

  def pool(x, fill):
    x = np.moveaxis(x, 2, 0)
    more = np.full((columns * page - len(x), *x.shape[1:]), fill, x.dtype)
    x = np.concatenate([x, more])
    x = x.reshape(columns, page, *x.shape[1:])
    x = np.moveaxis(x, (2, 3), (1, 0))  # [K, B, columns, page, ...]
    whole = np.full((len(x), 2 * columns + 1, *x.shape[3:]), fill, x.dtype)
    for row in range(2):
      whole[:, table[row]] = x[:, row]
    return whole

  pools = {name: pool(x, np.nan) for name, x in streams.items()}
  positions = pool(slot_positions[:, None], -1)
  empty = (positions[0, table] < 0).all(-1)
  return pools, positions, np.where(empty, -1, table)


def draw_ragged(
  shape, lengths, slots, dtype='bfloat16', roll=0, value_width=64
):
  """Returns queries, keys, values, query positions and slot positions.

  Rows have different lengths; keys and values are NaN where no token is.

  Args:
    shape: kv heads, groups, tokens; keys are 64 wide.
    lengths: tokens of each row.
    slots: S.
    dtype: of queries, keys and values.
    roll: slots by which tokens are shifted, as in a ring that wraps.
    value_width: E.
  """
  heads, groups, tokens = shape
  lengths, rng = np.asarray(lengths)[:, None], np.random.default_rng(0)
  batch = len(lengths)
  slot = np.arange(slots)
  slot_positions = np.roll(np.where(slot < lengths, slot, -1), roll, 1)
  positions = np.maximum(lengths - tokens + np.arange(tokens), -1)
  sizes = (groups, tokens, 64), (slots, 64), (slots, value_width)
  q, k, v = (
    jnp.asarray(rng.standard_normal((batch, heads, *size)), dtype)
    for size in sizes
  )
  empty = jnp.asarray(slot_positions < 0)[:, None, :, None]
  k, v = (jnp.where(empty, jnp.asarray(jnp.nan, dtype), x) for x in (k, v))
  return q, k, v, positions.astype(np.int32), slot_positions.astype(np.int32)


def view_of(k, v, slot_positions, ordered=True):
  """Returns the view of a plain store."""
  codec, filled = kvjax.Plain(), int((slot_positions >= 0).any(0).sum())
  view = contiguous_view(
    {'key': k, 'value': v},
    jnp.asarray(slot_positions)[:, None],
    jnp.int32(filled if ordered else slot_positions.shape[1]),
    ordered=ordered,
  )
  return view.map(dict, lambda x: {name: codec.stored(x[name]) for name in x})


def wide(*arrays):
  """Returns arrays in float64, for the oracle."""
  return [np.asarray(x, np.float64) for x in arrays]


def lowered_step(platform, kernel, block=None):
  """Returns the text of a decode step lowered for an absent device."""
  attention = kvjax.Grouped(4, 2, 64, rotary=kvjax.Rotary(64))
  layer = kvjax.Layer(attention, kvjax.MLP(24))
  config = kvjax.ModelConfig(53, 32, (layer,), dtype='bfloat16')
  cache = jax.eval_shape(lambda: kvjax.init_cache(config, 3, 320))
  params = jax.eval_shape(lambda: kvjax.init_params(config, jax.random.key(0)))
  token = jax.ShapeDtypeStruct((3,), jnp.int32)

  def step(params, cache, token):
    options = kvjax.DecodeOptions(kernel=kernel, block=block)
    return kvjax.decode_step(config, params, cache, token, options=options)

  names = {'gpu': 'cuda', 'tpu': 'tpu'}
  with kernels.targeting(platform):
    traced = jax.jit(step, donate_argnames='cache').trace(params, cache, token)
    return traced.lower(lowering_platforms=(names[platform],)).as_text()
