"""What encoding a source needs: one call, over before the first step.

An encoder reads its whole source at once and keeps no cache, so that its
scores are as wide as they are tall. It is compiled apart from a decode step,
and its transient is gone when that begins: a plan has a separate part for it.
The moments were read off the buffers that XLA:CPU assigns, as those of a step.
"""

import dataclasses
from collections.abc import Iterator
from typing import Any

from kvjax.memory.parts.call_shape import FLOAT
from kvjax.memory.parts.lines import Dim, Line, Term, fullest_lines
from kvjax.mesh.rules import WHOLE, Partition
from kvjax.models.config import ModelConfig

ENCODED = 'encoded source, the result'
POSITIONS = 'positions of the source, the result'


@dataclasses.dataclass(frozen=True)
class _Source:
  """The sizes of one call of `encode`."""

  batch: int
  length: int
  width: int
  size: int

  @property
  def lead(self) -> tuple[Dim, Dim]:
    return Dim('B', self.batch, 'batch'), Dim('S', self.length, 'source')

  def term(
    self, name: str, *dims: Dim, times: int = 1, wide: bool = False
  ) -> Term:
    """Returns some arrays of every position of the source."""
    itemsize = FLOAT if wide else self.size
    return Term(f"source's {name}", (*self.lead, *dims), itemsize, times)

  def hidden(self, times: int = 1) -> Term:
    return self.term('hidden', Dim('D', self.width), times=times)


def encode_lines(
  config: ModelConfig,
  batch: int,
  length: int,
  size: int,
  partition: Partition = WHOLE,
) -> Iterator[Line]:
  """Yields what `encode` returns, its fullest moment, what lives at others.

  Args:
    config: a model with an encoder.
    batch: B rows.
    length: S positions of the source.
    size: bytes of an activation.
    partition: of a mesh, which splits rows; every device has the encoder.
  """
  source = _Source(batch, length, config.width, size)
  hidden = dataclasses.replace(source.hidden(), name=ENCODED)
  yield hidden.line('encode', partition)
  yield Term(POSITIONS, source.lead, 4).line('encode', partition)
  yield from fullest_lines(list(_moments(config, source)), 'encode', partition)


def _moments(config: ModelConfig, source: _Source) -> Iterator[list[Term]]:
  encoder = config.encoder
  if encoder is None:
    raise ValueError('The model has no encoder: drop source_length.')
  if encoder.features is not None:
    frames = Dim('frames', 2 * source.length), Dim('D', config.width)
    dims = source.lead[0], *frames
    yield [Term("source's frames, convolved", dims, source.size, 2)]
  shared = len(encoder.layers) > 1
  for index, layer in enumerate(dict.fromkeys(encoder.layers)):
    found = _layer_moments(layer.attention, layer.mlp, source, shared)
    if encoder.features is not None and encoder.positions and not index:
      # Where positions are added the activation is made again, by pieces.
      pieces = dataclasses.replace(
        source.hidden(3), name="source's frames, activated, in pieces"
      )
      yield [*next(found), pieces]
    yield from found


def _layer_moments(
  attention: Any, mlp: Any, source: _Source, shared: bool
) -> Iterator[list[Term]]:
  """Yields projections, softmax and MLP of one layer of several, if shared."""
  heads = Dim('N', attention.num_heads)
  slots = Dim('S', source.length)
  # A bias by distance is that of every layer, and made once; for one alone it
  # is made where it is added.
  biased = shared and attention.bias is not None
  bias = [source.term('bias', heads, slots, wide=True)] * biased
  width = Dim('H', attention.key_width)
  query = source.term('query (one layer, then dead)', heads, width)
  key, value = (
    source.term(name, Dim('K', attention.num_kv_heads), width)
    for name in ('key', 'value')
  )
  hidden = source.hidden()
  turned = dataclasses.replace(query, times=2)
  yield [*bias, hidden, turned, key, value]
  scores = source.term('scores, all at once', heads, slots, wide=True)
  yield [*bias, hidden, value, dataclasses.replace(scores, times=2)]
  units = Dim('F', mlp.hidden)
  yield [*bias, hidden, source.term('mlp', units, times=2 + mlp.gated)]
