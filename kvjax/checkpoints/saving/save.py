"""A model as a checkpoint directory: whole or not at all."""

import dataclasses
import json
import os
import pathlib
import shutil
from collections.abc import Mapping
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from kvjax.checkpoints import own_layout
from kvjax.checkpoints.families import FAMILIES
from kvjax.checkpoints.files import new_version, target_path
from kvjax.checkpoints.hf_config import DTYPES
from kvjax.checkpoints.load import read_config
from kvjax.checkpoints.names import CONFIG, TOKENIZER_FILES
from kvjax.checkpoints.saving.config_of_family import family_values
from kvjax.checkpoints.saving.tensors_of_family import TensorPlan, plan_tensors
from kvjax.checkpoints.tensors import INDEX, SINGLE, open_tensors
from kvjax.decoding.tracing import is_traced
from kvjax.layers.int8_weight import CodedWeight
from kvjax.models.config import ModelConfig, check_config
from kvjax.models.initialize import check_params, param_shapes
from kvjax.tree_paths import leaves_by_path

SHARD = 5 * 10**9  # bytes of the tensors of a file
# Of a checkpoint that may be replaced: it holds nothing else.
FILES = (*TOKENIZER_FILES, CONFIG, '*.safetensors', INDEX)


def save_checkpoint(
  path: str | pathlib.Path,
  config: ModelConfig,
  params: Mapping[str, Any],
  tokenizer: Any = None,
  like: str | pathlib.Path | None = None,
  *,
  dequantize: bool = False,
) -> None:
  """Writes a checkpoint directory that `load_checkpoint` takes.

  The directory is written under another name and renamed at the end: after an
  error, what was at `path` is there as before.

  Args:
    path: of the directory. A checkpoint there is replaced.
    config: the model, of any of kvjax's own variants.
    params: its parameters, in one dtype.
    tokenizer: of `kvjax.text.load_tokenizer`, or a directory whose tokenizer
      files are copied; None for none, which reads as bytes.
    like: whose layout: a checkpoint directory or config.json whose model has
      the same config, or the name of a family ('llama'). Other libraries read
      that layout. None for kvjax's own, which takes every model.
    dequantize: write int8 weights as the floats that they stand for; without
      it they are refused.

  Raises:
    ValueError: config and params do not fit each other or the layout, `path`
      is there and no checkpoint, or the call is inside a trace.
    FileNotFoundError: the parent of `path`, or `like`, is not there.
    OSError: the files cannot be written, for a full disk say.
  """
  check_config(config)
  check_params(config, params)
  if is_traced(params):
    raise ValueError('save_checkpoint writes arrays: call it outside jit.')
  target = target_path(path)
  _check_target(target)
  leaves = _floats(params, dequantize)
  config = dataclasses.replace(config, dtype=_dtype(config, leaves))
  values, plans = _arrange(config, leaves, like)
  with new_version(target) as part:
    part.mkdir()
    _write_tokenizer(part, values, tokenizer)
    _write_json(part / CONFIG, values)
    _write_tensors(part, plans, leaves)


def _check_target(path: pathlib.Path) -> None:
  """Raises ValueError for what must not be replaced."""
  if not os.path.lexists(path):
    return
  if not path.is_dir():
    raise ValueError(f'{path} is there and no directory: give another path.')
  strange = [
    file.name
    for file in path.iterdir()
    if not file.is_file() or not any(file.match(x) for x in FILES)
  ]
  if strange or (any(path.iterdir()) and not (path / CONFIG).is_file()):
    raise ValueError(
      f'{path} is no checkpoint that could be replaced: it holds '
      f'{sorted(strange)[0] if strange else "no " + CONFIG}. Give another path.'
    )


def _floats(params: Mapping[str, Any], dequantize: bool) -> dict[str, Any]:
  """Returns params by path, none of them in eight bits."""
  leaves = leaves_by_path(params, lambda x: isinstance(x, CodedWeight))
  for place, leaf in leaves.items():
    if isinstance(leaf, CodedWeight):
      if not dequantize:
        raise ValueError(
          f'{place} is in eight bits, and checkpoints hold floats: give '
          'dequantize=True, or the params before quantize.'
        )
      leaves[place] = leaf[slice(None)]
  return leaves


