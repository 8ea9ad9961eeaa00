"""A prompt cache as one file: saved once, continued by any number of runs.

A safetensors file has every array as it is. Its metadata is JSON: kinds, codecs
and lengths, the config, and a fingerprint of every param. What a cache means
depends on all of these, so a file with another config or other params is
refused, and the message says what differs. A digest of the whole file
finds any damage; files of format 1 have none.
"""

import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
from safetensors.numpy import save_file

from kvjax import frozen_json
from kvjax.caches.array_spec import is_leaf
from kvjax.checkpoints.files import (
  check_regular,
  is_present,
  local_path,
  new_version,
  target_path,
)
from kvjax.checkpoints.prompt_cache.books import check_books
from kvjax.checkpoints.prompt_cache.digest import DIGEST, UNSIGNED, sign
from kvjax.checkpoints.prompt_cache.fingerprints import fingerprint
from kvjax.checkpoints.prompt_cache.metadata import (
  FORMAT,
  KEY,
  make_spec,
  read_metadata,
  write_layout,
)
from kvjax.decoding.cache import Cache
from kvjax.decoding.checks import check_config_and_cache
from kvjax.decoding.tracing import is_traced
from kvjax.models.config import ModelConfig, check_config
from kvjax.models.initialize import check_params
from kvjax.tree_paths import leaves_by_path


def save_cache(
  path: str | pathlib.Path,
  cache: Cache,
  config: ModelConfig,
  params: Mapping[str, Any],
) -> None:
  """Writes a cache to one file, whole or not at all.

  Reads every param once, on its device, for the fingerprint.

  Args:
    path: of the file; an existing file is replaced. Where the path is a
      symbolic link, so is the file that it leads to.
    cache: any rows, kinds and codecs.
    config: the model.
    params: its parameters, those that filled the cache.

  Raises:
    ValueError: inside a trace, the path is no regular file, or a kind, codec
      or config of your own is no dataclass of plain values.
    FileNotFoundError: the directory does not exist.
    OSError: the file cannot be written, for a full disk say.
    DonatedCacheError: the cache was donated to an earlier call.
  """
  check_config_and_cache(config, cache)
  check_params(config, params)
  if is_traced(cache, params):
    raise ValueError('save_cache writes arrays: call it outside jit.')
  target = target_path(path)
  check_regular(target)
  metadata = {
    'format': FORMAT,
    'layout': write_layout(cache.layout),
    'batch_size': cache.batch_size,
    'source': _source_spec(cache),
    'config': frozen_json.encode(config),
    'params': fingerprint(params),
  }
  arrays = {
    name: np.asarray(array, order='C')
    for name, array in leaves_by_path(cache, is_leaf).items()
  }
  texts = {KEY: json.dumps(metadata), DIGEST: UNSIGNED}
  with new_version(target) as part:
    save_file(arrays, part, texts)
    sign(part)


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
    ValueError: the file is damaged or no saved cache, or was saved with
      another config or other params; the message says what differs.
  """
  check_config(config)
  path = local_path(path)
  if not is_present(path):
    raise FileNotFoundError(f'There is no file {path}.')
  try:
    with safetensors.safe_open(path, 'np') as file:
      metadata = read_metadata(path, file.metadata() or {}, types)
      _check_same(
        path, 'config', metadata['config'], frozen_json.encode(config)
      )
      _check_same(path, 'params', metadata['params'], fingerprint(params))
      spec = make_spec(path, config, metadata)
      arrays = _read_arrays(path, file, spec)
  except safetensors.SafetensorError as error:
    raise ValueError(
      f'{path} is truncated or no saved cache: {error}.'
    ) from None
  except RecursionError:
    raise ValueError(
      f'{path} is no saved cache: its metadata is nested too deeply.'
    ) from None
  treedef = jax.tree.structure(spec, is_leaf=is_leaf)
  cache = jax.tree.unflatten(treedef, arrays.values())
  try:
    check_books(cache)
  except ValueError as error:
    raise ValueError(
      f'{path} is damaged: {error}. Copy it again, or prefill anew.'
    ) from None
  return jax.tree.map(jnp.array, cache)


def _source_spec(cache: Cache) -> list[Any] | None:
  """Returns positions of the source and the dtype of its streams, if any."""
  if cache.source is None:
    return None
  stream = jax.tree.leaves(cache.cross)[0]
  return [cache.source.shape[1], stream.dtype.name]


def _check_same(path: pathlib.Path, what: str, old: Any, new: Any) -> None:
  if difference := frozen_json.difference(old, new):
    raise ValueError(
      f'{path} was saved with other {what}: {difference}. Load it with the '
      'model that filled it, or prefill anew.'
    )


def _read_arrays(
  path: pathlib.Path, file: Any, spec: Cache
) -> dict[str, np.ndarray]:
  """Returns the arrays of a file by their paths in the cache, in its order.

  Args:
    path: of the file, for messages.
    file: of safetensors, open.
    spec: the cache, with `ArraySpec`s for arrays.
  """
  specs = leaves_by_path(spec, is_leaf)
  if wrong := sorted(specs.keys() ^ set(file.keys())):
    state = 'missing' if wrong[0] in specs else 'unexpected'
    raise ValueError(f'{path} is no whole cache: {wrong[0]} is {state}.')
  arrays = {}
  for name, leaf in specs.items():
    x = file.get_tensor(name)
    # A pool keeps its pages when rows are taken away. `check_books` compares
    # the arrays of a pool with each other.
    sizes = zip(x.shape, leaf.shape, leaf.axes, strict=False)
    shape = [size if axis == 'pages' else need for size, need, axis in sizes]
    if list(x.shape) != shape or x.dtype != leaf.dtype:
      raise ValueError(
        f'{path}: {name} is {x.dtype.name} {list(x.shape)}; its metadata '
        f'makes it {np.dtype(leaf.dtype).name} {list(leaf.shape)}.'
      )
    arrays[name] = x
  return arrays
