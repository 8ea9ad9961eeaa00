"""A prompt cache on disk: saved once, continued by any number of runs.

A safetensors file has every array as it is. Its metadata is JSON: kinds, codecs
and lengths, the config, and a fingerprint of every param. What a cache means
depends on all of these, so a file with another config or other params is
refused, and the message says what differs. A digest of the whole file
finds any damage; files of format 1 have none. What a mesh holds is saved as one
device would hold it.
"""

import contextlib
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
from kvjax.checkpoints.prompt_cache.leaves import (
  StoredLeaf,
  fit_pages,
  open_leaves,
  reorder_slots,
)
from kvjax.checkpoints.prompt_cache.metadata import (
  FORMAT,
  KEY,
  make_spec,
  read_metadata,
  write_layout,
)
from kvjax.checkpoints.prompt_cache.parts import (
  PART,
  blocks_of,
  check_parts,
  check_target,
  find_parts,
  write_parts,
)
from kvjax.decoding.allocate import arrange
from kvjax.decoding.cache import Cache
from kvjax.decoding.checks import check_config_and_cache
from kvjax.decoding.layout import Layout
from kvjax.decoding.leaf_axes import cache_specs, partition_of_cache
from kvjax.decoding.tracing import is_traced
from kvjax.mesh.host import from_host, shardings_of
from kvjax.mesh.rules import WHOLE, Partition, Rules, partition_of
from kvjax.models.config import ModelConfig, check_config
from kvjax.models.initialize import check_params
from kvjax.tree_paths import leaves_by_path

# Of a directory of parts: how many devices share the slots of a row.
STRIPES = 'stripes'


def save_cache(
  path: str | pathlib.Path,
  cache: Cache,
  config: ModelConfig,
  params: Mapping[str, Any],
) -> None:
  """Writes a cache to one file, whole or not at all.

  Of a cache that several processes share, `path` is a directory. All of them
  call this function, and each writes a file of the parts that it holds.

  Reads every param once, on its device, for the fingerprint.

  Args:
    path: of the file; an existing file is replaced. Where the path is a
      symbolic link, so is the file that it leads to.
    cache: any rows, kinds and codecs.
    config: the model.
    params: its parameters, those that filled the cache.

  Raises:
    ValueError: inside a trace, the path is no regular file (or no directory
      that several processes saved), or a kind, codec or config of your own is
      no dataclass of plain values.
    FileNotFoundError: the directory does not exist.
    OSError: the file cannot be written, for a full disk say.
    DonatedCacheError: the cache was donated to an earlier call.
  """
  check_config_and_cache(config, cache)
  check_params(config, params)
  if is_traced(cache, params):
    raise ValueError('save_cache writes arrays: call it outside jit.')
  leaves = leaves_by_path(cache, is_leaf)
  is_shared = not all(
    getattr(leaf, 'is_fully_addressable', True) for leaf in leaves.values()
  )
  target = target_path(path)
  (check_target if is_shared else check_regular)(target)
  metadata = {
    'format': FORMAT,
    'layout': write_layout(cache.layout),
    'batch_size': cache.batch_size,
    'source': _source_spec(cache),
    'config': frozen_json.encode(config),
    'params': fingerprint(params),
  }
  if not is_shared:
    arrays = _arrays_of_one_device(cache, config, leaves)
    with new_version(target) as part:
      _write_file(part, arrays, metadata)
    return
  parts = (partition_of_cache(cache) or WHOLE).slot_parts

  def write(path, part):
    _write_file(
      path, blocks_of(leaves), metadata | {PART: part, STRIPES: parts}
    )

  write_parts(target, write)


def _arrays_of_one_device(
  cache: Cache, config: ModelConfig, leaves: Mapping[str, Any]
) -> dict[str, np.ndarray]:
  """Returns the arrays of a cache as one device would have them."""
  old, new = cache.layout, cache.layout.split(1, None)
  specs = leaves_by_path(
    arrange(config, new, cache.batch_size, *_source_spec(cache) or ()), is_leaf
  )
  arrays = {name: np.asarray(x, order='C') for name, x in leaves.items()}
  return {
    name: reorder_slots(x, name, specs[name], old, new)
    for name, x in arrays.items()
  }


def _write_file(
  path: pathlib.Path,
  arrays: Mapping[str, np.ndarray],
  metadata: Mapping[str, Any],
) -> None:
  save_file(dict(arrays), path, {KEY: json.dumps(metadata), DIGEST: UNSIGNED})
  sign(path)


