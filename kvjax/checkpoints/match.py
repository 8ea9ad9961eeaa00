"""Holds a table against the tensors of a checkpoint, before reading any."""

import dataclasses
import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kvjax.checkpoints.family import Family, sizes
from kvjax.checkpoints.table import NOTHING, Sizes, TableRow, by_place, size
from kvjax.checkpoints.tensors import DTYPES, PublishedTensor
from kvjax.models.config import Layer, ModelConfig
from kvjax.models.decoder import init_params

ALIGNMENT = 64  # bytes; a CPU device copies what begins elsewhere


@dataclasses.dataclass(frozen=True)
class ParamSource:
  """One param and where it comes from.

  Attributes:
    place: its path, `layers.3.attention.query`.
    shape: of the param.
    dtype: of the param.
    row: of the table.
    sizes: letters of its layer.
    tensors: published; one, or one an expert; none for zeros.
  """

  place: str
  shape: tuple[int, ...]
  dtype: Any
  row: TableRow
  sizes: Sizes
  tensors: tuple[PublishedTensor, ...]

  def read(self) -> np.ndarray:
    """Returns the param in memory that a device on the host may take over.

    Raises:
      ValueError: the table gives it another shape than the model has.
    """
    param = _allocate(self.shape, self.dtype)
    if not self.tensors:
      param[...] = 0
    for index, tensor in enumerate(self.tensors):
      self._fill(param[index] if self.row.stacked else param, tensor)
    return param

  def _fill(self, part: np.ndarray, tensor: PublishedTensor) -> None:
    """Copies and converts a tensor; where rows stay rows, a few at a time."""
    found, blocks = tensor.shape, tensor.blocks()
    if self.row.how:
      whole = self.row.read(tensor.read(), self.sizes)
      found, blocks = whole.shape, [whole]
    if found != part.shape:
      raise ValueError(
        f'Tensor {tensor.name} becomes {list(found)}; '
        f'{self.place} is {list(part.shape)}.'
      )
    start = 0
    for block in blocks:
      part[start : start + len(block)] = block
      start += len(block)


