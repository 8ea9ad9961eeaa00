"""What a step costs besides bytes: its compilation, and the host's work."""

import functools
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kvjax.attention.grouped import Grouped
from kvjax.attention.rotary import Rotary
from kvjax.decoding.allocate import init_cache
from kvjax.decoding.steps import decode_step
from kvjax.memory.compiled.calls import compile_call
from kvjax.models.config import Layer, ModelConfig
from kvjax.models.initialize import init_params
from kvjax.models.mlp import MLP

SLOTS = 512
TURNS = 200


def time_compiling(shape: ModelConfig, kernel: str) -> dict[str, Any]:
  """Returns seconds to trace, lower and compile a step, from shapes alone.

  The persistent cache of compilations is switched off for that time.
  """
  config: Any = jax.config
  before = config.jax_enable_compilation_cache
  config.update('jax_enable_compilation_cache', False)
  try:
    begun = time.perf_counter()
    compile_call(shape, batch_size=1, capacity=SLOTS, kernel=kernel)
    seconds = time.perf_counter() - begun
  finally:
    config.update('jax_enable_compilation_cache', before)
  return {'name': 'compiling a step', 'seconds': seconds}


def time_starts(layers: int) -> list[dict[str, Any]]:
  """Returns seconds until calls return that only start a step.

  The model is so narrow that the host's work on its arrays is all that counts.
  `decode_step` is compared with the same program in four forms: by a bare
  `jax.jit`, compiled ahead, with its weights as constants (which are no
  arguments), and a program that does nothing with the same number of arrays,
  which shows the part of JAX itself.
  """
  layer = Layer(Grouped(2, 1, 8, rotary=Rotary(8)), MLP(8))
  config = ModelConfig(16, 16, (layer,) * layers)
  params = init_params(config, jax.random.key(0))
  token = jnp.zeros((1,), jnp.int32)

  def step(params, cache, token):
    return decode_step(config, params, cache, token)

  bare = jax.jit(step, donate_argnames='cache')
  empty = init_cache(config, 1, SLOTS)
  ahead = bare.lower(params, empty, token).compile()
  constant = jax.jit(functools.partial(step, params), donate_argnums=0)
  idle = jax.jit(
    lambda params, cache, token: (token, cache),
    donate_argnames='cache',
    keep_unused=True,
  )
  starts = {
    'starting decode_step': functools.partial(step, params),
    'starting a bare jit of it': functools.partial(bare, params),
    'starting it, compiled ahead': functools.partial(ahead, params),
    'starting it, weights constant': constant,
    'starting nothing, as many': functools.partial(idle, params),
  }
  caches = {name: init_cache(config, 1, SLOTS) for name in starts}
  times: dict[str, list[float]] = {name: [] for name in starts}
  for turn in range(TURNS):
    for name, start in starts.items():
      begun = time.perf_counter()
      logits, caches[name] = start(caches[name], token)
      spent = time.perf_counter() - begun
      jax.block_until_ready((logits, caches[name]))
      if turn >= TURNS // 4:
        times[name].append(spent)
  leaves = len(jax.tree.leaves((params, empty)))
  return [
    {'name': name, 'seconds': float(np.median(spent)), 'leaves': leaves}
    for name, spent in times.items()
  ]
