"""The cache of a model: arrays in a pytree, choices in its static layout."""

import concurrent.futures
import dataclasses
import functools
import numbers
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jax.core import Tracer
from jax.extend.core import get_opaque_trace_state

from kvjax.attention.grouped import Grouped
from kvjax.caches.array_spec import ArraySpec, array_spec
from kvjax.caches.dense import Dense
from kvjax.caches.kind import Kind
from kvjax.caches.ring import Ring
from kvjax.caches.sinks import Sinks
from kvjax.decoding.layer import LayerStore
from kvjax.decoding.parse import check_choices
from kvjax.models.config import ModelConfig, dtype_of
from kvjax.streams.codecs import Codec, Plain


class DonatedCacheError(RuntimeError):
  """A cache was used again after a call that was given its buffers."""


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
  """

  stores: tuple[LayerStore | None, ...]
  books: tuple[int, ...]
  capacity: int
  rotary_length: int
  positions: int = 0

  def __post_init__(self):
    fields = tuple(getattr(self, f.name) for f in dataclasses.fields(self))
    object.__setattr__(self, '_hash', hash(fields))

  def __hash__(self) -> int:
    return self._hash  # pyright: ignore[reportAttributeAccessIssue]

  def kinds(self) -> tuple[Kind, ...]:
    """Returns the kind of each book."""
    found = {
      book: memory.kind
      for book, memory in zip(self.books, self.stores, strict=True)
      if memory is not None
    }
    return tuple(found[i] for i in range(len(found)))

  @property
  def limit(self) -> int | None:
    """Most tokens a row may hold; None for no limit."""
    limits = [k.limit for k in self.kinds()] + [self.positions or None]
    return min((x for x in limits if x is not None), default=None)

  @property
  def chunk(self) -> int | None:
    """Most tokens a kind that evicts takes at once; None for any number."""
    chunks = [k.chunk for k in self.kinds() if k.book_per_layer]
    return min((c for c in chunks if c is not None), default=None)


@struct.dataclass
class Cache:
  """What a model remembers of B rows. Immutable; every call returns a new one.

  Attributes:
    length: int32 `[B]`, tokens each row has seen.
    overflow: bool `[B]`, a row was given tokens that did not fit.
    books: which token each slot holds, one a kind (bounded: one a layer).
    stores: streams of each layer, `[B, K, S, H]` by name (pools where paged).
    cross: keys and values of the source `[B, K, S, H]`, a layer, written once;
      None without an encoder.
    source: int32 `[B, S]`, positions of the source, -1 on padding; or None.
    layout: kinds, codecs and lengths; static.
  """

  length: jax.Array
  overflow: jax.Array
  books: tuple[Any, ...]
  stores: tuple[dict[str, Any], ...]
  cross: tuple[dict[str, Any], ...] | None
  source: jax.Array | None
  layout: Layout = struct.field(pytree_node=False)

  @property
  def batch_size(self) -> int:
    return self.length.shape[0]

  def __repr__(self) -> str:
    from kvjax.decoding.inspection import inspect  # a table needs this class

    try:
      return str(inspect(self))
    except DonatedCacheError:
      return f'Cache of {self.batch_size} rows, donated to an earlier call'


def init_cache(
  config: ModelConfig,
  batch_size: int,
  capacity: int,
  dtype: Any = None,
  *,
  kinds: Kind | Sequence[Kind | None] | None = None,
  codec: Codec | None = None,
  slack: int = 0,
  rotary_length: int | None = None,
  source_length: int | None = None,
) -> Cache:
  """Returns an empty cache, its buffers allocated once and for all.

  Args:
    config: the model.
    batch_size: B rows.
    capacity: most tokens a row may hold where a kind has a limit.
    dtype: of the streams; None for the model's.
    kinds: a kind for every layer, or one a layer; None for each layer's
      default: a ring where the layer, and every other that reads its keys
      and values, has a window (the widest of them), dense otherwise.
    codec: how streams are stored; None for as they are.
    slack: slots beyond the window of default rings, for writing or taking
      back several tokens at once.
    rotary_length: planned length, for rotary tables that depend on it; None
      for the capacity.
    source_length: positions of the source of an encoder-decoder; None lets
      the first `prefill` allocate them.

  Raises:
    ValueError: a size is not positive, or a kind cannot serve a layer.
  """
  spec = cache_spec(
    config,
    batch_size,
    capacity,
    dtype,
    kinds=kinds,
    codec=codec,
    slack=slack,
    rotary_length=rotary_length,
    source_length=source_length,
  )
  return jax.tree.map(ArraySpec.allocate, spec, is_leaf=is_leaf)


def cache_spec(
  config: ModelConfig,
  batch_size: int,
  capacity: int,
  dtype: Any = None,
  *,
  kinds: Kind | Sequence[Kind | None] | None = None,
  codec: Codec | None = None,
  slack: int = 0,
  rotary_length: int | None = None,
  source_length: int | None = None,
) -> Cache:
  """Returns the cache that `init_cache` allocates, of `ArraySpec`s."""
  check_sizes(batch_size=batch_size, capacity=capacity)
  if source_length is not None:
    check_sizes(source_length=source_length)
  layout = make_layout(
    config,
    capacity,
    dtype_of(config, dtype),
    kinds,
    codec,
    slack,
    rotary_length,
  )
  return arrange(config, layout, batch_size, source_length, dtype)


def arrange(
  config: ModelConfig,
  layout: Layout,
  batch_size: int,
  source_length: int | None = None,
  dtype: Any = None,
) -> Cache:
  """Returns the cache of a layout, with `ArraySpec`s for arrays.

  `dtype` is that of the source's streams alone; None for the model's.
  """
  heads = _heads_by_book(config, layout)
  books = tuple(
    kind.book(batch_size, heads[i]) for i, kind in enumerate(layout.kinds())
  )
  stores = tuple(
    {} if memory is None else _store_spec(layer.attention, memory, batch_size)
    for layer, memory in zip(config.layers, layout.stores, strict=True)
  )
  return Cache(
    length=array_spec((batch_size,), jnp.int32, ('batch',)),
    overflow=array_spec((batch_size,), jnp.bool_, ('batch',)),
    books=books,
    stores=stores,
    cross=_cross_spec(config, batch_size, source_length, dtype),
    source=_source_spec(config, batch_size, source_length),
    layout=layout,
  )


def is_leaf(x: Any) -> bool:
  """Returns whether x is an `ArraySpec`, an array not allocated yet."""
  return isinstance(x, ArraySpec)


def make_layout(
  config: ModelConfig,
  capacity: int,
  dtype: Any,
  kinds: Kind | Sequence[Kind | None] | None,
  codec: Codec | None,
  slack: int,
  rotary_length: int | None,
) -> Layout:
  """Returns kinds, codecs and books of a cache."""
  check_choices(kinds, codec)
  if config.positions and capacity > config.positions:
    raise ValueError(
      f'capacity={capacity} exceeds the {config.positions} learned positions '
      'of the model. Use at most that.'
    )
  if isinstance(kinds, Kind) or kinds is None:
    kinds = [kinds] * len(config.layers)
  if len(kinds) != len(config.layers):
    raise ValueError(
      f'{len(kinds)} kinds for {len(config.layers)} layers: give one kind '
      'for all, or one a layer (None for its default).'
    )
  stores, books, found = [], [], {}
  for index, kind in enumerate(kinds):
    served = [
      layer.attention
      for i, layer in enumerate(config.layers)
      if config.owner(i) == index
    ]
    memory = _memory(served, kind, codec, capacity, dtype, slack)
    stores.append(memory)
    if memory is None:
      books.append(-1)
      continue
    own = (memory.kind, index if memory.kind.book_per_layer else None)
    books.append(found.setdefault(own, len(found)))
  depends = any(
    layer.attention.rotary is not None
    and layer.attention.rotary.depends_on_length
    for layer in config.layers
  )
  length = (rotary_length or capacity) if depends else 0
  return Layout(tuple(stores), tuple(books), capacity, length, config.positions)


def default_kind(variants: Sequence[Any], slack: int = 0) -> Kind:
  """Returns the kind that holds just what any of the layers can see."""
  rules = [variant.visibility for variant in variants]
  spans = [[x for x in (r.window, r.chunk) if x is not None] for r in rules]
  first, *others = {rule.sink_tokens for rule in rules}
  # A kind's sinks are seen by all its readers.
  if others or not all(spans):
    return Dense()
  span = max(min(sizes) for sizes in spans)
  if first:
    return Sinks(sinks=first, window=span, slack=slack)
  return Ring(window=span, slack=slack)


def check_sizes(**sizes: int) -> None:
  """Raises ValueError for a size that is no positive integer."""
  for name, size in sizes.items():
    if not isinstance(size, numbers.Integral) or size < 1:
      raise ValueError(f'{name}={size!r} must be a positive integer.')


def is_traced(*trees: Any) -> bool:
  """Returns whether any leaf is abstract: the caller is inside a trace."""
  # Thousands of leaves have a handful of types.
  types = set(map(type, jax.tree.leaves(trees)))
  return any(issubclass(x, Tracer) for x in types)


def in_trace() -> bool:
  """Returns whether the caller is inside a transform, whatever it traces."""
  return get_opaque_trace_state() != _outside()


@functools.cache
def _outside() -> Any:
  # A fresh thread is in no trace, whoever asks first.
  with concurrent.futures.ThreadPoolExecutor(1) as pool:
    return pool.submit(get_opaque_trace_state).result()


def check_alive(cache: Cache) -> None:
  """Raises DonatedCacheError for a cache whose buffers were given away."""
  length = cache.length
  if is_traced(length) or not isinstance(length, jax.Array):
    return
  if length.is_deleted():
    raise DonatedCacheError(
      'This cache was donated to an earlier prefill, decode_step or '
      'generate, which reused its buffers. Use the cache that call '
      'returned, or pass donate=False to it.'
    )


def _memory(served, kind, codec, capacity, dtype, slack) -> LayerStore | None:
  """Returns how the first of the layers is cached for all that it serves."""
  if not served:
    return None
  if not all(variant.visibility.causal for variant in served):
    raise ValueError(
      'A layer with visibility.causal=False has no exact cache: old rows '
      'change with every new token. Use forward.'
    )
  kind = (kind or default_kind(served, slack)).bind(capacity)
  if getattr(kind, 'renumber', False) and any(
    variant.rotary is None or variant.bias is not None for variant in served
  ):
    raise ValueError(
      'Sinks(renumber=True) rotates queries: the layer needs rotary '
      'positions and no position bias. Use renumber=False.'
    )
  codecs = tuple(
    (name, codec if codec is not None and stream.quantize else Plain())
    for name, stream in served[0].streams().items()
  )
  return LayerStore(kind, codecs, dtype)


def _heads_by_book(config, layout) -> dict[int, int]:
  return {
    book: next(iter(layer.attention.streams().values())).heads
    for book, layer in zip(layout.books, config.layers, strict=True)
    if book >= 0
  }


def _store_spec(variant, memory: LayerStore, batch: int) -> dict[str, Any]:
  spec = {}
  for name, codec in memory.codecs:
    stream = variant.streams()[name]
    lead = memory.kind.leaf_axes(batch, stream.heads)
    sizes, axes = zip(*lead, strict=True)
    spec[name] = jax.tree.map(
      lambda t, s=sizes, a=axes: ArraySpec(s + t.shape, t.dtype, a + t.axes),
      codec.leaves(stream.width, memory.dtype),
    )
  return spec


def _cross_spec(config, batch, source_length, dtype):
  if config.encoder is None or source_length is None:
    return None
  dtype = dtype_of(config, dtype)
  axes = ('batch', 'kv_heads', 'source', 'width')
  return tuple(
    {
      name: array_spec((batch, s.heads, source_length, s.width), dtype, axes)
      for name, s in cross_streams(layer.cross).items()
    }
    for layer in config.layers
  )


def cross_streams(cross: Grouped | None) -> dict[str, Any]:
  """Returns the streams of a cross-attention layer; none without one."""
  return {} if cross is None else cross.streams()


def _source_spec(config, batch, source_length):
  if config.encoder is None or source_length is None:
    return None
  return array_spec((batch, source_length), jnp.int32, ('batch', 'source'), -1)
