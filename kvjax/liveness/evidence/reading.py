"""Which rows of a tensor each row of the output depends on."""

from collections.abc import Callable
from typing import Any

import numpy as np

from kvjax.liveness.cut import lifetimes
from kvjax.liveness.errors import AnalysisError
from kvjax.liveness.evidence import perturb
from kvjax.liveness.program import relations, scalars
from kvjax.liveness.program.recorder import trace_program
from kvjax.liveness.program.scalars import Tensor
from kvjax.liveness.program.trace import Trace

Array = np.ndarray


def reach(
  program: Callable[..., Any], x: Any, axis: int = 0
) -> dict[str, Array]:
  """Returns for every name bool `[T, T]`: output row i depends on its row j.

  Influence by any path counts. In one layer only its own row reads a query,
  with a mask or without. In a stack the query of a lower layer reaches later
  rows through the keys and values made from it. That the query need not be kept
  is a separation, which `analyze` finds, and not an absence of influence.

  Args:
    program: a function of one array to one array, without a cache.
    x: an input; the picture has its length.
    axis: the axis of `x` that counts positions.
  """
  x = np.asarray(x)
  trace = trace_program(program, x, axis)
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


def _parts(trace: Trace, tensors: tuple[Tensor, ...]) -> list[Array]:
  """Returns the scalars of tensors at every position."""
  out: list[list[Array]] = [[] for _ in range(trace.length)]
  for tensor in tensors:
    axis = perturb.row_axis(trace, tensor)
    if axis is not None:
      for j, row in enumerate(np.moveaxis(tensor.ids, axis, 0)):
        out[j].append(row[row != scalars.CONST])
  empty = np.zeros(0, np.int64)
  return [np.concatenate([empty, *parts]) for parts in out]


def _influence(trace: Trace, ids: Array) -> Array:
  """Returns [scalars] 0 at those that depend on some of `ids`, else -1."""
  mark = np.full(trace.table.size, lifetimes.NEVER, np.int32)
  mark[ids] = 0
  for op in trace.ops:
    hit = relations.push_reads(op.ins, op.reads, mark) >= 0
    for results in op.outs:
      mark[results[(results != scalars.CONST) & hit]] = 0
  return mark
