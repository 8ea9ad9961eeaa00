"""The interface of an attention variant, and of its forms.

A variant says what a token leaves behind (`streams`, `project_streams`). A form
says how queries read that. Most variants have one form: such a class derives
from both, and its `form` returns itself. `Latent` has two forms, which compute
the same at different cost.
"""

import abc
import math
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from kvjax.renamed import VARIANT_METHODS, check_methods
from kvjax.streams.codecs import Codec, is_centred
from kvjax.streams.scoring import Scoring
from kvjax.streams.stream import Stream
from kvjax.streams.view import Streams
from kvjax.streams.visibility import Visibility

Table = tuple[jax.Array, jax.Array] | None
"""Cosines and sines of the positions, or None without rotation."""


class Form(abc.ABC):
  """How queries read what tokens left behind.

  Attributes:
    expands: `expand` changes the streams. Where it does not, kernels read them
      as they are stored.
  """

  expands: ClassVar[bool] = False

  def __init_subclass__(cls, **options: Any):
    super().__init_subclass__(**options)
    check_methods(cls, VARIANT_METHODS)

  @abc.abstractmethod
  def project_queries(
    self, params: Mapping[str, Any], x: jax.Array, table: Table
  ) -> Streams:
    """Returns queries `[B, K, G, T, H]`, by key stream.

    Args:
      params: of the variant.
      x: activations `[B, T, D]`.
      table: rotary table at the positions of the tokens; None for none.
    """

  def expand(self, params: Mapping[str, Any], streams: Streams) -> Streams:
    """Returns streams `[B, K, S, H]` as the queries are scored against them."""
    del params
    return streams

  @abc.abstractmethod
  def scoring(
    self, params: Mapping[str, Any], relative: jax.Array | None
  ) -> Scoring:
    """Returns scale, mask, bias and sinks.

    Args:
      params: of the variant.
      relative: the model's table of relative biases `[buckets, N]`, if any.
    """

  @abc.abstractmethod
  def project_output(
    self, params: Mapping[str, Any], out: jax.Array
  ) -> jax.Array:
    """Returns `[B, T, D]` from attention's output `[B, K, G, T, E]`."""


class Variant(abc.ABC):
  """What a token leaves behind.

  Attributes:
    visibility: which keys a query sees.
    rotary: the `Rotary` of queries and keys; None for none.
    bias: additive bias from positions (`Alibi`, `RelativeBias`), or None.
    num_heads: N query heads.
    shared_from: index of the earlier layer whose streams this one reads; None
      for streams that this layer projects.
  """

  # Types alone: a value here would become the default of a dataclass's field.
  visibility: Visibility
  rotary: Any
  bias: Any
  num_heads: int
  shared_from: int | None

  def __init_subclass__(cls, **options: Any):
    super().__init_subclass__(**options)
    check_methods(cls, VARIANT_METHODS)

  @property
  @abc.abstractmethod
  def query_width(self) -> int:
    """Elements of all queries of a token, which no cache keeps."""

  @abc.abstractmethod
  def streams(self) -> dict[str, Stream]:
    """Returns heads and width of each stream that a token leaves behind."""

  @abc.abstractmethod
  def init(self, key: jax.Array, width: int, dtype: Any) -> dict[str, Any]:
    """Returns random parameters for activations of `width` features."""

  def num_params(self, width: int) -> int:
    """Returns the number of elements that `init` makes, from their shapes."""
    key = jax.random.key(0)
    made = jax.eval_shape(lambda: self.init(key, width, jnp.float32))
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(made))

  @abc.abstractmethod
  def project_streams(
    self, params: Mapping[str, Any], x: jax.Array, table: Table
  ) -> Streams:
    """Returns what tokens leave behind: `[B, K, T, H]` by stream.

    Args:
      params: of the variant.
      x: activations `[B, T, D]`.
      table: rotary table at the positions of the tokens; None for none.
    """

  def rotate_streams(
    self, streams: Streams, table: tuple[jax.Array, jax.Array]
  ) -> Streams:
    """Returns streams that were projected without a table, rotated by one.

    Args:
      streams: `[B, K, S, H]` by name.
      table: rotary table at the positions of the slots.
    """
    del table
    return streams

  def refuses_constant(self, name: str, rotated: bool) -> str:
    """Returns why no constant can be taken off a stream; '' if one can.

    Args:
      name: of the stream.
      rotated: nothing is put back. Otherwise streams are projected without a
        table, and `rotate_streams` rotates what is read.
    """
    del rotated
    return f'a constant is taken off keys alone, and {name!r} is a value too'

  def check_codecs(self, codecs: Iterable[tuple[str, Codec]]) -> None:
    """Raises ValueError where a codec takes off what this attention needs.

    Args:
      codecs: `(stream name, codec)` pairs of the streams that it reads.
    """
    for name, codec in codecs:
      rotated = getattr(codec, 'rotated', True)
      if is_centred(codec) and (why := self.refuses_constant(name, rotated)):
        raise ValueError(f'{type(self).__name__} and {codec}: {why}.')

  @abc.abstractmethod
  def form(self, tokens: int, name: str | None = None) -> Form:
    """Returns the form that costs least for a number of new tokens.

    Args:
      tokens: new tokens a row, T.
      name: of a form, to force it; None for the cheapest. A variant with one
        form ignores it.
    """
