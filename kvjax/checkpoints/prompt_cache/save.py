"""A prompt cache as one file: saved once, continued by any number of runs.

A safetensors file has every array as it is. Its metadata is JSON: kinds, codecs
and lengths, the config, and a fingerprint of every param. What a cache means
depends on all of these, so a file with another config or other params is
refused, and the message says what differs.
"""

import json
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
from safetensors.numpy import save_file

from kvjax.caches.kind import Kind
from kvjax.checkpoints.paths import leaves_by_path
from kvjax.checkpoints.prompt_cache import encoding
from kvjax.checkpoints.prompt_cache.fingerprints import fingerprint
from kvjax.decoding.allocate import arrange, check_sizes, is_leaf
from kvjax.decoding.cache import Cache, check_alive
from kvjax.decoding.layout import LayerStore, Layout
from kvjax.decoding.parse import CODECS, KINDS, SCORES
from kvjax.decoding.tracing import is_traced
from kvjax.models.config import ModelConfig

KEY = 'kvjax_cache'
FORMAT = 1
# Format 1 was written when the field `stores` of `Layout` and the class
# `LayerStore` had other names. Files keep these names.
STORES = 'stores'
STORES_IN_FILE = 'memories'
LAYER_STORE_IN_FILE = 'Memory'
WRITTEN = ('batch_size', 'source', 'config', 'params')
TYPES = (
  Layout,
  LayerStore,
  Kind,
  *KINDS.values(),
  *CODECS.values(),
  *SCORES.values(),
)


def save_cache(
  path: str | pathlib.Path,
  cache: Cache,
  config: ModelConfig,
  params: Mapping[str, Any],
) -> None:
  """Writes a cache to one file, whole or not at all.

  Reads every param once, on its device, for the fingerprint.

  Args:
    path: of the file; an existing file is replaced.
    cache: any rows, kinds and codecs.
    config: the model.
    params: its parameters, those that filled the cache.

  Raises:
    ValueError: inside a trace, or a kind, codec or config of your own is no
      dataclass of plain values.
    FileNotFoundError: the directory does not exist.
    DonatedCacheError: the cache was donated to an earlier call.
  """
  check_alive(cache)
  if is_traced(cache, params):
    raise ValueError('save_cache writes arrays: call it outside jit.')
  path = pathlib.Path(path)
  if not path.parent.is_dir():
    raise FileNotFoundError(f'{path.parent} is no directory: make it first.')
  metadata = {
    'format': FORMAT,
    'layout': _write_layout(cache.layout),
    'batch_size': cache.batch_size,
    'source': _source_spec(cache),
    'config': encoding.encode(config),
    'params': fingerprint(params),
  }
  arrays = {
    name: np.asarray(array, order='C')
    for name, array in leaves_by_path(cache, is_leaf).items()
  }
  _write_whole(path, arrays, {KEY: json.dumps(metadata)})


def load_cache(
  path: str | pathlib.Path,
  config: ModelConfig,
  params: Mapping[str, Any],
  *,
  types: Sequence[type] = (),
) -> Cache:
  """Returns a saved cache, bit by bit.

  Everything is checked before anything is put on a device.

  Args:
    path: of a file that `save_cache` wrote.
    config: the model.
    params: its parameters, those that filled the cache.
    types: dataclasses of your own kinds, codecs and scores in the cache.

  Raises:
    FileNotFoundError: there is no such file.
    ValueError: the file is truncated or no saved cache, or was saved with
      another config or other params; the message says what differs.
  """
  path = pathlib.Path(path)
  path.open('rb').close()  # raises FileNotFoundError with the path
  try:
    with safetensors.safe_open(path, 'np') as file:
      metadata = _read_metadata(path, file.metadata(), types)
      _check_same(path, 'config', metadata['config'], encoding.encode(config))
      _check_same(path, 'params', metadata['params'], fingerprint(params))
      length, dtype = metadata['source'] or (None, None)
      spec = arrange(
        config, metadata['layout'], metadata['batch_size'], length, dtype
      )
      return _read_arrays(path, file, spec)
  except safetensors.SafetensorError as error:
    raise ValueError(
      f'{path} is truncated or no saved cache: {error}.'
    ) from None


