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
from kvjax.streams.codecs.by_stream import tiering_of
from kvjax.streams.codecs.codec import Codec, Tiering
from kvjax.streams.codecs.floats import Plain
from kvjax.streams.stream import Stream
from kvjax.streams.view import Streams

KEY, VALUE = 'key', 'value'  # streams of keys alone, and of values alone


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
    whole: first tokens that stay exact, less the constant as well. They get
      much of the attention, and their keys are unlike the others'.
    rotated: the constant is that of rotated keys, and nothing is put back when
      they are read. False: keys are stored before rotation. Reading then adds
      the constant and rotates each key, which only the block loop does.
  """

  codec: Codec
  constant: Any = dataclasses.field(default=None, compare=False, repr=False)
  whole: int = 4
  rotated: bool = True

  def __post_init__(self):
    check_fields(self, at_least={'whole': 0})
    is_codec = hasattr(self.codec, 'leaves') and not is_centred(self.codec)
    if not is_codec or tiering_of(self.codec) != Tiering():
      raise ValueError(
        f'Centred codec={self.codec!r} must be a codec that encodes each token '
        'by itself and takes no constant off, such as Hadamard(Affine(bits=2)).'
      )
    if self.constant is not None and not np.iterable(self.constant):
      raise ValueError(
        f'Centred constant={self.constant!r} must be a list of arrays, one a '
        'layer. kvjax.calibrate measures it.'
      )

  @property
  def exact(self) -> 'Centred':
    """The codec of the first tokens: exact, and less the constant as well."""
    exact = getattr(self.codec, 'exact', Plain())
    return dataclasses.replace(self, codec=exact)

  def tiering(self):
    return Tiering(first=self.whole)

  def of_stream(self, name):
    return self.codec if name == VALUE else self

  def leaves(self, width, dtype):
    return self.codec.leaves(width, dtype)

  def encode(self, x, dtype):
    return self.codec.encode(x, dtype)

  def decode(self, encoded):
    x = self.codec.decode(encoded)
    return x if self.rotated else self._apply('turn_back', x)

  def stored(self, encoded):
    return self.codec.stored(encoded)

  def turn(self, x: jax.Array) -> jax.Array:
    """Returns queries as their keys are read: turned if those are rotated."""
    return self._apply('turn', x) if self.rotated else x

  def turn_back(self, x: jax.Array) -> jax.Array:
    """Returns decoded keys as they were projected, less the constant."""
    return self._apply('turn_back', x) if self.rotated else x

  def _apply(self, method: str, x: jax.Array) -> jax.Array:
    apply = getattr(self.codec, method, None)
    return apply(x) if apply else x


def is_centred(codec: Any) -> bool:
  """Returns whether a codec needs a constant."""
  return isinstance(codec, Centred)


def without_constants(codecs: Iterable[tuple[str, Any]]) -> Any:
  """Returns `(stream name, codec)` pairs that are static: without arrays."""
  return tuple(
    (name, dataclasses.replace(x, constant=None) if is_centred(x) else x)
    for name, x in codecs
  )


def constants_of(
  codecs: Any, layers: Sequence[Mapping[str, Stream]]
) -> tuple[np.ndarray | None, ...] | None:
  """Returns what is taken off the keys of each layer, `[K, H]`.

  None where nothing is, as in a layer that has no keys itself.

  Args:
    codecs: a codec, or one a stream; see `Codecs`.
    layers: the streams of each.

  Raises:
    ValueError: a constant is missing, or has another shape.
  """
  codec: Any = codecs.get(KEY) if isinstance(codecs, Mapping) else codecs
  if not is_centred(codec):
    return None
  if codec.constant is None:
    raise ValueError(
      f'{codec} has no constant. Measure it on a text: codec = '
      'kvjax.calibrate(config, params, tokens, codec).'
    )
  found: list[np.ndarray | None] = []
  given = [None if x is None else np.shape(x) for x in codec.constant]
  for index, key in enumerate(streams.get(KEY) for streams in layers):
    shape = key and (key.heads, key.width)
    if len(given) != len(layers) or shape and given[index] != shape:
      raise ValueError(
        f'{codec}: constant has shapes {given}; it needs one for each of '
        f'{len(layers)} layers, for layer {index} {shape}. Call '
        'kvjax.calibrate with this config.'
      )
    with np.errstate(over='ignore'):  # infinite, and refused below
      found.append(shape and np.asarray(codec.constant[index], np.float16))
  if not all(np.isfinite(x).all() for x in found if x is not None):
    raise ValueError(f'{codec}: constant has numbers that float16 has not.')
  return tuple(found)


def add_constant(
  streams: Mapping[str, Any], constant: jax.Array | None, sign: int = 1
) -> Streams:
  """Returns streams whose keys `[B, K, S, H]` have a constant `[B, K, H]` more.

  Args:
    streams: by name.
    constant: None for nothing.
    sign: -1 to take it off.
  """
  if constant is None:
    return dict(streams)
  constant = sign * constant.astype(jnp.float32)[:, :, None]
  return {**streams, KEY: streams[KEY].astype(jnp.float32) + constant}
