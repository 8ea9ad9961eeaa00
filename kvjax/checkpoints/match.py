"""Matches a family's table with the tensors of a checkpoint, reading none.

Every param of the model gets the tensors that it is read from, or the
checkpoint is refused, before anything is read.
"""

import dataclasses
import math
import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kvjax.checkpoints.dequantize import PublishedTensor
from kvjax.checkpoints.family import Family, layer_sizes
from kvjax.checkpoints.table import NOTHING, Sizes, TableRow, evaluate
from kvjax.checkpoints.tensors import DTYPES, Index
from kvjax.models.config import ModelConfig
from kvjax.models.initialize import param_shapes
from kvjax.tree_paths import leaves_by_path

ALIGNMENT = 64  # bytes; a CPU device copies what begins elsewhere


@dataclasses.dataclass(frozen=True)
class ParamSource:
  """One param and the tensors that it is read from.

  Attributes:
    place: path of the param, `layers.3.attention.query`.
    shape: of the param.
    dtype: of the param.
    row: of the table.
    sizes: of the param's layer.
    tensors: published; one, or one for each part of a stacked param; none for
      zeros.
  """

  place: str
  shape: tuple[int, ...]
  dtype: Any
  row: TableRow
  sizes: Sizes
  tensors: tuple[PublishedTensor, ...]

  def read(self, index: Index = ()) -> np.ndarray:
    """Returns the param in memory that a device on the host may take over.

    Args:
      index: of the part of the param that is read; `()` for the whole.

    Raises:
      ValueError: the table gives it another shape than the model has.
    """
    index = index or tuple(map(slice, self.shape))
    pairs = zip(self.shape, index, strict=True)
    sizes = [len(range(size)[part]) for size, part in pairs]
    param = _allocate(tuple(sizes), self.dtype)
    if not self.tensors:
      param[...] = 0
    if not self.row.stacked:
      for tensor in self.tensors:
        self._fill(param, tensor, index)
      return param
    for part, tensor in zip(param, self.tensors[index[0]], strict=True):
      self._fill(part, tensor, index[1:])
    return param

  def _fill(
    self, part: np.ndarray, tensor: PublishedTensor, index: Index
  ) -> None:
    """Copies and converts a tensor into its param, or its part of it.

    Args:
      part: to write into.
      tensor: that the param is read from.
      index: of the part in the tensor, after its transformation.
    """
    whole = None
    if self.row.how:  # rows move, so all of them are mapped at once
      whole = self.row.read(tensor.read(), self.sizes)
    shape = tensor.shape if whole is None else whole.shape
    wanted = self.shape[1:] if self.row.stacked else self.shape
    if shape != wanted:
      raise ValueError(
        f'Tensor {tensor.name} becomes {list(shape)}; '
        f'{self.place} is {list(wanted)}.'
      )
    start = 0
    for block in tensor.blocks(index) if whole is None else [whole[index]]:
      self._convert(block, part[start : start + len(block)], tensor.name)
      start += len(block)

  def _convert(self, block: np.ndarray, target: np.ndarray, name: str) -> None:
    """Copies a block; ValueError where a finite weight would be infinite."""
    if target.dtype == np.float16:
      block = block.astype(np.float32)  # bfloat16 reports no overflow itself
    try:
      with np.errstate(over='raise'):
        target[...] = block
    except FloatingPointError:
      raise ValueError(
        f'Tensor {name} has weights that are finite as stored, and too large '
        f'for {target.dtype} ({self.place}). Load with a wider dtype, or '
        'repair the checkpoint.'
      ) from None


