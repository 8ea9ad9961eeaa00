"""Overflow: nothing is clamped, nothing is lost, and it is said aloud."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import kvjax
from tests.contract.oracle import Sees
from tests.contract.table import (
  CODECS,
  KINDS,
  VARIANTS,
  Cell,
  Row,
  draw,
  text,
)

CAPACITY, WIDTH = 11, 7
SHORT = (
  Row('dense', kvjax.Dense(), Sees(), 4, False),
  Row('paged', kvjax.Paged(page=4), Sees(), 4, False),
  Row('short_ring', kvjax.Ring(window=29, slack=2), Sees(29), 3, False),
  Row(
    'short_sinks',
    kvjax.Sinks(sinks=2, window=29, slack=2),
    Sees(29, 2),
    3,
    False,
  ),
)
CELLS = [
  Cell(variant, row, codec, f'{variant.name}_{row.name}{suffix}')
  for variant in VARIANTS
  for row in SHORT
  for suffix, codec in CODECS
  if variant.name == 'gqa'
  and (codec is None or row in SHORT[:2])
  or variant.name == 'mla_absorbed'
  and codec is None
  and row in SHORT[:2]
]
by_cell = pytest.mark.parametrize('cell', CELLS, ids=lambda cell: cell.name)


@functools.cache
def traced(cell: Cell, vmapped: bool = False):
  """Returns an extend inside a jit, where the host knows no length."""
  extend = functools.partial(cell.extend)
  if vmapped:
    extend = jax.vmap(extend, in_axes=(None, 0, 0, 0))
  return jax.jit(extend)


def filled(cell: Cell, params, tokens, lengths):
  """Returns a cache of `lengths [3]` tokens, fed by WIDTH."""
  cache, done = cell.init(3, CAPACITY), np.zeros(3, np.int32)
  while (done < lengths).any():
    count = np.minimum(lengths - done, WIDTH)
    chunk = at(tokens, done)
    _, cache = traced(cell)(params, cache, chunk, count)
    done = done + count
  return cache


def at(tokens, start):
  columns = (start[:, None] + np.arange(WIDTH)) % tokens.shape[1]
  return np.take_along_axis(tokens, columns, axis=1)


def assert_row_untouched(old, new, row):
  """Length, positions and every live slot of a row are what they were."""
  for a, b in zip(live(old, row), live(new, row), strict=True):
    np.testing.assert_array_equal(a, b)


def live(cache, row):
  alone = jax.tree.map(np.asarray, kvjax.take(cache, [row]))
  slot_positions = alone.books[0].positions
  table = getattr(alone.books[0], 'table', None)
  if table is not None:
    pages = table[0][table[0] >= 0]
    leaves = [slot_positions[:, pages]] + [
      leaf[:, pages] for leaf in jax.tree.leaves(alone.stores)
    ]
    mask = slot_positions[:, pages] >= 0
  else:
    leaves, mask = (
      [slot_positions, *jax.tree.leaves(alone.stores)],
      slot_positions >= 0,
    )
  return [alone.length] + [
    leaf[np.broadcast_to(mask, leaf.shape[:3])] for leaf in leaves
  ]


@by_cell
def test_what_the_host_knows_raises_and_leaves_the_cache(cell):
  params, tokens = draw(cell.config, 0), text(length=CAPACITY)
  lengths = np.array([9, 11, 6])
  cache = filled(cell, params, tokens, lengths)
  before = [np.array(x) for x in jax.tree.leaves(cache)]
  for excess in (1, 5, 90):
    count = np.array([1, excess, 1], np.int32)
    chunk = np.zeros((3, max(WIDTH, excess)), np.int32)
    with pytest.raises(ValueError, match=f'{excess} tokens do not fit'):
      cell.extend(params, cache, chunk, count)
  with pytest.raises(ValueError, match='do not fit'):
    prompt = jnp.zeros((3, 1), jnp.int32)
    kvjax.prefill(cell.config, params, cache, prompt, donate=True)
  after = jax.tree.leaves(cache)
  assert not any(x.is_deleted() for x in after)
  for a, b in zip(before, after, strict=True):
    np.testing.assert_array_equal(a, b)


@by_cell
def test_a_traced_row_is_dropped_whole_flagged_and_nan(cell):
  params, tokens = draw(cell.config, 0), text(length=CAPACITY)
  oracle = cell.oracle(params)(tokens)
  start = np.array([9, 6, 11], np.int32)
  cache = filled(cell, params, tokens, start)
  for count in ([2, 6, 0], [1, 7, 3], [2, 5, 1]):  # row by row, by 1 to 5
    count = np.array(count, np.int32)
    lost = start + count > CAPACITY
    logits, new = traced(cell)(params, cache, at(tokens, start), count)
    logits = np.asarray(logits)
    np.testing.assert_array_equal(new.overflow, lost)
    length = np.where(lost, start, start + count)
    np.testing.assert_array_equal(new.length, length)
    for row in range(3):
      if lost[row]:
        assert np.isnan(logits[row]).all()
        assert_row_untouched(cache, new, row)
      else:
        want = oracle[row, start[row] : start[row] + count[row]]
        limit = 1e-5 * np.abs(oracle).max()
        if cell.codec is None:
          got = logits[row, : count[row]]
          np.testing.assert_allclose(got, want, rtol=0, atol=limit)
    if lost.any():
      with pytest.raises(ValueError, match='Rewind'):
        kvjax.check(new)
      kvjax.check(kvjax.rewind(new, new.length))


@pytest.mark.parametrize(
  'kind', (kvjax.Dense(), kvjax.Paged(page=4)), ids=lambda kind: kind.name
)
def test_pieces_beside_a_bounded_layer_are_dropped_whole(kind):
  """No piece of a chunk that does not fit is written, the first included."""
  layer = kvjax.Layer(kvjax.Grouped(4, 2, 5), kvjax.MLP(7))
  config = kvjax.ModelConfig(19, 13, (layer, layer))
  params, tokens = draw(config, 0), jnp.asarray(text(length=CAPACITY))[:2]
  kinds = kind, kvjax.Bounded(budget=8, slack=1, prefill='chunks')
  cache = kvjax.init_cache(config, 2, 8, kinds=kinds)
  extend = jax.jit(functools.partial(kvjax.extend, config))
  _, cache = extend(params, cache, tokens[:, :6], np.array([6, 4]))
  logits, new = extend(params, cache, tokens[:, 6:10])
  np.testing.assert_array_equal(new.overflow, [True, False])
  np.testing.assert_array_equal(new.length, [6, 8])
  assert np.isnan(logits[0]).all() and np.isfinite(logits[1]).all()
  for a, b in zip(cache.books, new.books, strict=True):
    where = 'table' if hasattr(a, 'table') else 'positions'
    np.testing.assert_array_equal(getattr(a, where)[0], getattr(b, where)[0])
  again = kvjax.rewind(new, new.length)
  count = np.array([2, 0])
  want, _ = extend(params, cache, tokens[:, 6:8], count)
  got, _ = extend(params, again, tokens[:, 6:8], count)
  np.testing.assert_array_equal(got[0], want[0])


@by_cell
def test_under_vmap_each_cache_overflows_by_itself(cell):
  params, tokens = draw(cell.config, 0), text(length=CAPACITY)
  starts = np.array([[9, 6, 11], [8, 11, 0]], np.int32)
  counts = np.array([[2, 6, 0], [4, 1, 7]], np.int32)
  caches = [filled(cell, params, tokens, start) for start in starts]
  chunks = np.stack([at(tokens, start) for start in starts])
  stacked = jax.tree.map(lambda *x: jnp.stack(x), *caches)
  logits, new = traced(cell, True)(params, stacked, chunks, counts)
  for i, (cache, chunk, count) in enumerate(
    zip(caches, chunks, counts, strict=True)
  ):
    alone_logits, alone = traced(cell)(params, cache, chunk, count)
    mine = jax.tree.map(lambda x, i=i: x[i], new)
    np.testing.assert_array_equal(mine.overflow, alone.overflow)
    is_token = np.arange(WIDTH)[None, :] < count[:, None]
    np.testing.assert_allclose(
      logits[i][is_token], alone_logits[is_token], rtol=1e-5, atol=1e-5
    )
    for row in range(3):
      pairs = zip(live(alone, row), live(mine, row), strict=True)
      for a, b in pairs:
        atol = 1 if a.dtype == np.int8 else 1e-5
        np.testing.assert_allclose(a, b, atol=atol)


@by_cell
def test_a_step_past_the_end_is_nan_and_flagged_until_rewound(cell):
  params, tokens = draw(cell.config, 0), text(length=CAPACITY)
  full = np.array([11, 11, 9], np.int32)
  cache = filled(cell, params, tokens, full)
  step = functools.partial(
    kvjax.decode_step,
    cell.config,
    params,
    options=kvjax.DecodeOptions(form=cell.variant.form),
  )
  token = jnp.asarray(tokens[:, 9])
  logits, after = step(cache, token, donate=False)
  assert np.isnan(logits[:2]).all() and np.isfinite(logits[2]).all()
  np.testing.assert_array_equal(after.overflow, [True, True, False])
  np.testing.assert_array_equal(after.length, [11, 11, 10])
  keys = jax.random.split(jax.random.key(0), 3)
  sampled, _ = kvjax.sample(logits, keys, kvjax.Sampling())
  assert (np.asarray(sampled)[:2] == -1).all() and sampled[2] >= 0
  for row in range(2):
    assert_row_untouched(cache, after, row)
  again = kvjax.rewind(after, np.array([9, 9, 9]))
  logits, again = step(again, token)
  kvjax.check(again)
  fresh = filled(cell, params, tokens, np.array([9, 9, 9]))
  want, _ = step(fresh, token)
  np.testing.assert_allclose(logits, want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('row', KINDS, ids=lambda row: row.name)
def test_a_kind_that_forgets_goes_on_and_one_that_does_not_raises(row):
  cell = Cell(VARIANTS[2], row, None, row.name)
  params = draw(cell.config, 0)
  cache = cell.init(3, CAPACITY)
  chunk = np.zeros((3, CAPACITY), np.int32)
  if row.wraps:
    for _ in range(2):
      _, cache = cell.extend(params, cache, chunk, np.full(3, CAPACITY))
    kvjax.check(cache)
    assert (np.asarray(cache.length) == 2 * CAPACITY).all()
  else:
    _, cache = cell.extend(params, cache, chunk, np.full(3, CAPACITY))
    with pytest.raises(ValueError, match='do not fit'):
      cell.extend(params, cache, chunk, np.array([0, 1, 0]))


@pytest.mark.parametrize('row', KINDS, ids=lambda row: row.name)
def test_rewinding_further_than_a_kind_can_raises(row):
  cell = Cell(VARIANTS[2], row, None, row.name)
  params = draw(cell.config, 0)
  cache = cell.init(3)
  chunk = np.zeros((3, CAPACITY), np.int32)
  _, cache = cell.extend(params, cache, chunk, np.full(3, CAPACITY))
  low = CAPACITY - row.rewinds if row.wraps else 0
  np.testing.assert_array_equal(kvjax.earliest(cache), np.full(3, low))
  kvjax.rewind(cache, np.full(3, low))
  with pytest.raises(ValueError, match='cannot rewind'):
    kvjax.rewind(cache, np.array([CAPACITY, low - 1, CAPACITY]))


def test_renumbered_sinks_without_rotary_positions_are_refused():
  config = kvjax.ModelConfig(
    19, 13, (kvjax.Layer(kvjax.Grouped(3, 3, 6), kvjax.MLP(7)),)
  )
  kind = kvjax.Sinks(sinks=2, window=5, renumber=True)
  with pytest.raises(ValueError, match='renumber=False'):
    kvjax.init_cache(config, 3, 23, kinds=kind)
