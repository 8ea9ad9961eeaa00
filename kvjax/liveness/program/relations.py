"""Which scalars of an operand each scalar of a result reads.

A relation carries an attribute both ways: `push` gives every result scalar the
greatest attribute among what it reads, `pull` gives every operand scalar the
greatest among its readers. Attributes are integers, -1 for none. One push
through the program gives availability; one pull gives liveness and need.
"""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from kvjax.liveness.program.scalars import Shape, Tensors, lookup

Array = np.ndarray


@dataclasses.dataclass(frozen=True)
class Pointwise:
  """Result scalar i reads operand scalar i."""

  def push(self, attribute: Array) -> Array:
    return attribute

  def pull(self, attribute: Array) -> Array:
    return attribute


@dataclasses.dataclass(frozen=True)
class Mix:
  """Every result scalar reads all of the operand along `axes`.

  With `squeeze` the result lacks the axes (a reduction). Without it the axes
  may have another length in the result (top-k, sort, FFT).
  """

  axes: tuple[int, ...]
  operand: Shape
  result: Shape
  squeeze: bool = False

  def push(self, attribute: Array) -> Array:
    if not attribute.size:
      return np.full(self.result, -1, np.int32)
    if self.squeeze:
      return attribute.max(self.axes)
    return np.broadcast_to(attribute.max(self.axes, keepdims=True), self.result)

  def pull(self, attribute: Array) -> Array:
    if not attribute.size:
      return np.full(self.operand, -1, np.int32)
    if self.squeeze:
      spread = np.expand_dims(attribute, self.axes)
    else:
      spread = attribute.max(self.axes, keepdims=True)
    return np.broadcast_to(spread, self.operand)


@dataclasses.dataclass(frozen=True)
class All:
  """Every result scalar may read every operand scalar."""

  operand: Shape
  result: Shape

  def push(self, attribute: Array) -> Array:
    return np.full(self.result, attribute.max(initial=-1))

  def pull(self, attribute: Array) -> Array:
    return np.full(self.operand, attribute.max(initial=-1))


@dataclasses.dataclass(frozen=True)
class Index:
  """Result scalar i reads operand scalar `source[i]` (flat; -1: nothing)."""

  source: Array
  operand: Shape

  def push(self, attribute: Array) -> Array:
    picked = attribute.reshape(-1)[np.maximum(self.source, 0)]
    return np.where(self.source < 0, -1, picked)

  def pull(self, attribute: Array) -> Array:
    out = np.full(math.prod(self.operand), -1, np.int32)
    hit = self.source >= 0
    np.maximum.at(out, self.source[hit], attribute[hit])
    return out.reshape(self.operand)


@dataclasses.dataclass(frozen=True)
class Then:
  """The relation `first`, followed by `second`."""

  first: 'Relation'
  second: 'Relation'

  def push(self, attribute: Array) -> Array:
    return self.second.push(self.first.push(attribute))

  def pull(self, attribute: Array) -> Array:
    return self.first.pull(self.second.pull(attribute))


@dataclasses.dataclass(frozen=True)
class Contract:
  """One side of a product [B, M, K] x [B, K, N] -> [B, M, N].

  A scalar is read only where the other side is not an exact constant zero:
  without that, a mask that multiplies would hide nothing. `order` brings the
  operand to [B..., M..., K...], free axes before contracted ones; `live` holds
  where the other side is not zero, [B, N, K].
  """

  order: tuple[int, ...]
  operand: Shape
  dims: tuple[int, int, int, int]  # B, M, K, N
  result: Shape
  live: Array
  swapped: bool  # the operand is the right-hand side: the result is [B, N, M]

  def push(self, attribute: Array) -> Array:
    b, m, k, _ = self.dims
    side = attribute.transpose(self.order).reshape(b, m, k)
    out = _greatest(side, self.live)
    return (out.swapaxes(1, 2) if self.swapped else out).reshape(self.result)

  def pull(self, attribute: Array) -> Array:
    b, m, _, n = self.dims
    out = attribute.reshape((b, n, m) if self.swapped else (b, m, n))
    out = out.swapaxes(1, 2) if self.swapped else out
    side = _greatest(out, self.live.swapaxes(1, 2))
    shape = [self.operand[a] for a in self.order]
    return side.reshape(shape).transpose(np.argsort(self.order))


def _greatest(attribute: Array, live: Array) -> Array:
  """Returns [B, M, N], the greatest of [B, M, K] where `live` [B, N, K]."""
  if live.all():  # The usual case, without the loop over K.
    greatest = attribute.max(-1, initial=-1)
    return np.repeat(greatest[..., None], live.shape[1], -1)
  out = np.full((*attribute.shape[:2], live.shape[1]), -1, attribute.dtype)
  for k in range(attribute.shape[2]):
    reads = np.where(live[:, None, :, k], attribute[:, :, None, k], -1)
    out = np.maximum(out, reads)
  return out


Relation = Pointwise | Mix | All | Index | Then | Contract


def push_reads(
  ins: Tensors, reads: Sequence[Relation], attribute: Array
) -> Array:
  """Returns for every result scalar the greatest attribute that it reads.

  Args:
    ins: operands, of which one at least depends on the input.
    reads: a relation for every operand.
    attribute: of every scalar of the program.
  """
  pushed = [
    relation.push(lookup(attribute, tensor.ids))
    for tensor, relation in zip(ins, reads, strict=True)
    if not tensor.fixed
  ]
  return np.max(pushed, axis=0)
