"""What XLA holds of a layer before the call has come to it, and why.

What depends on nothing but the arguments is made for all layers at once, at
the start of the program, and waits there: copies of stores that are read
before they are overwritten, the values of old slots, and the zeros that loops
begin with.
"""

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from kvjax.caches.codecs import Plain
from kvjax.caches.spec import Leaf
from kvjax.memory.cached import leaves
from kvjax.memory.lines import Dim, Term
from kvjax.memory.moments import carried
from kvjax.memory.reading import FLOAT, Reading

OLD = 'copy: old slots are read before they are overwritten'
TWICE = 'copy: one row, in a store of one block (XLA:CPU)'
WIDE = 'copy: bfloat16 is written as float32 (XLA:CPU)'
BITS = 'copy: bfloat16, written, and its bits to be sliced (XLA:CPU)'
AHEAD = 'made for every layer at once'


def waiting(reading: Reading, store: Any) -> Iterator[Term]:
  """Yields what waits for a layer that the call has not come to yet."""
  if reading.call.backend == 'cpu':
    yield from carried(reading)
  yield from _copies(reading, store, 2)
  if _widens(reading) and not _one_token(reading):
    yield from (_copy(leaf, WIDE, 1, FLOAT) for leaf in leaves(store))
  if _made_early(reading):
    slots = reading.segments[0]
    for term in (*reading.keys(slots), reading.values(slots)):
      name = f'{term.name.removesuffix(" of one block")} of old slots, {AHEAD}'
      yield dataclasses.replace(term, name=name)


def starting(reading: Reading) -> Iterator[Term]:
  """Yields what the first of those values needs beside: the copy it is of."""
  latent = reading.absorb or reading.expands
  if _made_early(reading) and reading.plain and not latent:
    term = reading.values(reading.segments[0])
    yield dataclasses.replace(term, name=OLD)


def held(reading: Reading, store: Any) -> Iterator[Term]:
  """Yields the same of the layer the call is in, without its block."""
  yield from carried(reading)
  yield from _copies(reading, store, 1)
  if _widens(reading):
    found = sorted(leaves(store), key=lambda leaf: -math.prod(leaf.shape))
    yield from (_copy(leaf, BITS, 1) for leaf in (*found, found[0]))


def _widens(reading: Reading) -> bool:
  """Whether XLA:CPU, which scatters no bfloat16, converts whole stores."""
  plain = reading.plain and reading.memory.dtype == 'bfloat16'
  return plain and reading.call.backend == 'cpu'


def _one_token(reading: Reading) -> bool:
  """Whether a write is an update of one slice, and not a scatter."""
  return reading.call.batch == reading.call.tokens == 1 and not reading.paged


def _made_early(reading: Reading) -> bool:
  return (
      reading.call.backend == 'cpu'
      and reading.fresh
      and not reading.loops(reading.segments[0])
  )


def _copies(reading: Reading, store: Any, twice: int) -> Iterator[Term]:
  call, slots = reading.call, reading.segments[0]
  if reading.fresh:
    # Of a whole store only what a dot reads where it lies is still needed
    # when the new tokens come; values have been made by then.
    whole = reading.loops(slots) or call.backend != 'cpu'
    read = leaves(store) if whole else _read_in_place(reading, store)
    yield from (_copy(leaf, OLD, 1) for leaf in read)
  elif (
      call.backend == 'cpu' and _one_token(reading) and not reading.loops(slots)
  ):
    # Written by rows and read by one dot, both without the unit axis: XLA
    # turns the same update into two, of a copy each.
    for leaf in _read_in_place(reading, store):
      yield _copy(leaf, TWICE, twice)


def _read_in_place(reading: Reading, store: Any) -> Iterator[Leaf]:
  """Yields the leaves that a product of queries reads as they are stored."""
  if reading.expands:
    return
  names = ('latent', 'rotary') if reading.absorb else ('key',)
  for name, codec in reading.memory.codecs:
    if name in names and isinstance(codec, Plain):
      yield from leaves(store[name])


def _copy(
    leaf: Leaf, reason: str, times: int, itemsize: int | None = None
) -> Term:
  dims = tuple(
      Dim(axis, size, axis)
      for size, axis in zip(leaf.shape, leaf.axes, strict=True)
  )
  own = np.dtype(leaf.dtype).itemsize
  return Term(reason, dims, itemsize or own, times)
