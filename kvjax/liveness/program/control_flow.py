"""Equations that hold programs: inlined, unrolled or joined."""

import dataclasses

import jax
import numpy as np

from kvjax.liveness.errors import AnalysisError
from kvjax.liveness.program import jaxprs, movement
from kvjax.liveness.program.scalars import Tensor, Tensors
from kvjax.liveness.program.trace import Equation, Recording

_Results = list[Tensor]
LOOP_LIMIT = 4096  # Longest loop unrolled; sequences analysed are short.
NESTED = jaxprs.CALLS | {'scan', 'while', 'cond'}


def run_nested(
  recorder: Recording, equation: Equation, ins: Tensors
) -> list[Tensor]:
  """Interprets a call, scan, while or cond on the recorder."""
  if equation.name in _RULES:
    return _RULES[equation.name](recorder, equation, ins)
  body, consts = jaxprs.open_call(equation.params)
  # Calls with rules for derivatives pass the rules before the arguments.
  args = ins[len(ins) - len(body.invars) :]
  return recorder.run(body, consts, args, equation.origin.place)


def _scan(recorder: Recording, equation: Equation, ins: Tensors) -> _Results:
  params = equation.params
  body, consts = jaxprs.open_jaxpr(params['jaxpr'])
  shared, carry, columns = jaxprs.split_scan(params, ins)

  def step(i: int, carry: Tensors) -> list[Tensor]:
    row = [t.moved(lambda a: np.asarray(a)[i]) for t in columns]
    place = (*equation.origin.place, ('step', i))
    return recorder.run(body, consts, [*shared, *carry, *row], place)

  stack = lambda parts: movement.move_together(np.stack, parts)
  return jaxprs.unroll_scan(params, carry, step, stack)


def _while(recorder: Recording, equation: Equation, ins: Tensors) -> _Results:
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
      return list(carry)
    args = [*ins[of_test:shared], *carry]
    carry = recorder.run(body, body_consts, args, place)
  raise AnalysisError(
    f'a loop of more than {LOOP_LIMIT} steps: {origin.text} at '
    f'{origin.source}. Analyse a shorter one.'
  )


def _cond(recorder: Recording, equation: Equation, ins: Tensors) -> _Results:
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
    results.append(recorder.run(body, consts, args, (*place, ('branch', i))))
  return [
    _select(recorder, which, cases, dataclasses.replace(equation, avals=[aval]))
    for cases, aval in zip(
      zip(*results, strict=True), equation.avals, strict=True
    )
  ]


def _select(
  recorder: Recording, which: Tensor, cases: Tensors, equation: Equation
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


_RULES = {'scan': _scan, 'while': _while, 'cond': _cond}
