"""rewind, take, repeat, concat: exact or refused; and how a cache prints."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractMesh, AxisType, reshard, use_abstract_mesh
from jax.sharding import PartitionSpec as P

import kvjax
from kvjax.caches.array_spec import ArraySpec, is_leaf
from kvjax.decoding.allocate import cache_spec
from kvjax.mesh.rules import partition_of
from kvjax.sharding import Rules, of_cache
from tests.facts import tiny

CONFIG = tiny.decoder()
PARAMS = tiny.params(CONFIG)
RING = kvjax.Ring(window=5, slack=3)


def fed(count=8, kind=None, batch=2, **more):
  """Returns a cache of rows of that many tokens."""
  cache = kvjax.init_cache(CONFIG, batch, 17, kinds=kind, **more)
  return tiny.feed(CONFIG, cache, tiny.tokens(batch, count), (count,))[1]


@pytest.mark.parametrize(
  'kind',
  [
    pytest.param(kvjax.Dense(), id='dense'),
    pytest.param(RING, id='ring'),
    pytest.param(kvjax.Paged(page=3), id='paged'),
  ],
)
def test_equals_never_having_seen(kind):
  """Bit for bit in every counter and live slot, row by row."""
  ids = tiny.tokens(2, 8)
  empty = kvjax.init_cache(CONFIG, 2, 17, kinds=kind)
  _, want = kvjax.extend(CONFIG, PARAMS, empty, ids, [7, 5])
  _, cache = tiny.feed(CONFIG, want, tiny.tokens(2, 3, 5), (3,))
  back = kvjax.rewind(cache, [7, 5])
  assert back.length.tolist() == [7, 5]
  more = tiny.tokens(2, 8, 6)
  got, a = tiny.feed(CONFIG, back, more, (8,))
  same, b = tiny.feed(CONFIG, want, more, (8,))
  tiny.alike(got, same)
  if kind.name == 'dense':
    tiny.alike(tiny.counters(a), tiny.counters(b))


def test_refusals():
  cache, ring = fed(), fed(kind=kvjax.Ring(window=5))
  for lengths, message in (
    (9, 'Row 0: cannot rewind to 9; it has seen 8'),
    ([8, -1], 'Row 1: cannot rewind to -1.*between 0 and'),
    ([1, 2, 3], r'lengths has shape \[3\]; it must be .* integers \[2\]'),
    (2.5, 'lengths has dtype float64; it must be .* integers'),
  ):
    with pytest.raises(ValueError, match=message):
      kvjax.rewind(cache, lengths)
  with pytest.raises(ValueError, match='from 8 to 6.*back to 7.*slack'):
    kvjax.rewind(ring, [8, 6])
  assert kvjax.earliest(ring).tolist() == [7, 7]


def test_inside_a_trace_the_row_keeps_its_tokens():
  ring = fed(kind=kvjax.Ring(window=5))
  after = jax.jit(kvjax.rewind)(ring, jnp.asarray([7, 2]))
  assert after.length.tolist() == [7, 8]
  assert after.overflow.tolist() == [False, True]


def test_it_clears_the_flag():
  cache = fed()
  cache = cache.replace(overflow=jnp.asarray([True, False]))
  with pytest.raises(ValueError, match=r'Rows \[0\]'):
    kvjax.check(cache)
  kvjax.check(kvjax.rewind(cache, 8))


def test_every_layer_of_a_mixture():
  config = tiny.decoder(tiny.GQA, tiny.GQA)
  kinds = kvjax.Dense(), RING
  cache = kvjax.init_cache(config, 1, 17, kinds=kinds)
  _, cache = tiny.feed(config, cache, tiny.tokens(1, 9), (8, 1))
  assert kvjax.earliest(cache).tolist() == [5]
  for book in kvjax.rewind(cache, 5).books:
    assert int(book.positions.max()) == 4


@pytest.mark.parametrize('kind', tiny.KINDS.values(), ids=tiny.KINDS)
def test_rows_go_on_as_they_would_have(kind):
  """Taken twice, out of order, with int8 codes, for every kind."""
  cache = fed(kind=kind, codec=kvjax.Int8())
  more = tiny.tokens(2, 2, 5)
  rows = np.asarray([1, 0, 1])
  want, _ = tiny.feed(CONFIG, cache, more, (2,))
  got, _ = tiny.feed(CONFIG, kvjax.take(cache, rows), more[rows], (2,))
  tiny.close(got, want[rows], 1e-6)


def test_repeat_is_jnp_repeat():
  cache = fed()
  tiny.alike(
    kvjax.repeat(cache, 3),
    jax.tree.map(lambda x: jnp.repeat(x, 3, axis=0), cache),
  )


@pytest.mark.parametrize(
  ('rows', 'message'),
  [
    ([2], r'rows=\[2\] must .* \[0, 2\)'),
    ([-1], r'rows=\[-1\] must '),
    ([], 'rows is empty: take at least one'),
    ([0.5], 'dtype float64; it must be an array of integers'),
    ([[0]], r'shape \[1, 1\]; it must be an array of integers \[any\]'),
  ],
)
def test_take_refuses(rows, message):
  with pytest.raises(ValueError, match=message):
    kvjax.take(fed(), rows)


def test_repeat_and_concat_refuse():
  for count in (0, 1.5):
    with pytest.raises(ValueError, match=f'count={count} must be a pos'):
      kvjax.repeat(fed(), count)
  with pytest.raises(ValueError, match='at least one cache'):
    kvjax.concat([])
  with pytest.raises(
    ValueError, match='differ in their layout.*same config and init_cache'
  ):
    kvjax.concat([fed(), fed(kind=RING)])


def test_a_table_and_no_array():
  config = tiny.decoder(tiny.GQA, tiny.GQA)
  cache = kvjax.init_cache(config, 2, 17, kinds=(None, RING))
  _, cache = kvjax.extend(
    config, tiny.params(config), cache, tiny.tokens(2, 8), [8, 3]
  )
  text = repr(cache)
  assert text == str(kvjax.inspect(cache))
  assert 'Array' not in text
  head, _, dense, ring = text.splitlines()
  assert '2 rows, capacity 17, tokens 3..8' in head
  for row, kind, slots, filled, span in (
    (dense, 'dense', '17', '3..8', '0..7'),
    (ring, 'ring', '8', '3..8', '0..7'),
  ):
    cells = row.split()
    assert cells[1:6] == [kind, 'float32', slots, filled, span]
  found = kvjax.inspect(cache)
  want = sum(x.nbytes for x in jax.tree.leaves(cache))
  assert found.total_bytes == want
  assert found.rows[0].bytes == 2 * 3 * 17 * (10 + 7) * 4


def test_pages_are_counted_by_row_and_freed_ones_are_empty():
  cache = kvjax.init_cache(CONFIG, 2, 12, kinds=kvjax.Paged(page=4))
  _, cache = kvjax.extend(CONFIG, PARAMS, cache, tiny.tokens(2, 10), [10, 6])
  (row,) = kvjax.inspect(cache).rows
  assert (row.filled, row.positions) == ('6..10', '0..9')
  cache = kvjax.rewind(cache, 0)
  (row,) = kvjax.inspect(cache).rows
  assert (row.filled, row.positions) == ('0', '-')
  assert (np.asarray(cache.books[0].positions) == -1).all()
  for leaf in jax.tree.leaves(kvjax.testing.poison(cache).stores):
    assert np.isnan(leaf).all()


def test_what_has_no_values_is_shown_all_the_same():
  shapes = jax.eval_shape(lambda: kvjax.init_cache(CONFIG, 2, 12))
  assert '?' in repr(shapes)
  cache = kvjax.init_cache(CONFIG, 2, 12)
  kvjax.fork(cache, donate=True)
  assert '2 rows, donated' in repr(cache)


def test_inside_a_trace_what_is_not_known():
  seen = []
  jax.jit(lambda c: seen.append(repr(c)))(fed())
  assert '?' in seen[0]


@pytest.mark.parametrize(
  'change',
  [
    pytest.param(lambda cache: kvjax.concat([cache, cache]), id='concat'),
    pytest.param(lambda cache: kvjax.repeat(cache, 2), id='repeat'),
    pytest.param(lambda cache: kvjax.rewind(cache, 0), id='rewind'),
  ],
)
def test_on_a_mesh_the_rows_stay_split(change):
  explicit = (AxisType.Explicit,) * 2
  mesh: Any = AbstractMesh((2, 2), ('model', 'context'), axis_types=explicit)
  rules = Rules(heads=('model', 'context'), slots='context')
  config = tiny.decoder(kvjax.Grouped(4, 2, 4))
  specs = []

  def run():
    spec = cache_spec(config, 2, 16, partition=partition_of(mesh, rules))
    cache = jax.tree.map(ArraySpec.allocate, spec, is_leaf=is_leaf)
    where = of_cache(config, mesh, rules, batch_size=2, capacity=16)
    changed = change(jax.tree.map(reshard, cache, where))
    leaves = changed.stores[0]['key'], changed.length
    specs.extend(jax.typeof(leaf).sharding.spec for leaf in leaves)

  with use_abstract_mesh(mesh):
    jax.eval_shape(run)
  assert specs == [P(None, 'model', 'context', None), P(None)]
