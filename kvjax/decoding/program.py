"""The one way in which a function of a cache runs: compiled, or traced along.

Called from Python, such a function runs under `jax.jit`, with its cache donated
if the caller wishes. Inside a caller's own trace it runs as plain code and
becomes part of the caller's program, which decides about donation.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import jax

from kvjax.arguments import check_flags
from kvjax.decoding.cache import Cache, check_alive
from kvjax.decoding.tracing import in_trace
from kvjax.models.initialize import check_params

R = TypeVar('R')


def program(
  *, static: Sequence[str] = (), donated: Sequence[str] = ('cache',)
) -> Callable[[Callable[..., R]], Callable[..., R]]:
  """Returns a decorator; the decorated function takes `donate=` in addition.

  Args:
    static: names of arguments that are hashed, not traced.
    donated: names of arguments whose buffers `donate=True` gives away.
  """

  def decorate(function: Callable[..., R]) -> Callable[..., R]:
    compiled: dict[bool, Any] = {
      donate: jax.jit(
        function,
        static_argnames=tuple(static),
        donate_argnames=tuple(donated) if donate else (),
      )
      for donate in (False, True)
    }

    @functools.wraps(function)
    def run(*args: Any, donate: bool = False) -> R:
      check_flags(donate=donate)
      if in_trace():
        return function(*args)
      try:
        return compiled[donate](*args)
      except (RuntimeError, TypeError, ValueError):
        for x in args:
          if isinstance(x, Cache):  # another thread may have donated it
            check_alive(x)
          elif isinstance(x, Mapping):  # may hold what is no array
            check_params(args[0], x)
        raise

    return run

  return decorate
