"""What a kernel computes on the device at hand, against float64 and XLA.

Small caches of rows of several lengths, none among them, NaN in every slot
without a token. The time of a kernel that has never run on its device means
nothing before this check.
"""

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.measuring import attention, clock, forms
from kvjax.kernels import Kernel, Scoring, attend_view
from kvjax.streams.codecs import Plain
from kvjax.streams.visibility import Visibility

TOLERANCE = {'bfloat16': 8e-3, 'float16': 1e-3, 'float32': 1e-5}
HEADS = 2


@dataclasses.dataclass(frozen=True)
class Problem:
  """What is attended to; letters as everywhere.

  Attributes:
    groups: G.
    tokens: T, the last of each row.
    width: H.
    value_width: E.
    dtype: of the streams.
    rule: fields of `Visibility`.
    softcap: as in `Scoring`.
  """

  groups: int
  tokens: int
  width: int
  value_width: int
  dtype: str
  rule: dict[str, Any]
  softcap: float | None

  @property
  def scoring(self) -> Scoring:
    rule = Visibility(**self.rule)
    return Scoring(self.width**-0.5, softcap=self.softcap, visibility=rule)

  def inputs(
    self, batch: int, heads: int, slots: int, sharding: Any = None
  ) -> list[jax.ShapeDtypeStruct]:
    """Returns the shapes of what a program takes, in its order."""
    shape = functools.partial(jax.ShapeDtypeStruct, sharding=sharding)
    lead = batch, heads
    return [
      shape((*lead, self.groups, self.tokens, self.width), self.dtype),
      shape((*lead, slots, self.width), self.dtype),
      shape((*lead, slots, self.value_width), self.dtype),
      shape((batch, self.tokens), jnp.int32),
      shape((batch, 1, slots), jnp.int32),
    ]

  def program(self, kernel: str | Kernel, filled: int | None = None) -> Any:
    """Returns a jitted function of streams and positions: output and lse.

    Args:
      kernel: that attends.
      filled: slots that hold tokens; None for those that the positions say.
    """

    def attend(q, k, v, query_positions, slot_positions):
      end = jnp.max(slot_positions) + 1 if filled is None else filled
      streams = {'key': k, 'value': v}
      view = attention.encoded_view(Plain(), streams, slot_positions, end)
      return attend_view(
        {'key': q}, query_positions, view, self.scoring, kernel=kernel
      )

    return jax.jit(attend)


def rows(
  kernel: str,
  problems: Sequence[Any],
  lengths: Sequence[int],
  slots: int,
  form: str = '',
) -> Iterator[dict[str, Any]]:
  """Yields a record of each problem: errors of the kernel and of `blockwise`.

  Args:
    kernel: that is compared with float64.
    problems: the fields of a `Problem` each.
    lengths: tokens of each row.
    slots: S.
    form: of the kernel, as in `forms`.
  """
  for fields in problems:
    problem = Problem(*fields)
    record = {
      'record': 'correctness',
      'name': forms.named(kernel, form),
      'kernel': kernel,
      **dataclasses.asdict(problem),
      'lengths': list(lengths),
      'slots': slots,
    }
    try:
      inputs = _draw(problem, lengths, slots)
      record |= _compare(problem, forms.kernel_of(kernel, form), inputs)
    except Exception as error:  # the next problem may be served
      record |= {'passed': False, 'failed': clock.reason(error)}
    yield record


def _compare(problem, kernel, inputs) -> dict[str, Any]:
  """Returns how far a kernel is from float64, and whether that is accepted."""
  q, k, v, query_positions, slot_positions = map(np.asarray, inputs)
  want, want_lse = attention.attend_float64(
    {'key': q},
    {'key': k, 'value': v},
    query_positions,
    slot_positions[:, 0],
    problem.scoring,
  )
  out, lse = map(np.asarray, problem.program(kernel)(*inputs))
  plain = np.asarray(problem.program('blockwise')(*inputs)[0])
  error = _largest(out - want)
  seen = np.isfinite(want_lse)
  lse_error = _largest(lse[seen] - want_lse[seen])
  empty = np.all(out[~seen] == 0) and np.all(np.isneginf(lse[~seen]))
  tolerance = TOLERANCE[problem.dtype]
  passed = empty and error <= tolerance and lse_error <= tolerance
  return {
    'error': error,
    'error_blockwise': _largest(plain - want),
    'difference': _largest(out - plain),
    'lse_error': lse_error,
    'empty_rows': bool(empty),
    'tolerance': tolerance,
    'passed': bool(passed),
  }


def _largest(x: Any) -> float:
  """Returns the largest absolute value; NaN where there is one."""
  return float(np.max(np.abs(x), initial=0.0))


def _draw(problem: Problem, lengths, slots) -> list[jax.Array]:
  """Returns queries, keys, values, positions of both; NaN where no token is."""
  positions = attention.positions(lengths, slots, problem.tokens)
  streams = problem.inputs(len(lengths), HEADS, slots)[:3]
  q, k, v = attention.normal(0, *(x.shape for x in streams))
  empty = (positions[1] < 0)[..., None]
  k, v = (jnp.where(empty, jnp.nan, x) for x in (k, v))
  return [*(x.astype(problem.dtype) for x in (q, k, v)), *positions]
