"""The metadata of a saved cache: what its arrays are, checked when it is read.

It is JSON that others may have written, so nothing of it is used before it is
known to describe a cache that `init_cache` could make.
"""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from kvjax import frozen_json
from kvjax.arguments import is_whole
from kvjax.checkpoints.prompt_cache.digest import DIGEST, digest
from kvjax.decoding.allocate import (
  StoreOptions,
  arrange,
  check_sizes,
  make_layout,
)
from kvjax.decoding.cache import Cache
from kvjax.decoding.exported import TYPES
from kvjax.decoding.layout import LayerStore, Layout
from kvjax.mesh.rules import Rules
from kvjax.models.config import ModelConfig, dtype_of
from kvjax.strict_json import parse_object

KEY = 'kvjax_cache'
FORMAT = 2
# The keys of a file's metadata, by format. Format 1 had no digest.
KEYS = {1: {KEY}, FORMAT: {KEY, DIGEST}}
# Format 1 was written when the field `stores` of `Layout` and the class
# `LayerStore` had other names. Files keep these names.
STORES = 'stores'
STORES_IN_FILE = 'memories'
LAYER_STORE_IN_FILE = 'Memory'
# What a mesh adds. Files are as of one device, so that any mesh loads them.
OF_A_MESH = ('rules', 'stripes')
WRITTEN = ('layout', 'batch_size', 'source', 'config', 'params')


def write_layout(layout: Layout) -> dict[str, Any]:
  """Returns a layout as files have it."""
  written = frozen_json.encode(layout.split(1, None))
  stores = written.pop(STORES)
  for part in (written, *(store['kind'] for store in stores if store)):
    for name in OF_A_MESH:
      part.pop(name, None)
  written[STORES_IN_FILE] = [
    store and store | {frozen_json.TYPE: LAYER_STORE_IN_FILE}
    for store in stores
  ]
  return written


def read_metadata(
  path: pathlib.Path, metadata: Mapping[str, str], types: Sequence[type]
) -> dict[str, Any]:
  """Returns what `save_cache` wrote about a cache, its `Layout` decoded.

  Raises:
    ValueError: a key is missing, the file has another format or another
      digest, or a class in the layout is unknown.
  """
  if KEY not in metadata:
    raise ValueError(
      f'{path} is no saved cache: its metadata has no {KEY!r}. Give a file '
      'that save_cache wrote.'
    )
  written = parse_object(metadata[KEY], f'The metadata {KEY!r} of {path}')
  form = written.get('format')
  if not is_whole(form) or form not in KEYS:
    raise ValueError(f'{path}: format {form!r} is not 1 or {FORMAT}.')
  if metadata.keys() != KEYS[form]:
    raise ValueError(
      f'{path} is damaged: metadata of format {form} is '
      f'{sorted(KEYS[form])}, not {sorted(metadata)}.'
    )
  if DIGEST in metadata and metadata[DIGEST] != digest(path, metadata[DIGEST]):
    raise ValueError(
      f'{path} is damaged: its SHA-256 is not the one that was saved with it. '
      'Copy it again, or prefill anew.'
    )
  if missing := sorted(set(WRITTEN) - written.keys()):
    raise ValueError(f'{path}: its metadata has no {missing[0]!r}.')
  known = {cls.__name__: cls for cls in (*TYPES, *types)}
  try:
    layout = _read_layout(written['layout'], known)
    check_sizes(batch_size=written['batch_size'])
  except (TypeError, ValueError) as error:
    raise ValueError(
      f'{path}: its metadata cannot be read: {error} A kind, codec or score '
      'of your own: name its class in types=(...,).'
    ) from None
  return written | {'layout': layout}


def _read_layout(written: Any, known: Mapping[str, type]) -> Layout:
  """Returns the layout that `write_layout` wrote."""
  if isinstance(written, dict):
    written = {
      STORES if name == STORES_IN_FILE else name: value
      for name, value in written.items()
    }
    stores = written.get(STORES)
    if isinstance(stores, list):
      written |= {STORES: list(map(_with_new_fields, stores))}
  known = {**known, LAYER_STORE_IN_FILE: LayerStore}
  layout = frozen_json.decode(written, known)
  if not isinstance(layout, Layout):
    raise ValueError(f'its layout is a {type(layout).__name__}, no Layout.')
  return layout


def _with_new_fields(store: Any) -> Any:
  """Returns an encoded `LayerStore` with fields that older files lack.

  A bounded cache protected nothing, and read calls in pieces.
  """
  kind = store.get('kind') if isinstance(store, dict) else None
  if not isinstance(kind, dict) or kind.get(frozen_json.TYPE) != 'Bounded':
    return store
  old = {'protect': [0, 0], 'prefill': 'chunks'}
  return store | {'kind': old | kind}


def make_spec(
  path: pathlib.Path,
  config: ModelConfig,
  metadata: Mapping[str, Any],
  parts: int = 1,
  rules: Rules | None = None,
) -> Cache:
  """Returns the cache that the metadata describes, of `ArraySpec`s.

  Args:
    path: of the saved cache, for messages.
    config: the model.
    metadata: of the saved cache.
    parts: devices that share the slots of a row.
    rules: of the cache; None for one device.

  Raises:
    ValueError: the model, or a mesh, cannot have a cache of that layout.
  """
  layout = metadata['layout']
  try:
    check_sizes(capacity=layout.capacity)
    length, dtype = _read_source(config, metadata['source'])
    possible = _layout_of_choices(config, layout)
    if difference := frozen_json.difference(
      frozen_json.encode(layout), frozen_json.encode(possible), 'layout'
    ):
      raise ValueError(f'{difference}, which its kinds make of the model.')
    layout = layout.split(parts, rules)
    return arrange(config, layout, metadata['batch_size'], length, dtype)
  except (TypeError, ValueError) as error:
    raise ValueError(
      f'{path}: no cache of this model is arranged like that: {error}'
    ) from None


def _layout_of_choices(config: ModelConfig, layout: Layout) -> Layout:
  """Returns the layout that `init_cache` makes of a layout's own choices."""
  stores = [store for store in layout.stores if store is not None]
  if not stores:
    raise ValueError('no layer stores anything.')
  options = StoreOptions(
    dtype=np.dtype(dtype_of(config, stores[0].dtype)),
    kinds=[store and store.kind for store in layout.stores],
    codec={name: codec for store in stores for name, codec in store.codecs},
    rotary_length=layout.rotary_length,
  )
  return make_layout(config, layout.capacity, options)


def _read_source(config: ModelConfig, written: Any) -> tuple[Any, Any]:
  """Returns positions and dtype of the source; None for a decoder."""
  if written is None:
    return None, None
  is_pair = isinstance(written, list) and [*map(type, written)] == [int, str]
  if config.encoder is None or not is_pair:
    raise ValueError(
      f'source is {written!r}; it must be positions and a dtype, and null for '
      'a model without an encoder.'
    )
  check_sizes(source_length=written[0])
  return written[0], written[1]
