"""Runs a trace on values, scalar by scalar replaceable.

The witness that does not trust the relations: it computes with the real
primitives, so noise put in place of a scalar shows who reads it.
"""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from kvjax.liveness.program import evaluate, record, scalars

Array = np.ndarray
# Gets the identities just made and their values, gives the values to go on.
Change = Callable[[Array, Array], Array]


def replay(trace: record.Trace, x: Any, change: Change | None = None) -> Array:
  """Returns the value of every scalar for the input `x`."""
  kind = np.complex128 if _any_complex(trace) else np.float64
  values = np.zeros(trace.table.size, kind)
  _store(values, trace.x.ids, np.asarray(x), change)
  for op in trace.ops:
    ins = [read(values, t) for t in op.ins]
    with np.errstate(all='ignore'):
      made = evaluate.evaluate(op.primitive, op.params, ins)
      for ids, out in zip(op.outs, made, strict=True):
        _store(values, ids, np.asarray(out), change)
  return values


def read(values: Array, tensor: scalars.Tensor) -> Any:
  """The array that a tensor stands for."""
  if tensor.fixed:
    return tensor.const
  out = np.array(tensor.const)
  here = ~tensor.is_const
  picked = values[tensor.ids[here]]
  if np.iscomplexobj(picked) and not np.iscomplexobj(out):
    picked = np.real(picked)
  out[here] = picked.astype(out.dtype)
  return out


def _store(
  values: Array, ids: Array, out: Array, change: Change | None
) -> None:
  here = ids != scalars.CONST
  made = out[here]
  if change is not None:
    made = change(ids[here], made)
  values[ids[here]] = made


def _any_complex(trace: record.Trace) -> bool:
  return any(
    jax.numpy.issubdtype(d, np.complexfloating)
    for op in trace.ops
    for d in op.dtypes
    if not jax.numpy.issubdtype(d, jax.dtypes.extended)
  )
