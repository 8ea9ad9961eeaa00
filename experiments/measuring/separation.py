"""The separation: which tensors of the past can change the next logits.

A past query *does* influence later tokens, but only through the keys and
values of higher layers, which are kept. So "Q is never needed" is a statement
about a cut: once K and V of all layers are kept, every other tensor of the
past may be replaced by noise and the next logits do not change by a bit. This
module replaces tensors of the past in an uncached program that computes all
its rows, so that nothing is unread merely because it was not computed.
"""

import dataclasses
import functools
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

import kvjax
from kvjax.attention.reference import plain_attention
from kvjax.attention.rotary import rotary_table
from kvjax.models.decoder import embed, run_layer, unembed


@struct.dataclass
class Past:
  """What every layer computed at every token, `[B, ..., T, width]` by name.

  Attributes:
    queries: a dict a layer; no cache has it.
    streams: a dict a layer: what a cache keeps.
  """

  queries: tuple[dict[str, jax.Array], ...]
  streams: tuple[dict[str, jax.Array], ...]


@dataclasses.dataclass(frozen=True)
class SeparationResult:
  """Largest change of the next logits, `[V]` of one row, by what was replaced.

  Attributes:
    queries: past queries of all layers, their K and V kept: 0, bit for bit.
    past_rows: what the same noise does to the logits of the past rows, which
      no later step needs.
    naive: past queries of the first layer, before K and V of the layers above
      exist: these are then computed from the noise.
    naive_by: the largest change of any stream of a higher layer: through these
      the noise of `naive` travelled.
    kept: `[layers, streams, T - 1]`, each kept row of each stream alone.
    faint: bool `[layers, streams, T - 1]`, rows of so little weight that only
      louder noise on them shows in float32.
  """

  queries: float
  past_rows: float
  naive: float
  naive_by: float
  kept: np.ndarray
  faint: np.ndarray


# Of the noise on a kept row. A key of little weight shows when its score rises,
# and of two opposite noises one raises it.
_GAINS = (1.0, 1e4, -1e4)


def separate(
  config: kvjax.ModelConfig, params: Any, tokens: jax.Array, seed: int
) -> SeparationResult:
  """Puts noise on the past, one part at a time, and watches the next logits.

  The noise has the standard deviation of what it replaces; on a kept row of
  little weight it is louder. The last token of `tokens` is the new one,
  all before it are the past.

  Args:
    config: a decoder whose layers share no streams.
    params: its parameters.
    tokens: int32 `[1, T]`.
    seed: of the noise.

  Returns:
    The largest changes, for the row after the last token.
  """
  chex.assert_shape(tokens, (1, None))
  run = jax.jit(functools.partial(replay, config))
  _, past = run(params, tokens)
  # One program computes this and all that is compared with it: equal bits then
  # mean equal values. The streams are its own, so keeping them changes no bit.
  unchanged, past = jax.device_get(run(params, tokens, past, False))
  draw = np.random.default_rng(seed).standard_normal
  noise = jax.tree.map(
    lambda x: (np.std(x) * draw(x.shape)).astype(x.dtype), past
  )

  def change(replaced: Past, keep: bool = True) -> tuple[np.ndarray, Past]:
    """Returns the largest change of each row's logits, and what was read."""
    logits, read = run(params, tokens, replaced, keep)
    return np.max(np.abs(logits - unchanged), axis=(0, 2)), read

  queries, _ = change(past.replace(queries=noise.queries))
  first = (noise.queries[0], *past.queries[1:])
  naive, read = change(past.replace(queries=first), keep=False)
  travelled = jax.tree.map(
    lambda x, y: np.max(np.abs(x - y)), read.streams[1:], past.streams[1:]
  )
  rows = tokens.shape[1] - 1
  kept = np.zeros((len(jax.tree.leaves(past.streams)), rows))
  faint = np.zeros(kept.shape, bool)
  for leaf, row in np.ndindex(kept.shape):
    for gain in _GAINS:
      streams = _with_row(past.streams, noise.streams, leaf, row, gain)
      kept[leaf, row] = change(past.replace(streams=streams))[0][-1]
      if kept[leaf, row] > 0:
        break
      faint[leaf, row] = True
  shape = (len(config.layers), -1, rows)
  return SeparationResult(
    queries=queries[-1],
    past_rows=np.max(queries[:-1]),
    naive=naive[-1],
    naive_by=max(jax.tree.leaves(travelled), default=0.0),
    kept=kept.reshape(shape),
    faint=faint.reshape(shape),
  )


