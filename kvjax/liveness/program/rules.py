"""For every primitive that mixes scalars: what reads what, and at what price.

A rule gives one relation for every operand and the FLOPs of one result scalar.
A primitive of data without a rule here that neither moves scalars nor is
pointwise is refused.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from kvjax.liveness.program import movement, relations
from kvjax.liveness.program.relations import Relation
from kvjax.liveness.program.scalars import Shape, Tensor, Tensors

Params = dict[str, Any]
Related = tuple[Sequence[Relation], float]
Rule = Callable[[Params, Tensors, Shape], Related]


def _reduce(params: Params, ins: Tensors, shape: Shape) -> Related:
  axes = tuple(params['axes'])
  operand = ins[0].shape
  flops = math.prod(operand[a] for a in axes)
  return [relations.Mix(axes, operand, shape, squeeze=True)], flops


def _along(params: Params, ins: Tensors, shape: Shape) -> Related:
  """Relates sorts, top-k and cumulative sums within a position: one axis."""
  keys = ('dimension', 'axis', 'operand_axis', 'reduction_dimension')
  axis = next(params[key] for key in keys if key in params)
  mix = [relations.Mix((axis % len(t.shape),), t.shape, shape) for t in ins]
  size = ins[0].shape[axis]
  # A sort of n takes n log n comparisons: log n for each result.
  return mix, max(1.0, math.log2(max(size, 1)))


def _fft(params: Params, ins: Tensors, shape: Shape) -> Related:
  rank = len(ins[0].shape)
  axes = tuple(range(rank - len(params['fft_lengths']), rank))
  flops = 5 * math.log2(max(2, math.prod(params['fft_lengths'])))
  return [relations.Mix(axes, ins[0].shape, shape)], flops


def _dot(params: Params, ins: Tensors, shape: Shape) -> Related:
  orders = dot_orders(params, ins)
  depth = math.prod(ins[0].shape[a] for a in params['dimension_numbers'][0][0])
  sides = [
    np.transpose(nonzero(t), order).reshape(dims)
    for t, (order, dims) in zip(ins, orders, strict=True)
  ]
  out: list[Relation] = []
  for a, (order, (b, m, k)) in enumerate(orders):
    dims = (b, m, k, sides[1 - a].shape[1])
    out.append(
      relations.Contract(
        order, ins[a].shape, dims, shape, sides[1 - a], bool(a)
      )
    )
  return out, 2 * depth


def dot_orders(
  params: Params, ins: Tensors
) -> list[tuple[tuple[int, ...], tuple[int, int, int]]]:
  """Returns each operand's axes as (batch, free, contracted), and sizes."""
  contracted, batch = params['dimension_numbers']
  out = []
  for tensor, c, b in zip(ins, contracted, batch, strict=True):
    rank = range(len(tensor.shape))
    free = [a for a in rank if a not in c and a not in b]
    size = lambda axes, t=tensor: math.prod(t.shape[a] for a in axes)
    out.append(((*b, *free, *c), (size(b), size(free), size(c))))
  return out


def nonzero(tensor: Tensor) -> np.ndarray:
  """Returns where a tensor is anything other than an exact constant zero."""
  return ~(tensor.is_const & (np.asarray(tensor.const) == 0))


def _gather(params: Params, ins: Tensors, shape: Shape) -> Related:
  """Relates a gather by data, which may read all of the indexed axes."""
  operand, indices = ins
  lead = indices.shape[:-1]
  mixed = relations.Mix((len(lead),), indices.shape, lead, squeeze=True)
  rows = np.arange(math.prod(lead)).reshape(lead)
  rows = np.expand_dims(rows, params['dimension_numbers'].offset_dims)
  spread = relations.Index(np.broadcast_to(rows, shape), lead)
  readers = relations.Then(mixed, spread)
  if operand.fixed:
    return [relations.All(operand.shape, shape), readers], 0.0
  axes = tuple(params['dimension_numbers'].start_index_map)
  mixed = relations.Mix(axes, operand.shape, operand.shape)
  anywhere = np.zeros(indices.shape, np.int32)
  source = movement.gather_source(params, operand.shape, anywhere)
  table = relations.Then(mixed, relations.Index(source, operand.shape))
  return [table, readers], 0.0


def _everything(params: Params, ins: Tensors, shape: Shape) -> Related:
  return [relations.All(t.shape, shape) for t in ins], 0.0


REDUCTIONS = tuple(
  """reduce_sum reduce_max reduce_min reduce_prod reduce_and reduce_or
  reduce_xor argmax argmin""".split()
)
CUMULATIVE = ('cumsum', 'cummax', 'cummin', 'cumprod', 'cumlogsumexp')
ALONG = ('sort', 'top_k', 'approx_top_k', *CUMULATIVE)
BY_INDEX = tuple(
  """dynamic_slice dynamic_update_slice scatter scatter-add scatter_add
  scatter-mul scatter_mul""".split()
)

# Relations of the operands, and FLOPs of one scalar of the result.
RULES: dict[str, Rule] = {
  **dict.fromkeys(REDUCTIONS, _reduce),
  **dict.fromkeys(ALONG, _along),
  **dict.fromkeys(BY_INDEX, _everything),
  'dot_general': _dot,
  'fft': _fft,
  'gather': _gather,
}

# These relations may be wider than the truth, since data choose the index.
LOOSE = frozenset(
  (*BY_INDEX, *'gather sort top_k approx_top_k argmax argmin fft'.split())
)
