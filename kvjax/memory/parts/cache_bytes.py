"""Bytes of a cache, from the very specification that is allocated."""

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from kvjax.caches.array_spec import ArraySpec, is_leaf
from kvjax.caches.kind import Kind, Tier
from kvjax.decoding.cache import Cache
from kvjax.decoding.layout import LayerStore
from kvjax.decoding.leaf_axes import local_shape
from kvjax.decoding.parse import spell
from kvjax.memory.parts.lines import Dim, Line, Term
from kvjax.mesh.rules import WHOLE, Partition
from kvjax.models.config import ModelConfig

# Axes of a cache by their letters, and fields of its books by their names.
LETTERS = {'batch': 'B', 'kv_heads': 'K', 'slots': 'S', 'width': 'H'}
SCALES = 'scale', 'zero'  # leaves of a codec that are no codes
BOOKS = {
  'table': 'page tables',
  'references': 'reference counts of pages',
  'total': 'statistics of the score',
}


def tree_bytes(tree: Any, partition: Partition = WHOLE) -> int:
  """Returns the bytes of a tree of `ArraySpec`s, on one device."""
  return sum(_leaf_bytes(leaf, partition) for leaf in leaves(tree))


def cache_lines(spec: Cache, partition: Partition = WHOLE) -> Iterator[Line]:
  """Yields what each kind of cache occupies, and then the books.

  Lines of the part 'in cache' say what of those bytes no token can ever use
  (padding), or only tokens beyond the window (slack).
  """
  groups: dict[Any, list[int]] = {}
  for index, memory in enumerate(spec.layout.stores):
    if memory is None:
      groups.setdefault(None, []).append(index)
    else:
      shapes = tuple(leaf.shape for leaf in leaves(spec.stores[index]))
      groups.setdefault((memory, shapes), []).append(index)
  for key, layers in groups.items():
    if key is None:
      name = f'layers that read what others keep, {len(layers)} layers'
      yield Line('cache', name, 0, '0', '0')
    else:
      yield from _group_lines(key[0], spec.stores[layers[0]], layers, partition)
  yield from _book_lines(spec, partition)
  if spec.constants is not None:
    constants = leaves(spec.constants)
    yield _leaves_line('constants of keys', constants, 1, partition)
  if spec.cross is not None:
    parts = [leaves(x)[0] for x in spec.cross if x]
    yield Line(
      'cache',
      'cross keys and values',
      tree_bytes((spec.cross, spec.source), partition),
      'layers 2 B K S H bytes + 4 B S',
      f'{len(parts)} layers of S = {parts[0].shape[2]}',
    )


def _group_lines(
  memory: LayerStore, store: Any, layers: list[int], partition: Partition
) -> Iterator[Line]:
  """Yields the streams of layers alike, their scales, and slots beyond."""
  codec = {spell(codec) for _, codec in memory.codecs}
  kind, count = memory.kind, len(layers)
  name = f'{kind.name} {" and ".join(sorted(codec))}, {count} layers'
  coded, *exact = kind.tiers(None, store, None)
  found = jax.tree_util.tree_leaves_with_path(coded.store, is_leaf=is_leaf)
  scales = [x for path, x in found if _key(path) in SCALES]
  yield _leaves_line(
    name, [x for path, x in found if _key(path) not in SCALES], count, partition
  )
  if scales:
    yield _leaves_line(f'{name}: scales', scales, count, partition)
  for tier in exact:
    title = f'{name}: residual, tokens kept exact'
    yield _leaves_line(title, leaves(tier.store), count, partition)
  for tier in (coded, *exact):
    yield from _spare_lines(name, tier, count, partition)


def _spare_lines(
  name: str, tier: Tier, count: int, partition: Partition
) -> Iterator[Line]:
  """Yields slots of a part of a store that no token of a window is in."""
  kind = tier.kind
  slack = getattr(kind, 'slack', 0) if kind.limit is None else 0
  pooled = getattr(kind, 'pages', None) is not None
  padding = 0 if pooled else kind.row_slots - kind.size
  for extra, why in (
    (padding, 'padding: no token goes there'),
    (slack, 'slack: written before older tokens are read'),
  ):
    if extra:
      size = count * tree_bytes(tier.store, partition) * extra
      size //= kind.row_slots
      numbers = f'{extra} of {kind.row_slots} slots a row'
      yield Line('in cache', f'{name}, {why}', size, 'slots of a row', numbers)


