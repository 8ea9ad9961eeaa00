"""How a cache is arranged: kinds, codecs and books, static."""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any, Self

from kvjax.caches.kind import Kind
from kvjax.mesh.rules import Rules
from kvjax.streams.codecs import (
  Codec,
  add_constant,
  apply_where_present,
  are_rotated,
  exact_codecs,
  is_centred,
)
from kvjax.streams.stored import Stored
from kvjax.streams.view import Streams, View


@dataclasses.dataclass(frozen=True)
class LayerStore:
  """How one layer is cached: a kind and a codec a stream. Static.

  Attributes:
    kind: where tokens go.
    codecs: `(stream name, codec)` pairs.
    dtype: of streams stored as they are.
  """

  kind: Kind
  codecs: tuple[tuple[str, Codec], ...]
  dtype: Any

  @property
  def centred(self) -> bool:
    """Whether a constant is taken off keys."""
    return any(is_centred(codec) for _, codec in self.codecs)

  @property
  def rotated(self) -> bool:
    """Whether keys are stored after rotation."""
    return are_rotated(self.codecs)

  @property
  def exact(self) -> 'LayerStore':
    """How tokens are stored that are not encoded yet."""
    return dataclasses.replace(self, codecs=exact_codecs(self.codecs))

  def prepare(self, streams: Streams) -> Streams:
    """Returns new tokens as the kind writes them."""
    return (self.exact if self.kind.keeps_exact else self).encode(streams)

  def move(self, leaves: Streams, new: Streams, slots: Any) -> Streams:
    """Returns leaves with tokens encoded that new ones make due."""
    return self.kind.move(leaves, new, slots, self.encode_exact)

  def encode_exact(self, exact: Streams) -> Streams:
    """Returns tokens as codes that were stored exactly."""
    return self.encode(self.exact.turn_back(self.exact.decode(exact)))

  def read(self, views: Iterable[View]) -> tuple[View, ...]:
    """Returns views that decode what they fetch."""
    parts = [(view, self.exact if view.is_exact else self) for view in views]
    return tuple(view.map(x.decode, x.stored) for view, x in parts)

  def encode(self, streams: Streams) -> Streams:
    return {n: c.encode(streams[n], self.dtype) for n, c in self.codecs}

  def decode(self, streams: Streams) -> Streams:
    return {n: c.decode(streams[n]) for n, c in self.codecs}

  def stored(self, streams: Streams) -> dict[str, Stored | None]:
    return {n: c.stored(streams[n]) for n, c in self.codecs}

  def restore(self, streams: Streams, constant: Any) -> Streams:
    """Returns stored streams as they were projected."""
    return add_constant(self.turn_back(self.decode(streams)), constant)

  def turn(self, queries: Mapping[str, Any]) -> Streams:
    """Returns queries, by key stream, turned as their keys are stored."""
    return apply_where_present('turn', self.codecs, queries)

  def turn_back(self, streams: Streams) -> Streams:
    """Returns decoded streams, or sums of them, as they were projected."""
    return apply_where_present('turn_back', self.codecs, streams)


NOT_STORED = LayerStore(Kind(), (), None)  # streams as they were projected


@dataclasses.dataclass(frozen=True)
class Layout:
  """How a cache is arranged; static, hashed once.

  Attributes:
    stores: kind and codecs of each layer; None for one that owns nothing.
    books: index of each layer's book; -1 for none.
    capacity: most tokens a row may hold in a kind with a limit.
    rotary_length: length for which rotary tables that depend on it are
      chosen, once, so that keys already cached keep their rotation.
    positions: rows of the model's learned position table; 0 for none.
    rules: what the axes of a mesh split; None for a cache of no mesh.
  """

  stores: tuple[LayerStore | None, ...]
  books: tuple[int, ...]
  capacity: int
  rotary_length: int
  positions: int = 0
  rules: Rules | None = None

  def __post_init__(self):
    fields = tuple(getattr(self, f.name) for f in dataclasses.fields(self))
    # Every step hashes the layout. Computing the hash once keeps that cheap.
    object.__setattr__(self, '_hash', hash(fields))

  def __hash__(self) -> int:
    return self._hash  # pyright: ignore[reportAttributeAccessIssue]

  def split(self, parts: int, rules: Rules | None) -> Self:
    """Returns this layout for a mesh whose devices share slots.

    Args:
      parts: devices that share the slots of a row.
      rules: what the axes of the mesh split; None for one device.

    Raises:
      ValueError: a kind cannot be split, or keys are rotated when they are
        read, by arrays of which every device would need another part.
    """
    if parts > 1 and not all(store.rotated for store in self.stores if store):
      raise ValueError(
        'Keys that are stored before rotation are rotated where they are read, '
        'and no mesh can split their slots. Use rules without slots=, or '
        'rotated=True.'
      )
    stores = tuple(
      store and dataclasses.replace(store, kind=store.kind.split(parts))
      for store in self.stores
    )
    return dataclasses.replace(self, stores=stores, rules=rules)

  def kinds(self) -> tuple[Kind, ...]:
    """Returns the kind of each book."""
    kinds = {
      book: store.kind
      for book, store in zip(self.books, self.stores, strict=True)
      if store is not None
    }
    return tuple(kinds[book] for book in range(len(kinds)))

  def store_of(self, layer: int) -> LayerStore:
    """Returns how a layer that has streams is stored."""
    store = self.stores[layer]
    if store is None:
      raise ValueError(f'Layer {layer} shares the streams of an earlier one.')
    return store

  @property
  def limit(self) -> int | None:
    """Most tokens a row may hold; None for no limit."""
    limits = [k.limit for k in self.kinds()] + [self.positions or None]
    return min((x for x in limits if x is not None), default=None)

  @property
  def piece(self) -> int | None:
    """Most tokens fed at once, longer calls in pieces; None for any number."""
    pieces = [kind.piece for kind in self.kinds()]
    return min((size for size in pieces if size is not None), default=None)
