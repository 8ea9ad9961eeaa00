"""Attention of few query rows on a CPU: `decode_cpu.cc` through `jax.ffi`.

It reads a cache's leaves in place, codes and scales included, so that nothing
is sliced, widened or copied on the way, and a narrower cache is a faster one.
It finds pages through their table.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kvjax.context import target
from kvjax.kernels import blockwise
from kvjax.kernels.blockwise import Slots
from kvjax.kernels.kernel import Kernel, refuses_block, refuses_stored
from kvjax.native import load
from kvjax.streams.scoring import Scoring
from kvjax.streams.stored import Stored
from kvjax.streams.view import Streams, View

MAX_ROWS = 128  # query rows of one kv head, G T: beyond, matrices are faster
CODES = ('float32', 'bfloat16', 'int8')


def missing() -> str:
  """Returns why this process cannot use the kernel; '' if it can."""
  reason = load.missing()
  if not reason and target() != 'cpu':
    return f'it runs on cpu, not on {target()}'
  return reason


def is_at_home() -> bool:
  """Returns whether programs are written for a CPU."""
  return target() == 'cpu'


def refuses(
  queries: Streams, view: View, scoring: Scoring, block: int | None = None
) -> str:
  """Returns why this kernel cannot serve a view; '' if it can."""
  rows = max(q.shape[2] * q.shape[3] for q in queries.values())
  reason = refuses_stored(rows, MAX_ROWS, view, scoring, follows_tables=True)
  if reason:
    return reason
  assert view.stored is not None
  for name in [*queries, scoring.value]:
    stream = view.stored[name]
    if stream is None or not (
      stream.in_place_type in CODES or stream.has_groups_of_features
    ):
      return (
        f'stream {name!r} is not stored as one of {", ".join(CODES)}, or as '
        'integers with float16 scales of groups of features'
      )
  return refuses_block(block)


def attend(
  queries: Streams,
  positions: jax.Array,
  view: View,
  scoring: Scoring,
  *,
  block: int | None = None,
) -> tuple[jax.Array, jax.Array]:
  """Attends to the slots of one view; see `blockwise.attend`."""
  del block  # `refuses` lets no number pass
  assert view.stored is not None and view.positions is not None
  names = dict.fromkeys([*queries, scoring.value])
  stored = {name: view.stored[name] for name in names}
  queries = {name: q.astype(jnp.float32) for name, q in queries.items()}
  slots = Slots(view.positions, jnp.asarray(view.filled, jnp.int32), view.table)
  rule = Scoring(
    scoring.scale, scoring.value, scoring.softcap, scoring.visibility
  )
  shown = view.first, view.last
  return _attend(rule, shown, queries, positions, stored, slots)


# The library has no derivative; that of the plain form stands in for it.
@functools.partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _attend(rule, shown, queries, positions, stored, slots: Slots):
  first = next(iter(queries.values()))
  lead = first.shape[:4]
  value = stored[rule.value]
  operands, shared = [], -1
  for index, (name, query) in enumerate(queries.items()):
    operands += [query, *_operands(stored[name])]
    shared = index if name == rule.value else shared
  streams = [stored[name] for name in queries]
  if shared < 0:
    operands += _operands(value)
    streams.append(value)
  call = jax.ffi.ffi_call(
    load.DECODE,
    (
      jax.ShapeDtypeStruct((*lead, value.width), jnp.float32),
      jax.ShapeDtypeStruct(lead, jnp.float32),
    ),
    vmap_method='sequential',
  )
  return call(
    positions,
    slots.positions,
    slots.filled,
    jnp.zeros((0,), jnp.int32) if slots.table is None else slots.table,
    *operands,
    shared=np.int32(shared),
    forms=np.asarray([_form(stream) for stream in streams], np.int32).ravel(),
    **_rule(rule, *shown),
  )


@_attend.defjvp
def _attend_jvp(rule, shown, primals, tangents):
  first, last = shown
  plain = functools.partial(
    blockwise.attend_stored, rule, first=first, last=last
  )
  return jax.jvp(plain, primals, tangents)


def _operands(stream: Stored) -> list[jax.Array]:
  none = jnp.zeros((0,), jnp.float32)
  numbers = stream.scale, stream.zero
  return [stream.codes, *(none if x is None else x for x in numbers)]


def _form(stream: Stored) -> tuple[int, int, int]:
  """Returns the bits of a packed code or 0, their run, and their offset."""
  run = stream.run or stream.codes.shape[-1]
  return stream.bits or 0, run, stream.offset


def _rule(rule: Scoring, first: int, last: int) -> dict[str, Any]:
  """Returns the attributes of the call; 0 stands for none."""
  seen = rule.visibility
  return {
    'scale': np.float32(rule.scale),
    'softcap': np.float32(rule.softcap or 0),
    'causal': np.int32(seen.causal),
    'window': np.int32(seen.window or 0),
    'chunk': np.int32(seen.chunk or 0),
    'sink_tokens': np.int32(seen.sink_tokens),
    'first': np.int32(first),
    'last': np.int32(last),
  }


KERNEL = Kernel(
  name='ffi',
  platform='cpu',
  missing=missing,
  is_at_home=is_at_home,
  refuses=refuses,
  attend=attend,
)
