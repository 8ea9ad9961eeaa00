"""What XLA holds of a layer before the call has come to it, and why.

What depends on nothing but the arguments is made for all layers at once, at
the start of the program, and waits there: copies of stores that are read
before they are overwritten, the values of old slots, and the zeros that loops
begin with.
"""

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np

from kvjax.caches.codecs import Plain
from kvjax.caches.spec import Leaf
from kvjax.memory.cached import leaves
from kvjax.memory.lines import Dim, Term
from kvjax.memory.moments import carried
from kvjax.memory.reading import Reading

OLD = 'copy: old slots are read before they are overwritten'
TWICE = 'copy: one row, in a store of one block (XLA:CPU)'
AHEAD = 'made for every layer at once'


def waiting(reading: Reading, store: Any) -> Iterator[Term]:
  """Yields what waits for a layer that the call has not come to yet."""
  if reading.call.backend == 'cpu':
    yield from carried(reading)
  yield from _copies(reading, store, 2)
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
      call.backend == 'cpu'
      and call.batch == call.tokens == 1
      and not reading.loops(slots)
      and not reading.paged
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


def _copy(leaf: Leaf, reason: str, times: int) -> Term:
  dims = tuple(
      Dim(axis, size, axis)
      for size, axis in zip(leaf.shape, leaf.axes, strict=True)
  )
  return Term(reason, dims, np.dtype(leaf.dtype).itemsize, times)