def replay(
  config: kvjax.ModelConfig,
  params: Any,
  tokens: jax.Array,
  past: Past | None = None,
  keep: jax.Array | bool = True,
) -> tuple[jax.Array, Past]:
  """Runs the uncached decoder with the past of its attention replaced.

  Every row of every layer is computed. With `past`, rows before the last take
  their queries from it and, with `keep`, all rows read the streams of these
  rows from it. Query and streams of the last token are always computed.

  Args:
    config: a decoder whose layers share no streams.
    params: its parameters.
    tokens: int32 `[B, T]`.
    past: what to read in place of what is computed; None for nothing.
    keep: bool scalar, whether past streams come from `past` or are computed
      from the rows that its queries lead to.

  Returns:
    Float32 logits `[B, T, V]`, and what each layer really read.
  """
  steps = jnp.arange(tokens.shape[1], dtype=jnp.int32)[None, :]
  positions = jnp.broadcast_to(steps, tokens.shape)

  def attend(index: int, h: jax.Array) -> tuple[jax.Array, Any]:
    variant: Any = config.layers[index].attention
    layer_params = params['layers'][index]['attention']
    form = variant.form(tokens.shape[1], 'expanded')
    table = None
    if variant.rotary is not None:
      table = rotary_table(variant.rotary, positions, tokens.shape[1])
    queries = form.project_queries(layer_params, h, table)
    streams = variant.project_streams(layer_params, h, table)
    if past is not None:
      queries = jax.tree.map(_before_last, past.queries[index], queries)
      replaced = jax.tree.map(_before_last, past.streams[index], streams)
      streams = jax.tree.map(
        lambda x, y: jnp.where(keep, x, y), replaced, streams
      )
    out, _ = plain_attention(
      queries,
      form.expand(layer_params, streams),
      positions,
      positions,
      form.scoring(layer_params, params.get('relative')),
    )
    y = form.project_output(layer_params, out.astype(h.dtype))
    return y, (queries, streams)

  x = embed(config, params, tokens, positions)
  layers_read = []
  for index, layer in enumerate(config.layers):
    x, read = run_layer(
      layer,
      config.norm,
      params['layers'][index],
      x,
      functools.partial(attend, index),
      residual_scale=config.residual_scale,
    )
    layers_read.append(read)
  queries, streams = zip(*layers_read, strict=True)
  return unembed(config, params, x), Past(queries, streams)


def readers(tokens: int, scoring: kvjax.Scoring) -> dict[str, jax.Array]:
  """Returns which output row of one attention reads which row of q, k and v.

  Found by changing one row at a time and looking, not from the formula.

  Args:
    tokens: T.
    scoring: the mask that decides.

  Returns:
    For 'query', 'key' and 'value' a boolean `[T out, T in]`.
  """
  names = ('query', 'key', 'value')
  draws = jax.random.normal(jax.random.key(0), (3, 1, 1, tokens, 3))
  rows = dict(zip(names, draws, strict=True))
  positions = jnp.arange(tokens, dtype=jnp.int32)[None, :]

  def run(rows):
    queries = {'key': rows['query'][:, :, None]}
    streams = {'key': rows['key'], 'value': rows['value']}
    out, _ = plain_attention(queries, streams, positions, positions, scoring)
    return out[0, 0, 0]

  def changed(name, row):
    moved = rows | {name: rows[name].at[:, :, row].add(1.0)}
    return jnp.any(run(moved) != run(rows), axis=-1)

  return {
    name: jnp.stack([changed(name, row) for row in range(tokens)], axis=1)
    for name in rows
  }


def lives(tokens: int) -> dict[str, list[tuple[int, int]]]:
  """Returns by tensor, for each token the first and last step that reads it.

  The step that makes a token counts, although no row reads the first q and k:
  the softmax over a single key is 1 whatever the two are.
  """
  spans = {}
  for name, read in readers(tokens, kvjax.Scoring(1.0)).items():
    spans[name[0]] = [
      (token, int(max([token, *np.flatnonzero(read[:, token])])))
      for token in range(tokens)
    ]
  return spans


def _before_last(old: jax.Array, new: jax.Array) -> jax.Array:
  return jnp.concatenate([old[..., :-1, :], new[..., -1:, :]], axis=-2)


def _with_row(
  streams: Any, noise: Any, leaf: int, row: int, gain: float
) -> Any:
  """Returns streams with one row of one leaf taken from noise."""
  leaves, tree = jax.tree.flatten(streams)
  leaves[leaf] = leaves[leaf].copy()
  leaves[leaf][..., row, :] = gain * jax.tree.leaves(noise)[leaf][..., row, :]
  return tree.unflatten(leaves)