def _allocate(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
  """Returns memory on a boundary from which XLA's CPU device takes it over."""
  size = math.prod(shape) * np.dtype(dtype).itemsize
  memory = np.empty(size + ALIGNMENT, np.uint8)
  start = -memory.ctypes.data % ALIGNMENT
  return memory[start : start + size].view(dtype).reshape(shape)


@dataclasses.dataclass(frozen=True)
class Checkpoint:
  """What is known of a checkpoint before any of its tensors is read.

  Attributes:
    family: how it is read.
    config: of the model, from config.json.
    tensors: by published name.
  """

  family: Family
  config: ModelConfig
  tensors: Mapping[str, PublishedTensor]

  def get(self, name: str) -> PublishedTensor | None:
    """Returns a tensor by its name, with or without the family's prefix."""
    bare = name.removeprefix(self.family.prefix)
    return self.tensors.get(name, self.tensors.get(bare))


def match_params(
  family: Family, config: ModelConfig, tensors: Mapping[str, PublishedTensor]
) -> list[ParamSource]:
  """Returns the source of every param of the model, all of them checked.

  Raises:
    ValueError: a tensor is missing, unexpected, of another shape than
      config.json gives it, or quantized; the message names it.
  """
  # Every layer has tensors. Without this check the layers that a config.json
  # makes up would all be traced before the first of them is missed.
  layers = len(config.layers)
  if layers > len(tensors):
    raise ValueError(
      f'config.json asks for {layers} layers; the checkpoint has '
      f'{len(tensors)} tensors in all.'
    )
  checkpoint = Checkpoint(family, config, tensors)
  rows = family.rows_by_place(config)
  sources = [
    _match_param(checkpoint, rows, place, param)
    for place, param in leaves_by_path(param_shapes(config)).items()
  ]
  _check_used(checkpoint, sources)
  return sources


def _match_param(
  checkpoint: Checkpoint,
  rows: Mapping[str, list[TableRow]],
  place: str,
  param: jax.ShapeDtypeStruct,
) -> ParamSource:
  """Returns the source of one param.

  Args:
    checkpoint: with all its tensors.
    rows: of the family's table, by place.
    place: path of the param.
    param: its shape and dtype.
  """
  spellings, layer, sizes = find_rows(checkpoint.config, rows, place)
  row = _choose_spelling(checkpoint, spellings, layer)
  # Names are made one by one: the first that is missing ends it, however many
  # experts config.json makes up.
  count = param.shape[0] if row.stacked else int(row.name != NOTHING)
  names = (row.tensor_name(layer, expert) for expert in range(count))
  return ParamSource(
    place=place,
    shape=param.shape,
    dtype=param.dtype,
    row=row,
    sizes=sizes,
    tensors=tuple(
      _check_tensor(checkpoint.get(name), name, row, sizes, place)
      for name in names
    ),
  )


def find_rows(
  config: ModelConfig, rows: Mapping[str, list[TableRow]], place: str
) -> tuple[list[TableRow], str, Sizes]:
  """Returns the rows of a param, its layer and the sizes of that layer.

  Args:
    config: of the model.
    rows: of the family's table, by place.
    place: path of the param.

  Raises:
    ValueError: the table has no row for it.
  """
  layers = config.layers
  if place.startswith('encoder.') and config.encoder is not None:
    layers = config.encoder.layers
  # A param of no layer is matched with the sizes of the first.
  numbers = re.findall(r'\.(\d+)\.', place) or ['0']
  sizes = layer_sizes(config, layers[int(numbers[0])])
  pattern = re.sub(r'\.\d+\.', '.{i}.', place)
  if sizes['experts']:
    pattern = pattern.replace('.mlp.', '.experts.')
  spellings = rows.get(place, rows.get(pattern))
  if spellings is None:
    raise ValueError(f'The table of the family has no row for {place}.')
  return spellings, numbers[0], sizes


def _choose_spelling(
  checkpoint: Checkpoint, rows: list[TableRow], layer: str
) -> TableRow:
  """Returns the row that the checkpoint has, or the first.

  Args:
    checkpoint: with all its tensors.
    rows: spellings of one param.
    layer: index of the param's layer.
  """
  for row in rows:
    if row.name == NOTHING or checkpoint.get(row.tensor_name(layer, 0)):
      return row
  return rows[0]


def _check_tensor(
  tensor: PublishedTensor | None,
  name: str,
  row: TableRow,
  sizes: Sizes,
  place: str,
) -> PublishedTensor:
  """Returns the tensor; ValueError unless it is there and of its shape."""
  want = tuple(evaluate(formula, sizes) for formula in row.shape)
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
  check_plain(tensor)
  return tensor


def check_plain(tensor: PublishedTensor) -> None:
  """Raises ValueError for a tensor of a type that is no plain weight."""
  if tensor.dtype not in DTYPES:
    raise ValueError(
      f'Tensor {tensor.name} is stored as {tensor.dtype}, which is no plain '
      f'weight; supported: {", ".join(sorted(DTYPES))}.'
    )


def _check_used(checkpoint: Checkpoint, sources: list[ParamSource]) -> None:
  """Raises ValueError for a tensor that no param is read from."""
  used = {tensor.name for source in sources for tensor in source.tensors}
  for source in sources:
    for name, value in checkpoint.family.constants_of(source.place).items():
      if tensor := checkpoint.get(name):
        _check_constant(tensor, value)
        used.add(tensor.name)
  unused = [
    name
    for name in checkpoint.tensors
    if name not in used and not _is_ignored(checkpoint, name)
  ]
  for name in unused:
    tensor = checkpoint.tensors[name]
    original = checkpoint.get(checkpoint.family.copies.get(name, ''))
    if not checkpoint.config.tied or original is None:
      raise ValueError(
        f'Unexpected tensor {name} {list(tensor.shape)} in the '
        f'checkpoint ({len(unused)} such): config.json has no place for it.'
      )
    _check_copy(tensor, original)


def _is_ignored(checkpoint: Checkpoint, name: str) -> bool:
  family = checkpoint.family
  layer = re.match(r'model\.layers\.(\d+)\.', name)
  if family.beyond_layers and layer:
    if int(layer[1]) >= len(checkpoint.config.layers):
      return True
  return any(re.fullmatch(pattern, name) for pattern in family.ignored)


def _check_constant(tensor: PublishedTensor, value: float) -> None:
  """Raises ValueError unless a tensor is that number, as its type has it."""
  check_plain(tensor)
  found = tensor.read()
  if found.shape or found != np.asarray(value, found.dtype):
    raise ValueError(
      f'Tensor {tensor.name} is {found.tolist()}; only {value} is supported.'
    )


def _check_copy(copy: PublishedTensor, original: PublishedTensor) -> None:
  """Raises ValueError unless two tensors are the same, bit by bit."""
  # Bytes are compared, so that NaN equals NaN.
  same = (copy.dtype, copy.shape) == (original.dtype, original.shape) and all(
    np.array_equal(a.view(np.uint8), b.view(np.uint8))
    for a, b in zip(copy.blocks(), original.blocks(), strict=True)
  )
  if not same:
    raise ValueError(
      f'Tensor {copy.name} differs from {original.name}, but '
      'tie_word_embeddings of config.json makes them one.'
    )


def stored_dtype(tensors: Mapping[str, PublishedTensor]) -> str:
  """Returns the dtype in which most bytes of plain weights are stored."""
  count = dict.fromkeys(DTYPES, 0)
  for tensor in tensors.values():
    if tensor.dtype in count:
      count[tensor.dtype] += tensor.size
  most = max(count, key=lambda dtype: count[dtype])
  # JAX has float64 only with jax_enable_x64; no model is published in it.
  return jnp.dtype('float32' if most == 'F64' else DTYPES[most]).name
