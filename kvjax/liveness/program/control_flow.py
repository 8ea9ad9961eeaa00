"""Equations that hold programs: inlined, unrolled or joined."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from kvjax.liveness.errors import AnalysisError
from kvjax.liveness.program import scalars

if TYPE_CHECKING:
  from kvjax.liveness.program import record

Tensor = scalars.Tensor
LOOP_LIMIT = 4096  # Longest loop unrolled; sequences analysed are short.

CALLS = frozenset(
  """jit pjit closed_call core_call custom_jvp_call custom_vjp_call
  custom_vjp_call_jaxpr checkpoint remat remat2 custom_lin""".split()
)
NESTED = CALLS | {'scan', 'while', 'cond'}
CUMULATIVE = frozenset(
  ('cumsum', 'cummax', 'cummin', 'cumprod', 'cumlogsumexp')
)


def run(
  recorder: 'record.Recorder',
  eqn: Any,
  ins: list[Tensor],
  origin: 'record.Origin',
) -> list[Tensor]:
  """Interprets a call, scan, while or cond on the recorder."""
  name = eqn.primitive.name
  if name == 'scan':
    return _scan(recorder, eqn.params, ins, origin)
  if name == 'while':
    return _while(recorder, eqn.params, ins, origin)
  if name == 'cond':
    return _cond(recorder, eqn, ins, origin)
  body, consts = body_of(eqn.params)
  return recorder.run(
    body, consts, ins[len(ins) - len(body.invars) :], origin.place
  )


def body_of(params: dict[str, Any]) -> tuple[Any, list[Tensor]]:
  for key in ('jaxpr', 'call_jaxpr', 'fun_jaxpr'):
    if key in params:
      return open_jaxpr(params[key])
  raise AnalysisError(f'a call without a program: parameters {list(params)}.')


def open_jaxpr(closed: Any) -> tuple[Any, list[Tensor]]:
  if hasattr(closed, 'consts'):
    return closed.jaxpr, [scalars.constant(c) for c in closed.consts]
  return closed, []


def _scan(
  recorder: 'record.Recorder',
  params: dict[str, Any],
  ins: list[Tensor],
  origin: 'record.Origin',
) -> list[Tensor]:
  body, consts = open_jaxpr(params['jaxpr'])
  fixed, carried = scan_counts(params)
  shared, carry = ins[:fixed], ins[fixed : fixed + carried]
  columns = ins[fixed + carried :]
  steps = range(params['length'])
  ys: dict[int, list[Tensor]] = {}
  for i in reversed(steps) if params['reverse'] else steps:
    row = [t.moved(lambda a, i=i: np.asarray(a)[i]) for t in columns]
    place = (*origin.place, ('step', i))
    out = recorder.run(body, consts, [*shared, *carry, *row], place)
    carry, ys[i] = out[:carried], out[carried:]
  stacked = [stack([ys[i][j] for i in steps]) for j in range(len(ys[0]))]
  return [*carry, *stacked]


def scan_counts(params: dict[str, Any]) -> tuple[int, int]:
  """How many operands of a scan are shared by all steps, and carried."""
  if 'num_carry' in params:
    return params['num_consts'], params['num_carry']
  shared, carry, _ = params['ft_in'].unpack()  # Since JAX 0.12.
  return len(list(shared)), len(list(carry))


def stack(parts: Sequence[Tensor]) -> Tensor:
  """Tensors of one shape along a new first axis."""
  offset = None
  if any(t.offset is not None for t in parts):
    zero = np.zeros(parts[0].shape)
    offset = np.stack([zero if t.offset is None else t.offset for t in parts])
  return Tensor(
    np.stack([t.ids for t in parts]),
    np.stack([np.asarray(t.const) for t in parts]),
    offset,
  )


def _while(
  recorder: 'record.Recorder',
  params: dict[str, Any],
  ins: list[Tensor],
  origin: 'record.Origin',
) -> list[Tensor]:
  """Unrolls a loop whose test does not depend on data."""
  test, test_consts = open_jaxpr(params['cond_jaxpr'])
  body, body_consts = open_jaxpr(params['body_jaxpr'])
  a = params['cond_nconsts']
  b = a + params['body_nconsts']
  carry = ins[b:]
  for i in range(LOOP_LIMIT):
    place = (*origin.place, ('step', i))
    (more,) = recorder.run(test, test_consts, [*ins[:a], *carry], place)
    if not more.fixed:
      raise AnalysisError(
        f'the number of steps depends on data: {origin.text} at '
        f'{origin.source}. Use a loop of known length.'
      )
    if not np.asarray(more.const):
      return carry
    carry = recorder.run(body, body_consts, [*ins[a:b], *carry], place)
  raise AnalysisError(
    f'a loop of more than {LOOP_LIMIT} steps: {origin.text} at '
    f'{origin.source}. Analyse a shorter one.'
  )


def _cond(
  recorder: 'record.Recorder',
  eqn: Any,
  ins: list[Tensor],
  origin: 'record.Origin',
) -> list[Tensor]:
  """Takes the branch a constant chooses, or both and selects by data."""
  which, *args = ins
  branches = eqn.params['branches']
  if which.fixed:
    chosen = int(np.clip(np.asarray(which.const), 0, len(branches) - 1))
    body, consts = open_jaxpr(branches[chosen])
    return recorder.run(body, consts, args, origin.place)
  results = []
  for i, branch in enumerate(branches):
    body, consts = open_jaxpr(branch)
    place = (*origin.place, ('branch', i))
    results.append(recorder.run(body, consts, args, place))
  return [
    _choose(recorder, which, list(cases), v.aval, origin)
    for cases, v in zip(zip(*results, strict=True), eqn.outvars, strict=True)
  ]


def _choose(
  recorder: 'record.Recorder',
  which: Tensor,
  cases: list[Tensor],
  aval: Any,
  origin: 'record.Origin',
) -> Tensor:
  spread = which.moved(lambda a: np.broadcast_to(a, aval.shape))
  if all(t.fixed for t in cases) and len({id(t) for t in cases}) == 1:
    return cases[0]
  params: dict[str, Any] = {}
  (out,) = recorder.apply(
    jax.lax.select_n_p, params, [spread, *cases], [aval], origin
  )
  return out
