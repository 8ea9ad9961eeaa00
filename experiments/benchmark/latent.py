"""Latent attention alone: absorbed, against the heads that it expands to.

Sizes are named as in DeepSeek-V2 (arXiv 2405.04434): a latent and a rotated key
that all heads share, or for each head a key of `plain + rotary` and a value.
"""

import dataclasses
import functools
from typing import Any

import jax

from experiments.measuring import attention, clock
from experiments.measuring.clock import Entry, Expected, Pace
from experiments.training.variants import array_bytes
from kvjax.kernels import Scoring
from kvjax.streams.codecs import Plain


@dataclasses.dataclass(frozen=True)
class LatentCase(clock.Case):
  """A full cache of one layer.

  Attributes:
    batch: B.
    heads: N.
    latent: width of the latent.
    rotary: width of the rotated key.
    plain: width of the rest of a head's key, and of its value.
    slots: S, all of them filled.
    dtype: of the streams.
  """

  record = 'latent'
  fields = ('batch', 'heads', 'latent', 'rotary', 'plain', 'slots', 'dtype')

  batch: int
  heads: int
  latent: int
  rotary: int
  plain: int
  slots: int
  dtype: str

  def entries(self, pace: Pace) -> dict[str, Entry]:
    """Returns both forms by each kernel; the expanded ones count as peers.

    Each form is checked against float64 on random streams that are drawn for
    it. The expanded streams are not what a model would expand the latents to.
    """
    drawn = functools.cache(functools.partial(_draw, self, pace.rotate))
    lengths = [self.slots] * self.batch
    positions = attention.positions(lengths, self.slots)

    def entry(kernel, absorbed):
      queries, copies, scoring, expected = drawn(absorbed)
      how = {'codec': Plain(), 'scoring': scoring, 'kernel': kernel}

      def call(streams):
        out = attention.attend_streams(queries, streams, *positions, **how)
        return jax.block_until_ready(out)

      calls = [functools.partial(call, streams) for streams in copies]
      # The expanded form is a peer, though a kernel of kvjax computes it.
      ours = kernel if absorbed else ''
      return expected.runner(attention.in_turn(calls), ours, calls[0]()[0])

    return {
      f'kvjax {kernel} {form}': functools.partial(entry, kernel, absorbed)
      for kernel in pace.usable()
      if kernel != 'mosaic_gpu'
      for form, absorbed in (('absorbed', True), ('expanded', False))
    }


def _draw(case: LatentCase, rotate: int, absorbed: bool) -> Any:
  """Returns normal queries, copies of normal streams, scoring and first row.

  Queries are `[B, K, G, 1, W]`; streams are `[B, K, S, W]` in `rotate` bytes of
  copies.
  """
  scale = (case.plain + case.rotary) ** -0.5
  if absorbed:
    heads, scoring = 1, Scoring(scale, value='latent')
    widths = {'latent': case.latent, 'rotary': case.rotary}
  else:
    heads, scoring = case.heads, Scoring(scale)
    widths = {'key': case.plain + case.rotary, 'value': case.plain}
  rows = case.batch, heads, case.heads // heads, 1
  slots = case.batch, heads, case.slots
  shapes = [(*lead, x) for lead in (rows, slots) for x in widths.values()]
  drawn = attention.normal(0, *shapes)
  queries = dict(zip(widths, drawn, strict=False))
  queries.pop('value', None)
  streams = {
    name: x.astype(case.dtype)
    for name, x in zip(widths, drawn[len(widths) :], strict=True)
  }
  size = array_bytes(streams)
  expected = Expected(
    attention.first_row(queries, streams, scoring),
    size,
    attention.TOLERANCE[case.dtype],
  )
  copies = attention.copied(streams, max(1, -(-rotate // size)))
  return queries, copies, scoring, expected
