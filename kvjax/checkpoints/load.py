"""Published checkpoints: a directory in, a config and params out."""

import contextlib
import dataclasses
import itertools
import os
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from kvjax.checkpoints import own_layout
from kvjax.checkpoints.catalogue import nearest_names, published_values
from kvjax.checkpoints.dequantize import (
  PublishedTensor,
  check_method,
  dequantize_tensors,
)
from kvjax.checkpoints.families import FAMILIES
from kvjax.checkpoints.family import Family
from kvjax.checkpoints.files import errors_name, is_present
from kvjax.checkpoints.gguf.architectures import open_gguf
from kvjax.checkpoints.gguf.header import is_gguf
from kvjax.checkpoints.hf_config import Settings
from kvjax.checkpoints.match import ParamSource, match_params, stored_dtype
from kvjax.checkpoints.names import (
  BUILT,
  CONFIG,
  POSSIBLE_NAMES,
  find_model,
)
from kvjax.checkpoints.paper_models import DESCRIBED, parse_described
from kvjax.checkpoints.tensors import open_tensors
from kvjax.layers.int8_weight import CodedWeight
from kvjax.mesh.host import from_host, shardings_of
from kvjax.mesh.rules import Rules, partition_of
from kvjax.models.config import ModelConfig
from kvjax.models.initialize import param_shapes
from kvjax.models.param_axes import param_specs
from kvjax.models.quantize import WEIGHTS, encode, is_projection
from kvjax.progress_bar import show_progress
from kvjax.renamed import renamed_arguments
from kvjax.strict_json import parse_object
from kvjax.tree_paths import leaves_by_path

# By `model_type`.
READABLE = FAMILIES | {own_layout.OWN: own_layout.FAMILY}
LARGE = 1 << 28  # bytes from which loading shows its progress


@renamed_arguments(sharding='mesh= and rules=')
def load_checkpoint(
  path: str | pathlib.Path,
  dtype: Any = None,
  *,
  mesh: jax.sharding.Mesh | None = None,
  rules: Rules | None = None,
  weights: str | None = None,
) -> tuple[ModelConfig, dict[str, Any]]:
  """Returns config and params of a published checkpoint.

  Everything is checked before anything is put on a device. Params are then read
  one at a time, each in blocks of rows. A CPU device takes over the memory that
  a param was read into, so host memory is little more than the model. (XLA
  does not reuse memory that it did not allocate: the first program that
  donates such a param copies it.)

  Args:
    path: a directory with `config.json` and `*.safetensors`, single or sharded,
      or a `.gguf` file; 'smollm2-135m'; or a Hub id ('owner/name',
      'owner/name@revision').
    dtype: of the params; None for that of the file.
    mesh: of the devices that share the params, of one process or many. Each
      process reads what its own devices hold. None for the default device.
    rules: what the axes of the mesh split, as in `init_cache`.
    weights: 'int8' or 'int4' to `quantize` each projection as it is read, so
      that at most one projection is in memory as it was published. None for
      floats.

  Returns:
    The config, and params as `init_params` (or `quantize`) has them.

  Raises:
    FileNotFoundError: no directory, no config.json or no safetensors, or a
      name that stands for none.
    ValueError: something is not supported, missing, unexpected, truncated or
      of the wrong shape, or (found only when that tensor is read) a finite
      weight is too large for `dtype`; the message names it.
  """
  if weights not in (None, *WEIGHTS):
    raise ValueError(
      f"weights={weights!r} is unknown; known: 'int8', 'int4', or None."
    )
  partition = partition_of(mesh, rules)
  config, sources = open_checkpoint(find_model(path), dtype)
  targets = {}
  if mesh is not None:
    specs = shardings_of(mesh, param_specs(config, partition, weights))
    targets = leaves_by_path(specs, lambda x: isinstance(x, CodedWeight))
  params = {}
  for source in _with_progress(sources):
    target = targets.get(source.place)
    param = _read(source, getattr(target, 'codes', target))
    if weights and is_projection(source.place, tied=config.tied):
      param = encode(param, source.place, WEIGHTS[weights])
      param = jax.device_put(param, target)
    # Without this wait the host would read ahead, and hold many tensors.
    params[source.place] = jax.block_until_ready(param)
  structure = jax.tree.structure(param_shapes(config))
  return config, jax.tree.unflatten(structure, params.values())


def _read(source: ParamSource, sharding: Any) -> jax.Array:
  """Returns a param on its devices; on the default one without sharding."""
  if sharding is None:
    return jax.device_put(source.read())
  return from_host(source.shape, sharding, source.read)


