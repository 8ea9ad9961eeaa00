"""Eight bits: within half a scale, encoded once, never rewritten."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import kvjax
from kvjax.attention.rotary import rotary_table
from tests.contract.table import Cell, cells, draw, text

LATENT = ('dense', 'paged', 'heavy_hitters')
CELLS = [
  cell
  for cell in cells()
  if cell.codec is not None
  and (
    cell.variant.name == 'gqa'
    or cell.variant.name == 'mla_absorbed'
    and cell.row.name in LATENT
  )
]


@pytest.mark.parametrize('cell', CELLS, ids=lambda cell: cell.name)
def test_codes_are_within_half_a_scale_and_append_only(cell: Cell):
  params, tokens = draw(cell.config, 0), text()
  cache, known = cell.init(3), {}
  for start in range(0, 15, 3):
    chunk = tokens[:, start : start + 3]
    _, cache = cell.extend(params, cache, chunk, np.full(3, 3))
    known = compare(known, by_token(cache))
  streams = cell.config.layers[0].attention.project_streams(
    params['layers'][0]['attention'],
    params['embedding'][tokens],
    table(cell, tokens),
  )
  for (row, head, position), stored in known.items():
    for name, leaf in stored.items():
      true = np.asarray(streams[name])[row, head, position]
      if name == 'rotary':
        np.testing.assert_allclose(leaf, true, rtol=1e-6, atol=1e-6)
        continue
      codes, scale = leaf['codes'], leaf['scale']
      assert codes.dtype == np.int8
      np.testing.assert_allclose(scale * 127, np.abs(true).max(), rtol=1e-5)
      error = np.abs(codes * scale - true).max()
      assert error <= 0.5 * scale * (1 + 1e-4), (name, row, head, position)


def compare(old, new):
  """Returns the tokens of both; a token in both is stored alike."""
  for token in old.keys() & new.keys():
    jax.tree.map(np.testing.assert_array_equal, old[token], new[token])
  return old | new


def by_token(cache):
  """Returns `{(row, head, position): stored leaves}` of the live slots."""
  found = {}
  for name, store in cache.stores[0].items():
    store = jax.tree.map(np.asarray, store)
    paged = cache.layout.stores[0].kind.name == 'paged'
    heads = jax.tree.leaves(store)[0].shape[0 if paged else 1]
    for row, head in np.ndindex(cache.batch_size, heads):
      slots = (in_pages if paged else in_row)(cache.books[0], row, head)
      for slot, position in slots:
        leaf = jax.tree.map(lambda x, slot=slot: x[slot], store)
        found.setdefault((row, head, position), {})[name] = leaf
  return found


def in_row(book, row, head):
  """Yields index and position of a row's live slots."""
  slot_positions = np.asarray(book.positions)
  slot_positions = slot_positions[row, min(head, slot_positions.shape[1] - 1)]
  for slot in np.flatnonzero(slot_positions >= 0):
    yield (row, head, slot), int(slot_positions[slot])


def in_pages(book, row, head):
  slot_positions, table = (
    np.asarray(book.positions)[0],
    np.asarray(book.table)[row],
  )
  for page in table[table >= 0]:
    for slot in np.flatnonzero(slot_positions[page] >= 0):
      yield (head, page, slot), int(slot_positions[page, slot])


def table(cell: Cell, tokens: np.ndarray):
  positions = jnp.asarray(np.indices(tokens.shape, np.int32)[1])
  return rotary_table(cell.variant.attention.rotary, positions, 0)


@pytest.mark.parametrize('width', [1, 5, 17])
def test_a_round_trip_of_zeros_ones_and_extremes_is_exact(width):
  codec = kvjax.Int8()
  for value in (0.0, 1.0, -127.0, 3e38, 1e-30):
    x = jnp.full((2, width), value, jnp.float32)
    back = codec.decode(codec.encode(x, jnp.float32))
    np.testing.assert_allclose(back, x, rtol=1e-6)
