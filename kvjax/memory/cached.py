"""Bytes of a cache, from the very specification that is allocated."""

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from kvjax.caches.spec import Leaf
from kvjax.decoding.cache import Cache, is_leaf
from kvjax.memory.lines import Dim, Line, Term
from kvjax.memory.shards import WHOLE, Shards
from kvjax.models.config import ModelConfig


def tree_bytes(tree: Any, shards: Shards = WHOLE) -> int:
  """Returns the bytes of a tree of `Leaf`s, on one device."""
  return sum(_leaf_bytes(leaf, shards) for leaf in leaves(tree))


def cache_lines(spec: Cache, shards: Shards = WHOLE) -> Iterator[Line]:
  """Yields what each kind of cache occupies, and the books beside."""
  groups: dict[str, list[int]] = {}
  for index, memory in enumerate(spec.layout.memories):
    if memory is None:
      groups.setdefault('layers that share', []).append(index)
      continue
    codec = {type(c).__name__.lower() for _, c in memory.codecs}
    name = f'{memory.kind.name} {" and ".join(sorted(codec))}'
    groups.setdefault(name, []).append(index)
  for name, layers in groups.items():
    stores = [spec.stores[i] for i in layers]
    yield Line(
        'cache',
        f'{name}, {len(layers)} layers',
        tree_bytes(stores, shards),
        'layers sum(B K S H bytes)',
        f'{len(layers)} x ({_numbers(stores[0], shards)})',
    )
  books = (spec.length, spec.overflow, spec.books)
  yield Line(
      'cache',
      'lengths, positions, tables',
      tree_bytes(books, shards),
      'sum(leaves)',
      ' + '.join(str(_leaf_bytes(x, shards)) for x in leaves(books)),
  )
  if spec.cross is not None:
    yield Line(
        'cache',
        'cross keys and values',
        tree_bytes((spec.cross, spec.source), shards),
        'layers 2 B K S H bytes + 4 B S',
        f'{len(spec.cross)} layers',
    )


def query_line(
    config: ModelConfig,
    batch: int,
    capacity: int,
    spec: Cache,
    shards: Shards = WHOLE,
) -> Line:
  """Returns what a cache of every past query would take, for nothing."""
  memory = next(m for m in spec.layout.memories if m is not None)
  count = sum(
      layer.attention.query_width
      // shards.parts('heads', layer.attention.num_heads)
      for layer in config.layers
  )
  line = Term(
      'a cache of past queries',
      (Dim('B', batch, 'batch'), Dim('S', capacity), Dim('sum(N H)', count)),
      np.dtype(memory.dtype).itemsize,
  ).line('never', shards)
  numbers = f'{line.numbers}: nothing would read it'
  return dataclasses.replace(line, numbers=numbers)


def per_token(spec: Cache, shards: Shards = WHOLE) -> tuple[int, int, int]:
  """Returns bytes a token: growing, of capped layers; and the cap of a row."""
  growing = capped = cap = 0
  for memory, store in zip(spec.layout.memories, spec.stores, strict=True):
    if memory is None:
      continue
    lead = memory.kind.lead(1, 1)
    heads = [name for _, name in lead].index('kv_heads')
    one = sum(
        shards.shape(leaf)[heads]
        * math.prod(map(int, leaf.shape[len(lead) :]))
        * np.dtype(leaf.dtype).itemsize
        for leaf in leaves(store)
    )
    if memory.kind.limit is None:
      capped += one
      cap += one * memory.kind.row_slots
    else:
      growing += one
  return growing, capped, cap


def _numbers(store: Any, shards: Shards) -> str:
  terms = []
  for leaf in leaves(store):
    sizes = map(str, shards.shape(leaf))
    terms.append(f'{" x ".join(sizes)} x {np.dtype(leaf.dtype).itemsize}')
  return ' + '.join(terms) or '0'


def leaves(tree: Any) -> list[Leaf]:
  """Returns the `Leaf`s of a tree of them."""
  return jax.tree.leaves(tree, is_leaf=is_leaf)


def _leaf_bytes(leaf: Leaf, shards: Shards) -> int:
  # In Python's integers: a plan of 10^15 bytes is a plan like any other.
  count = np.dtype(leaf.dtype).itemsize
  return count * math.prod(map(int, shards.shape(leaf)))
