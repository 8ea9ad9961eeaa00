"""What XLA holds of a layer before the call has come to it, and why.

What depends on nothing but the arguments is made for all layers at once, at
the start of the program, and waits there: copies of stores that are read
before they are overwritten, the values of old slots, and the zeros that loops
begin with.
"""

import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np

from kvjax.caches.array_spec import ArraySpec
from kvjax.memory.parts.cache_bytes import leaves
from kvjax.memory.parts.lines import Dim, Term
from kvjax.memory.temporaries.attention_call import FLOAT, Reading
from kvjax.memory.temporaries.cpu import carried
from kvjax.models.config import Layer, ModelConfig
from kvjax.streams.codecs import Plain

OLD = 'copy: old slots are read before they are overwritten'
TWICE = 'copy: one row, in a store of one block (XLA:CPU)'
WIDE = 'copy: bfloat16 is written as float32 (XLA:CPU, JAX 0.10)'
BITS = 'copy: bfloat16, written, and its bits to be sliced (XLA:CPU, JAX 0.10)'
FLOAT16 = 'weights as float32: no float16 is multiplied (XLA:CPU)'
AHEAD = 'made for every layer at once'
LATE = 'written when all layers are done'


def waiting(reading: Reading, store: Any) -> Iterator[Term]:
  """Yields what waits for a layer that the call has not come to yet."""
  yield from carried(reading)
  if not store:  # it reads what another layer keeps
    return
  yield from _copies(reading, store)
  if _widens(reading) and not _one_token(reading):
    yield from (_copy(leaf, WIDE, 1, FLOAT) for leaf in leaves(store))
  if _made_early(reading):
    slots = reading.segments[0]
    for term in (*reading.keys(slots), reading.values(slots)):
      name = f'{term.name.removesuffix(" of one block")} of old slots, {AHEAD}'
      yield dataclasses.replace(term, name=name)


def unwritten(reading: Reading) -> Iterator[Term]:
  """Yields new streams that wait to be written until all layers have read.

  Not on a CPU, which copies what they overwrite instead (`OLD`).
  """
  if reading.fresh and reading.call.backend != 'cpu':
    # Keys are turned, and so rounded; values wait as the product they are.
    for term in reading.new(value_size=FLOAT):
      yield dataclasses.replace(term, name=f'{term.name}, {LATE}')


def widened(config: ModelConfig, dtype: Any, backend: str) -> Iterator[Term]:
  """Yields the float32 copies of all weights but routed experts', if made."""
  if backend != 'cpu' or dtype != 'float16':
    return
  width = config.width
  count = config.vocab_size * width
  count += sum(_multiplied(layer, width) for layer in config.layers)
  yield Term(FLOAT16, (Dim('elements', count),), FLOAT)


def _multiplied(layer: Layer, width: int) -> int:
  mlp: Any = layer.mlp
  dense = mlp.shared if hasattr(mlp, 'num_experts') else mlp
  halves = (layer.attention, layer.cross, dense)
  return sum(half.num_params(width) for half in halves if half is not None)


def starting(pairs: Sequence[tuple[Reading, Any]]) -> Iterator[Term]:
  """Yields what the first of all that needs beside: the copies it is of."""
  copies = [
    copy
    for reading, store in pairs
    for copy in _copies(reading, store)
    if copy.name == TWICE
  ]
  yield from copies
  reading = pairs[0][0]
  if _places_late(reading):
    yield from sorted(copies, key=lambda term: -term.bytes())[:1]
  latent = reading.absorb or reading.expands
  if _made_early(reading) and reading.plain and not latent:
    term = reading.values(reading.segments[0])
    yield dataclasses.replace(term, name=OLD)


def _places_late(reading: Reading) -> bool:
  """Whether the slot of a token takes longer to compute than a second copy.

  The first copy goes when the old token is read from that slot: at once where
  it is the position, its last bits, or its remainder for one head alone.
  """
  kind, heads = reading.memory.kind, reading.stored_heads.size
  if kind.limit is not None or kind.book_per_layer:
    return kind.limit is None
  sinks = getattr(kind, 'sinks', 0)
  ring = kind.row_slots - sinks
  masked = ring & (ring - 1) == 0
  return not masked and (heads > 1 or sinks > 0)


def held(reading: Reading, store: Any) -> Iterator[Term]:
  """Yields the same of the layer the call is in, without its block."""
  yield from carried(reading)
  if not store:
    return
  yield from _copies(reading, store)
  if _widens(reading):
    found = sorted(leaves(store), key=lambda leaf: -math.prod(leaf.shape))
    yield from (_copy(leaf, BITS, 1) for leaf in (*found, found[0]))


def _widens(reading: Reading) -> bool:
  """Whether XLA:CPU, which scattered no bfloat16, converts whole stores."""
  plain = reading.plain and reading.memory.dtype == 'bfloat16'
  old = jax.__version_info__ < (0, 11)
  return plain and old and reading.call.backend == 'cpu'


def _one_token(reading: Reading) -> bool:
  """Whether a write is an update of one slice, and not a scatter."""
  # Where layers keep books of their own, each head has a place of its own.
  apart = reading.memory.kind.book_per_layer and reading.stored_heads.size > 1
  one = reading.call.batch == reading.call.tokens == 1
  return one and not reading.paged and not apart


def _made_early(reading: Reading) -> bool:
  """Whether old slots are read apart and in no loop: before all layers."""
  outside = reading.call.backend == 'cpu' or reading.call.blocks == 1
  return outside and reading.fresh and not reading.loops(reading.segments[0])


def _copies(reading: Reading, store: Any) -> Iterator[Term]:
  slots = reading.segments[0]
  if reading.call.backend != 'cpu':
    return
  if reading.fresh:
    # Of a whole store only what a dot reads where it lies is still needed
    # when the new tokens come; values have been made by then.
    whole = reading.loops(slots)
    read = leaves(store) if whole else _read_in_place(reading, store)
    yield from (_copy(leaf, OLD, 1) for leaf in read)
  elif _one_token(reading) and not reading.loops(slots):
    # Written by rows and read by one dot, both without the unit axis: XLA
    # turns the same update into two, of a copy each.
    for leaf in _read_in_place(reading, store):
      yield _copy(leaf, TWICE, 1)


def _read_in_place(reading: Reading, store: Any) -> Iterator[ArraySpec]:
  """Yields the leaves that a product of queries reads as they are stored."""
  if reading.expands:
    return
  names = ('latent', 'rotary') if reading.absorb else ('key',)
  for name, codec in reading.memory.codecs:
    if name in names and isinstance(codec, Plain):
      yield from leaves(store[name])


def _copy(
  leaf: ArraySpec, reason: str, times: int, itemsize: int | None = None
) -> Term:
  dims = tuple(
    Dim(axis, size, axis)
    for size, axis in zip(leaf.shape, leaf.axes, strict=True)
  )
  own = np.dtype(leaf.dtype).itemsize
  return Term(reason, dims, itemsize or own, times)