def _write_layout(layout: Layout) -> dict[str, Any]:
  """Returns a layout as format 1 writes it."""
  written = encoding.encode(layout)
  written[STORES_IN_FILE] = [
    store and store | {encoding.TYPE: LAYER_STORE_IN_FILE}
    for store in written.pop(STORES)
  ]
  return written


def _read_layout(
  written: Mapping[str, Any], known: Mapping[str, type]
) -> Layout:
  """Returns the layout that `_write_layout` wrote."""
  renamed = {
    STORES if name == STORES_IN_FILE else name: value
    for name, value in written.items()
  }
  return encoding.decode(renamed, {**known, LAYER_STORE_IN_FILE: LayerStore})


def _source_spec(cache: Cache) -> list[Any] | None:
  """Returns positions of the source and the dtype of its streams, if any."""
  if cache.source is None:
    return None
  stream = jax.tree.leaves(cache.cross)[0]
  return [cache.source.shape[1], stream.dtype.name]


def _write_whole(
  path: pathlib.Path, arrays: dict[str, np.ndarray], metadata: dict[str, str]
) -> None:
  """Writes a file in the same directory, and renames it to `path` at the end.

  After an error, `path` is as before.
  """
  part = path.with_name(f'.{path.name}.{os.getpid()}.part')
  try:
    save_file(arrays, part, metadata)
    # Without fsync, a crash after the rename could leave an empty file.
    with part.open('rb') as file:
      os.fsync(file.fileno())
    os.replace(part, path)
  finally:
    part.unlink(missing_ok=True)


def _read_metadata(
  path: pathlib.Path,
  metadata: Mapping[str, str] | None,
  types: Sequence[type],
) -> dict[str, Any]:
  """Returns what `save_cache` wrote about a cache, its `Layout` decoded.

  Raises:
    ValueError: a key is missing, the file has another format, or a class in
      the layout is unknown.
  """
  if not metadata or KEY not in metadata:
    raise ValueError(
      f'{path} is no saved cache: its metadata has no {KEY!r}. Give a file '
      'that save_cache wrote.'
    )
  try:
    written = json.loads(metadata[KEY])
    if written['format'] != FORMAT:
      raise ValueError(f'format {written["format"]} is not {FORMAT}')
    known = {cls.__name__: cls for cls in (*TYPES, *types)}
    layout = _read_layout(written['layout'], known)
    check_sizes(batch_size=written['batch_size'])
    return {name: written[name] for name in WRITTEN} | {'layout': layout}
  except (KeyError, TypeError, ValueError) as error:
    raise ValueError(
      f'{path}: its metadata cannot be read: {error}. A kind, codec or score '
      'of your own: name its class in types=(...,).'
    ) from None


def _check_same(path: pathlib.Path, what: str, old: Any, new: Any) -> None:
  if difference := encoding.difference(old, new):
    raise ValueError(
      f'{path} was saved with other {what}: {difference}. Load it with the '
      'model that filled it, or prefill anew.'
    )


def _read_arrays(path: pathlib.Path, file: Any, spec: Cache) -> Cache:
  """Returns the cache with its arrays.

  Args:
    path: of the file, for messages.
    file: of safetensors, open.
    spec: the cache, with `ArraySpec`s for arrays.
  """
  specs = leaves_by_path(spec, is_leaf)
  if wrong := sorted(specs.keys() ^ set(file.keys())):
    state = 'missing' if wrong[0] in specs else 'unexpected'
    raise ValueError(f'{path} is no whole cache: {wrong[0]} is {state}.')
  arrays = []
  for name, leaf in specs.items():
    x = file.get_tensor(name)
    if x.shape != leaf.shape or x.dtype != leaf.dtype:
      raise ValueError(
        f'{path}: {name} is {x.dtype.name} {list(x.shape)}; its metadata '
        f'makes it {np.dtype(leaf.dtype).name} {list(leaf.shape)}.'
      )
    arrays.append(x)
  treedef = jax.tree.structure(spec, is_leaf=is_leaf)
  return jax.tree.unflatten(treedef, map(jnp.array, arrays))