def _allocate(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
  """Returns memory on a boundary from which XLA's CPU device takes it over."""
  size = math.prod(shape) * np.dtype(dtype).itemsize
  room = np.empty(size + ALIGNMENT, np.uint8)
  start = -room.ctypes.data % ALIGNMENT
  return room[start : start + size].view(dtype).reshape(shape)


def spec(config: ModelConfig) -> dict[str, jax.ShapeDtypeStruct]:
  """Returns shape and dtype of every param by path, allocating none."""
  shapes = jax.eval_shape(lambda: init_params(config, jax.random.key(0)))
  flat, _ = jax.tree.flatten_with_path(shapes)
  return {'.'.join(_key(k) for k in path): leaf for path, leaf in flat}


def _key(key: Any) -> str:
  return str(key.idx if hasattr(key, 'idx') else key.key)


def bind(
  family: Family, config: ModelConfig, tensors: Mapping[str, PublishedTensor]
) -> list[ParamSource]:
  """Returns every param of the model with its tensors, all of them checked.

  Raises:
    ValueError: a tensor is missing, unexpected, of another shape than
      config.json gives it, or quantized; the message names it.
  """
  rows, leaves = by_place(family.rows), []
  for place, leaf in spec(config).items():
    letters = sizes(config, _layer(config, place))
    candidates = [
      (row, list(_names(row, index, letters)))
      for row, index in _rows(rows, place, letters)
    ]
    row, names = _present(family, tensors, candidates)
    found = tuple(
      _find(family, tensors, name, place, row, letters) for name in names
    )
    leaves.append(
      ParamSource(place, leaf.shape, leaf.dtype, row, letters, found)
    )
  _check_used(family, config, tensors, leaves)
  return leaves


def _rows(rows: Mapping[str, list[TableRow]], place: str, letters: Sizes):
  """Returns the rows of a place, each with the index of its layer."""
  index = re.search(r'\.(\d+)\.', place)
  pattern = re.sub(r'\.\d+\.', '.{i}.', place)
  if letters['X']:
    pattern = pattern.replace('.mlp.', '.experts.')
  if pattern not in rows:
    raise ValueError(f'The table of the family has no row for {place}.')
  return [(row, int(index[1]) if index else 0) for row in rows[pattern]]


def _present(family, tensors, candidates) -> tuple[TableRow, list[str]]:
  """Returns the spelling that the checkpoint uses, or else the first."""
  for row, names in candidates:
    if not names or _get(family, tensors, names[0]) is not None:
      return row, names
  return candidates[0]


def _get(family, tensors, name: str) -> PublishedTensor | None:
  return tensors.get(name, tensors.get(name.removeprefix(family.prefix)))


def _layer(config: ModelConfig, place: str) -> Layer | None:
  """Returns the layer that a param belongs to, or the first of its stack."""
  layers = config.layers
  if place.startswith('encoder.') and config.encoder is not None:
    layers = config.encoder.layers
  index = re.search(r'layers\.(\d+)\.', place)
  return layers[int(index[1])] if index else layers[0]


def _names(row: TableRow, index: int, letters: Sizes) -> Iterator[str]:
  if row.name == NOTHING:
    return
  name = row.name.replace('{i}', str(index))
  for expert in range(letters['X'] if row.stacked else 1):
    yield name.replace('{e}', str(expert))


def _find(
  family, tensors, name: str, place: str, row: TableRow, letters
) -> PublishedTensor:
  tensor = _get(family, tensors, name)
  want = tuple(size(formula, letters) for formula in row.shape)
  if tensor is None:
    raise ValueError(
      f'Tensor {name} {list(want)} is missing from the checkpoint; '
      f'config.json asks for it ({place}).'
    )
  if tensor.shape != want:
    raise ValueError(
      f'Tensor {name} has shape {list(tensor.shape)}; config.json makes it '
      f'{list(want)} ({", ".join(row.shape)}).'
    )
  tensor.check_dtype()
  return tensor


def _check_used(family, config, tensors, leaves) -> None:
  used = {tensor.name for leaf in leaves for tensor in leaf.tensors}
  left = [
    name
    for name in tensors
    if name not in used and not _ignored(family, config, name)
  ]
  for name in left:
    original = _get(family, tensors, family.copies.get(name, ''))
    if not config.tied or original is None:
      raise ValueError(
        f'Unexpected tensor {name} {list(tensors[name].shape)} in the '
        f'checkpoint ({len(left)} such): config.json has no place for it.'
      )
    _check_copy(tensors[name], original)


def _ignored(family: Family, config: ModelConfig, name: str) -> bool:
  layer = re.match(r'model\.layers\.(\d+)\.', name)
  if family.beyond_layers and layer:
    if int(layer[1]) >= len(config.layers):
      return True
  return any(re.fullmatch(pattern, name) for pattern in family.ignored)


def _check_copy(copy: PublishedTensor, original: PublishedTensor) -> None:
  same = copy.dtype == original.dtype and copy.shape == original.shape
  if not same or not _equal(copy, original):
    raise ValueError(
      f'Tensor {copy.name} differs from {original.name}, but '
      'tie_word_embeddings of config.json makes them one.'
    )


def _equal(copy: PublishedTensor, original: PublishedTensor) -> bool:
  pairs = zip(copy.blocks(), original.blocks(), strict=True)
  return all(
    np.array_equal(a.view(np.uint8), b.view(np.uint8)) for a, b in pairs
  )


def stored_dtype(tensors: Mapping[str, PublishedTensor]) -> str:
  """Returns the dtype in which most bytes of plain weights are stored."""
  count = dict.fromkeys(DTYPES, 0)
  for tensor in tensors.values():
    if tensor.dtype in count:
      count[tensor.dtype] += tensor.size
  most = max(count, key=lambda dtype: count[dtype])
  # JAX has no float64 unless asked for; nobody publishes weights in it.
  return jnp.dtype('float32' if most == 'F64' else DTYPES[most]).name
