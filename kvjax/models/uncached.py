"""The uncached model: the reference that every cached path must equal."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, overload

import jax
import jax.numpy as jnp

from kvjax.arguments import (
  check_array,
  check_ids,
  check_lengths,
  check_type,
  narrow_ids,
  unknown_ids,
)
from kvjax.attention.reference import attend_uncached
from kvjax.attention.rotary import rotary_table
from kvjax.context import PARTITION
from kvjax.mesh.region import mesh_of, rows_spec, run_on_mesh
from kvjax.mesh.rules import Rules, partition_of
from kvjax.models.config import (
  Layer,
  ModelConfig,
  check_config,
  check_layers,
)
from kvjax.models.decoder import embed, run_layer, unembed
from kvjax.models.encoder import Encoded
from kvjax.models.initialize import check_params
from kvjax.models.stored_streams import shown_in_tiers, through_codec
from kvjax.renamed import renamed_arguments
from kvjax.streams.codecs import (
  Codecs,
  Tiering,
  check_streams,
  codecs_of,
  constants_of,
  tiering_of,
)
from kvjax.streams.view import Streams
from kvjax.streams.visibility import Visibility


@overload
def forward(
  config: ModelConfig,
  params: Mapping[str, Any],
  tokens: jax.Array,
  *,
  lengths: Any = None,
  padding: str = 'right',
  encoded: Encoded | None = None,
  rotary_length: int | None = None,
  codec: Codecs = None,
  form: str = 'expanded',
  attention_layers: tuple[()] = (),
  rules: Rules | None = None,
) -> jax.Array: ...
@overload
def forward(
  config: ModelConfig,
  params: Mapping[str, Any],
  tokens: jax.Array,
  *,
  lengths: Any = None,
  padding: str = 'right',
  encoded: Encoded | None = None,
  rotary_length: int | None = None,
  codec: Codecs = None,
  form: str = 'expanded',
  attention_layers: Sequence[int],
  rules: Rules | None = None,
) -> tuple[jax.Array, tuple[jax.Array, ...]]: ...
@renamed_arguments(absorb="form='absorbed' or 'expanded'")
def forward(
  config: ModelConfig,
  params: Mapping[str, Any],
  tokens: jax.Array,
  *,
  lengths: Any = None,
  padding: str = 'right',
  encoded: Encoded | None = None,
  rotary_length: int | None = None,
  codec: Codecs = None,
  form: str = 'expanded',
  attention_layers: Sequence[int] = (),
  rules: Rules | None = None,
) -> Any:
  """Returns logits of a whole sequence, with a plain masked softmax.

  Args:
    config: the model.
    params: its parameters.
    tokens: int `[B, T]`.
    lengths: int `[B]`, tokens of each row; None for T.
    padding: 'right' or 'left', where a shorter row has its padding.
    encoded: what `encode` returned, for an encoder-decoder.
    rotary_length: planned length, for rotary tables that depend on it; None
      for T.
    codec: streams pass through it once, as a cache would store them; as in
      `init_cache`.
    form: of latent attention, 'expanded' or 'absorbed'.
    attention_layers: layers whose weights are returned as well.
    rules: by which a mesh splits the params (`kvjax.sharding.of_params`), so
      that experts are read where they are; None for params of one device, or
      to let XLA decide.

  Returns:
    Float32 logits `[B, T, V]`; with `attention_layers`, also a tuple of their
    weights `[B, N, T, T]`.

  Raises:
    ValueError: ids are no integers of the vocabulary, params are another
      config's, a source is missing, learned positions do not reach that far, or
      a codec cannot store a stream. Inside a trace, where ids are not known,
      logits are NaN from an id outside the vocabulary on.
  """
  check_config(config)
  check_array('tokens', tokens, (None, None), jnp.integer)
  if 0 in tokens.shape:
    raise ValueError(
      f'tokens have shape {tokens.shape}: give at least one row of one id.'
    )
  check_encoded(config, encoded, tokens.shape[0])
  attention_layers = check_layers(config, attention_layers)
  ids = narrow_ids(tokens, config.vocab_size)
  lengths = check_lengths(ids, lengths)
  is_token = token_mask(ids, lengths, padding)
  check_ids('tokens', tokens, is_token, config.vocab_size, config.refused_ids)
  positions = row_positions(ids, lengths, padding)
  check_positions(config, tokens.shape[1])
  check_params(config, params)
  streams = [x.attention.streams() for x in config.layers]
  check_streams(codec, streams)
  for index, layer in enumerate(config.layers):
    own = streams[config.stream_layer(index)]
    layer.attention.check_codecs(codecs_of(codec, own))
  logits, weights = _forward(
    config,
    params,
    ids,
    positions,
    encoded,
    constants_of(codec, streams),
    rotary_length=rotary_length or tokens.shape[1],
    # A static argument is hashable.
    codec=tuple(codec.items()) if isinstance(codec, Mapping) else codec,
    form=form,
    attention_layers=attention_layers,
    rules=rules,
  )
  return (logits, weights) if attention_layers else logits


@functools.partial(jax.jit, static_argnames='padding')
def row_positions(
  tokens: jax.Array, lengths: jax.Array | None, padding: str
) -> jax.Array:
  """Returns int32 `[B, T]`: 0, 1, ... on a row's tokens, -1 on padding.

  A negative token id is padding too.
  """
  is_token = token_mask(tokens, lengths, padding)
  count = jnp.cumsum(is_token.astype(jnp.int32), axis=1)
  return jnp.where(is_token, count - 1, -1)


@functools.partial(jax.jit, static_argnames='padding')
def token_mask(
  tokens: jax.Array, lengths: jax.Array | None, padding: str
) -> jax.Array:
  """Returns bool `[B, T]`: where a row has a token."""
  if padding not in ('right', 'left'):
    raise ValueError(f"padding={padding!r} must be 'right' or 'left'.")
  is_token = tokens >= 0
  if lengths is None:
    return is_token
  steps = jnp.arange(tokens.shape[1], dtype=jnp.int32)[None, :]
  if padding == 'left':
    steps = tokens.shape[1] - 1 - steps
  return is_token & (steps < lengths[:, None])


def check_encoded(
  config: ModelConfig, encoded: Encoded | None, rows: int
) -> None:
  """Raises ValueError on a source that is missing, no source, or not read.

  It must have `rows` rows.
  """
  if encoded is not None and config.encoder is not None:
    check_type('encoded', encoded, Encoded, 'give what encode returned.')
    if encoded.positions.shape[0] != rows:
      raise ValueError(
        f'encoded has {encoded.positions.shape[0]} rows for {rows} rows of '
        'tokens: encode one source a row.'
      )
    shape = *encoded.positions.shape, config.width
    check_array('encoded.hidden', encoded.hidden, shape, jnp.floating)
  if (config.encoder is None) != (encoded is None):
    if config.encoder is None:
      raise ValueError('The model has no encoder: drop encoded=.')
    raise ValueError(
      'The model has an encoder: pass encoded=kvjax.encode(config, params, '
      'source).'
    )


def check_positions(config: ModelConfig, tokens: int) -> None:
  """Raises ValueError if learned positions do not reach that far."""
  if config.positions and tokens > config.positions:
    raise ValueError(
      f'{tokens} tokens exceed the {config.positions} learned positions of '
      'the model. Use fewer tokens.'
    )


@functools.partial(
  jax.jit,
  static_argnums=0,
  static_argnames=(
    'rotary_length',
    'codec',
    'form',
    'attention_layers',
    'rules',
  ),
)
def _forward(
  config,
  params,
  tokens,
  positions,
  encoded,
  constants,
  *,
  rules=None,
  **options,
):
  def compute(params, tokens, positions, encoded, constants):
    return _run_layers(
      config, params, tokens, positions, encoded, constants, **options
    )

  def by_rows(results):
    return jax.tree.map(lambda x: rows_spec(PARTITION.value, x), results)

  mesh = mesh_of(params['embedding'])
  if mesh is None or rules is None:
    return compute(params, tokens, positions, encoded, constants)
  args = params, tokens, positions, encoded, constants
  return run_on_mesh(compute, partition_of(mesh, rules), args, by_rows)


def _run_layers(
  config,
  params,
  tokens,
  positions,
  encoded,
  constants,
  *,
  rotary_length,
  codec,
  form,
  attention_layers,
):
  call = _Call(
    positions=positions,
    relative=params.get('relative'),
    encoded=encoded,
    rotary_length=rotary_length,
    codec=codec,
    form=form,
  )
  x = embed(config, params, tokens, positions)
  streams: list[Streams] = []
  weights: list[jax.Array] = []
  for index, layer in enumerate(config.layers):
    layer_params = params['layers'][index]
    source = config.stream_layer(index)
    shared = None if source == index else streams[source]
    constant = constants and constants[index]
    with jax.named_scope(f'layer_{index}'):
      x, (layer_streams, layer_weights) = run_layer(
        layer,
        config.norm,
        layer_params,
        x,
        functools.partial(
          _self_attention, layer, layer_params, call, shared, constant
        ),
        _cross_attention(layer, layer_params, encoded),
        config.residual_scale,
      )
    streams.append(layer_streams)
    weights.append(layer_weights)
  logits = unembed(config, params, x)
  logits = mark_unknown_ids(logits, tokens, positions, config=config)
  return logits, tuple(weights[i] for i in attention_layers)


@functools.partial(jax.jit, static_argnames='config')
def mark_unknown_ids(
  logits: jax.Array,
  tokens: jax.Array,
  positions: jax.Array,
  *,
  config: ModelConfig,
) -> jax.Array:
  """Returns logits, NaN from a token outside the vocabulary on.

  It is a separate call, so that `kvjax.liveness`, which takes ids to be of
  the vocabulary, can leave it out by its name.
  """
  unknown = (positions >= 0) & unknown_ids(
    tokens, config.vocab_size, config.refused_ids
  )
  if all(layer.attention.visibility.causal for layer in config.layers):
    unknown = jnp.cumsum(unknown, axis=1)
  else:
    unknown = jnp.sum(unknown, axis=1, keepdims=True)
  return jnp.where((unknown > 0)[..., None], jnp.nan, logits)


@dataclasses.dataclass(frozen=True)
class _Call:
  """What all layers of one call share; see `forward`."""

  positions: jax.Array
  relative: jax.Array | None
  encoded: Encoded | None
  rotary_length: int
  codec: Any
  form: str


def _self_attention(
  layer: Layer,
  layer_params: Mapping[str, Any],
  call: _Call,
  shared: Streams | None,
  constant: jax.Array | None,
  x: jax.Array,
) -> tuple[jax.Array, tuple[Streams, jax.Array]]:
  """Returns `[B, T, D]`, the layer's streams and its weights `[B, N, T, T]`.

  Streams are those of an earlier layer where `shared` gives them.
  """
  variant = layer.attention
  params = layer_params['attention']
  table = None
  if variant.rotary is not None:
    table = rotary_table(variant.rotary, call.positions, call.rotary_length)
  streams = shared
  if streams is None:
    streams = through_codec(
      variant,
      params,
      x,
      table,
      positions=call.positions,
      codec=call.codec,
      constant=constant,
    )
  positions, tiering = call.positions, tiering_of(call.codec)
  shown_to = None
  if tiering != Tiering():  # streams have each token as it is, and as codes
    shown_to = functools.partial(shown_in_tiers, tiering)
    positions = jnp.concatenate([positions, positions], axis=1)
  y, weights = attend_uncached(
    variant,
    params,
    x,
    streams,
    query_positions=call.positions,
    key_positions=positions,
    table=table,
    relative=call.relative,
    form=call.form,
    shown_to=shown_to,
  )
  if shown_to is not None:  # a query sees one of the two
    exact, codes = jnp.split(weights, 2, axis=-1)
    weights = exact + codes
  return y, (streams, weights)


def _cross_attention(
  layer: Layer, layer_params: Mapping[str, Any], encoded: Encoded | None
) -> Callable[[jax.Array], jax.Array] | None:
  """Returns attention to the encoder's output; None for a layer without it."""
  variant = layer.cross
  if variant is None or encoded is None:
    return None
  params = layer_params['cross']

  def attend(x):
    streams = variant.project_streams(params, encoded.hidden, None)
    y, _ = attend_uncached(
      variant,
      params,
      x,
      streams,
      # A source is seen whole, so the positions of its queries do not matter.
      query_positions=jnp.zeros(x.shape[:2], jnp.int32),
      key_positions=encoded.positions,
    )
    return y

  return attend


def with_visibility(
  config: ModelConfig, visibility: Callable[[Visibility], Visibility]
) -> ModelConfig:
  """Returns the config with every layer's mask replaced.

  `forward` of it computes what a kind lets a model see, if `visibility` is the
  kind's `visible_through`.
  """

  def narrow(layer: Layer) -> Layer:
    attention: Any = layer.attention  # a dataclass, whichever variant it is
    rule = visibility(attention.visibility)
    narrowed = dataclasses.replace(attention, visibility=rule)
    return dataclasses.replace(layer, attention=narrowed)

  return dataclasses.replace(config, layers=tuple(map(narrow, config.layers)))
