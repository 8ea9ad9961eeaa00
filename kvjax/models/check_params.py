"""Params belong to their config, or are refused while a program is traced."""

import functools
from collections.abc import Mapping
from typing import Any

import jax

from kvjax.layers.int8_weight import CodedWeight
from kvjax.models.config import ModelConfig
from kvjax.models.initialize import init_params


def check_params(config: ModelConfig, params: Mapping[str, Any]) -> None:
  """Raises ValueError unless params have the shapes that the config asks for.

  A shape is known while a program is traced, so a compiled program checks
  nothing. Dtypes are free.
  """
  if not isinstance(params, Mapping):
    raise ValueError(
      f'params is of type {type(params).__name__}: give the dict that '
      'init_params or load_checkpoint returned. Arguments come in the order '
      'config, params.'
    )
  wanted, given = _wanted_shapes(config), _shapes(params)
  for place in sorted(wanted.keys() | given.keys()):
    if wanted.get(place) == given.get(place):
      continue
    if place not in given:
      problem = f'are without {place}; the config asks for it'
    elif place not in wanted:
      problem = f'have {place}, for which the config has no place'
    else:
      problem = (
        f'have {place} {list(given[place])}; the config makes it '
        f'{list(wanted[place])}'
      )
    raise ValueError(f'params {problem}. Give the params of this config.')


@functools.lru_cache
def _wanted_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
  return _shapes(jax.eval_shape(lambda: init_params(config, jax.random.key(0))))


def _shapes(params: Any) -> dict[str, tuple[int, ...]]:
  leaves = jax.tree.leaves_with_path(
    params, is_leaf=lambda leaf: isinstance(leaf, CodedWeight)
  )
  return {
    jax.tree_util.keystr(path, simple=True, separator='.'): tuple(
      getattr(leaf, 'shape', ())
    )
    for path, leaf in leaves
  }
