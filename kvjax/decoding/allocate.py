"""Allocation: from a config and sizes to an empty cache.

`cache_spec` says what arrays there will be, `init_cache` allocates them, and
`kvjax.memory` counts the same specification.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from kvjax.arguments import LARGEST, check_fields, is_whole
from kvjax.attention.grouped import Grouped
from kvjax.attention.variant import Variant
from kvjax.caches.array_spec import ArraySpec, array_spec, is_leaf
from kvjax.caches.dense import Dense
from kvjax.caches.kind import Kind
from kvjax.caches.residual import Residual
from kvjax.caches.ring import Ring
from kvjax.caches.sinks import Sinks
from kvjax.decoding.cache import Cache
from kvjax.decoding.layout import LayerStore, Layout
from kvjax.decoding.leaf_axes import cache_specs
from kvjax.decoding.parse import check_choices
from kvjax.mesh.host import shardings_of
from kvjax.mesh.rules import WHOLE, Partition, Rules, partition_of
from kvjax.models.config import ModelConfig, check_config, dtype_of
from kvjax.streams.codecs import (
  Codecs,
  Tiering,
  check_streams,
  codecs_of,
  constants_of,
  tiering_of,
  without_constants,
)


@dataclasses.dataclass(frozen=True)
class StoreOptions:
  """How layers are to be stored, as the caller of `init_cache` says it.

  Attributes:
    dtype: of streams that are stored as they are.
    kinds, codec, slack, rotary_length: see `init_cache`.
    partition: of the mesh that is to hold the cache.
  """

  dtype: Any
  kinds: Kind | Sequence[Kind | None] | None = None
  codec: Codecs = None
  slack: int = 0
  rotary_length: int | None = None
  partition: Partition = WHOLE

  def __post_init__(self):
    check_fields(self, at_least={'slack': 0, 'rotary_length': 0})


def init_cache(
  config: ModelConfig,
  batch_size: int,
  capacity: int,
  dtype: Any = None,
  *,
  kinds: Kind | Sequence[Kind | None] | None = None,
  codec: Codecs = None,
  slack: int = 0,
  rotary_length: int | None = None,
  source_length: int | None = None,
  mesh: jax.sharding.Mesh | None = None,
  rules: Rules | None = None,
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
    codec: how streams are stored, all of them or each by its name, such as
      `{'key': Affine(), 'value': GGML('q4_0')}`; None for as they are. A name
      is needed for a stream where precision decides: MLA's 'rotary'.
    slack: slots beyond the window of default rings, for writing or taking
      back several tokens at once.
    rotary_length: planned length, for rotary tables that depend on it; None
      for the capacity.
    source_length: positions of the source of an encoder-decoder; None lets
      the first `prefill` allocate them.
    mesh: of the devices that share the cache, of one process or many. Every
      device allocates its own part, and calls read the mesh off the cache.
    rules: what the axes of the mesh split; None for axes named as what they
      split: batch, heads, experts, slots (and copies).

  Raises:
    ValueError: a size is not positive, a kind cannot serve a layer, or the
      mesh cannot hold what the rules say; a codec cannot store a stream, names
      one that no layer has, or is without its constant.
  """
  partition = partition_of(mesh, rules)
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
    partition=partition,
  )

  constants = measured_constants(config, codec)

  def allocate():
    cache = jax.tree.map(ArraySpec.allocate, spec, is_leaf=is_leaf)
    return with_constants(cache, constants)

  if mesh is None:
    return allocate()
  shardings = shardings_of(mesh, cache_specs(spec, partition))
  return jax.jit(allocate, out_shardings=shardings)()


