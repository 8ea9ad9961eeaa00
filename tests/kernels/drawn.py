"""What kernels are given: numbers, positions, pages, and a library."""

import numpy as np
from absl.testing import absltest

from kvjax.native import build, load

BATCH, SLOTS = 2, 37


def build_or_skip():
  """Builds the library, or skips a module: to be its `setUpModule`."""
  if load.missing():
    try:
      build.build()
    except build.BuildError as error:
      raise absltest.SkipTest(str(error)) from error
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
  held = np.full((BATCH, slots), -1, np.int32)
  held[0, :length] = np.arange(length)
  held[1, slots - length // 2 :] = np.arange(length // 2)[::-1]
  last = np.array([[length], [length // 2]], np.int32)
  positions = last - np.arange(tokens, 0, -1, dtype=np.int32)
  return np.maximum(positions, -1), held


def poison(x, held):
  """Returns streams `[B, K, S, H]`, NaN in every slot without a token."""
  return np.where(held[:, None, :, None] < 0, np.nan, x)


def ordered(length, slots=SLOTS):
  """Returns positions `[B, S]` of rows of a length and half of it."""
  index = np.arange(slots, dtype=np.int32)
  return np.where(index < [[length], [length // 2]], index, -1)


def in_pages(streams, held, page):
  """Returns pools of `[B, K, S, H]`, of positions `[B, S]`, and the table.

  Pages lie in no order, rows share the first, what is empty is in none; no row
  has the pool's last one.
  """
  columns = -(-held.shape[1] // page)
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
  positions = pool(held[:, None], -1)
  empty = (positions[0, table] < 0).all(-1)
  return pools, positions, np.where(empty, -1, table)
