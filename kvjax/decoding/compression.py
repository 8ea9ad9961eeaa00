"""A cache that was read becomes a smaller one: fewer tokens, or fewer bits."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import jax
import jax.numpy as jnp

from kvjax.caches.array_spec import ArraySpec, is_leaf
from kvjax.caches.evidence import Evidence, Part
from kvjax.caches.kind import Kind
from kvjax.decoding.allocate import (
  StoreOptions,
  arrange,
  make_layout,
  measured_constants,
  with_constants,
)
from kvjax.decoding.cache import Cache
from kvjax.decoding.checks import check_config_and_cache
from kvjax.decoding.choosing import join_streams
from kvjax.decoding.layout import LayerStore, Layout
from kvjax.decoding.leaf_axes import partition_of_cache
from kvjax.decoding.program import program
from kvjax.mesh.rules import WHOLE
from kvjax.models.config import ModelConfig, dtype_of
from kvjax.streams.codecs import Codec, add_constant
from kvjax.streams.view import Streams, contiguous_view


def compress(
  config: ModelConfig,
  params: Mapping[str, Any],
  cache: Cache,
  kind_or_codec: Kind | Sequence[Kind | None] | Codec,
  dtype: Any = None,
) -> Cache:
  """Returns a smaller cache of the same rows; the given one stays as it is.

  With a `Bounded` kind whose score looks at keys and values, the result equals
  the cache of that kind that had read the same prompt. With a codec every
  token stays and is stored anew, from what the cache has of it.

  Args:
    config: the model.
    params: its parameters.
    cache: that has read its prompt.
    kind_or_codec: a kind for every layer, or one a layer (None for the one that
      the layer has); or a codec.
    dtype: of what a codec leaves as it is; None for that of the cache. Only
      beside a codec.

  Raises:
    ValueError: a score needs queries, which no cache keeps; a kind needs tokens
      that the cache has forgotten; or heads that keep different tokens are to
      keep the same.
    DonatedCacheError: the cache was given to an earlier call.
  """
  check_config_and_cache(config, cache)
  recodes = hasattr(kind_or_codec, 'leaves')
  if dtype is not None and not recodes:
    raise ValueError(
      f'dtype={dtype!r} is for a codec, and kind_or_codec={kind_or_codec!r} '
      'stores nothing anew. Give Plain() as a codec for other floats.'
    )
  layout = _layout(config, cache, kind_or_codec, dtype)
  for index, (old, new) in enumerate(
    zip(cache.layout.stores, layout.stores, strict=True)
  ):
    if old is not None and new is not None and old.kind != new.kind:
      _check_kinds(index, old.kind, new.kind)
    if old is not None and new is not None and old.rotated != new.rotated:
      raise ValueError(
        f'Layer {index}: one of the two caches stores keys before rotation. '
        'Read the prompt anew.'
      )
  constants, codec = cache.constants, kind_or_codec
  if hasattr(codec, 'leaves'):
    measured = measured_constants(config, cast(Codec, codec))
    constants = with_constants(cache, measured).constants
  return _compress(config, params, cache, layout, constants, recodes)


def _layout(
  config: ModelConfig, cache: Cache, choice: Any, dtype: Any
) -> Layout:
  """Returns the layout of the smaller cache."""
  old = cache.layout
  kinds: list[Kind | None] = [store and store.kind for store in old.stores]
  is_codec = hasattr(choice, 'leaves')
  if isinstance(choice, Kind):
    kinds = [choice] * len(kinds)
  elif not is_codec:
    if not isinstance(choice, list | tuple) or len(choice) != len(kinds):
      raise ValueError(
        f'kind_or_codec={choice!r} must be a kind, or one for each of the '
        f'{len(kinds)} layers, or a codec.'
      )
    kinds = [new or own for new, own in zip(choice, kinds, strict=True)]
  codec: Any = choice if is_codec else None
  partition = partition_of_cache(cache) or WHOLE
  own_dtype = next(store.dtype for store in old.stores if store)
  options = StoreOptions(
    dtype=own_dtype if dtype is None else dtype_of(config, dtype),
    kinds=kinds,
    codec=codec,
    rotary_length=old.rotary_length,
    partition=partition,
  )
  layout = make_layout(config, old.capacity, options)
  if is_codec:
    return layout
  for new, own in zip(layout.stores, old.stores, strict=True):
    if new and own and own.kind.keeps_exact and not new.kind.keeps_exact:
      raise ValueError(
        f'kind_or_codec={choice!r}: {own.codecs} are codes beside exact tokens '
        f'in {own.kind}, and cannot move to {new.kind}. Give a codec, or read '
        'the prompt anew.'
      )
  stores = tuple(
    new and own and dataclasses.replace(new, codecs=own.codecs)
    for new, own in zip(layout.stores, old.stores, strict=True)
  )
  return dataclasses.replace(layout, stores=stores)


def _check_kinds(index: int, old: Kind, new: Kind) -> None:
  """Raises ValueError where tokens in one kind cannot move to another."""
  place = f'Layer {index}: {new}'
  if not new.book_per_layer:
    if old.limit is None:
      raise ValueError(
        f'{place} needs every token, and {old} has forgotten some. Compress '
        'into a Bounded kind, or read the prompt anew.'
      )
    if 'pages' in [name for _, name in new.leaf_axes(1, 1)]:
      raise ValueError(f'{place} shares pages between rows: read it anew.')
    return
  score = getattr(new, 'score', None)
  if score is not None and score.reads_queries:
    raise ValueError(
      f'{place}: {type(score).__name__} needs queries, which no cache keeps. '
      'Read the prompt into a cache of that kind, or choose by a score of keys '
      'and values, such as KeyDiff.'
    )
  if new.piece is not None:
    raise ValueError(
      f'{place} reads a prompt in pieces, and the cache is whole. Use '
      "prefill='whole'."
    )
  if getattr(old, 'per_head', False) and not getattr(new, 'per_head', True):
    raise ValueError(
      f'{place} keeps the same tokens in all heads, and those of {old} have '
      'different ones. Use per_head=True.'
    )


@program(static=('config', 'layout', 'recodes'), donated=())
def _compress(config, params, cache, layout, constants, recodes):
  spec = arrange(config, layout, cache.batch_size)
  empty = jax.tree.map(ArraySpec.allocate, spec, is_leaf=is_leaf)
  books, stores = list(empty.books), list(empty.stores)
  for index, new in enumerate(layout.stores):
    if new is None:
      continue
    old, book = cache.layout.store_of(index), layout.books[index]
    own_book = cache.books[cache.layout.books[index]]
    own_leaves, own_constant = cache.stores[index], cache.constant(index)
    constant = constants and constants[index]
    if new.kind == old.kind:
      books[book] = own_book
      stores[index] = own_leaves
      if recodes:  # otherwise no code is written twice
        stores[index] = _recode(old, new, own_leaves, own_constant, constant)
      continue
    streams, positions = _read(old, own_book, own_leaves, cache.length)
    streams = add_constant(streams, own_constant)
    books[book], slots = _place(
      new.kind,
      empty.books[book],
      positions,
      cache.length,
      _part(config, params, index, streams),
    )
    encoded = new.prepare(add_constant(streams, constant, -1))
    leaves = new.move(empty.stores[index], encoded, slots)
    stores[index] = new.kind.write(leaves, encoded, slots)
  return dataclasses.replace(
    cache,
    books=tuple(books),
    stores=tuple(stores),
    layout=layout,
    constants=constants,
  )


def _recode(
  old: LayerStore,
  new: LayerStore,
  leaves: Streams,
  own_constant: jax.Array | None,
  constant: jax.Array | None,
) -> Streams:
  """Returns leaves of the same slots as another codec stores them.

  Args:
    old: how they are stored.
    new: how they will be.
    leaves: of the layer.
    own_constant: what was taken off the keys; None for nothing.
    constant: what is to be taken off them.
  """

  def prepare(store, part):
    streams = store.restore(part.store, own_constant)
    return new.prepare(add_constant(streams, constant, -1))

  coded, *exact = old.kind.tiers(None, leaves, None)
  streams = prepare(old, coded)
  if not exact:
    return streams
  rest = prepare(old.exact, exact[0])
  return new.kind.join([new.encode_exact(streams), rest])


def _read(
  store: LayerStore, book: Any, leaves: Streams, length: jax.Array
) -> tuple[Streams, jax.Array]:
  """Returns streams `[B, K, S, H]` and positions `[B, 1 | K, S]`."""
  views = store.read(store.kind.views(book, leaves, length))
  blocks = [view.fetch(0, view.slots) for view in views]
  streams = {
    name: jnp.concatenate([part[name] for part, _ in blocks], axis=2)
    for name, _ in store.codecs
  }
  return store.turn_back(streams), jnp.concatenate(
    [p for _, p in blocks], axis=-1
  )


def _part(
  config: ModelConfig, params: Mapping[str, Any], index: int, streams: Streams
) -> Callable[[jax.Array], Part]:
  """Returns what gives keys and values of slots, the first of them empty."""
  layer, own = config.layers[index], params['layers'][index]['attention']
  join = join_streams(layer.attention, own, jnp.zeros((1, 1, config.width)))

  def part(positions):
    tokens = next(iter(streams.values())).shape[2]
    empty = positions.shape[2] - tokens
    widths = ((0, 0), (0, 0), (empty, 0), (0, 0))
    leaves = {name: jnp.pad(x, widths) for name, x in streams.items()}
    return contiguous_view(leaves, positions, positions.shape[2]), join

  return part


def _place(
  kind: Kind,
  book: Any,
  positions: jax.Array,
  length: jax.Array,
  part: Callable[[jax.Array], Part],
) -> tuple[Any, Any]:
  """Returns a book that holds the tokens that stay, and their slots.

  Args:
    kind: that chooses, or that places every token.
    book: of it, empty.
    positions: int32 `[B, 1 | K, S]` of the tokens.
    length: int32 `[B]`.
    part: gives keys and values of slots, those of the book before the tokens.
  """
  none = jnp.zeros_like(length)
  if not kind.book_per_layer:
    return kind.place(book, none, positions[:, 0])
  shape = book.positions.shape[:2] + positions.shape[2:]
  positions = jnp.broadcast_to(positions, shape)

  def refuse(*_):
    raise ValueError('A score that calls this must set reads_queries.')

  slots = jnp.concatenate([book.positions, positions], axis=-1)
  evidence = Evidence(
    positions=slots,
    length=length,
    before=none,
    is_prompt=length > 0,
    tokens=positions.shape[-1],
    total=None,
    parts=(part(slots),),
    read_weights=refuse,
    read_queries=refuse,
  )
  return kind.choose(book, evidence, positions[:, 0])
