"""One codec for all streams, or one a stream by its name."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp

from kvjax.streams.codecs.codec import Codec, Tiering
from kvjax.streams.codecs.floats import Plain
from kvjax.streams.stream import Stream
from kvjax.streams.view import Streams

Codecs = Codec | Mapping[str, Codec] | None
"""A codec for every stream; or one a stream, by name; or None for `Plain`."""


def codecs_of(
  codecs: Any, streams: Mapping[str, Stream]
) -> tuple[tuple[str, Codec], ...]:
  """Returns `(stream name, codec)` pairs of a layer.

  A stream that is not to be quantized stays as it is, unless it is named.

  Args:
    codecs: a codec, or one a stream as a mapping or as pairs; None for `Plain`.
    streams: of the layer.
  """
  if isinstance(codecs, Mapping | tuple):
    named = {name: x for name, x in dict(codecs).items() if x is not None}
    return tuple((name, named.get(name, Plain())) for name in streams)
  return tuple(
    (name, _of_stream(codecs, name) if codecs and stream.quantize else Plain())
    for name, stream in streams.items()
  )


def _of_stream(codec: Any, name: str) -> Codec:
  """Returns what a codec is for one stream; it need not derive from `Codec`."""
  return codec.of_stream(name) if hasattr(codec, 'of_stream') else codec


def tiering_of(codecs: Any) -> Tiering:
  """Returns what the codecs of a layer call for together."""
  named = isinstance(codecs, Mapping | tuple)
  parts = dict(codecs).values() if named else [codecs]
  each = [codec.tiering() for codec in parts if hasattr(codec, 'tiering')]
  return Tiering(*map(max, zip(Tiering(), *each, strict=True)))


def apply_where_present(
  method: str,
  codecs: Iterable[tuple[str, Codec]],
  streams: Mapping[str, Any],
) -> Streams:
  """Returns streams after an optional method of their codecs, such as `turn`.

  Args:
    method: its name.
    codecs: `(stream name, codec)` pairs.
    streams: arrays `[..., H]` by name; those without a codec stay as they are.
  """
  methods = {name: getattr(codec, method, None) for name, codec in codecs}
  return {
    name: apply(x) if (apply := methods.get(name)) else x
    for name, x in streams.items()
  }


def exact_codecs(
  codecs: Iterable[tuple[str, Codec]],
) -> tuple[tuple[str, Codec], ...]:
  """Returns how tokens are stored that are not encoded yet.

  Args:
    codecs: `(stream name, codec)` pairs.
  """
  return tuple((name, getattr(x, 'exact', Plain())) for name, x in codecs)


def are_rotated(codecs: Iterable[tuple[str, Codec]]) -> bool:
  """Returns whether keys are stored after rotation, as all but some are.

  Args:
    codecs: `(stream name, codec)` pairs.
  """
  return all(getattr(codec, 'rotated', True) for _, codec in codecs)


def check_streams(codecs: Any, layers: Sequence[Mapping[str, Stream]]) -> None:
  """Raises ValueError where codecs cannot store the streams of some layers.

  A name may be one that no layer has, and a width one that a codec refuses.
  """
  known = dict.fromkeys(name for streams in layers for name in streams)
  for name in codecs if isinstance(codecs, Mapping) else ():
    if name not in known:
      raise ValueError(
        f'codec={codecs!r}: no layer has a stream {name!r}; the streams are '
        f'{", ".join(map(repr, known))}.'
      )
  for name, codec in codecs.items() if isinstance(codecs, Mapping) else ():
    if codec is not None and _of_stream(codec, name) != codec:
      raise ValueError(
        f'codec={codecs!r}: {codec} stores all streams of a layer. Give it '
        f'alone: codec={codec}.'
      )
  for streams in layers:
    for name, codec in codecs_of(codecs, streams):
      codec.leaves(streams[name].width, jnp.float32)
