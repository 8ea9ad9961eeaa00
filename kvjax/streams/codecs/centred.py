"""Keys without the constant that they have in common.

Keys of trained models hold a large constant in a few features. A constant that
is taken off all keys of a row changes all scores of a query alike, and the
softmax of the scores not at all, so nothing is put back (SageAttention, arXiv
2410.02367, section 4.2, takes off the mean of the keys at hand). What is stored
spans a smaller range, which codes of few bits divide more finely.
"""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kvjax.arguments import check_fields
from kvjax.streams.codecs.codec import Codec
from kvjax.streams.stream import Stream
from kvjax.streams.view import Streams

KEY = 'key'


@dataclasses.dataclass(frozen=True)
class Centred(Codec):
  """Another codec's codes of keys less a constant a layer and kv head.

  Values are stored by the other codec as they are. The constant is an array of
  the cache: two bytes a feature of each row and head, whatever the length.
  `kvjax.calibrate` measures it.

  Attributes:
    codec: of the keys without their constant, and of the values.
    constant: `[K, H]` for each layer, in a list or in one array `[L, K, H]`.
      None where `calibrate` has not measured it yet.
    rotated: the constant is that of rotated keys, and nothing is put back when
      they are read. False: keys are stored before rotation. Reading then adds
      the constant and rotates each key, which only the block loop does.
  """

  codec: Codec
  constant: Any = dataclasses.field(default=None, compare=False, repr=False)
  rotated: bool = True

  def __post_init__(self):
    check_fields(self)
    if not hasattr(self.codec, 'leaves') or isinstance(self.codec, Centred):
      raise ValueError(
        f'Centred codec={self.codec!r} must be a codec that takes no constant '
        'off itself, such as Hadamard(Affine(bits=2)).'
      )

  def leaves(self, width, dtype):
    return self.codec.leaves(width, dtype)

  def encode(self, x, dtype):
    return self.codec.encode(x, dtype)

  def decode(self, encoded):
    x = self.codec.decode(encoded)
    return x if self.rotated else _apply(self.codec, 'turn_back', x)

  def stored(self, encoded):
    return self.codec.stored(encoded) if self.rotated else None

  def turn(self, x: jax.Array) -> jax.Array:
    """Returns queries as the keys are stored: turned if those are read so."""
    return _apply(self.codec, 'turn', x) if self.rotated else x

  def turn_back(self, x: jax.Array) -> jax.Array:
    """Returns decoded keys as they were projected, less the constant."""
    return _apply(self.codec, 'turn_back', x) if self.rotated else x

  def by_stream(self, streams: Mapping[str, Stream]) -> dict[str, Codec]:
    """Returns the codec of each stream."""
    if streams and KEY not in streams:
      raise ValueError(
        f'{self}: of the streams {", ".join(map(repr, streams))} none is keys '
        'alone. A latent is the value as well, and a constant would be missing '
        f'from the output. Store it by {self.codec}.'
      )
    return {name: self if name == KEY else self.codec for name in streams}


def _apply(codec: Any, method: str, x: jax.Array) -> jax.Array:
  apply = getattr(codec, method, None)
  return apply(x) if apply else x


def is_centred(codec: Any) -> bool:
  """Returns whether a codec needs a constant."""
  return isinstance(codec, Centred)


def without_constants(
  codecs: Iterable[tuple[str, Codec]],
) -> tuple[tuple[str, Codec], ...]:
  """Returns `(stream name, codec)` pairs that are static: without arrays."""
  return tuple(
    (name, dataclasses.replace(x, constant=None) if is_centred(x) else x)
    for name, x in codecs
  )


def layer_constants(
  codecs: Sequence[Iterable[tuple[str, Any]]],
  streams: Sequence[Mapping[str, Stream]],
) -> tuple[dict[str, np.ndarray], ...] | None:
  """Returns what is taken off each stream of each layer, `[K, H]`, by name.

  None where nothing is.

  Args:
    codecs: `(stream name, codec)` pairs of each layer.
    streams: of each layer.

  Raises:
    ValueError: a constant is missing, or has another shape.
  """
  found: list[dict[str, np.ndarray]] = []
  for index, (pairs, own) in enumerate(zip(codecs, streams, strict=True)):
    found.append(
      {
        name: _constant(codec, index, own[name], len(streams))
        for name, codec in pairs
        if is_centred(codec)
      }
    )
  return tuple(found) if any(found) else None


def _constant(codec: Any, index: int, stream: Stream, layers: int):
  """Returns the float16 constant `[K, H]` of one layer."""
  if codec.constant is None:
    raise ValueError(
      f'{codec} has no constant. Measure it on a text: codec = '
      'kvjax.calibrate(config, params, tokens, codec).'
    )
  shape = stream.heads, stream.width
  if len(codec.constant) != layers or np.shape(codec.constant[index]) != shape:
    given = [np.shape(x) for x in codec.constant]
    raise ValueError(
      f'{codec}: constant has shapes {given}; the {layers} layers need one '
      f'each, layer {index} {list(shape)}. Call kvjax.calibrate with this '
      'config.'
    )
  found = np.asarray(codec.constant[index], np.float16)
  if not np.isfinite(found).all():
    raise ValueError(f'{codec}: constant of layer {index} is not finite.')
  return found


def add_constants(
  streams: Mapping[str, Any], constants: Mapping[str, jax.Array], sign: int = 1
) -> Streams:
  """Returns streams `[B, K, S, H]` plus `sign` times `[B, K, H]`, by name."""
  return {
    name: x
    if (constant := constants.get(name)) is None
    else x.astype(jnp.float32) + sign * constant.astype(jnp.float32)[:, :, None]
    for name, x in streams.items()
  }