def load_cache(
  path: str | pathlib.Path,
  config: ModelConfig,
  params: Mapping[str, Any],
  *,
  types: Sequence[type] = (),
  mesh: jax.sharding.Mesh | None = None,
  rules: Rules | None = None,
) -> Cache:
  """Returns a saved cache, bit by bit.

  Everything is checked before anything is put on a device. Any mesh loads what
  any other saved.

  Args:
    path: that `save_cache` wrote.
    config: the model.
    params: its parameters, those that filled the cache.
    types: dataclasses of your own kinds, codecs and scores in the cache.
    mesh: of the devices that share the cache, as in `init_cache`; None for one
      device.
    rules: what the axes of the mesh split, as in `init_cache`.

  Raises:
    FileNotFoundError: there is no such file.
    ValueError: the file is damaged or no saved cache, parts are missing or of
      different saves, or it was saved with another config or other params; the
      message says what differs.
  """
  check_config(config)
  partition = partition_of(mesh, rules)
  path = local_path(path)
  if not path.is_dir() and not is_present(path):
    raise FileNotFoundError(f'There is no file {path}.')
  paths = find_parts(path) if path.is_dir() else [path]
  try:
    with contextlib.ExitStack() as stack:
      files = [
        stack.enter_context(safetensors.safe_open(x, 'np')) for x in paths
      ]
      parts = [
        read_metadata(x, file.metadata() or {}, types)
        for x, file in zip(paths, files, strict=True)
      ]
      check_parts(path, parts)
      metadata = parts[0]
      written = frozen_json.with_added_fields(metadata['config'], config)
      _check_same(path, 'config', written, frozen_json.encode(config))
      _check_same(path, 'params', metadata['params'], fingerprint(params))
      saved = make_spec(path, config, metadata, metadata.get(STRIPES, 1))
      rules = None if mesh is None else partition.rules
      spec = make_spec(path, config, metadata, partition.slot_parts, rules)
      leaves = open_leaves(path, files, saved)
      _check_books(path, saved, leaves)
      return _place(leaves, saved.layout, spec, partition, mesh)
  except safetensors.SafetensorError as error:
    raise ValueError(
      f'{path} is truncated or no saved cache: {error}.'
    ) from None
  except RecursionError:
    raise ValueError(
      f'{path} is no saved cache: its metadata is nested too deeply.'
    ) from None


def _check_books(
  path: pathlib.Path, spec: Cache, leaves: Mapping[str, StoredLeaf]
) -> None:
  """Raises ValueError where books contradict each other; reads no stream."""
  arrays = [
    leaf if name.startswith(('stores.', 'cross.')) else leaf.read()
    for name, leaf in leaves.items()
  ]
  cache = jax.tree.unflatten(_treedef(spec), arrays)
  try:
    check_books(cache)
  except ValueError as error:
    raise ValueError(
      f'{path} is damaged: {error}. Copy it again, or prefill anew.'
    ) from None


def _place(
  leaves: Mapping[str, StoredLeaf],
  saved: Layout,
  spec: Cache,
  partition: Partition,
  mesh: jax.sharding.Mesh | None,
) -> Cache:
  """Returns the cache of a specification, leaf by leaf on its devices.

  Args:
    leaves: of the saved cache, by path.
    saved: the layout in which they were saved.
    spec: of the cache that is returned.
    partition: how the mesh splits it.
    mesh: of devices; None for one device.
  """
  specs = {
    name: fit_pages(leaf, leaves[name])
    for name, leaf in leaves_by_path(spec, is_leaf).items()
  }
  spec = jax.tree.unflatten(_treedef(spec), specs.values())
  shardings = {}
  if mesh is not None:
    shardings = shardings_of(mesh, cache_specs(spec, partition))
    shardings = leaves_by_path(shardings)

  def place(name, leaf):
    x = reorder_slots(leaf.read(), name, specs[name], saved, spec.layout)
    if mesh is None:
      return jnp.array(x)
    # Copies, so that no device keeps the memory of the whole array.
    return from_host(x.shape, shardings[name], lambda index: x[index].copy())

  # With this wait there is no more than one array on the host.
  arrays = [jax.block_until_ready(place(*item)) for item in leaves.items()]
  return jax.tree.unflatten(_treedef(spec), arrays)


def _treedef(spec: Cache) -> Any:
  return jax.tree.structure(spec, is_leaf=is_leaf)


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