def open_checkpoint(
  path: pathlib.Path, dtype: Any = None
) -> tuple[ModelConfig, list[ParamSource]]:
  """Returns the config, and every param of a checkpoint, still to be read.

  Args:
    path, dtype: as in `load_checkpoint`.
  """
  if is_gguf(path):
    with errors_name(path):
      family, settings, tensors = open_gguf(path)
      config = _typed_config(family, settings, tensors, dtype)
      return config, match_params(family, config, tensors)
  file = _config_file(path)
  values = read_values(file)
  with errors_name(file):
    family, settings = _choose_family(values)
    family.config(settings)  # what it refuses is said before tensors are read
  tensors = dequantize_tensors(values, open_tensors(path))
  config = _typed_config(family, settings, tensors, dtype)
  return config, match_params(family, config, tensors)


def _typed_config(
  family: Family,
  settings: Settings,
  tensors: Mapping[str, PublishedTensor],
  dtype: Any = None,
) -> ModelConfig:
  """Returns the config, with what only the tensors say: dtype and head."""
  config = family.config(settings)
  name = jnp.dtype(stored_dtype(tensors) if dtype is None else dtype).name
  config = dataclasses.replace(config, dtype=name)
  if family.head is not None:
    config = dataclasses.replace(config, tied=family.head not in tensors)
  return config


def load_config(name_or_path: str | pathlib.Path) -> ModelConfig:
  """Returns the config of a published model, reading no weights.

  Args:
    name_or_path: a config.json, a directory that has one, a `.gguf` file, the
      name of a published model whose config ships with kvjax ('llama-3-8b', or
      'meta-llama/Meta-Llama-3-8B'), 'smollm2-135m', or a Hub id. A path that
      exists wins over a name.

  Raises:
    FileNotFoundError: a path has no such file.
    ValueError: neither name nor path, an unknown name (the nearest are
      listed), or something that is not supported.
  """
  name = name_or_path if isinstance(name_or_path, str) else None
  if name is not None and not os.path.lexists(name):
    values = published_values(name)
    if name in BUILT:
      # Where it cannot be made, the shipped config is all that is known of it.
      with contextlib.suppress(OSError, ValueError):
        values = read_config(find_model(name))
    if values is not None:
      return parse_config(values)
    if '/' not in name and not name.endswith('.json'):
      raise ValueError(
        f'Unknown model {name!r}; the nearest known: {nearest_names(name)}. '
        f'Or give the path of a config.json. {POSSIBLE_NAMES}'
      )
  path = find_model(name_or_path, ())
  if is_gguf(path):
    with errors_name(path):
      return _typed_config(*open_gguf(path))
  file = _config_file(path)
  values = read_values(file)
  with errors_name(file):
    return parse_config(values)


def parse_config(values: dict[str, Any]) -> ModelConfig:
  """Returns the config that the values of a config.json describe.

  Args:
    values: of a config.json, by key.
  """
  if values.get('model_type') == DESCRIBED:
    return parse_described(Settings(values))
  family, settings = _choose_family(values)
  return family.config(settings)


def read_values(file: pathlib.Path) -> dict[str, Any]:
  """Returns the keys and values of a JSON file of a checkpoint.

  Raises:
    ValueError: the file has no JSON object.
  """
  return parse_object(file.read_bytes(), file)


def read_config(path: pathlib.Path) -> dict[str, Any]:
  """Returns the keys and values of a config.json, or of a directory's."""
  return read_values(_config_file(path))


def _config_file(path: pathlib.Path) -> pathlib.Path:
  file = path / CONFIG if path.is_dir() else path
  if not is_present(file):
    raise FileNotFoundError(
      f'{path} is neither a directory with {CONFIG} nor such a file.'
    )
  return file


def _choose_family(values: dict[str, Any]) -> tuple[Family, Settings]:
  name = values.get('model_type')
  if not isinstance(name, str) or name not in READABLE:
    known = ', '.join(sorted(READABLE))
    raise ValueError(f'Unknown model_type {name!r}; supported: {known}.')
  check_method(values)
  return READABLE[name], Settings(values)


def _with_progress(sources: list[ParamSource]) -> Iterator[ParamSource]:
  """Yields sources; a large model shows a bar."""
  sizes = [sum(tensor.size for tensor in source.tensors) for source in sources]
  if sum(sizes) < LARGE:
    yield from sources
    return
  with show_progress('Loading', sum(sizes), in_bytes=True) as advance:
    for source, done in zip(sources, itertools.accumulate(sizes), strict=True):
      yield source
      advance(done)
