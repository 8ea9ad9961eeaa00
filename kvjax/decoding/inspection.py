"""Looking at a cache without printing its arrays; checking it for overflow."""

import dataclasses
from typing import Any

import jax
import numpy as np

from kvjax.caches.kind import Kind
from kvjax.decoding.cache import Cache, check_alive, is_traced


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


@dataclasses.dataclass(frozen=True)
class Inspection:
  """What a cache holds; prints as a table."""

  batch_size: int
  capacity: int
  lengths: str
  rows: tuple[LayerFacts, ...]
  total_bytes: int

  def __str__(self) -> str:
    head = (
      f'Cache of {self.batch_size} rows, capacity {self.capacity}, tokens '
      f'{self.lengths}, {self.total_bytes:,} bytes'
    )
    names = [f.name for f in dataclasses.fields(LayerFacts)]
    cells = [names] + [
      [
        f'{getattr(row, n):,}' if n == 'bytes' else str(getattr(row, n))
        for n in names
      ]
      for row in self.rows
    ]
    widths = [max(len(r[i]) for r in cells) for i in range(len(names))]
    lines = [
      '  '.join(c.rjust(w) for c, w in zip(r, widths, strict=True))
      for r in cells
    ]
    return '\n'.join([head] + lines)


def inspect(cache: Cache) -> Inspection:
  """Returns kind, filled slots, positions and bytes of every layer.

  Reads lengths and books (it waits for them), never a stream. Inside a trace,
  what is not known reads `?`.
  """
  check_alive(cache)
  rows = []
  layout = cache.layout
  for index, memory in enumerate(layout.stores):
    if memory is None:
      rows.append(LayerFacts(index, 'shared', '-', 0, '-', '-', 0))
      continue
    book = cache.books[layout.books[index]]
    filled, span = _filled(memory.kind, book, cache.length)
    codec = {type(c).__name__.lower() for _, c in memory.codecs} - {'plain'}
    rows.append(
      LayerFacts(
        index,
        memory.kind.name,
        ''.join(sorted(codec)) or str(np.dtype(memory.dtype)),
        memory.kind.row_slots,
        filled,
        span,
        _nbytes(cache.stores[index]),
      )
    )
  lengths = _known(cache.length)
  text = '?' if lengths is None else _range(lengths)
  return Inspection(
    cache.batch_size, layout.capacity, text, tuple(rows), _nbytes(cache)
  )


def check(cache: Cache) -> None:
  """Raises ValueError if a row was given tokens that did not fit, or no source.

  Waits for the device. `rewind` clears the flag of tokens that did not fit.
  """
  check_alive(cache)
  if cache.source is not None:
    rows = np.flatnonzero((np.asarray(cache.source) < 0).all(axis=1)).tolist()
    if rows:
      raise ValueError(
        f'Rows {rows} hold no source, and their logits are NaN. Call prefill '
        'with encoded=kvjax.encode(config, params, source).'
      )
  overflow = np.asarray(cache.overflow)
  if overflow.any():
    rows = np.flatnonzero(overflow).tolist()
    raise ValueError(
      f'Rows {rows} were given tokens beyond the capacity of '
      f'{cache.layout.capacity}; those were not written and the logits of '
      'these rows have been NaN since. Rewind the rows, or decode with a '
      'larger capacity.'
    )


def _filled(kind: Kind, book: Any, length: jax.Array) -> tuple[str, str]:
  if _known(length) is None:
    return '?', '?'
  views = kind.views(book, {}, length)
  rows = [np.asarray(view.fetch(0, view.slots)[1]) for view in views]
  held = np.concatenate(rows, axis=-1)
  live = held[held >= 0]
  count = (held >= 0).sum(axis=-1)
  span = f'{live.min()}..{live.max()}' if live.size else '-'
  return _range(count.reshape(-1)), span


def _range(x: np.ndarray) -> str:
  low, high = int(x.min()), int(x.max())
  return str(low) if low == high else f'{low}..{high}'


def _known(x: Any) -> np.ndarray | None:
  concrete = isinstance(x, jax.Array | np.ndarray) and not is_traced(x)
  return np.asarray(x) if concrete else None


def _nbytes(tree: Any) -> int:
  return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))
