"""Which rows of a tensor each row of the output reads."""

from collections.abc import Callable
from typing import Any

import numpy as np

from kvjax.liveness.cut import lifetimes
from kvjax.liveness.errors import AnalysisError
from kvjax.liveness.evidence import perturb
from kvjax.liveness.program import record, scalars

Array = np.ndarray


def reach(
  program: Callable[..., Any], x: Any, axis: int = 0
) -> dict[str, Array]:
  """Returns for every name bool `[T, T]`: output row i depends on its row j.

  This is all influence, by whatever way. In one layer a query is read by its
  own row alone, with a mask or without. In a stack the query of a lower layer
  reaches later rows through the keys and values made from it: that it need not
  be kept is a separation, which `analyze` finds, and no absence of influence.

  Args:
    program: a function of one array to one array, without a cache.
    x: an input; the picture has its length.
    axis: the axis of `x` that counts positions.
  """
  x = np.asarray(x)
  trace = record.trace(program, x, axis)
  output = trace.outputs[0]
  out_axis = perturb.row_axis(trace, output)
  if out_axis is None:
    raise AnalysisError(f'no axis of the output {output.shape} is positions.')
  rows = np.moveaxis(output.ids, out_axis, 0).reshape(trace.length, -1)
  return {
    name: np.stack(
      [
        (scalars.lookup(_influence(trace, part), rows) >= 0).any(1)
        for part in _parts(trace, tensors)
      ],
      axis=1,
    )
    for name, tensors in trace.names.items()
  }


def _parts(trace: record.Trace, tensors: tuple[Any, ...]) -> list[Array]:
  """The scalars of a tensor at every position of its axis."""
  out: list[list[Array]] = [[] for _ in range(trace.length)]
  for tensor in tensors:
    axis = perturb.row_axis(trace, tensor)
    if axis is not None:
      for j, row in enumerate(np.moveaxis(tensor.ids, axis, 0)):
        out[j].append(row[row != scalars.CONST])
  empty = np.zeros(0, np.int64)
  return [np.concatenate([empty, *parts]) for parts in out]


def _influence(trace: record.Trace, ids: Array) -> Array:
  """0 at every scalar that depends on some of `ids`, else -1."""
  mark = np.full(trace.table.size, lifetimes.NEVER, np.int32)
  mark[ids] = 0
  for op in trace.ops:
    pushed = [
      relation.push(scalars.lookup(mark, t.ids))
      for t, relation in zip(op.ins, op.reads, strict=True)
      if not t.fixed
    ]
    hit = np.max(pushed, axis=0) >= 0
    for made in op.outs:
      mark[made[(made != scalars.CONST) & hit]] = 0
  return mark
