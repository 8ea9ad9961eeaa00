"""A cache as a table, without printing its arrays."""

import dataclasses
import functools
import itertools
import math
from typing import Any

import jax
import numpy as np

from kvjax.caches.kind import Kind
from kvjax.decoding.layout import LayerStore, Layout
from kvjax.decoding.parse import spell
from kvjax.decoding.tracing import is_traced
from kvjax.display import Display, Displayed
from kvjax.mesh.host import can_read
from kvjax.streams.codecs import Plain


@dataclasses.dataclass(frozen=True)
class LayerFacts:
  """One row of `inspect`: a layer's kind, slots, positions and bytes."""

  layer: int
  kind: str
  codec: str
  slots: int
  filled: str
  positions: str
  bytes: int


@dataclasses.dataclass(frozen=True, repr=False)
class Inspection(Displayed):
  """What a cache holds; prints as a table.

  Attributes:
    batch_size: B rows.
    capacity: most tokens a row may hold where a kind has a limit.
    lengths: tokens of the rows, the fewest and the most.
    rows: one a layer.
    total_bytes: of the whole cache.
    devices: that share it.
    device_bytes: that each of these holds.
  """

  batch_size: int
  capacity: int
  lengths: str
  rows: tuple[LayerFacts, ...]
  total_bytes: int
  devices: int = 1
  device_bytes: int | None = None

  def display(self) -> Display:
    names = [f.name for f in dataclasses.fields(LayerFacts)]
    alike = lambda row: dataclasses.replace(row, layer=0)
    runs = [list(run) for _, run in itertools.groupby(self.rows, alike)]
    title = (
      f'Cache of {self.batch_size} rows, capacity {self.capacity}, tokens '
      f'{self.lengths}, {self.total_bytes:,} bytes'
    )
    if self.devices > 1:
      title += f', {self.device_bytes:,} on each of {self.devices} devices'
    return Display(
      title,
      names,
      [_cells(run) for run in runs],
    )


def _cells(run: list[LayerFacts]) -> list[str]:
  """Returns the row of neighbouring layers that differ in nothing."""
  first, last = run[0], run[-1]
  layers = str(first.layer)
  if first is not last:
    layers += f'..{last.layer}'
  facts = [first.kind, first.codec, str(first.slots), first.filled]
  size = sum(row.bytes for row in run)
  return [layers, *facts, first.positions, f'{size:,}']


def summarize(layout: Layout, cache: Any) -> Inspection:
  """Returns the table of a cache.

  Args:
    layout: of the cache.
    cache: a `Cache`; its class is not imported here, since it prints itself by
      this function.
  """
  rows = tuple(
    _layer_facts(layout, cache, index) for index in range(len(layout.stores))
  )
  lengths = _known(cache.length)
  text = '?' if lengths is None else _range(lengths)
  return Inspection(
    batch_size=cache.batch_size,
    capacity=layout.capacity,
    lengths=text,
    rows=rows,
    total_bytes=_nbytes(cache),
    **_device_facts(cache),
  )


def _layer_facts(layout: Layout, cache: Any, index: int) -> LayerFacts:
  store = layout.stores[index]
  if store is None:
    return LayerFacts(index, 'shared', '-', 0, '-', '-', 0)
  book = cache.books[layout.books[index]]
  filled, span = _filled(store.kind, book, cache.length)
  return LayerFacts(
    layer=index,
    kind=store.kind.name,
    codec=_codecs(store),
    slots=store.kind.row_slots,
    filled=filled,
    positions=span,
    bytes=_nbytes(cache.stores[index]),
  )


def _codecs(store: LayerStore) -> str:
  """Returns the codec of all streams, or one a stream, as they are written."""
  codecs = {name: codec for name, codec in store.codecs if codec != Plain()}
  if not codecs:
    return str(np.dtype(store.dtype))
  first, *others = dict.fromkeys(spell(codec) for _, codec in store.codecs)
  if not others:
    return first
  return ','.join(f'{name}={spell(codec)}' for name, codec in codecs.items())


def _filled(kind: Kind, book: Any, length: jax.Array) -> tuple[str, str]:
  # To read what other processes hold, all of them would have to ask at once.
  if _known(length) is None or not all(map(can_read, jax.tree.leaves(book))):
    return '?', '?'
  rows = jax.device_get(_slot_positions(kind, book, length))
  slot_positions = np.concatenate(rows, axis=-1)
  filled = slot_positions[slot_positions >= 0]
  count = (slot_positions >= 0).sum(axis=-1)
  span = f'{filled.min()}..{filled.max()}' if filled.size else '-'
  return _range(count.reshape(-1)), span


@functools.partial(jax.jit, static_argnums=0)
def _slot_positions(kind, book, length):
  views = kind.views(book, {}, length)
  return [view.fetch(0, view.slots)[1] for view in views]


def _range(x: np.ndarray) -> str:
  low, high = int(x.min()), int(x.max())
  return str(low) if low == high else f'{low}..{high}'


def _known(x: Any) -> np.ndarray | None:
  concrete = isinstance(x, jax.Array | np.ndarray) and not is_traced(x)
  return jax.device_get(x) if concrete else None


def _device_facts(cache: Any) -> dict[str, int]:
  """Returns how many devices share a cache and what each holds, if known."""
  leaves = jax.tree.leaves(cache)
  if is_traced(leaves) or not all(isinstance(x, jax.Array) for x in leaves):
    return {}
  size = sum(
    math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize
    for x in leaves
  )
  return {
    'devices': len(cache.length.sharding.device_set),
    'device_bytes': size,
  }


def _nbytes(tree: Any) -> int:
  return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))
