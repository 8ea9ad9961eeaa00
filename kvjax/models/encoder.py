"""The encoder of an encoder-decoder: runs once, sees its whole source.

If the source grew, every query would be read again. The encoder needs no cache
because it runs once, not because its queries die.
"""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax.sharding import AxisType, PartitionSpec

from kvjax.arguments import (
  check_array,
  check_ids,
  check_lengths,
  is_known,
  narrow_ids,
  unknown_ids,
)
from kvjax.attention.reference import attend_uncached
from kvjax.mesh.region import mesh_of, run_on_mesh
from kvjax.mesh.rules import Partition, Rules
from kvjax.models.config import Encoder, ModelConfig, check_config
from kvjax.models.decoder import run_layer
from kvjax.models.initialize import check_params


@struct.dataclass
class Encoded:
  """What a decoder reads of its source.

  Attributes:
    hidden: `[B, S, D]`.
    positions: int32 `[B, S]`, -1 on padding.
  """

  hidden: jax.Array
  positions: jax.Array


def encode(
  config: ModelConfig,
  params: Mapping[str, Any],
  source: jax.Array,
  source_lengths: Any = None,
) -> Encoded:
  """Returns the encoder's output for a source.

  Args:
    config: a model with an encoder.
    params: its parameters.
    source: token ids `[B, S]`, or features `[B, frames, features]`, of which
      the encoder's convolutions make `ceil(frames / 2)` positions.
    source_lengths: int `[B]`, positions of each row that count; None for all.

  Raises:
    ValueError: the model has no encoder, the source is of another shape or
      dtype, or has an id outside the vocabulary. Inside a trace, where ids are
      not known, the row of such an id is NaN.
  """
  check_config(config)
  encoder = config.encoder
  if encoder is None:
    raise ValueError('The model has no encoder; nothing to encode.')
  if encoder.features is None:
    check_array('source', source, (None, None), jnp.integer)
    lengths = check_lengths(source, source_lengths)
    width = source.shape[1]
    rows = np.full(len(source), width) if lengths is None else lengths
    if is_known(rows):
      rows = jax.device_get(rows)
      is_token = np.arange(width)[None, :] < rows[:, None]
      check_ids('source', source, is_token, config.vocab_size)
    source = narrow_ids(source, config.vocab_size)
  else:
    shape = None, None, encoder.features
    check_array('source', source, shape, jnp.floating)
    lengths = check_lengths(source[:, ::2], source_lengths)
  return _encode(config, params, source, lengths)


@functools.partial(jax.jit, static_argnums=0)
def _encode(config, params, source, source_lengths):
  check_params(config, params)

  def read(params, source, source_lengths):
    return _read(config, params, source, source_lengths)

  mesh = mesh_of(*jax.tree.leaves(params))
  args = params, source, source_lengths
  if mesh is None or AxisType.Explicit not in mesh.axis_types:
    return read(params, source, source_lengths)
  whole = lambda results: jax.tree.map(lambda x: PartitionSpec(), results)
  return run_on_mesh(read, Partition(mesh, Rules()), args, whole)


def _read(config, params, source, source_lengths):
  encoder = config.encoder
  encoder_params = params['encoder']
  with jax.named_scope('encoder'):
    if encoder.features is None:
      x = params['embedding'][jnp.clip(source, 0, config.vocab_size - 1)]
    else:
      x = _convolve(encoder_params, source)
    steps = jnp.arange(x.shape[1], dtype=jnp.int32)[None, :]
    positions = jnp.broadcast_to(steps, x.shape[:2])
    if encoder.positions:
      x = x + encoder_params['positions'][None, : x.shape[1]]
    if source_lengths is not None:
      positions = jnp.where(steps < source_lengths[:, None], positions, -1)
    x = _run_layers(encoder, encoder_params, x, positions)
    hidden = encoder.norm(encoder_params['norm'], x)
    if encoder.features is None:  # every position has seen the unknown token
      unknown = (positions >= 0) & unknown_ids(source, config.vocab_size)
      lost = jnp.any(unknown, axis=1)[:, None, None]
      hidden = jnp.where(lost, jnp.nan, hidden)
    return Encoded(hidden, positions)


def _run_layers(
  encoder: Encoder, params: Any, x: jax.Array, positions: jax.Array
) -> jax.Array:
  relative = params.get('relative')

  def attend(variant, attention_params, x):
    streams = variant.project_streams(attention_params, x, None)
    return attend_uncached(
      variant,
      attention_params,
      x,
      streams,
      query_positions=positions,
      key_positions=positions,
      relative=relative,
    )

  for layer, layer_params in zip(encoder.layers, params['layers'], strict=True):
    attention = functools.partial(
      attend, layer.attention, layer_params['attention']
    )
    x, _ = run_layer(layer, encoder.norm, layer_params, x, attention)
  return x


def _convolve(params: Any, x: jax.Array) -> jax.Array:
  for name, stride in (('conv_0', 1), ('conv_1', 2)):
    x = jax.lax.conv_general_dilated(
      x,
      params[name],
      (stride,),
      [(1, 1)],
      dimension_numbers=('NWC', 'WIO', 'NWC'),
    )
    x = x + params[f'{name}_bias'][None, None, :]
    x = jax.nn.gelu(x, approximate=False)
  return x
