"""A program's jaxpr, or the place in it that has none.

Shapes and branches by data, and side effects, are refused here: the first have
no equations, the second mean more than their equations say.
"""

import traceback
from collections.abc import Callable
from typing import Any

import jax
from jax.extend import core

from kvjax.liveness.errors import AnalysisError

_BY_DATA = (
  jax.errors.ConcretizationTypeError,
  jax.errors.NonConcreteBooleanIndexError,
  jax.errors.TracerArrayConversionError,
  jax.errors.TracerIntegerConversionError,
)


def jaxpr_of(program: Callable[..., Any], x: Any) -> Any:
  """Returns the closed jaxpr of `program` on `x`.

  Raises:
    AnalysisError: it has none, or side effects; names the line.
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


def _line(error: Exception) -> str:
  """File and line of the user's own code that an error came through last."""
  frames = traceback.extract_tb(error.__traceback__)
  own = [f for f in frames if not _foreign(f.filename)]
  return f'{own[-1].filename}:{own[-1].lineno}' if own else 'an unknown line'


def source(eqn: Any) -> str:
  """File and line of the user's own code that made an equation."""
  trace = eqn.source_info.traceback
  frames = trace.frames if trace is not None else ()
  for frame in frames:
    if not _foreign(frame.file_name):
      return f'{frame.file_name}:{frame.line_num}'
  return 'an unknown line'


def _foreign(file: str) -> bool:
  return '/site-packages/' in file


def _effectful(jaxpr: Any) -> str:
  """The innermost first equation that has effects."""
  for eqn in jaxpr.eqns:
    if eqn.effects:
      inner = core.jaxprs_in_params(eqn.params)
      found = [_effectful(j) for j in inner if j.effects]
      return found[0] if found else f'{eqn.primitive.name} at {source(eqn)}'
  return str(jaxpr.effects)
