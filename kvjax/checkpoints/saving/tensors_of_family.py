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
from kvjax.checkpoints.table import (
  NOTHING,
  Sizes,
  TableRow,
  evaluate,
  group_by_place,
)
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
    parts: that fill it.
  """

  name: str
  shape: tuple[int, ...]
  parts: tuple[ParamPart, ...]

  def fill(self, params: Mapping[str, Any]) -> np.ndarray:
    """Returns the tensor.

    Raises:
      ValueError: the rows of its parts do not fill it, each element once.
    """
    first = self.parts[0]
    if not first.row.how:
      return np.ascontiguousarray(first.of(params))
    tensor = np.empty(math.prod(self.shape), first.of(params).dtype)
    is_filled = np.zeros(tensor.shape, bool)
    indices = np.arange(tensor.size).reshape(self.shape)
    for part in self.parts:
      where = part.row.read(indices, part.sizes)
      # A row that computes, and does not only move, has no places to give.
      if where.dtype != indices.dtype or is_filled[where].any():
        raise ValueError(self._not_invertible(part))
      tensor[where] = part.of(params)
      is_filled[where] = True
    if not is_filled.all():
      raise ValueError(self._not_invertible(first))
    return tensor.reshape(self.shape)

  def _not_invertible(self, part: ParamPart) -> str:
    return (
      f'Tensor {self.name} cannot be made of {part.place}: its rows of the '
      f"family's table ({part.row.how}) do not give each element once. Save "
      "without `like`, in kvjax's own layout."
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
  rows = group_by_place(family.rows)
  shapes: dict[str, tuple[int, ...]] = {}
  parts: dict[str, list[ParamPart]] = {}
  for place, param in params.items():
    spellings, layer, sizes = find_rows(config, rows, place)
    row = _choose_spelling(spellings, layer, sizes, place, param.shape, names)
    if row.name == NOTHING:
      if np.any(np.asarray(param)):
        raise ValueError(
          f'The layout has no tensor for {place}, which must then be 0. Save '
          "without `like`, in kvjax's own layout."
        )
      continue
    experts = range(sizes['experts']) if row.stacked else (None,)
    for expert in experts:
      name = row.tensor_name(layer, expert or 0)
      shapes[name] = _shape(row, sizes)
      parts.setdefault(name, []).append(ParamPart(place, expert, row, sizes))
  return [
    TensorPlan(name, shapes[name], tuple(found))
    for name, found in parts.items()
  ]


def _choose_spelling(
  spellings: list[TableRow],
  layer: str,
  sizes: Sizes,
  place: str,
  shape: tuple[int, ...],
  names: Collection[str],
) -> TableRow:
  """Returns the one row by which a param can be written.

  Args:
    spellings: rows of the param.
    layer: of the param.
    sizes: of that layer.
    place: path of the param.
    shape: of the param.
    names: as in `plan_tensors`.
  """
  fitting = [
    row
    for row in spellings
    if row.name == NOTHING
    or row.how
    or (shape[1:] if row.stacked else shape) == _shape(row, sizes)
  ]
  if len(fitting) > 1:
    known = [row for row in fitting if row.tensor_name(layer, 0) in names]
    fitting = known or fitting
  if len(fitting) != 1:
    options = ', '.join(row.tensor_name(layer, 0) for row in spellings)
    raise ValueError(
      f'{place} {list(shape)} has {len(fitting)} names in the layout '
      f'({options}). Give like= a checkpoint directory whose model has the '
      "same config, or leave it out: kvjax's own layout takes every model."
    )
  return fitting[0]


def _shape(row: TableRow, sizes: Sizes) -> tuple[int, ...]:
  return tuple(evaluate(formula, sizes) for formula in row.shape)
