"""Runs cells in a process of eight CPU devices, and says what is wrong.

  python -m tests.sharding.run_cells CELL ...

Prints a line a cell: its name, seconds and faults, as JSON.
"""

import dataclasses
import functools
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType

import kvjax
from kvjax.native import load
from kvjax.sharding import assert_moves, collectives, of_params
from tests import compiler
from tests.sharding import cells
from tests.sharding.cells import Cell
from tests.sharding.eight_devices import local_bytes

LARGEST_ERROR = 1e-5


@dataclasses.dataclass
class Reference:
  """What one device makes of a model, a kind and a codec."""

  first: np.ndarray
  second: np.ndarray
  token: np.ndarray
  generated: np.ndarray


@functools.cache
def params_of(model: str) -> Any:
  config = cells.MODELS[model].config
  params = jax.jit(functools.partial(kvjax.init_params, config))
  return params(jax.random.key(0))


@functools.cache
def prompt() -> np.ndarray:
  shape = cells.BATCH, cells.PROMPT
  return np.random.default_rng(1).integers(0, cells.VOCAB, shape, np.int32)


@functools.cache
def reference(model: str, kind: str, codec: str) -> Reference:
  config, params = cells.MODELS[model].config, params_of(model)
  options = {'kinds': cells.KINDS[kind], 'codec': cells.CODECS[codec]}
  cache = kvjax.init_cache(config, cells.BATCH, cells.CAPACITY, **options)
  first, cache = kvjax.prefill(config, params, cache, prompt())
  token = np.asarray(jnp.argmax(first, -1).astype(jnp.int32))
  second, cache = kvjax.decode_step(config, params, cache, token)
  tokens, _ = kvjax.generate(config, params, cache, second, cells.NEW)
  return Reference(*map(np.asarray, (first, second, token, tokens)))


def mesh_of(cell: Cell) -> jax.sharding.Mesh:
  sizes = cells.LAYOUTS[cell.layout].mesh
  kind = AxisType.Auto if cell.axes == 'auto' else AxisType.Explicit
  return jax.make_mesh(
    tuple(sizes.values()),
    tuple(sizes),
    axis_types=(kind,) * len(sizes),
    devices=jax.devices()[: int(np.prod(list(sizes.values())))],
  )


def faults(cell: Cell) -> Iterator[str]:
  """Yields what is wrong with a cell."""
  config, mesh = cells.MODELS[cell.model].config, mesh_of(cell)
  rules = cells.LAYOUTS[cell.layout].rules
  wanted = reference(cell.model, cell.kind, cell.codec)
  sizes = {'batch_size': cells.BATCH, 'capacity': cells.CAPACITY}
  on_mesh = {'mesh': mesh, 'rules': rules, **cell.options}
  params = jax.device_put(params_of(cell.model), of_params(config, mesh, rules))
  cache = kvjax.init_cache(config, *sizes.values(), **on_mesh)
  plan = kvjax.memory.plan(config, **sizes, **on_mesh)
  yield from _equal('cache bytes', local_bytes(cache), plan.cache_bytes)
  yield from _equal('params bytes', local_bytes(params), plan.params_bytes)
  first, cache = kvjax.prefill(config, params, cache, prompt())
  yield from _close('prefill', first, wanted.first)
  step = _compile(
    lambda *args: kvjax.decode_step(config, *args), params, cache, wanted.token
  )
  memory = step.memory_analysis()
  yield from _equal(
    'donated bytes', memory.alias_size_in_bytes, plan.cache_bytes
  )
  if memory.temp_size_in_bytes > plan.temporaries_bytes:
    yield (
      f'temporaries: {memory.temp_size_in_bytes} exceed the plan '
      f'{plan.temporaries_bytes}'
    )
  yield from _moves(step, [(*x, 0) for x in cells.exchanges(cell)])
  if not load.missing() and f'"{load.DECODE}"' not in step.as_text():
    yield 'no native kernel is in the step'
  second, cache = step(params, cache, wanted.token)
  yield from _close('decode_step', second, wanted.second)
  loop = _compile(
    lambda *args: kvjax.generate(config, *args, cells.NEW),
    params,
    cache,
    second,
    judged=False,
  )
  looped = [(*x, 1) for x in cells.exchanges(cell)]
  yield from _moves(loop, looped + cells.exchanges_to_sample(cell))
  tokens, cache = loop(params, cache, second)
  if not np.array_equal(tokens, wanted.generated):
    yield 'generate: other tokens than those of one device'
  yield from _equal('cache bytes at last', local_bytes(cache), plan.cache_bytes)


def _compile(
  function: Callable[..., Any], *args: Any, judged: bool = True
) -> jax.stages.Compiled:
  """Compiles with the cache donated; as users do if its buffers are judged."""
  lowered = jax.jit(function, donate_argnums=1).lower(*args)
  return compiler.as_users_do(lowered) if judged else lowered.compile()


def _moves(
  compiled: jax.stages.Compiled, wanted: Sequence[tuple[str, int, int]]
) -> Iterator[str]:
  found = sorted((x.kind, x.bytes, x.loops) for x in collectives(compiled))
  if found != sorted(wanted):
    yield f'exchanges {found}, and not {sorted(wanted)}'
  try:
    assert_moves(compiled)
  except AssertionError as error:
    yield str(error)


def _equal(name: str, found: int, wanted: int) -> Iterator[str]:
  if found != wanted:
    yield f'{name}: {found} and not {wanted}'


def _close(name: str, found: Any, wanted: np.ndarray) -> Iterator[str]:
  error = np.abs(np.asarray(found) - wanted).max()
  if not error <= LARGEST_ERROR:
    yield f'{name}: differs from one device by {error:.1e}'


def main(names: Sequence[str]) -> None:
  by_name = {cell.name: cell for cell in cells.all_cells()}
  for count, name in enumerate(names, 1):
    start = time.time()
    try:
      wrong = list(faults(by_name[name]))
    except Exception as error:
      wrong = [f'{type(error).__name__}: {error}']
    seconds = round(time.time() - start, 1)
    line = {'name': name, 'seconds': seconds, 'faults': wrong}
    print(json.dumps(line), flush=True)
    if count % 8 == 0:  # compiled programs take memory
      jax.clear_caches()


if __name__ == '__main__':
  main(sys.argv[1:])
