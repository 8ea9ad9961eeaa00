"""Latent attention alone: absorbed, against the heads that it expands to.

Sizes are named as in DeepSeek-V2 (arXiv 2405.04434): a latent and a rotated key
that all heads share, or for each head a key of `plain + rotary` and a value.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp

from experiments.measuring import attention, clock
from experiments.measuring.clock import Entry, Expected, Pace
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

  @property
  def filled(self) -> int:
    return self.slots

  def widths(self, absorbed: bool) -> tuple[int, dict[str, int]]:
    """Returns the number of kv heads and the width of each of their streams."""
    if absorbed:
      return 1, {'latent': self.latent, 'rotary': self.rotary}
    return self.heads, {'key': self.plain + self.rotary, 'value': self.plain}

  def bytes(self, absorbed: bool) -> int:
    """Returns the bytes that attention of one token must read."""
    heads, widths = self.widths(absorbed)
    size = self.batch * heads * self.slots * sum(widths.values())
    return size * jnp.dtype(self.dtype).itemsize

  def scoring(self, absorbed: bool) -> Scoring:
    """Returns how scores are computed from products."""
    scale = (self.plain + self.rotary) ** -0.5
    return Scoring(scale, value='latent') if absorbed else Scoring(scale)

  def entries(self, pace: Pace) -> dict[str, Entry]:
    """Returns both forms by each kernel; the expanded ones count as peers.

    Each form is checked against float64 on random streams that are drawn for
    it. The expanded streams are not what a model would expand the latents to.
    """
    drawn = functools.cache(functools.partial(_draw, self, pace.rotate))

    def entry(kernel, absorbed):
      queries, copies, expected = drawn(absorbed)
      query_positions, slot_positions = attention.positions(self)

      def attend(streams):
        out = attention.attend_streams(
          queries,
          streams,
          query_positions,
          slot_positions,
          codec=Plain(),
          scoring=self.scoring(absorbed),
          kernel=kernel,
        )
        return jax.block_until_ready(out)

      calls = [functools.partial(attend, streams) for streams in copies]
      call = attention.in_turn(calls)
      # The expanded form is a peer, though a kernel of kvjax computes it.
      return expected.runner(call, kernel if absorbed else '', calls[0]()[0])

    return {
      f'kvjax {kernel} {form}': functools.partial(entry, kernel, absorbed)
      for kernel in pace.usable()
      if kernel != 'mosaic_gpu'
      for form, absorbed in (('absorbed', True), ('expanded', False))
    }


def _draw(
  case: LatentCase, rotate: int, absorbed: bool
) -> tuple[dict[str, jax.Array], list[dict[str, jax.Array]], Expected]:
  """Returns normal queries, copies of normal streams, and the first row.

  Queries are `[B, K, G, 1, W]`; streams are `[B, K, S, W]` in `rotate` bytes of
  copies.
  """
  heads, widths = case.widths(absorbed)
  lead = (case.batch, heads)
  shapes = [
    (*lead, case.heads // heads, 1, width) for width in widths.values()
  ] + [(*lead, case.slots, width) for width in widths.values()]
  drawn = attention.normal(0, *shapes)
  queries = dict(zip(widths, drawn, strict=False))
  queries.pop('value', None)
  streams = {
    name: x.astype(case.dtype)
    for name, x in zip(widths, drawn[len(widths) :], strict=True)
  }
  size = case.bytes(absorbed)
  expected = Expected(
    attention.first_row(queries, streams, case.scoring(absorbed)),
    size,
    attention.TOLERANCE[case.dtype],
  )
  copies = attention.copied(streams, max(1, -(-rotate // size)))
  return queries, copies, expected
