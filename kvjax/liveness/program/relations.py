"""Which scalars of an operand each scalar of a result reads.

A relation carries an attribute both ways: `push` gives every result scalar the
greatest attribute among what it reads, `pull` gives every operand scalar the
greatest among its readers. Attributes are integers, -1 for none. One push
through the program gives availability; one pull gives liveness and need.
"""

import dataclasses
import math
from typing import Protocol

import numpy as np

from kvjax.liveness.program.scalars import Shape

Array = np.ndarray


class Relation(Protocol):
  """Reads of one operand by one result shape."""

  def push(self, attribute: Array) -> Array: ...

  def pull(self, attribute: Array) -> Array: ...


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
class Target:
  """Operand scalar i is read by result scalar `target[i]` (scatter-add)."""

  target: Array
  result: Shape

  # The same pairs as an Index, seen from the other side.
  def push(self, attribute: Array) -> Array:
    return Index(self.target, self.result).pull(attribute)

  def pull(self, attribute: Array) -> Array:
    return Index(self.target, self.result).push(attribute)


@dataclasses.dataclass(frozen=True)
class Then:
  """The relation `first`, followed by `second`."""

  first: Relation
  second: Relation

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
    b, m, k, n = self.dims
    side = attribute.transpose(self.order).reshape(b, m, k)
    if self.live.all():  # The usual case, without the loop over K.
      out = np.repeat(side.max(-1, initial=-1)[..., None], n, -1)
    else:
      out = np.full((b, m, n), -1, side.dtype)
      for j in range(k):
        reads = np.where(self.live[:, None, :, j], side[:, :, None, j], -1)
        out = np.maximum(out, reads)
    return (out.swapaxes(1, 2) if self.swapped else out).reshape(self.result)

  def pull(self, attribute: Array) -> Array:
    b, m, k, n = self.dims
    out = attribute.reshape((b, n, m) if self.swapped else (b, m, n))
    out = out.swapaxes(1, 2) if self.swapped else out
    if self.live.all():
      side = np.repeat(out.max(-1, initial=-1)[..., None], k, -1)
    else:
      side = np.full((b, m, k), -1, out.dtype)
      for j in range(n):
        reads = np.where(self.live[:, None, j, :], out[:, :, j, None], -1)
        side = np.maximum(side, reads)
    shape = [self.operand[a] for a in self.order]
    return side.reshape(shape).transpose(np.argsort(self.order))