def cache_spec(
  config: ModelConfig,
  batch_size: int,
  capacity: int,
  dtype: Any = None,
  *,
  kinds: Kind | Sequence[Kind | None] | None = None,
  codec: Codecs = None,
  slack: int = 0,
  rotary_length: int | None = None,
  source_length: int | None = None,
  partition: Partition = WHOLE,
) -> Cache:
  """Returns the cache that `init_cache` allocates, of `ArraySpec`s."""
  check_config(config)
  check_sizes(batch_size=batch_size, capacity=capacity)
  if source_length is not None:
    check_sizes(source_length=source_length)
  options = StoreOptions(
    dtype=dtype_of(config, dtype),
    kinds=kinds,
    codec=codec,
    slack=slack,
    rotary_length=rotary_length,
    partition=partition,
  )
  layout = make_layout(config, capacity, options)
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
    kind.book(batch_size, heads[index])
    for index, kind in enumerate(layout.kinds())
  )
  stores = tuple(
    {} if store is None else store_spec(layer.attention, store, batch_size)
    for layer, store in zip(config.layers, layout.stores, strict=True)
  )
  return Cache(
    length=array_spec((batch_size,), jnp.int32, ('batch',)),
    overflow=array_spec((batch_size,), jnp.bool_, ('batch',)),
    books=books,
    stores=stores,
    cross=cross_spec(config, batch_size, source_length, dtype),
    source=_source_spec(config, batch_size, source_length),
    layout=layout,
    constants=_constants_spec(config, layout, batch_size),
  )


def _constants_spec(
  config: ModelConfig, layout: Layout, batch: int
) -> tuple[ArraySpec | None, ...] | None:
  """Returns the `ArraySpec`s of what is taken off keys, a layer."""
  axes = 'batch', 'kv_heads', 'width'
  keys = [layer.attention.streams().get('key') for layer in config.layers]
  if not any(store and store.centred for store in layout.stores):
    return None
  return tuple(
    key and array_spec((batch, key.heads, key.width), jnp.float16, axes)
    for key in keys
  )


def measured_constants(config: ModelConfig, codec: Codecs) -> Any:
  """Returns what a codec takes off the keys of each layer; None for nothing.

  Raises:
    ValueError: a constant is missing, or has another shape.
  """
  return constants_of(codec, [x.attention.streams() for x in config.layers])


def with_constants(cache: Cache, constants: Any) -> Cache:
  """Returns the cache with constants `[K, H]` of each layer in every row."""
  rows = cache.batch_size
  constants = jax.tree.map(
    lambda x: jnp.broadcast_to(x, (rows, *x.shape)), constants
  )
  return dataclasses.replace(cache, constants=constants)


def make_layout(
  config: ModelConfig, capacity: int, options: StoreOptions
) -> Layout:
  """Returns kinds, codecs and books of a cache.

  Layers that place every token alike share a book: those of one kind, unless
  the kind chooses tokens layer by layer.
  """
  check_choices(options.kinds, options.codec)
  check_streams(options.codec, [x.attention.streams() for x in config.layers])
  if config.positions and capacity > config.positions:
    raise ValueError(
      f'capacity={capacity} exceeds the {config.positions} learned positions '
      'of the model. Use at most that.'
    )
  stores: list[LayerStore | None] = []
  books: list[int] = []
  book_of: dict[Any, int] = {}
  for index, kind in enumerate(_kinds_by_layer(config, options.kinds)):
    readers = [
      layer.attention
      for i, layer in enumerate(config.layers)
      if config.stream_layer(i) == index
    ]
    if not readers:  # the layer reads the streams of an earlier one
      stores.append(None)
      books.append(-1)
      continue
    store = _layer_store(readers, kind, capacity, options)
    key = (store.kind, index if store.kind.book_per_layer else None)
    stores.append(store)
    books.append(book_of.setdefault(key, len(book_of)))
  depends = any(
    layer.attention.rotary is not None
    and layer.attention.rotary.depends_on_length
    for layer in config.layers
  )
  length = (options.rotary_length or capacity) if depends else 0
  partition = options.partition
  layout = Layout(
    tuple(stores), tuple(books), capacity, length, config.positions
  )
  rules = None if partition is WHOLE else partition.rules
  return layout.split(partition.slot_parts, rules)


def _kinds_by_layer(config, kinds) -> Sequence[Kind | None]:
  if isinstance(kinds, Kind) or kinds is None:
    return [kinds] * len(config.layers)
  if len(kinds) != len(config.layers):
    raise ValueError(
      f'{len(kinds)} kinds for {len(config.layers)} layers: give one kind '
      'for all, or one a layer (None for its default).'
    )
  return kinds


