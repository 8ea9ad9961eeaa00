"""Attention of few query rows on a Hopper GPU, by `flash_decode`.

The default there, for what it can serve: checked and measured on an H100.
Compiled for an H200, and interpreted on a CPU by those who ask for it by name.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp

from kvjax.caches.view import Streams, View
from kvjax.caches.visibility import Visibility
from kvjax.kernels import blockwise, interpreter
from kvjax.kernels.merging import merge
from kvjax.kernels.scoring import Scoring
from kvjax.kernels.stored import refuses_stored
from kvjax.kernels.tiling import BLOCK, LANES, ROWS, Launch, choose_stages
from kvjax.kernels.tuning import Problem, tiles
from kvjax.target import target

DTYPES = ('bfloat16', 'float16')


def missing() -> str:
  """Returns why this process cannot use the kernel; '' if it can."""
  if target() == 'gpu' or interpreter.settings() is not None:
    return ''
  return (
      f'it runs on a Hopper GPU, not on {target()}; '
      'kvjax.kernels.interpreted() runs it on a CPU, slowly'
  )


def at_home() -> bool:
  """Returns whether this process has a GPU on which it was measured."""
  if target() != 'gpu' or jax.default_backend() != 'gpu':
    return False
  return getattr(jax.devices()[0], 'compute_capability', '') == '9.0'


def refuses(queries: Streams, view: View, scoring: Scoring) -> str:
  """Returns why this kernel cannot serve a view; '' if it can."""
  if list(queries) != ['key']:
    return f'scores add up {", ".join(queries)}; it reads one stream of keys'
  groups, tokens = queries['key'].shape[2:4]
  reason = refuses_stored(groups * tokens, ROWS, view, scoring)
  return reason or _refuses_streams(view, scoring)


def _refuses_streams(view: View, scoring: Scoring) -> str:
  assert view.stored is not None
  found = {name: view.stored[name] for name in ('key', scoring.value)}
  for name, stream in found.items():
    if stream is None or stream.codes.dtype.name not in DTYPES:
      return f'stream {name!r} is not stored as {" or ".join(DTYPES)}'
  widths = [x.codes.shape[3] for x in found.values() if x is not None]
  if any(width % LANES for width in widths):
    return f'widths {widths} are not multiples of {LANES}'
  if choose_stages(*widths) < 2:
    return f'two blocks of widths {widths} do not fit in shared memory'
  if view.slots % BLOCK:
    return f'{view.slots} slots are not a multiple of {BLOCK}'
  return ''


def attend(
    queries: Streams,
    positions: jax.Array,
    view: View,
    scoring: Scoring,
    *,
    block: int | None = None,
    stages: int | None = None,
    splits: int | None = None,
) -> tuple[jax.Array, jax.Array]:
  """Attends to the slots of one view; see `blockwise.attend`.

  Args:
    queries, positions, view, scoring: as there.
    block: slots a turn reads, a multiple of 64 that divides the slots.
    stages: blocks in flight.
    splits: programs that share the slots of a row and kv head. None, of each,
      for what the device's table says (`tuning`), or else for what fits its
      shared memory and fills an H200.
  """
  assert view.stored is not None and view.positions is not None
  stored: Streams = {n: view.stored[n] for n in ('key', scoring.value)}
  key, value = stored['key'].codes, stored[scoring.value].codes
  problem = Problem(
      math.prod(key.shape[:2]), view.slots, key.shape[3], value.shape[3]
  )
  chosen = problem.reckoned(block) if block else tiles(problem)
  launch = Launch(
      rule=scoring.visibility,
      scale=scoring.scale,
      softcap=scoring.softcap,
      splits=splits or chosen.splits,
      block=chosen.block,
      stages=stages or chosen.stages,
      interpret=interpreter.settings(),
  )
  rule = Scoring(
      scoring.scale, scoring.value, scoring.softcap, scoring.visibility
  )
  filled = jnp.asarray(view.filled, jnp.int32)
  static = rule, launch, view.ordered
  held = view.shown(view.positions)
  return _attend(static, queries, positions, stored, held, filled)


# Its derivative is that of the plain form: a kernel has none of its own.
@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _attend(static, queries, positions, stored, held, filled):
  # Pallas is imported by who asks for it, not by all who import kvjax.
  from kvjax.kernels.flash_decode import flash_decode

  rule, launch, ordered = static
  query, key = queries['key'], stored['key'].codes
  batch, heads, groups, tokens, width = query.shape
  rows = groups * tokens
  tile = query.astype(key.dtype).reshape(batch, heads, rows, width)
  tile = jnp.pad(tile, ((0, 0), (0, 0), (0, ROWS - rows), (0, 0)))
  span = spans(positions, held, filled, launch.rule, ordered)
  out, lse = merge(
      *flash_decode(
          tile,
          key,
          stored[rule.value].codes,
          positions,
          held,
          span,
          launch,
          groups,
      )
  )
  shape = batch, heads, groups, tokens
  return (
      out[:, :, :rows].reshape(*shape, out.shape[-1]),
      lse[:, :, :rows].reshape(shape),
  )


@_attend.defjvp
def _attend_jvp(static, primals, tangents):
  plain = functools.partial(blockwise.attend_stored, static[0])
  return jax.jvp(plain, primals, tangents)


def spans(
    positions: jax.Array,
    held: jax.Array,
    filled: Any,
    rule: Visibility,
    ordered: bool,
) -> jax.Array:
  """Returns int32 `[B, 3]`: what each row must read of its slots.

  First slot, end, and the slot below which each of those holds a token. Where
  slots are ordered, they follow from the queries' positions alone.

  Args:
    positions: int32 `[B, T]` of the queries, -1 where there is none.
    held: int32 `[B, 1 | K, S]` of the slots.
    filled: no slot from here on holds a token.
    rule: which keys a query sees.
    ordered: as in `View`.
  """
  slots = held.shape[2]
  last = jnp.max(positions, axis=1) + 1
  if not ordered:
    steps = jnp.arange(1, slots + 1, dtype=jnp.int32)[None, None, :]
    end = jnp.max(jnp.where(held >= 0, steps, 0), axis=(1, 2))
    end = jnp.where(last > 0, end, 0)
    return jnp.stack([jnp.zeros_like(end), end, jnp.zeros_like(end)], axis=1)
  most = jnp.minimum(jnp.asarray(filled, jnp.int32), slots)
  end = jnp.minimum(last, most) if rule.causal else jnp.where(last > 0, most, 0)
  earliest = jnp.min(jnp.where(positions < 0, slots, positions), axis=1)
  first = jnp.zeros_like(earliest)
  if rule.window is not None and not rule.sink_tokens:
    first = jnp.maximum(first, earliest - (rule.window - 1))
  if rule.chunk is not None:
    first = jnp.maximum(first, earliest // rule.chunk * rule.chunk)
  return jnp.stack([jnp.minimum(first, end), end, last], axis=1)
