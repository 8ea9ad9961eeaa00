"""The program of one call, compiled from shapes alone."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from kvjax.caches.kind import Kind
from kvjax.decoding.allocate import init_cache
from kvjax.decoding.steps import decode_step, prefill
from kvjax.kernels.kernel import Kernel
from kvjax.models.config import ModelConfig
from kvjax.models.encoder import encode
from kvjax.models.initialize import param_shapes
from kvjax.renamed import renamed_arguments
from kvjax.streams.codecs import Codec


@renamed_arguments(cache='kinds=')
def compile_call(
  config: ModelConfig,
  *,
  batch_size: int,
  capacity: int,
  new_tokens_per_step: int = 1,
  kinds: Kind | Sequence[Kind | None] | None = None,
  codec: Codec | None = None,
  source_length: int | None = None,
  kernel: str | Kernel = 'blockwise',
  sharding: Any = None,
) -> jax.stages.Compiled:
  """Compiles a decode step, or a prefill of several tokens, cache donated.

  `measure` of the result is the exact figure of what `plan` bounds.

  Args:
    config: the model.
    batch_size: B rows.
    capacity: tokens a row can hold.
    new_tokens_per_step: T tokens a row of the call.
    kinds: of cache, as in `plan`.
    codec: how streams are stored.
    source_length: tokens or frames of each source; None without an encoder.
    kernel: that attends.
    sharding: of every argument; None for the default device. That of a device
      which is only described compiles for it ahead of time, inside
      `kvjax.kernels.targeting`.
  """
  one = new_tokens_per_step == 1

  def call(params, cache, tokens):
    run = decode_step if one else prefill
    return run(config, params, cache, tokens, kernel=kernel)

  choices: Any = {'kinds': kinds, 'codec': codec}
  choices['source_length'] = source_length
  empty = jax.eval_shape(
    lambda: init_cache(config, batch_size, capacity, **choices)
  )
  params = param_shapes(config)
  shape = (batch_size,) if one else (batch_size, new_tokens_per_step)
  given: Any = params, empty, jax.ShapeDtypeStruct(shape, jnp.int32)
  if sharding is not None:
    given = jax.tree.map(
      lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
      given,
    )
  return jax.jit(call, donate_argnames='cache').lower(*given).compile()


def compile_encode(
  config: ModelConfig, batch_size: int, source_length: int
) -> jax.stages.Compiled:
  """Compiles `encode` of whole sources; raises as it does.

  Args:
    config: the model.
    batch_size: B rows.
    source_length: S tokens or frames of each source.
  """
  params = param_shapes(config)
  features = None if config.encoder is None else config.encoder.features
  source = jax.ShapeDtypeStruct((batch_size, source_length), jnp.int32)
  if features is not None:
    shape = batch_size, 2 * source_length, features
    source = jax.ShapeDtypeStruct(shape, jnp.dtype(config.dtype))
  run = jax.jit(lambda params, source: encode(config, params, source))
  return run.lower(params, source).compile()
