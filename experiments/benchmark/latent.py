"""Latent attention alone: absorbed, beside the heads that it would expand to.

DeepSeek-V2's sizes (arXiv 2405.04434): a latent and a rotated key that all
heads share, or for each head a key of `plain + rotary` and a value.
"""

import dataclasses
import functools
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.measuring import clock
from experiments.measuring.attention import TOLERANCE, Pace, copied, normal
from experiments.measuring.clock import Runner
from kvjax.kernels import Scoring, attend_view, available
from kvjax.streams.codecs import Plain
from kvjax.streams.view import contiguous_view


@dataclasses.dataclass(frozen=True)
class Case:
  """A full cache of one layer.

  Attributes:
    batch: B.
    heads: N.
    latent: width of the latent.
    rotary: width of the rotated key.
    plain: width of a head's key but for that, and of its value.
    slots: S, all of them filled.
    dtype: of the streams.
  """

  batch: int
  heads: int
  latent: int
  rotary: int
  plain: int
  slots: int
  dtype: str

  def widths(self, absorbed: bool) -> tuple[int, dict[str, int]]:
    """Returns kv heads, and the width of each of their streams."""
    if absorbed:
      return 1, {'latent': self.latent, 'rotary': self.rotary}
    return self.heads, {'key': self.plain + self.rotary, 'value': self.plain}

  def bytes(self, absorbed: bool) -> int:
    """Returns what a token's attention must read."""
    heads, widths = self.widths(absorbed)
    size = self.batch * heads * self.slots * sum(widths.values())
    return size * jnp.dtype(self.dtype).itemsize

  def scoring(self, absorbed: bool) -> Scoring:
    """Returns how scores are made of products."""
    scale = (self.plain + self.rotary) ** -0.5
    return Scoring(scale, value='latent') if absorbed else Scoring(scale)


def measure(case: Case, pace: Pace) -> dict[str, Any]:
  """Returns results of both forms by each kernel; the expanded ones as peers.

  Each is checked against float64 on streams of its own: what a model would
  expand is not what is timed.
  """
  clock.give_back()
  drawn = functools.cache(functools.partial(_draw, case, pace.rotate))
  entries = {
    f'kvjax {kernel} {"absorbed" if absorbed else "expanded"}': (
      functools.partial(_runner, case, drawn, kernel, absorbed)
    )
    for kernel, reason in available().items()
    if not reason and kernel in pace.kernels and kernel != 'mosaic_gpu'
    for absorbed in (True, False)
  }
  runners, skipped = clock.enter(entries)
  return clock.race(runners, pace.repeats) | skipped


def _runner(case: Case, drawn: Any, kernel: str, absorbed: bool) -> Runner:
  run = functools.partial(_attend, case=case, absorbed=absorbed, kernel=kernel)
  queries, streams, want = drawn(absorbed)
  calls = [functools.partial(run, queries, each) for each in streams]
  error = clock.difference(calls[0]()[0, :, :, 0], want)
  turn = itertools.cycle(calls)
  return Runner(
    lambda: jax.block_until_ready(next(turn)()),
    case.bytes(absorbed),
    kernel if absorbed else '',  # the other form is a peer, whosever it is
    error,
    TOLERANCE[case.dtype],
  )


def _draw(case: Case, rotate: int, absorbed: bool) -> tuple[Any, Any, Any]:
  """Returns normal queries `[B, K, G, 1, W]`, streams, and what is to come out.

  Streams `[B, K, S, W]` several times, `rotate` bytes in all.
  """
  heads, widths = case.widths(absorbed)
  lead, groups = (case.batch, heads), case.heads // heads
  shapes = [(*lead, groups, 1, width) for width in widths.values()]
  shapes += [(*lead, case.slots, width) for width in widths.values()]
  drawn = normal(0, *shapes)
  queries = dict(zip(widths, drawn[: len(widths)], strict=True))
  queries.pop('value', None)
  each = [x.astype(case.dtype) for x in drawn[len(widths) :]]
  streams = dict(zip(widths, each, strict=True))
  want = _reference(case, absorbed, queries, streams)
  count = max(1, -(-rotate // case.bytes(absorbed)))
  return queries, copied(streams, count), want


@functools.partial(jax.jit, static_argnames=('case', 'absorbed', 'kernel'))
def _attend(queries, streams, *, case, absorbed, kernel):
  slots = jnp.arange(case.slots, dtype=jnp.int32)
  held = jnp.broadcast_to(slots, (case.batch, 1, case.slots))
  last = jnp.full((case.batch, 1), case.slots - 1, jnp.int32)
  codec = Plain()
  view = contiguous_view(streams, held, case.slots, ordered=True).map(
    dict, lambda x: {name: codec.stored(x[name]) for name in x}
  )
  rule = case.scoring(absorbed)
  return attend_view(queries, last, view, rule, kernel=kernel)[0]


def _reference(case, absorbed, queries, streams) -> np.ndarray:
  """Returns the first row's output `[K, G, E]` in float64."""
  wide = lambda x: np.asarray(x[0], np.float64)
  rule = case.scoring(absorbed)
  scores = sum(
    np.einsum('kgth,ksh->kgs', wide(query), wide(streams[name]))
    for name, query in queries.items()
  )
  scores = np.exp(scores * rule.scale)
  weights = scores / scores.sum(-1, keepdims=True)
  return np.einsum('kgs,kse->kge', weights, wide(streams[rule.value]))