def default_kind(variants: Sequence[Any], slack: int = 0) -> Kind:
  """Returns the kind that holds just what any of the layers can see."""
  rules = [variant.visibility for variant in variants]
  spans = [rule.span for rule in rules if rule.span is not None]
  first, *others = {rule.sink_tokens for rule in rules}
  # A kind's sinks are seen by all its readers.
  if others or len(spans) < len(rules):
    return Dense()
  span = max(spans)
  if first:
    return Sinks(sinks=first, window=span, slack=slack)
  return Ring(window=span, slack=slack)


def check_sizes(**sizes: int) -> None:
  """Raises ValueError for a size that is no positive integer."""
  for name, size in sizes.items():
    if not is_whole(size, 1):
      raise ValueError(
        f'{name}={size!r} must be a positive integer of at most {LARGEST}.'
      )


def _layer_store(
  readers: Sequence[Variant],
  kind: Kind | None,
  capacity: int,
  options: StoreOptions,
) -> LayerStore:
  """Returns how the first layer is stored for all that read its streams."""
  if not all(variant.visibility.causal for variant in readers):
    raise ValueError(
      'A layer with visibility.causal=False has no exact cache: old rows '
      'change with every new token. Use forward.'
    )
  kind = kind or default_kind(readers, options.slack)
  kind = in_tiers(kind, tiering_of(options.codec)).bind(capacity)
  codecs = without_constants(codecs_of(options.codec, readers[0].streams()))
  store = LayerStore(kind, codecs, options.dtype)
  if kind.rotates_queries and any(
    variant.rotary is None or variant.bias is not None for variant in readers
  ):
    raise ValueError(
      'Sinks(renumber=True) rotates queries: the layer needs rotary '
      'positions and no position bias. Use renumber=False.'
    )
  for variant in readers:  # a kind may refuse a mask that it cannot serve
    kind.visible_through(variant.visibility)
    variant.check_codecs(codecs)
  if store.rotated and store.centred and kind.rotates_queries:
    raise ValueError(
      f'{kind}: a constant changes the scores of sinks and of the window '
      'differently. Use Centred(..., rotated=False).'
    )
  if kind.book_per_layer and not store.rotated:
    raise ValueError(
      f'{kind} compares keys after rotation. Use Centred(..., rotated=True).'
    )
  return store


def in_tiers(kind: Kind, tiering: Tiering) -> Kind:
  """Returns the kind with as many exact tokens as codecs call for.

  Raises:
    ValueError: the kind keeps too few, or cannot keep codes beside them.
  """
  first, window, tokens = tiering
  if tiering == Tiering():
    return kind
  if not kind.keeps_exact:
    return Residual(kind, first, window, tokens)
  have: Any = kind
  enough = have.first >= first and have.window >= window
  if not enough or have.group % tokens:
    raise ValueError(
      f'{kind} must keep at least first={first} and window={window} tokens '
      f'exact, and a multiple of {tokens} tokens a group, for its codec. Give '
      'the kind alone: its codec says what it needs.'
    )
  return kind


def _heads_by_book(config, layout) -> dict[int, int]:
  return {
    book: next(iter(layer.attention.streams().values())).heads
    for book, layer in zip(layout.books, config.layers, strict=True)
    if book >= 0
  }


def store_spec(
  variant: Variant, store: LayerStore, batch: int
) -> dict[str, Any]:
  """Returns the `ArraySpec`s of a layer's streams, by name."""
  streams, kind, dtype = variant.streams(), store.kind, store.dtype
  exact = dict(store.exact.codecs)
  return {
    name: kind.stream_spec(
      batch,
      streams[name].heads,
      codec.leaves(streams[name].width, dtype),
      exact[name].leaves(streams[name].width, dtype),
    )
    for name, codec in store.codecs
  }


def cross_spec(
  config: ModelConfig, batch: int, source_length: int | None, dtype: Any = None
) -> tuple[dict[str, ArraySpec], ...] | None:
  """Returns the `ArraySpec`s of the source's streams, a layer; or None."""
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