def _book_lines(spec: Cache, partition: Partition) -> Iterator[Line]:
  """Yields lengths and flags, then the fields of all books by name."""
  fields: dict[str, list[ArraySpec]] = {'lengths and flags': []}
  fields['lengths and flags'] += leaves((spec.length, spec.overflow))
  found = jax.tree_util.tree_leaves_with_path(spec.books, is_leaf=is_leaf)
  for path, leaf in found:
    name = _key(path)
    fields.setdefault(BOOKS.get(name, name), []).append(leaf)
  for name, specs in fields.items():
    alike = len(set(specs)) == 1
    one, times = (specs[:1], len(specs)) if alike else (specs, 1)
    yield _leaves_line(name, one, times, partition)


def _leaves_line(
  name: str, specs: list[ArraySpec], layers: int, partition: Partition
) -> Line:
  symbols = ' + '.join(dict.fromkeys(map(_symbols, specs)))
  numbers = _numbers(specs, partition)
  if layers > 1 or len(specs) > 1:
    symbols = f'sum({symbols})' if layers == 1 else f'layers sum({symbols})'
  if layers > 1:
    numbers = f'{layers} x ({numbers})'
  size = layers * tree_bytes(specs, partition)
  return Line('cache', name, size, symbols, numbers)


def _symbols(leaf: ArraySpec) -> str:
  named = zip(leaf.axes, leaf.shape, strict=True)
  letters = [
    LETTERS.get(axis, axis)
    for axis, size in named
    if (axis, size) != ('kv_heads', 1)
  ]
  return ' '.join([*letters, 'bytes'])


def _key(path: Any) -> str:
  return str(getattr(path[-1], 'key', getattr(path[-1], 'name', '')))


def query_line(
  config: ModelConfig,
  batch: int,
  capacity: int,
  spec: Cache,
  partition: Partition = WHOLE,
) -> Line:
  """Returns what a cache of every past query would take, for nothing."""
  memory = next(m for m in spec.layout.stores if m is not None)
  count = sum(
    layer.attention.query_width
    // math.prod(partition.parts(['heads'], [layer.attention.num_heads]))
    for layer in config.layers
  )
  line = Term(
    'a cache of past queries',
    (Dim('B', batch, 'batch'), Dim('S', capacity), Dim('sum(N H)', count)),
    np.dtype(memory.dtype).itemsize,
  ).line('never', partition)
  numbers = f'{line.numbers}: nothing would read it'
  return dataclasses.replace(line, numbers=numbers)


def per_token(
  spec: Cache, partition: Partition = WHOLE
) -> tuple[int, int, int]:
  """Returns bytes a token: growing, of capped layers; and the cap of a row."""
  growing = capped = cap = 0
  for memory, store in zip(spec.layout.stores, spec.stores, strict=True):
    if memory is None:
      continue
    for kind, _, part, _ in memory.kind.tiers(None, store, None):
      one = _bytes_of_slot(kind, part, partition)
      if kind.limit is None:
        capped += one
        cap += one * kind.row_slots
      else:
        growing += one
  return growing, capped, cap


def _bytes_of_slot(kind: Kind, store: Any, partition: Partition) -> int:
  """Returns the bytes of a slot, its share of what several slots have."""
  lead = [name for _, name in kind.leaf_axes(1, 1)]
  heads, slots = lead.index('kv_heads'), lead.index('slots')
  size = kind.leaf_axes(1, 1)[slots][0]
  return sum(
    local_shape(leaf, partition)[heads]
    * math.prod(leaf.shape[len(lead) :])
    * np.dtype(leaf.dtype).itemsize
    * leaf.shape[slots]
    // size
    for leaf in leaves(store)
  )


def _numbers(specs: list[ArraySpec], partition: Partition) -> str:
  terms = []
  for leaf in specs:
    sizes = *local_shape(leaf, partition), np.dtype(leaf.dtype).itemsize
    terms.append(' x '.join(map(str, sizes)))
  return ' + '.join(terms)


def leaves(tree: Any) -> list[ArraySpec]:
  """Returns the `ArraySpec`s of a tree of them."""
  return jax.tree.leaves(tree, is_leaf=is_leaf)


def leaf_term(
  leaf: ArraySpec, name: str, times: int = 1, itemsize: int = 0
) -> Term:
  """Returns copies of a leaf, in elements of the leaf's size or another."""
  axes = zip(leaf.axes, leaf.shape, strict=True)
  dims = tuple(Dim(axis, size, axis) for axis, size in axes)
  return Term(name, dims, itemsize or np.dtype(leaf.dtype).itemsize, times)


def _leaf_bytes(leaf: ArraySpec, partition: Partition) -> int:
  # In Python's integers: a plan of 10^15 bytes is a plan like any other.
  count = math.prod(map(int, local_shape(leaf, partition)))
  return count * np.dtype(leaf.dtype).itemsize
