"""A prompt cache as one file: saved once, gone on from many times.

One safetensors file holds every array as it is; its metadata holds, as JSON,
kinds, codecs and lengths, the config, and a fingerprint of every param. What a
cache means depends on all of them, so a file that was made with others is
refused, and the message says what differs.
"""

import contextlib
import json
import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
from safetensors.numpy import save_file

from kvjax.caches.kind import Kind
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
# The words of format 1, where the code has other names.
_LAYOUT, _STORE = ('stores', 'memories'), ('LayerStore', 'Memory')
# The words of format 1, where the code has other names.
_LAYOUT, _STORE = ('stores', 'memories'), ('LayerStore', 'Memory')
_NAMED = (KINDS, CODECS, SCORES)
_TYPES = (Layout, LayerStore, Kind, *(t for x in _NAMED for t in x.values()))


def save_cache(
  path: str | pathlib.Path,
  cache: Cache,
  config: ModelConfig,
  params: Mapping[str, Any],
) -> None:
  """Writes a cache to one file, whole or not at all.

  Reads every param once, on its device, for the fingerprint.

  Args:
    path: of the file; one that is there is replaced.
    cache: any rows, kinds and codecs.
    config: the model.
    params: its parameters, those that filled the cache.

  Raises:
    ValueError: inside a trace, or a kind, codec or config of your own is no
      dataclass of plain values.
    FileNotFoundError: the directory is not there.
    DonatedCacheError: the cache was given to an earlier call.
  """
  check_alive(cache)
  if is_traced(cache, params):
    raise ValueError('save_cache writes arrays: call it outside jit.')
  path = pathlib.Path(path)
  if not path.parent.is_dir():
    raise FileNotFoundError(f'{path.parent} is no directory: make it first.')
  said = {
    'format': FORMAT,
    'layout': _write_layout(cache.layout),
    'batch_size': cache.batch_size,
    'source': _source(cache),
    'config': encoding.encode(config),
    'params': fingerprint(params),
  }
  arrays = {n: np.asarray(x, order='C') for n, x in _named(cache).items()}
  with _whole(path) as part:
    save_file(arrays, part, {KEY: json.dumps(said)})


def load_cache(
  path: str | pathlib.Path,
  config: ModelConfig,
  params: Mapping[str, Any],
  *,
  types: Sequence[type] = (),
) -> Cache:
  """Returns a saved cache: the next token is that of the one saved, bit by bit.

  Everything is checked before anything is put on a device.

  Args:
    path: of a file that `save_cache` wrote.
    config: the model.
    params: its parameters, the very same.
    types: dataclasses of your own kinds, codecs and scores in the cache.

  Raises:
    FileNotFoundError: there is no such file.
    ValueError: it is truncated or no saved cache, or was made with another
      config or other params; the message says what differs.
  """
  path = pathlib.Path(path)
  path.open('rb').close()  # raises, naming the file
  try:
    with safetensors.safe_open(path, 'np') as file:
      spec = _read_spec(path, file.metadata(), config, params, types)
      return _read_arrays(path, file, spec)
  except safetensors.SafetensorError as error:
    raise ValueError(
      f'{path} is truncated or no saved cache: {error}.'
    ) from None


def _write_layout(layout: Layout) -> dict[str, Any]:
  written = encoding.encode(layout)
  new, old = _LAYOUT
  written[old] = [
    store and store | {encoding.TYPE: _STORE[1]} for store in written.pop(new)
  ]
  return written


def _read_layout(written: dict[str, Any], known: Mapping[str, type]) -> Any:
  new, old = _LAYOUT
  names = {new if name == old else name: x for name, x in written.items()}
  return encoding.decode(names, {**known, _STORE[1]: LayerStore})


def _source(cache: Cache) -> list[Any] | None:
  """Returns positions of the source and the dtype of its streams, if any."""
  if cache.source is None:
    return None
  stream = jax.tree.leaves(cache.cross)[0]
  return [cache.source.shape[1], stream.dtype.name]


def _named(cache: Any) -> dict[str, Any]:
  leaves, _ = jax.tree.flatten_with_path(cache, is_leaf=is_leaf)
  return {
    jax.tree_util.keystr(path, simple=True, separator='.'): leaf
    for path, leaf in leaves
  }


@contextlib.contextmanager
def _whole(path: pathlib.Path) -> Iterator[pathlib.Path]:
  """Yields a path beside `path` that takes its place once it is complete."""
  part = path.with_name(f'.{path.name}.{os.getpid()}.part')
  try:
    yield part
    with part.open('rb') as file:
      os.fsync(file.fileno())
    os.replace(part, path)
  finally:
    part.unlink(missing_ok=True)


def _read_spec(path, metadata, config, params, types) -> Cache:
  """Returns the cache that the file must hold, with `ArraySpec`s for arrays."""
  if not metadata or KEY not in metadata:
    raise ValueError(
      f'{path} is no saved cache: its metadata has no {KEY!r}. Give a file '
      'that save_cache wrote.'
    )
  try:
    said = json.loads(metadata[KEY])
    if said['format'] != FORMAT:
      raise ValueError(f'format {said["format"]} is not {FORMAT}')
    known = {t.__name__: t for t in (*_TYPES, *types)}
    layout = _read_layout(said['layout'], known)
    batch_size, source = said['batch_size'], said['source']
    check_sizes(batch_size=batch_size)
    old, marks = said['config'], said['params']
  except (KeyError, TypeError, ValueError) as error:
    raise ValueError(
      f'{path}: its metadata cannot be read: {error}. A kind, codec or score '
      'of your own: name its class in types=(...,).'
    ) from None
  _same(path, 'config', old, encoding.encode(config))
  _same(path, 'params', marks, fingerprint(params))
  length, dtype = source or (None, None)
  return arrange(config, layout, batch_size, length, dtype)


def _same(path: pathlib.Path, what: str, old: Any, new: Any) -> None:
  if found := encoding.difference(old, new):
    raise ValueError(
      f'{path} was saved with other {what}: {found}. Load it with the model '
      'that filled it, or prefill anew.'
    )


def _read_arrays(path, file, spec) -> Cache:
  wanted, there = _named(spec), set(file.keys())
  if wrong := sorted(wanted.keys() ^ there):
    state = 'missing' if wrong[0] in wanted else 'unexpected'
    raise ValueError(f'{path} is no whole cache: {wrong[0]} is {state}.')
  arrays = []
  for name, leaf in wanted.items():
    x = file.get_tensor(name)
    if x.shape != leaf.shape or x.dtype != leaf.dtype:
      raise ValueError(
        f'{path}: {name} is {x.dtype.name} {list(x.shape)}; its metadata '
        f'makes it {np.dtype(leaf.dtype).name} {list(leaf.shape)}.'
      )
    arrays.append(x)
  treedef = jax.tree.structure(spec, is_leaf=is_leaf)
  return jax.tree.unflatten(treedef, map(jnp.array, arrays))
