"""Whether the caller is inside a trace; which arguments are abstract."""

import concurrent.futures
import contextlib
import functools
from typing import Any

import jax
from jax.core import Tracer
from jax.extend.core import get_opaque_trace_state


def is_traced(*trees: Any) -> bool:
  """Returns whether any leaf is abstract: the caller is inside a trace."""
  # A cache has thousands of leaves and a handful of types of leaves.
  types = set(map(type, jax.tree.leaves(trees)))
  return any(issubclass(x, Tracer) for x in types)


def in_trace() -> bool:
  """Returns whether the caller is inside a transform, whatever it traces."""
  return get_opaque_trace_state() != _state_outside()


def computing() -> contextlib.AbstractContextManager[Any]:
  """Returns a context that computes with known arrays inside a trace too.

  A caller's jit may close over a cache that is known.
  """
  # Outside a trace the context of JAX would transfer numbers implicitly.
  eager = jax.ensure_compile_time_eval()
  return eager if in_trace() else contextlib.nullcontext()


@functools.cache
def _state_outside() -> Any:
  # The caller may be inside a trace when this first runs. A new thread never
  # is.
  with concurrent.futures.ThreadPoolExecutor(1) as pool:
    return pool.submit(get_opaque_trace_state).result()
