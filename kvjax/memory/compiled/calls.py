"""The program of one call, compiled from shapes alone."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from kvjax.caches.kind import Kind
from kvjax.decoding.allocate import init_cache
from kvjax.decoding.leaf_axes import cache_specs
from kvjax.decoding.steps import decode_step, prefill
from kvjax.kernels.kernel import Kernel
from kvjax.mesh.rules import Rules, partition_of
from kvjax.models.config import ModelConfig
from kvjax.models.encoder import encode
from kvjax.models.initialize import param_shapes
from kvjax.models.param_axes import param_specs
from kvjax.renamed import renamed_arguments
from kvjax.streams.codecs import Codecs


@renamed_arguments(cache='kinds=')
def compile_call(
  config: ModelConfig,
  *,
  batch_size: int,
  capacity: int,
  new_tokens_per_step: int = 1,
  kinds: Kind | Sequence[Kind | None] | None = None,
  codec: Codecs = None,
  source_length: int | None = None,
  kernel: str | Kernel = 'blockwise',
  mesh: jax.sharding.Mesh | None = None,
  rules: Rules | None = None,
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
    mesh: of devices that share the work; the program is then that of each.
    rules: what the axes of the mesh split, as in `init_cache`.
    sharding: without a mesh, that of every argument; None for the default
      device.

  Devices that are only described are compiled for ahead of time, inside
  `kvjax.kernels.targeting`.
  """
  one = new_tokens_per_step == 1

  def call(params, cache, tokens):
    run = decode_step if one else prefill
    return run(config, params, cache, tokens, kernel=kernel)

  choices: Any = {'kinds': kinds, 'codec': codec, 'mesh': mesh}
  choices |= {'rules': rules, 'source_length': source_length}
  empty = jax.eval_shape(
    lambda: init_cache(config, batch_size, capacity, **choices)
  )
  shape = (batch_size,) if one else (batch_size, new_tokens_per_step)
  tokens = jax.ShapeDtypeStruct(shape, jnp.int32)
  given: Any = param_shapes(config), empty, tokens
  if mesh is not None:
    partition = partition_of(mesh, rules)
    specs = param_specs(config, partition), cache_specs(empty, partition)
    sharding = jax.tree.map(
      lambda spec: NamedSharding(mesh, spec), (*specs, PartitionSpec())
    )
  elif sharding is not None:
    sharding = jax.tree.map(lambda _: sharding, given)
  if sharding is not None:
    given = jax.tree.map(
      lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place),
      given,
      sharding,
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
