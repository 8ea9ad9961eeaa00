"""The record of a traced program: operations on scalars, in order.

The types stand apart from the recorder that fills them, so that what reads a
trace does not import what makes one.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from kvjax.liveness.program.relations import Relation
from kvjax.liveness.program.scalars import CONST, Table, Tensor, Tensors

Array = np.ndarray
# Equation numbers, inner calls after outer ones; a pair stands for an
# iteration of a loop or a branch.
Place = tuple[Any, ...]


@dataclasses.dataclass(frozen=True)
class Origin:
  """Where an operation comes from: its place in the jaxpr and in the source."""

  place: Place
  source: str
  text: str

  @property
  def equation(self) -> Place:
    """Returns the place without the numbers of iterations."""
    return tuple(p for p in self.place if isinstance(p, int))


@dataclasses.dataclass(frozen=True)
class Equation:
  """An equation of a jaxpr, without its operands."""

  primitive: Any
  params: dict[str, Any]
  avals: Sequence[Any]  # shape and dtype of every result
  origin: Origin

  @property
  def name(self) -> str:
    return self.primitive.name


@dataclasses.dataclass(frozen=True)
class Op:
  """A recorded equation; `outs` hold the number of a new scalar, or CONST."""

  equation: Equation
  ins: tuple[Tensor, ...]
  reads: tuple[Relation, ...]  # one for every operand
  outs: tuple[Array, ...]
  flops: float  # of one scalar of the result

  @property
  def name(self) -> str:
    return self.equation.name

  @property
  def origin(self) -> Origin:
    return self.equation.origin

  @property
  def dtypes(self) -> tuple[Any, ...]:
    return tuple(aval.dtype for aval in self.equation.avals)

  @functools.cached_property
  def new_ids(self) -> Array:
    """Returns the numbers of the scalars that this operation makes."""
    return np.concatenate([ids[ids != CONST] for ids in self.outs])


@dataclasses.dataclass(frozen=True)
class Trace:
  """Everything a program computes on one sequence of `length` positions."""

  length: int
  axis: int  # of `x`, that counts positions
  ops: tuple[Op, ...]
  table: Table
  x: Tensor
  outputs: tuple[Tensor, ...]
  names: dict[str, tuple[Tensor, ...]]  # every tensor that bears a name
  results: dict[Place, tuple[Tensor, ...]]  # of the equation at every place

  @functools.cached_property
  def named_ids(self) -> dict[str, Array]:
    """Returns the scalars that bear each name."""
    return {
      name: np.unique(np.concatenate([t.ids[~t.is_const] for t in tensors]))
      for name, tensors in self.names.items()
    }


class Recording(Protocol):
  """What rules that rewrite an equation need of the recorder."""

  table: Table

  def run(
    self, jaxpr: Any, consts: Sequence[Any], args: Tensors, place: Place
  ) -> list[Tensor]: ...

  def apply(self, equation: Equation, ins: Tensors) -> list[Tensor]: ...

  def record_mixed(self, equation: Equation, ins: Tensors) -> list[Tensor]: ...
