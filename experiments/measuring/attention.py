"""Attention alone: one token a row against a filled cache."""

import dataclasses
import functools
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.measuring import attention_peers, clock, forms, peers
from experiments.measuring.clock import Entry, Expected, Pace
from kvjax.kernels import Scoring, attend_view
from kvjax.streams.codecs import Codec, Int8, Plain
from kvjax.streams.view import View, contiguous_view

TOLERANCE = {'float32': 1e-4, 'bfloat16': 3e-2, 'float16': 3e-3, 'int8': 3e-2}
MOST = 3_600_000_000  # bytes of memory that the caches of a race occupy


@dataclasses.dataclass(frozen=True)
class AttentionCase(clock.Case):
  """A cache of `slots` of which `filled` hold tokens; see the legend."""

  record = 'attention'
  fields = ('batch', 'heads', 'groups', 'width', 'slots', 'filled', 'dtype')

  batch: int
  heads: int
  groups: int
  width: int
  slots: int
  filled: int
  dtype: str

  @property
  def bytes(self) -> int:
    """Of the filled keys and values, scales included."""
    scale = 4 if self.dtype == 'int8' else 0
    slot = self.width * jnp.dtype(self.dtype).itemsize + scale
    return 2 * self.batch * self.heads * self.filled * slot

  @property
  def scoring(self) -> Scoring:
    return Scoring(self.width**-0.5)

  def buffers(self, pace: Pace) -> tuple[int, int]:
    """Returns how many calls read all buffers, and the buffers of each call."""
    copies = max(1, -(-pace.rotate // self.bytes))
    whole = dataclasses.replace(self, filled=self.slots)
    copies = min(copies, max(2, MOST // whole.bytes))
    calls = -(-copies // pace.together)
    return calls, -(-copies // calls)

  def repeats(self, pace: Pace) -> int:
    # Up to three turns a call, so that most buffers are timed.
    return pace.repeats * min(self.buffers(pace)[0], 3)

  def entries(self, pace: Pace) -> dict[str, Entry]:
    drawn = draw(self, 0)
    calls, each = self.buffers(pace)
    expected = Expected(
      reference(self, drawn),
      self.bytes,
      TOLERANCE[self.dtype],
      pace.calls * each,
      {'rotated': calls * each * self.bytes},
    )

    def parts(streams):
      copies = copied(streams, calls * each)
      return [copies[i * each : (i + 1) * each] for i in range(calls)]

    def entry(make, parts, kernel=''):
      ready = [
        clock.queued(make(part), pace.calls, peers.finished) for part in parts
      ]
      first = peers.host(ready[0]()[0][:1])[0]
      return expected.runner(in_turn(ready), kernel, first)

    codec, encoded = store(self, drawn)

    def attend(kernel, query, part):
      return attend_streams(
        {'key': query}, *part, codec=codec, scoring=self.scoring, kernel=kernel
      )

    entries = {}
    lengths = [self.filled] * self.batch
    ours = parts((encoded, *positions(lengths, self.slots)))
    for name, kernel, chosen in forms.raced(pace, self.dtype):
      make = clock.chained(functools.partial(attend, chosen))
      make = functools.partial(make, drawn[0])
      entries[name] = functools.partial(entry, make, ours, kernel)
    if pace.alone or self.dtype == 'int8':
      return entries
    query, *streams = (x.astype(self.dtype) for x in drawn)
    theirs = parts((query, *(x[:, :, : self.filled] for x in streams)))
    for peer in attention_peers.PEERS:
      if not peer.absence:
        entries[peer.name] = functools.partial(entry, peer.make, theirs)
    return entries


def in_turn(calls: Sequence[clock.Call]) -> clock.Call:
  """Returns a call that makes the next of several calls each time."""
  turn = itertools.cycle(calls)
  return lambda: next(turn)()


def copied(tree: Any, count: int) -> list[Any]:
  """Returns pytrees of the same numbers in different memory.

  The cost of a read depends on the address of numbers and not on their values,
  and gigabytes of numbers take longer to draw than to read.
  """
  apart = functools.partial(jax.tree.map, lambda x: jnp.array(x, copy=True))
  return [tree, *(apart(tree) for _ in range(count - 1))]


def draw(
  case: AttentionCase, seed: int
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Returns normal queries `[B, K, G, 1, H]`, keys and values, float32."""
  lead = (case.batch, case.heads)
  shapes = (case.groups, 1), (case.slots,), (case.slots,)
  q, k, v = _last(seed, *(lead + shape + (case.width,) for shape in shapes))
  return q, k, v


def normal(seed: int, *shapes: tuple[int, ...]) -> tuple[jax.Array, ...]:
  """Returns normal float32 arrays; gigabytes are drawn on the device."""
  if jax.default_backend() == 'cpu':
    rng = np.random.default_rng(seed)
    draws = (rng.standard_normal(shape, dtype=np.float32) for shape in shapes)
    return tuple(map(jnp.asarray, draws))
  keys = jax.random.split(jax.random.key(seed), len(shapes))
  return tuple(map(jax.random.normal, keys, shapes))


# Cases that follow each other draw the same numbers: their lengths or dtypes
# differ only.
_last = functools.lru_cache(maxsize=1)(normal)


def reference(case: AttentionCase, drawn: Sequence[Any]) -> np.ndarray:
  """Returns the first row's output `[K, G, 1, E]` in float64."""
  query, key, value = drawn
  streams = {'key': key, 'value': value}
  filled = {name: x[:1, :, : case.filled] for name, x in streams.items()}
  return first_row({'key': query}, filled, case.scoring)


def first_row(
  queries: Mapping[str, Any], streams: Mapping[str, Any], scoring: Scoring
) -> np.ndarray:
  """Returns the first row's attention to all slots; see `attend_float64`."""
  queries, streams = jax.tree.map(lambda x: x[:1], (queries, streams))
  slots = np.arange(streams[scoring.value].shape[2])[None]
  out, _ = attend_float64(queries, streams, slots[:, -1:], slots, scoring)
  return out[0]


def attend_float64(
  queries: Mapping[str, Any],
  streams: Mapping[str, Any],
  query_positions: np.ndarray,
  slot_positions: np.ndarray,
  scoring: Scoring,
) -> tuple[np.ndarray, np.ndarray]:
  """Returns output and log-sum-exp by a plain masked softmax in float64.

  Args:
    queries: `[B, K, G, T, H]` by the name of the stream that they meet.
    streams: `[B, K, S, H]` by name.
    query_positions: `[B, T]`, -1 where there is no token.
    slot_positions: `[B, S]`, -1 where a slot holds no token.
    scoring: scale, soft-cap, mask and value stream.
  """
  is_token = slot_positions >= 0
  # A weight of 0 times the NaN of an empty slot would be NaN.
  wide = {
    name: np.where(is_token[:, None, :, None], np.asarray(x, np.float64), 0)
    for name, x in streams.items()
  }
  scores = scoring.scale * sum(
    np.einsum('BKGTH,BKSH->BKGTS', np.asarray(query, np.float64), wide[name])
    for name, query in queries.items()
  )
  if scoring.softcap is not None:
    scores = scoring.softcap * np.tanh(scores / scoring.softcap)
  row, column = query_positions[:, :, None], slot_positions[:, None, :]
  seen = scoring.visibility.sees(jnp.asarray(row), jnp.asarray(column))
  seen = np.asarray(seen) & (row >= 0) & (column >= 0)
  scores = np.where(seen[:, None, None], scores, -np.inf)
  lse = np.logaddexp.reduce(scores, axis=-1)
  weights = np.exp(scores - np.where(np.isfinite(lse), lse, 0)[..., None])
  out = np.einsum('BKGTS,BKSE->BKGTE', weights, wide[scoring.value])
  return out, lse


def store(
  case: AttentionCase, drawn: Sequence[jax.Array]
) -> tuple[Codec, dict[str, Any]]:
  """Returns the codec of a case, and its keys and values as it stores them."""
  narrow = case.dtype == 'int8'
  codec: Codec = Int8() if narrow else Plain()
  dtype = jnp.float32 if narrow else case.dtype
  encode = jax.jit(lambda x: codec.encode(x, dtype))
  _, key, value = drawn
  return codec, {'key': encode(key), 'value': encode(value)}


def positions(
  lengths: Sequence[int], slots: int, tokens: int = 1
) -> tuple[jax.Array, jax.Array]:
  """Returns int32 `[B, T]` of the queries and `[B, 1, S]` of the slots.

  Args:
    lengths: tokens of each row, in its first slots; the other slots are empty.
    slots: S.
    tokens: T, the last of each row that are queries; -1 where a row has fewer.
  """
  counts, slot = np.asarray(lengths)[:, None], np.arange(slots)
  queries = np.maximum(counts - tokens + np.arange(tokens), -1)
  filled = np.where(slot < counts, slot, -1)[:, None]
  return jnp.asarray(queries, jnp.int32), jnp.asarray(filled, jnp.int32)


# A jit inside the program of several caches, so that JAX lowers it once.
@functools.partial(jax.jit, static_argnames=('codec', 'scoring', 'kernel'))
def attend_streams(
  queries, streams, query_positions, slot_positions, *, codec, scoring, kernel
):
  """Returns attention `[B, K, G, T, E]` to encoded streams of one layer."""
  filled = jnp.max(slot_positions) + 1
  view = encoded_view(codec, streams, slot_positions, filled)
  return attend_view(queries, query_positions, view, scoring, kernel=kernel)[0]


def encoded_view(
  codec: Codec, streams: dict[str, Any], slot_positions: jax.Array, filled: Any
) -> View:
  """Returns the view of the ordered slots of streams that a codec encoded."""
  return contiguous_view(streams, slot_positions, filled, ordered=True).map(
    lambda x: {name: codec.decode(x[name]) for name in x},
    lambda x: {name: codec.stored(x[name]) for name in x},
  )
