"""What a kernel computes on the device at hand, against float64 and XLA.

Small caches of rows of several lengths, none among them, NaN in every slot
without a token. A kernel that has never run on its device is asked this before
its time means anything.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.measuring import clock, forms
from experiments.measuring.attention import normal
from kvjax.kernels import Kernel, Scoring, attend_view
from kvjax.streams.codecs import Plain
from kvjax.streams.view import contiguous_view
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


def rows(
  kernel: str,
  problems: Sequence[Any],
  lengths: Sequence[int],
  slots: int,
  form: str = '',
) -> Iterator[dict[str, Any]]:
  """Yields a record of each problem: errors of the kernel and of `blockwise`.

  Args:
    kernel: that is held against float64.
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
      record |= _compared(problem, kernel, lengths, slots, form)
    except Exception as error:  # the next problem may be served
      record |= {'passed': False, 'failed': clock.reason(error)}
    yield record


def _compared(problem, kernel, lengths, slots, form) -> dict[str, Any]:
  given = _draw(problem, lengths, slots)
  want, want_lse = oracle(problem, *map(np.asarray, given))
  found = {}
  for name, chosen in (
    (kernel, forms.kernel_of(kernel, form)),
    ('blockwise', 'blockwise'),
  ):
    attend = jax.jit(_attend(problem, chosen))
    found[name] = [np.asarray(x) for x in attend(*given)]
  errors = {name: _largest(out - want) for name, (out, _) in found.items()}
  out, lse = found[kernel]
  seen = np.isfinite(want_lse)
  lse_error = _largest(np.where(seen, lse - np.where(seen, want_lse, 0), 0))
  empty = np.all(out[~seen] == 0) and np.all(np.isneginf(lse[~seen]))
  tolerance = TOLERANCE[problem.dtype]
  return {
    'error': errors[kernel],
    'error_blockwise': errors['blockwise'],
    'difference': _largest(out - found['blockwise'][0]),
    'lse_error': lse_error,
    'empty_rows': bool(empty),
    'tolerance': tolerance,
    'passed': bool(
      empty and errors[kernel] <= tolerance and lse_error <= tolerance
    ),
  }


def _largest(x: Any) -> float:
  """Returns the largest absolute value; NaN where there is one."""
  return float(np.max(np.abs(x), initial=0.0))


def _draw(problem: Problem, lengths, slots) -> list[jax.Array]:
  """Returns queries, keys, values, positions of both; NaN where no token is."""
  batch, dtype = len(lengths), problem.dtype
  counts = np.asarray(lengths)[:, None]
  held = np.where(np.arange(slots) < counts, np.arange(slots), -1)
  last = counts - problem.tokens + np.arange(problem.tokens)
  lead = (batch, HEADS)
  q, k, v = normal(
    0,
    (*lead, problem.groups, problem.tokens, problem.width),
    (*lead, slots, problem.width),
    (*lead, slots, problem.value_width),
  )
  empty = jnp.asarray(held < 0)[:, None, :, None]
  k, v = (jnp.where(empty, jnp.nan, x).astype(dtype) for x in (k, v))
  positions = jnp.asarray(np.maximum(last, -1), jnp.int32)
  held = jnp.asarray(held, jnp.int32)[:, None]
  return [q.astype(dtype), k, v, positions, held]


def _attend(problem: Problem, kernel: str | Kernel) -> Callable[..., Any]:
  scoring = Scoring(
    problem.width**-0.5,
    softcap=problem.softcap,
    visibility=Visibility(**problem.rule),
  )
  codec = Plain()

  def attend(q, k, v, positions, held):
    filled = jnp.max(held) + 1
    view = contiguous_view({'key': k, 'value': v}, held, filled, ordered=True)
    view = view.map(dict, lambda x: {n: codec.stored(x[n]) for n in x})
    return attend_view({'key': q}, positions, view, scoring, kernel=kernel)

  return attend


def oracle(
  problem: Problem,
  q: np.ndarray,
  k: np.ndarray,
  v: np.ndarray,
  positions: np.ndarray,
  held: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
  """Returns output and log-sum-exp by a plain masked softmax in float64."""
  q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
  asked, held = positions[:, None, None, :, None], held[:, :, None, None, :]
  rule = Visibility(**problem.rule)
  sees = rule.sees(jnp.asarray(asked), jnp.asarray(held))
  seen = np.asarray(sees) & (asked >= 0) & (held >= 0)
  k, v = (np.where(np.isnan(x), 0.0, x) for x in (k, v))
  scores = np.einsum('BKGTH,BKSH->BKGTS', q, k) * problem.width**-0.5
  if problem.softcap is not None:
    scores = problem.softcap * np.tanh(scores / problem.softcap)
  scores = np.where(seen, scores, -np.inf)
  top = scores.max(axis=-1, initial=-1e30)
  weights = np.exp(scores - top[..., None])
  total = weights.sum(axis=-1)
  some = total > 0
  safe = np.where(some, total, 1.0)
  out = np.einsum('BKGTS,BKSE->BKGTE', weights / safe[..., None], v)
  return out, np.where(some, top + np.log(safe), -np.inf)
