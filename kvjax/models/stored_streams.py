"""Streams as a cache would give them back: what the reference attends to."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from kvjax.attention.variant import Table, Variant
from kvjax.streams.codecs import (
  Tiering,
  add_constant,
  apply_where_present,
  are_rotated,
  codecs_of,
  exact_codecs,
  tiering_of,
)
from kvjax.streams.view import Streams


def through_codec(
  variant: Variant,
  params: Mapping[str, Any],
  x: jax.Array,
  table: Table,
  *,
  positions: jax.Array,
  codec: Any,
  constant: jax.Array | None,
) -> Streams:
  """Returns streams as a cache with that codec would give them back.

  For a codec that leaves some tokens exact, `[B, K, 2 T, H]`: each token as it
  is, and then as codes.

  Args:
    variant: the attention.
    params: its parameters.
    x: activations `[B, T, D]`.
    table: rotary table at the positions of the tokens; None for none.
    positions: int32 `[B, T]`, -1 where there is no token.
    codec: as in `init_cache`.
    constant: `[K, H]` that is taken off the keys; None for nothing.
  """
  if codec is None:
    return variant.project_streams(params, x, table)
  tiering, codecs = tiering_of(codec), codecs_of(codec, variant.streams())
  rotated = are_rotated(codecs)
  streams = variant.project_streams(params, x, table if rotated else None)
  row = None if constant is None else constant[None]
  stored = add_constant(streams, row, -1)

  def pass_through(codec, dtype, x):
    return codec.decode(codec.encode(x, dtype))

  if tiering == Tiering():
    decoded = {
      n: pass_through(c, streams[n].dtype, stored[n]) for n, c in codecs
    }
  else:
    exact = exact_codecs(codecs)
    kept = {n: pass_through(c, streams[n].dtype, stored[n]) for n, c in exact}
    moved = apply_where_present('turn_back', exact, kept)
    by_position = _by_position(positions, tiering)
    decoded = {}
    for name, c in codecs:
      encode = functools.partial(pass_through, c, streams[name].dtype)
      coded = by_position(encode, moved[name])
      decoded[name] = jnp.concatenate([kept[name], coded], axis=2)
    if table is not None:
      cos, sin = (jnp.concatenate([t, t], axis=1) for t in table)
      table = cos, sin
  decoded = apply_where_present('turn_back', codecs, decoded)
  decoded = add_constant(decoded, row)
  if table is not None and not rotated:
    decoded = variant.rotate_streams(decoded, table)
  return {name: x.astype(streams[name].dtype) for name, x in decoded.items()}


def _by_position(
  positions: jax.Array, tiering: Tiering
) -> Callable[[Callable[[jax.Array], jax.Array], jax.Array], jax.Array]:
  """Returns what applies a function to tokens in whole groups of positions."""
  tokens = positions.shape[1]
  slots = -(-tokens // tiering.tokens) * tiering.tokens
  index = positions - tiering.first
  index = jnp.where(index >= 0, index, slots)
  rows = jnp.arange(len(positions))[:, None]

  def apply(f, x):
    x = jnp.moveaxis(x, 1, 2)  # [B, T, K, H]
    shape = (x.shape[0], slots) + x.shape[2:]
    groups = jnp.zeros(shape, x.dtype).at[rows, index].set(x, mode='drop')
    groups = jnp.moveaxis(f(jnp.moveaxis(groups, 1, 2)), 2, 1)
    return jnp.moveaxis(groups.at[rows, index].get(mode='clip'), 2, 1)

  return apply


def shown_in_tiers(tiering, queries, keys):
  """Returns bool: of exact tokens, then of their codes, what queries see."""
  exact, codes = jnp.split(keys, 2, axis=-1)
  return jnp.concatenate(
    [tiering.is_exact(queries, exact), tiering.is_code(queries, codes)], axis=-1
  )
