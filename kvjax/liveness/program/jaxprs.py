"""The jaxpr of a program, how to open it and how to interpret it.

Shapes and branches by data, and side effects, are refused here: the first have
no equations, the second mean more than their equations say.
"""

import functools
import pathlib
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

import jax
from jax.extend import core

from kvjax.liveness.errors import AnalysisError

Value = TypeVar('Value')
CALLS = frozenset(
  """jit pjit closed_call core_call custom_jvp_call custom_vjp_call
  custom_vjp_call_jaxpr checkpoint remat remat2 custom_lin""".split()
)
# A call of this name returns its first argument for ids of the vocabulary, and
# integers of the input are taken to be such ids.
CHECK = 'mark_unknown_ids'
_BY_DATA = (
  jax.errors.ConcretizationTypeError,
  jax.errors.NonConcreteBooleanIndexError,
  jax.errors.TracerArrayConversionError,
  jax.errors.TracerIntegerConversionError,
)


def jaxpr_of(program: Callable[..., Any], x: Any) -> Any:
  """Returns the closed jaxpr of `program` on `x`.

  Raises:
    AnalysisError: the program has none, or has side effects; the message names
      the line of source.
  """
  try:
    closed = jax.make_jaxpr(program)(x)
  except _BY_DATA as error:
    text = str(error).strip().partition('\n')[0].rstrip('.')
    raise AnalysisError(
      f'a shape, an index or a branch depends on data at {_line(error)}: '
      f'{text}. Choose by jnp.where or a mask instead.'
    ) from error
  if closed.effects:
    raise AnalysisError(
      f'the program has side effects: {_effectful(closed.jaxpr)}. Analyse '
      'one without.'
    )
  return closed


def interpret(
  jaxpr: Any,
  consts: Sequence[Any],
  args: Sequence[Value],
  equation: Callable[[int, Any, list[Value]], Sequence[Value]],
  constant: Callable[[Any], Value],
) -> list[Value]:
  """Returns the results of a jaxpr whose equations are run by `equation`.

  Args:
    jaxpr: an open jaxpr.
    consts: arrays for its constants.
    args: values of its arguments.
    equation: gets the number of an equation, the equation and its operands;
      returns its results.
    constant: makes a value of an array that does not depend on the arguments.
  """
  env = dict(zip(jaxpr.constvars, map(constant, consts), strict=True))
  env.update(zip(jaxpr.invars, args, strict=True))

  def read(v: Any) -> Value:
    return constant(v.val) if isinstance(v, core.Literal) else env[v]

  for i, eqn in enumerate(jaxpr.eqns):
    outs = equation(i, eqn, [read(v) for v in eqn.invars])
    env.update(zip(eqn.outvars, outs, strict=True))
  return [read(v) for v in jaxpr.outvars]


def nested(eqn: Any) -> Iterator[Any]:
  """Yields the jaxprs within an equation that is no check of ids."""
  if eqn.params.get('name') != CHECK:
    yield from core.jaxprs_in_params(eqn.params)


def open_call(params: dict[str, Any]) -> tuple[Any, Sequence[Any]]:
  """Returns the jaxpr that a call runs, and its constants."""
  if params.get('name') == CHECK:
    avals = params['jaxpr'].in_avals
    values = [jax.ShapeDtypeStruct(v.shape, v.dtype) for v in avals]
    return open_jaxpr(jax.make_jaxpr(lambda first, *_: first)(*values))
  for key in ('jaxpr', 'call_jaxpr', 'fun_jaxpr'):
    if key in params:
      return open_jaxpr(params[key])
  raise AnalysisError(f'a call without a program: parameters {list(params)}.')


def open_jaxpr(closed: Any) -> tuple[Any, Sequence[Any]]:
  """Returns a jaxpr and its constants, which an open one has not."""
  if hasattr(closed, 'consts'):
    return closed.jaxpr, closed.consts
  return closed, []


def split_scan(
  params: dict[str, Any], ins: Sequence[Value]
) -> tuple[Sequence[Value], Sequence[Value], Sequence[Value]]:
  """Returns operands of a scan: shared by all steps, carried, one a step."""
  if 'num_carry' in params:
    shared = params['num_consts']
    carried = params['num_carry']
  else:  # Since JAX 0.12.
    shared_tree, carried_tree, _ = params['ft_in'].unpack()
    shared = len(list(shared_tree))
    carried = len(list(carried_tree))
  columns = shared + carried
  return ins[:shared], ins[shared:columns], ins[columns:]


def unroll_scan(
  params: dict[str, Any],
  carry: Sequence[Value],
  step: Callable[[int, Sequence[Value]], list[Value]],
  stack: Callable[[list[Value]], Value],
) -> list[Value]:
  """Returns the results of a scan, one step after the other.

  Args:
    params: of the scan.
    carry: what the first step gets.
    step: gets the number of a step and the carry, returns the results of both.
    stack: joins what the steps give along a new first axis.
  """
  steps = range(params['length'])
  ys: dict[int, list[Value]] = {}
  for i in reversed(steps) if params['reverse'] else steps:
    out = step(i, carry)
    ys[i] = out[len(carry) :]
    carry = out[: len(carry)]
  columns = zip(*(ys[i] for i in steps), strict=True)
  return [*carry, *(stack(list(column)) for column in columns)]


def _line(error: Exception) -> str:
  """Returns file and line of the user's code that raised an error last."""
  frames = reversed(traceback.extract_tb(error.__traceback__))
  return _first_of_user((f.filename, f.lineno) for f in frames)


def source(eqn: Any) -> str:
  """Returns file and line of the user's code that made an equation."""
  trace = eqn.source_info.traceback
  frames = trace.frames if trace is not None else ()
  return _first_of_user((f.file_name, f.line_num) for f in frames)


def _first_of_user(places: Iterable[tuple[str, int | None]]) -> str:
  for file, line in places:
    if '/site-packages/' not in file:
      cell = _cell_of(file)
      if cell:
        return f'{cell}, line {line}'
      return f'{_importable(file, tuple(sys.path))}:{line}'
  return 'an unknown line'


def _cell_of(file: str) -> str:
  """Returns what IPython calls a cell of a notebook; '' for a true file.

  A cell is compiled under the name of a temporary file that no reader knows.
  """
  ipython: Any = sys.modules.get('IPython')
  shell = ipython.get_ipython() if ipython else None
  return ' '.join(shell.compile.format_code_name(file) or ()) if shell else ''


@functools.cache  # Each equation of a program asks.
def _importable(file: str, folders: tuple[str, ...]) -> str:
  """Returns a path as below the folder that Python imports it from.

  Such a path is the same on every machine. A file of no such folder keeps its
  path.
  """
  path = pathlib.Path(file)
  known = {pathlib.Path(folder).absolute() for folder in folders}
  above = next((folder for folder in path.parents if folder in known), None)
  return str(path.relative_to(above)) if above else file


def _effectful(jaxpr: Any) -> str:
  """Returns name and source of the innermost first equation with effects."""
  for eqn in jaxpr.eqns:
    if eqn.effects:
      inner = core.jaxprs_in_params(eqn.params)
      nested = [_effectful(j) for j in inner if j.effects]
      return nested[0] if nested else f'{eqn.primitive.name} at {source(eqn)}'
  return str(jaxpr.effects)
