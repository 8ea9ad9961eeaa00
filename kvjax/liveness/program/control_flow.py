"""Equations that hold programs: inlined, unrolled or joined."""

import dataclasses
from collections.abc import Sequence

import jax
import numpy as np

from kvjax.liveness.errors import AnalysisError
from kvjax.liveness.program import jaxprs, movement
from kvjax.liveness.program.scalars import Tensor
from kvjax.liveness.program.trace import Equation, Recording

LOOP_LIMIT = 4096  # Longest loop unrolled; sequences analysed are short.
NESTED = jaxprs.CALLS | {'scan', 'while', 'cond'}


def run_nested(
  recorder: Recording, equation: Equation, ins: list[Tensor]
) -> list[Tensor]:
  """Interprets a call, scan, while or cond on the recorder."""
  if equation.name == 'scan':
    return _scan(recorder, equation, ins)
  if equation.name == 'while':
    return _while(recorder, equation, ins)
  if equation.name == 'cond':
    return _cond(recorder, equation, ins)
  body, consts = jaxprs.open_call(equation.params)
  # Calls with rules for derivatives pass the rules before the arguments.
  args = ins[len(ins) - len(body.invars) :]
  return recorder.run(body, consts, args, equation.origin.place)


def _scan(
  recorder: Recording, equation: Equation, ins: list[Tensor]
) -> list[Tensor]:
  params = equation.params
  body, consts = jaxprs.open_jaxpr(params['jaxpr'])
  shared, carry, columns = jaxprs.split_scan(params, ins)
  carried = len(carry)
  steps = range(params['length'])
  ys: dict[int, list[Tensor]] = {}
  for i in reversed(steps) if params['reverse'] else steps:
    row = [t.moved(lambda a, i=i: np.asarray(a)[i]) for t in columns]
    place = (*equation.origin.place, ('step', i))
    out = recorder.run(body, consts, [*shared, *carry, *row], place)
    carry = out[:carried]
    ys[i] = out[carried:]
  stacked = [
    movement.move_together(np.stack, [ys[i][j] for i in steps])
    for j in range(len(ys[0]))
  ]
  return [*carry, *stacked]


def _while(
  recorder: Recording, equation: Equation, ins: list[Tensor]
) -> list[Tensor]:
  """Unrolls a loop whose test does not depend on data."""
  params = equation.params
  origin = equation.origin
  test, test_consts = jaxprs.open_jaxpr(params['cond_jaxpr'])
  body, body_consts = jaxprs.open_jaxpr(params['body_jaxpr'])
  of_test = params['cond_nconsts']
  shared = of_test + params['body_nconsts']
  carry = ins[shared:]
  for i in range(LOOP_LIMIT):
    place = (*origin.place, ('step', i))
    args = [*ins[:of_test], *carry]
    (goes_on,) = recorder.run(test, test_consts, args, place)
    if not goes_on.fixed:
      raise AnalysisError(
        f'the number of steps depends on data: {origin.text} at '
        f'{origin.source}. Use a loop of known length.'
      )
    if not np.asarray(goes_on.const):
      return carry
    args = [*ins[of_test:shared], *carry]
    carry = recorder.run(body, body_consts, args, place)
  raise AnalysisError(
    f'a loop of more than {LOOP_LIMIT} steps: {origin.text} at '
    f'{origin.source}. Analyse a shorter one.'
  )


def _cond(
  recorder: Recording, equation: Equation, ins: list[Tensor]
) -> list[Tensor]:
  """Takes the branch a constant chooses, or both and selects by data."""
  which, *args = ins
  branches = equation.params['branches']
  place = equation.origin.place
  if which.fixed:
    chosen = int(np.clip(np.asarray(which.const), 0, len(branches) - 1))
    body, consts = jaxprs.open_jaxpr(branches[chosen])
    return recorder.run(body, consts, args, place)
  results = []
  for i, branch in enumerate(branches):
    body, consts = jaxprs.open_jaxpr(branch)
    inner = (*place, ('branch', i))
    results.append(recorder.run(body, consts, args, inner))
  return [
    _select(recorder, which, cases, dataclasses.replace(equation, avals=[aval]))
    for cases, aval in zip(
      zip(*results, strict=True), equation.avals, strict=True
    )
  ]


def _select(
  recorder: Recording,
  which: Tensor,
  cases: Sequence[Tensor],
  equation: Equation,
) -> Tensor:
  """Returns one result of a branch by data, of the shape of `equation`."""
  if all(t.fixed for t in cases) and len({id(t) for t in cases}) == 1:
    return cases[0]
  shape = equation.avals[0].shape
  spread = which.moved(lambda a: np.broadcast_to(a, shape))
  select = dataclasses.replace(
    equation, primitive=jax.lax.select_n_p, params={}
  )
  (out,) = recorder.apply(select, [spread, *cases])
  return out
