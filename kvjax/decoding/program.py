"""The one way in which a function of a cache runs: compiled, or traced along.

Called from Python, such a function runs under `jax.jit`, with its cache donated
if the caller wishes. Inside a caller's own trace it runs as plain code and
becomes part of the caller's program, which decides about donation.

A cache on a mesh says how its program is split: the mesh is read off the cache,
and results are where the rules of the cache want them.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import jax
from jax.sharding import PartitionSpec

from kvjax.arguments import check_flags
from kvjax.context import PARTITION
from kvjax.decoding.cache import Cache, check_alive
from kvjax.decoding.leaf_axes import cache_specs, partition_of_cache
from kvjax.decoding.tracing import in_trace
from kvjax.mesh.region import check_meshes, mesh_of, rows_spec, run_on_mesh
from kvjax.mesh.rules import Partition, Rules
from kvjax.models.initialize import check_params

R = TypeVar('R')


def program(
  *,
  static: Sequence[str] = (),
  donated: Sequence[str] = ('cache',),
  by_rows: Sequence[int] = (),
) -> Callable[[Callable[..., R]], Callable[..., R]]:
  """Returns a decorator; the decorated function takes `donate=` in addition.

  Args:
    static: names of arguments that are hashed, not traced.
    donated: names of arguments whose buffers `donate=True` gives away.
    by_rows: indices of results that a mesh splits by rows, as activations are.
      Every device has all others whole, caches apart.
  """

  def decorate(function: Callable[..., R]) -> Callable[..., R]:
    function = _on_mesh(function, tuple(by_rows))
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


def _on_mesh(
  function: Callable[..., R], by_rows: tuple[int, ...]
) -> Callable[..., R]:
  """Returns a function that reads the mesh off its cache, if that has one."""

  @functools.wraps(function)
  def run(*args):
    check_meshes(*jax.tree.leaves(args))
    leaves = jax.tree.leaves(args, is_leaf=lambda x: isinstance(x, Cache))
    cache = next((x for x in leaves if isinstance(x, Cache)), None)
    if cache is not None:
      partition = partition_of_cache(cache)
    else:  # results that every device has whole
      mesh = mesh_of(*jax.tree.leaves(args))
      partition = None if mesh is None else Partition(mesh, Rules())
    if partition is None:
      return function(*args)
    specs = functools.partial(_result_specs, by_rows=by_rows)
    return run_on_mesh(function, partition, args, specs)

  return run


def _result_specs(results: Any, by_rows: tuple[int, ...]) -> Any:
  """Returns a `PartitionSpec` for every array of the results of a program."""
  if type(results) is not tuple:
    return _part_specs(results, False)
  return tuple(
    _part_specs(part, index in by_rows) for index, part in enumerate(results)
  )


def _part_specs(part: Any, is_by_rows: bool) -> Any:
  partition = PARTITION.value
  if isinstance(part, Cache):
    return cache_specs(part, partition)

  def spec(x):
    return rows_spec(partition, x) if is_by_rows else PartitionSpec()

  return jax.tree.map(spec, part)
