"""Params as the tensors of a published family: its table, read backwards.

A row of a table says which elements of a tensor become a param. Applied to an
array of indices instead of the tensor, it says where each element of the param
belongs, so that no row needs a second, inverse rule.
"""

import dataclasses
import math
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

from kvjax.checkpoints.family import Family
from kvjax.checkpoints.match import find_rows
from kvjax.checkpoints.table import NOTHING, Sizes, TableRow, evaluate
from kvjax.models.config import ModelConfig


@dataclasses.dataclass(frozen=True)
class ParamPart:
  """A param, or an expert's part of it, that is part of a tensor.

  Attributes:
    place: path of the param.
    expert: index, for a stacked row; None for the whole param.
    row: of the table.
    sizes: of the param's layer.
  """

  place: str
  expert: int | None
  row: TableRow
  sizes: Sizes

  def of(self, params: Mapping[str, Any]) -> np.ndarray:
    """Returns the part on the host."""
    param = params[self.place]
    return np.asarray(param if self.expert is None else param[self.expert])


@dataclasses.dataclass(frozen=True)
class TensorPlan:
  """A tensor to be written.

  Attributes:
    name: as published.
    shape: as published.
    dtype: of its params.
    parts: that fill it.
    value: of a tensor that holds no param, but a constant; else None.
  """

  name: str
  shape: tuple[int, ...]
  dtype: np.dtype
  parts: list[ParamPart]
  value: float | None = None

  @property
  def size(self) -> int:
    """Bytes."""
    return math.prod(self.shape) * self.dtype.itemsize

  def fill(self, params: Mapping[str, Any]) -> np.ndarray:
    """Returns the tensor.

    Raises:
      ValueError: the rows of its parts do not fill it, each element once.
    """
    if self.value is not None:
      return np.full(self.shape, self.value, self.dtype)
    if not self.parts[0].row.how:
      return np.ascontiguousarray(self.parts[0].of(params))
    tensor = np.empty(math.prod(self.shape), self.dtype)
    is_filled = np.zeros(tensor.shape, bool)
    indices = np.arange(tensor.size).reshape(self.shape)
    for part in self.parts:
      where = part.row.read(indices, part.sizes)
      # A row that computes, and does not only move, has no places to give.
      if where.dtype != indices.dtype or is_filled[where].any():
        break
      tensor[where] = part.of(params)
      is_filled[where] = True
    else:
      if is_filled.all():
        return tensor.reshape(self.shape)
    raise ValueError(
      f'Tensor {self.name} cannot be made of '
      f'{", ".join(part.place for part in self.parts)}: the rows of the '
      "family's table do not give each element once. Save without `like`, in "
      "kvjax's own layout."
    )


def plan_tensors(
  family: Family,
  config: ModelConfig,
  params: Mapping[str, Any],
  names: Collection[str] = (),
) -> list[TensorPlan]:
  """Returns the tensors of a model in the layout of a family, in order.

  Args:
    family: of the layout.
    config: of the model.
    params: by path.
    names: of the tensors of a checkpoint that has the same config; they choose
      between spellings that shapes cannot tell apart.

  Raises:
    ValueError: the layout has no tensor for a param, or two spellings.
  """
  rows = family.rows_by_place(config)
  plans: dict[str, TensorPlan] = {}
  for place, param in params.items():
    for name, value in family.constants_of(place).items():
      plans[name] = TensorPlan(name, (), param.dtype, [], value)
    spellings, layer, sizes = find_rows(config, rows, place)
    fitting = [row for row in spellings if _fits(row, sizes, param.shape)]
    known = [row for row in fitting if row.tensor_name(layer, 0) in names]
    if len(known or fitting) != 1:
      options = ', '.join(row.tensor_name(layer, 0) for row in spellings)
      raise ValueError(
        f'{place} {list(param.shape)} has {len(fitting)} names in the layout '
        f'({options}). Give like= a checkpoint directory whose model has the '
        "same config, or leave it out: kvjax's own layout takes every model."
      )
    (row,) = known or fitting
    if row.name == NOTHING:
      if np.any(np.asarray(param)):
        raise ValueError(
          f'The layout has no tensor for {place}, which must then be 0. Save '
          "without `like`, in kvjax's own layout."
        )
      continue
    for expert in range(param.shape[0]) if row.stacked else (None,):
      name = row.tensor_name(layer, expert or 0)
      plan = TensorPlan(name, _shape(row, sizes), param.dtype, [])
      part = ParamPart(place, expert, row, sizes)
      plans.setdefault(name, plan).parts.append(part)
  return list(plans.values())


def _fits(row: TableRow, sizes: Sizes, shape: tuple[int, ...]) -> bool:
  """Returns whether a param of this shape may be written by this row."""
  if row.how:
    return True  # the row changes the shape; what it fills is checked later
  return _shape(row, sizes) == (shape[1:] if row.stacked else shape)


def _shape(row: TableRow, sizes: Sizes) -> tuple[int, ...]:
  return tuple(evaluate(formula, sizes) for formula in row.shape)
