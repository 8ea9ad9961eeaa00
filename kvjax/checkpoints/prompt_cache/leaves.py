"""Arrays of a saved cache: whole in one file, or in blocks of several.

Slots are in the order that a cache of one device has, or striped over those of
the mesh that saved them.
"""

import dataclasses
import math
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from kvjax.caches.array_spec import ArraySpec, is_leaf
from kvjax.decoding.cache import Cache
from kvjax.decoding.layout import Layout
from kvjax.tree_paths import leaves_by_path


@dataclasses.dataclass(frozen=True)
class StoredLeaf:
  """An array that can be read: its blocks cover it, each element once.

  Attributes:
    shape: of the array.
    dtype: of the array.
    blocks: of one shape, in files that are open, by their first elements.
  """

  shape: tuple[int, ...]
  dtype: np.dtype
  blocks: Mapping[tuple[int, ...], Any]

  def read(self) -> np.ndarray:
    """Returns the array on the host."""
    whole = np.empty(self.shape, self.dtype)
    for start, block in self.blocks.items():
      stop = np.add(start, block.get_shape())
      whole[tuple(map(slice, start, stop))] = block[:]
    return whole


def open_leaves(
  path: pathlib.Path, files: Iterable[Any], spec: Cache
) -> dict[str, StoredLeaf]:
  """Returns the arrays of files by their paths in the cache, in its order.

  Args:
    path: of the saved cache, for messages.
    files: of safetensors, open.
    spec: the cache, with `ArraySpec`s for arrays.

  Raises:
    ValueError: an array is missing, unexpected, not whole, or of another shape
      or dtype.
  """
  blocks: dict[str, dict[tuple[int, ...], Any]] = {}
  for file in files:
    for key in file.keys():
      name, _, start = key.partition('@')
      block = file.get_slice(key)
      zeros = [0] * len(block.get_shape())
      first = tuple(map(int, start.split(',') if start else zeros))
      blocks.setdefault(name, {})[first] = block
  specs = leaves_by_path(spec, is_leaf)
  for name in _no_longer_kept(spec):
    blocks.pop(name, None)
  if wrong := sorted(specs.keys() ^ blocks.keys()):
    state = 'missing' if wrong[0] in specs else 'unexpected'
    raise ValueError(f'{path} is no whole cache: {wrong[0]} is {state}.')
  leaves = {}
  for name, leaf in specs.items():
    stored = leaves[name] = _join(path, name, blocks[name])
    if stored.shape != fit_pages(leaf, stored).shape or (
      stored.dtype != leaf.dtype
    ):
      raise ValueError(
        f'{path}: {name} is {stored.dtype.name} {list(stored.shape)}; its '
        f'metadata makes it {np.dtype(leaf.dtype).name} {list(leaf.shape)}.'
      )
  return leaves


def _no_longer_kept(spec: Cache) -> list[str]:
  """Returns paths of arrays that a book may have, and here has not.

  Earlier versions kept a statistic for every score. Nothing reads that of a
  score which keeps none.
  """
  return [
    f'books.{index}.{field.name}'
    for index, book in enumerate(spec.books)
    for field in dataclasses.fields(book)
    if getattr(book, field.name) is None
  ]


def _join(
  path: pathlib.Path, name: str, blocks: Mapping[tuple[int, ...], Any]
) -> StoredLeaf:
  """Returns an array of its blocks; ValueError unless they just cover it."""
  kinds = {(*x.get_shape(), x[:0].dtype) for x in blocks.values()}
  *shape, dtype = next(iter(kinds))
  is_grid = len(kinds) == 1 and all(
    len(start) == len(shape) and not any(map(math.fmod, start, shape))
    for start in blocks
  )
  last = map(max, zip(*blocks, strict=False))
  ends = [x + size for x, size in zip(last, shape, strict=False)]
  if not is_grid or math.prod(ends) != len(blocks) * math.prod(shape):
    raise ValueError(
      f'{path} is no whole cache: the blocks of {name} do not just cover it.'
    )
  return StoredLeaf(tuple(ends), dtype, blocks)


def fit_pages(spec: ArraySpec, stored: StoredLeaf) -> ArraySpec:
  """Returns a specification with the pages of what is stored.

  A pool keeps its pages when rows are taken away. `check_books` compares the
  arrays of a pool with each other.
  """
  if 'pages' not in spec.axes:
    return spec
  axis = spec.axes.index('pages')
  before, after = spec.shape[:axis], spec.shape[axis + 1 :]
  pages = stored.shape[axis : axis + 1]
  return dataclasses.replace(spec, shape=(*before, *pages, *after))


def reorder_slots(
  x: np.ndarray, name: str, spec: ArraySpec, old: Layout, new: Layout
) -> np.ndarray:
  """Returns an array with its slots where another layout has them.

  Args:
    x: laid out as the old layout says.
    name: path of the array in the cache.
    spec: of the array in the new layout.
    old: that differs from the new one in how slots are split.
    new: layout.
  """
  field, index = f'{name}.'.split('.')[:2]
  if field == 'books':
    before, after = old.kinds()[int(index)], new.kinds()[int(index)]
  elif field == 'stores':
    before, after = (x.store_of(int(index)).kind for x in (old, new))
  else:
    return x
  if before == after or 'slots' not in spec.axes:
    return x
  axis = spec.axes.index('slots')
  positions = jnp.arange(before.size)[None]
  moved = np.full(spec.shape, spec.fill, x.dtype)
  slots = (slice(None),) * axis + (np.asarray(after.slot_of(positions))[0],)
  moved[slots] = x.take(np.asarray(before.slot_of(positions))[0], axis)
  return moved
