"""The separation: which tensors of the past can change the next logits.

A past query *does* influence later tokens, but only through the keys and
values of higher layers, which are kept. So "Q is never needed" is a statement
about a cut: once K and V of all layers are kept, every other tensor of the
past may be replaced by noise and the next logits do not change by a bit. This
module replaces tensors of the past in an uncached program that computes all
its rows, so that nothing is unread merely because it was not computed.
"""

import functools
import itertools
from collections.abc import Mapping
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from kvjax.attention.attend import Scoring
from kvjax.attention.reference import plain_attention
from kvjax.attention.rotary import rotary_table
from kvjax.models.config import ModelConfig
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


@struct.dataclass
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

  queries: jax.Array
  past_rows: jax.Array
  naive: jax.Array
  naive_by: jax.Array
  kept: jax.Array
  faint: jax.Array


# Of the noise on a kept row. A key of little weight shows when its score rises,
# and of two opposite noises one raises it.
_GAINS = (1.0, 1e4, -1e4)


def separate(
  config: ModelConfig,
  params: Mapping[str, Any],
  tokens: jax.Array,
  key: jax.Array,
) -> SeparationResult:
  """Puts noise on the past, one part at a time, and watches the next logits.

  The noise has the standard deviation of what it replaces; on a kept row of
  little weight it is louder. The last token of `tokens` is the new one,
  all before it are the past.

  Args:
    config: a decoder whose layers share no streams.
    params: its parameters.
    tokens: int32 `[1, T]`.
    key: of the noise.

  Returns:
    The largest changes, for the row after the last token.
  """
  chex.assert_shape(tokens, (1, None))
  verdict = _separate(config, params, tokens, key, _GAINS[0])
  for gain in _GAINS[1:]:
    if (verdict.kept > 0).all():
      break
    louder = _separate(config, params, tokens, key, gain).kept
    kept = jnp.where(verdict.kept > 0, verdict.kept, louder)
    verdict = verdict.replace(kept=kept)
  return verdict


@functools.partial(jax.jit, static_argnums=0)
def _separate(config, params, tokens, key, gain):
  _, past = replay(config, params, tokens)
  noise, count = _noise(past, key), tokens.shape[1] - 1
  leaves = len(jax.tree.leaves(past.streams))

  def run(scenario):
    # One compiled body for all scenarios: equal bits then mean equal values.
    queries, stream, row, keep = scenario
    pairs = zip(noise.queries, past.queries, strict=True)
    corrupt = Past(
      tuple(_choose(i < queries, *pair) for i, pair in enumerate(pairs)),
      _with_row(past.streams, noise.streams, stream, row, gain),
    )
    logits, read = replay(config, params, tokens, corrupt, keep)
    return logits[0], _largest_change(read.streams[1:], past.streams[1:])

  nothing, layers = (0, -1, -1, True), len(config.layers)
  scenarios = [nothing, (layers, -1, -1, True), (1, -1, -1, False)]
  rows = itertools.product(range(leaves), range(count))
  scenarios += [(0, stream, row, True) for stream, row in rows]
  columns = tuple(jnp.asarray(x) for x in zip(*scenarios, strict=True))
  logits, travelled = jax.lax.map(run, columns)
  change = jnp.max(jnp.abs(logits - logits[:1]), axis=-1)  # [scenarios, T]
  kept = change[3:, -1].reshape(layers, -1, count)
  return SeparationResult(
    queries=change[1, -1],
    past_rows=jnp.max(change[1, :-1]),
    naive=change[2, -1],
    naive_by=travelled[2],
    kept=kept,
    faint=kept == 0,
  )


def replay(
  config: ModelConfig,
  params: Mapping[str, Any],
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
  x = embed(config, params, tokens, positions)
  read = []
  for index, (layer, p) in enumerate(
    zip(config.layers, params['layers'], strict=True)
  ):

    def attention(h, index=index, layer=layer, p=p):
      variant, q = layer.attention, p['attention']
      table = None
      if variant.rotary is not None:
        table = rotary_table(variant.rotary, positions, tokens.shape[1])
      form = variant.form(h.shape[1], 'expanded')
      asked = form.project_queries(q, h, table)
      left = variant.project_streams(q, h, table)
      if past is not None:
        asked = jax.tree.map(_before_last, past.queries[index], asked)
        kept = jax.tree.map(_before_last, past.streams[index], left)
        left = _choose(keep, kept, left)
      out, _ = plain_attention(
        asked,
        form.expand(q, left),
        positions,
        positions,
        form.scoring(q, params.get('relative')),
      )
      return form.project_output(q, out.astype(h.dtype)), (asked, left)

    x, found = run_layer(
      layer, config.norm, p, x, attention, None, config.residual_scale
    )
    read.append(found)
  queries, streams = zip(*read, strict=True)
  return unembed(config, params, x), Past(queries, streams)


def readers(tokens: int, scoring: Scoring) -> dict[str, jax.Array]:
  """Returns which output row of one attention reads which row of q, k and v.

  Found by changing one row at a time and looking, not from the formula.

  Args:
    tokens: T.
    scoring: the mask that decides.

  Returns:
    For 'query', 'key' and 'value' a boolean `[T out, T in]`.
  """
  shape = (1, 1, tokens, 3)
  rows = {
    name: jax.random.normal(jax.random.key(i), shape)
    for i, name in enumerate(('query', 'key', 'value'))
  }
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
  for name, read in readers(tokens, Scoring(1.0)).items():
    last = [
      max([t, *np.flatnonzero(np.asarray(read)[:, t])]) for t in range(tokens)
    ]
    spans[name[0]] = [(t, int(end)) for t, end in enumerate(last)]
  return spans


def _before_last(old: jax.Array, new: jax.Array) -> jax.Array:
  return jnp.concatenate([old[..., :-1, :], new[..., -1:, :]], axis=-2)


def _noise(past: Past, key: jax.Array) -> Past:
  leaves, tree = jax.tree.flatten(past)
  ends = np.cumsum([leaf.size for leaf in leaves])
  draw = jax.random.normal(key, (ends[-1],))  # one draw: quick to compile
  return tree.unflatten(
    [
      (jnp.std(x) * part.reshape(x.shape)).astype(x.dtype)
      for x, part in zip(leaves, jnp.split(draw, ends[:-1]), strict=True)
    ]
  )


def _with_row(streams, noise, stream, row, gain):
  """Returns streams with one row of the `stream`th leaf taken from noise."""
  leaves, tree = jax.tree.flatten(streams)
  moved = []
  for index, (old, new) in enumerate(
    zip(leaves, jax.tree.leaves(noise), strict=True)
  ):
    here = jax.lax.broadcasted_iota(jnp.int32, old.shape, old.ndim - 2) == row
    new = (gain * new).astype(old.dtype)
    moved.append(jnp.where(here & (stream == index), new, old))
  return tree.unflatten(moved)


def _choose(flag: Any, new: Any, old: Any) -> Any:
  return jax.tree.map(lambda x, y: jnp.where(flag, x, y), new, old)


def _largest_change(new: Any, old: Any) -> jax.Array:
  changes = jax.tree.map(lambda x, y: jnp.max(jnp.abs(x - y)), new, old)
  return jnp.max(jnp.stack(jax.tree.leaves(changes) + [jnp.zeros(())]))