def _dtype(config: ModelConfig, leaves: Mapping[str, Any]) -> str:
  """Returns the dtype of the params; ValueError unless it is one."""
  name = np.dtype(leaves['embedding'].dtype).name
  if name not in DTYPES:
    raise ValueError(
      f'embedding is {name}; a checkpoint holds {", ".join(DTYPES)}.'
    )
  spec = leaves_by_path(param_shapes(dataclasses.replace(config, dtype=name)))
  for place, leaf in leaves.items():
    if leaf.dtype != spec[place].dtype:
      raise ValueError(
        f'{place} is {leaf.dtype}, and next to an embedding in {name} it is '
        f'read as {spec[place].dtype}. Cast it first, so that nothing is lost '
        'unseen.'
      )
  return name


def _arrange(
  config: ModelConfig,
  leaves: Mapping[str, Any],
  like: str | pathlib.Path | None,
) -> tuple[dict[str, Any], list[TensorPlan]]:
  """Returns the values of config.json, and the tensors still to be made."""
  if like is None:
    values = own_layout.own_values(config)
    return values, plan_tensors(own_layout.FAMILY, config, leaves)
  values, names, family = None, (), str(like)
  directory = pathlib.Path(like)
  if directory.exists() or like not in FAMILIES:
    values = read_config(directory)
    family = str(values.get('model_type'))
    if any(directory.glob('*.safetensors')):
      names = open_tensors(directory).keys()
  if family not in FAMILIES:
    raise ValueError(
      f'like={str(like)!r} is of the family {family!r}; known: '
      f'{", ".join(sorted(FAMILIES))}.'
    )
  values = family_values(config, family, values)
  return values, plan_tensors(FAMILIES[family], config, leaves, names)


def _write_tokenizer(
  part: pathlib.Path, values: dict[str, Any], tokenizer: Any
) -> None:
  """Writes the files of a tokenizer; adds a directory's ids to the config."""
  if tokenizer is None:
    return
  if not isinstance(tokenizer, str | os.PathLike):
    if not callable(getattr(tokenizer, 'save', None)):
      raise ValueError(
        f'tokenizer is of type {type(tokenizer).__name__}, which cannot write '
        'itself: give that of kvjax.text.load_tokenizer, or a directory.'
      )
    tokenizer.save(part)
    return
  source = pathlib.Path(tokenizer)
  files = [file for x in TOKENIZER_FILES for file in source.glob(x)]
  if not files:
    raise FileNotFoundError(f'tokenizer={str(source)!r} has no tokenizer file.')
  for file in files:
    shutil.copyfile(file, part / file.name)
  if (source / CONFIG).is_file():
    for key, token in read_config(source).items():
      if key.endswith('_token_id') and token is not None:
        values[key] = token


def _write_tensors(
  part: pathlib.Path, plans: list[TensorPlan], params: Mapping[str, Any]
) -> None:
  """Writes one file, or shards and their index."""
  shards = _shards(plans)
  where = {}
  for index, shard in enumerate(shards, 1):
    name = f'model-{index:05}-of-{len(shards):05}.safetensors'
    name = name if len(shards) > 1 else SINGLE
    arrays = {plan.name: plan.fill(params) for plan in shard}
    save_file(arrays, part / name, {'format': 'pt'})
    # The library lets only this user read what it writes.
    shutil.copymode(part / CONFIG, part / name)
    where |= dict.fromkeys(arrays, name)
  if len(shards) > 1:
    total = sum(plan.size for plan in plans)
    index = {'metadata': {'total_size': total}, 'weight_map': where}
    _write_json(part / INDEX, index)


def _shards(plans: list[TensorPlan]) -> list[list[TensorPlan]]:
  """Returns tensors that together have at most SHARD bytes, or one tensor."""
  shards, size = [[]], 0
  for plan in plans:
    if shards[-1] and size + plan.size > SHARD:
      shards.append([])
      size = 0
    shards[-1].append(plan)
    size += plan.size
  return shards


def _write_json(file: pathlib.Path, values: Mapping[str, Any]) -> None:
  file.write_text(json.dumps(values, indent=2) + '\n', encoding='utf-8')
