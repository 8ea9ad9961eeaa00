"""Runs a trace on values; every scalar can be replaced on the way.

This witness does not trust the relations. It computes with the real
primitives, so noise in place of a scalar shows which scalars read it.
"""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from kvjax.liveness.program import primitives, scalars
from kvjax.liveness.program.scalars import Tensor
from kvjax.liveness.program.trace import Trace

Array = np.ndarray
# Gets the numbers and values of new scalars, returns the values to use.
Change = Callable[[Array, Array], Array]


def compute_values(trace: Trace, x: Any, change: Change | None = None) -> Array:
  """Returns [scalars] the value of every scalar for the input `x`."""
  kind = np.complex128 if _any_complex(trace) else np.float64
  values = np.zeros(trace.table.size, kind)
  _store(values, trace.x.ids, np.asarray(x), change)
  for op in trace.ops:
    ins = [read_tensor(values, t) for t in op.ins]
    equation = op.equation
    with np.errstate(all='ignore'):  # Noise may overflow what it replaces.
      outs = primitives.evaluate(equation.primitive, equation.params, ins)
      for ids, out in zip(op.outs, outs, strict=True):
        _store(values, ids, np.asarray(out), change)
  return values


def read_tensor(values: Array, tensor: Tensor) -> Any:
  """Returns the array that a tensor stands for."""
  if tensor.fixed:
    return tensor.const
  out = np.array(tensor.const)
  by_data = ~tensor.is_const
  out[by_data] = cast(values[tensor.ids[by_data]], out.dtype)
  return out


def cast(values: Array, dtype: Any) -> Array:
  """Returns values of a dtype: of complex numbers the real part, if need be."""
  if np.iscomplexobj(values) and not np.issubdtype(dtype, np.complexfloating):
    values = np.real(values)
  return values.astype(dtype)


def _store(
  values: Array, ids: Array, out: Array, change: Change | None
) -> None:
  new = ids != scalars.CONST
  results = out[new]
  if change is not None:
    results = change(ids[new], results)
  values[ids[new]] = results


def _any_complex(trace: Trace) -> bool:
  return any(
    jax.numpy.issubdtype(dtype, np.complexfloating)
    for op in trace.ops
    for dtype in op.dtypes
  )
