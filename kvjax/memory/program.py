"""The program of one call, compiled from shapes alone."""

import jax
import jax.numpy as jnp

from kvjax.caches.codecs import Codec
from kvjax.caches.kind import Kind
from kvjax.decoding.cache import init_cache
from kvjax.decoding.steps import decode_step, prefill
from kvjax.models.config import ModelConfig
from kvjax.models.decoder import init_params


def compile_call(
    config: ModelConfig,
    *,
    batch_size: int,
    capacity: int,
    new_tokens_per_step: int = 1,
    cache: Kind | None = None,
    codec: Codec | None = None,
) -> jax.stages.Compiled:
  """Compiles a decode step, or a prefill of several tokens, cache donated.

  Arguments as in `plan`, whose figures this is held against.
  """

  one = new_tokens_per_step == 1

  def call(params, cache, tokens):
    run = decode_step if one else prefill
    return run(config, params, cache, tokens, kernel='blockwise')

  empty = jax.eval_shape(
      lambda: init_cache(
          config, batch_size, capacity, kinds=cache, codec=codec
      )
  )
  params = jax.eval_shape(lambda: init_params(config, jax.random.key(0)))
  shape = (batch_size,) if one else (batch_size, new_tokens_per_step)
  tokens = jax.ShapeDtypeStruct(shape, jnp.int32)
  jitted = jax.jit(call, donate_argnames='cache')
  return jitted.lower(params, empty, tokens).compile()
