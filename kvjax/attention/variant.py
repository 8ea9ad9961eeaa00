"""The interface of an attention variant."""

from collections.abc import Mapping
from typing import Any, Protocol

import jax

from kvjax.attention.rotary import Rotary
from kvjax.streams.scoring import Scoring
from kvjax.streams.stream import Stream
from kvjax.streams.view import Streams

Table = tuple[jax.Array, jax.Array] | None


class Variant(Protocol):
  """What an attention variant asks and leaves behind; see `Grouped`, `Latent`.

  `absorb` is static: whether queries read the streams as they are stored
  (True) or as `expand` expands them. Variants with one form ignore it.
  """

  @property
  def rotary(self) -> Rotary | None: ...
  @property
  def shared_from(self) -> int | None: ...
  def streams(self) -> dict[str, Stream]: ...
  def init(self, key: jax.Array, width: int, dtype: Any) -> dict[str, Any]: ...
  def absorbs(self, tokens: int) -> bool: ...
  def project_queries(
    self, params: Mapping[str, Any], x: jax.Array, table: Table, absorb: bool
  ) -> Streams: ...
  def project_streams(
    self, params: Mapping[str, Any], x: jax.Array, table: Table
  ) -> Streams: ...
  def reads_stored(self, absorb: bool) -> bool: ...
  def expand(
    self, params: Mapping[str, Any], streams: Streams, absorb: bool
  ) -> Streams: ...
  def scoring(
    self, params: Mapping[str, Any], relative: jax.Array | None, absorb: bool
  ) -> Scoring: ...
  def project_output(
    self, params: Mapping[str, Any], out: jax.Array, absorb: bool
  ) -> jax.Array: ...
