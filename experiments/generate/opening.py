"""A cache to write into: an empty one with room, or a saved prompt's."""

import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from kvjax.checkpoints.prompt_cache.save import load_cache
from kvjax.decoding.allocate import init_cache
from kvjax.decoding.cache import Cache
from kvjax.decoding.rows import repeat
from kvjax.models.config import ModelConfig


def check_fits(cache: Cache, lengths: Any, tokens: int) -> None:
  """Raises ValueError if prompts of `lengths [B]` leave no room for `tokens`.

  A cache of `Leaf`s, of which nothing is allocated, will do.
  """
  limit = cache.layout.limit
  # The last token is returned and not fed.
  need = int(np.max(np.asarray(lengths))) + tokens - 1
  if limit is not None and need > limit:
    raise ValueError(
      f'capacity={limit} is less than the {need} tokens of prompt and '
      f'answer (tokens={tokens}). Use capacity={need}, or fewer tokens.'
    )


def open_cache(
  saved: str | pathlib.Path,
  config: ModelConfig,
  params: Mapping[str, Any],
  lengths: np.ndarray,
  tokens: int,
  empty: Mapping[str, Any],
) -> Cache:
  """Returns a saved cache with as many rows as there are prompts to go on.

  Args:
    saved: a file that `save_cache` wrote; '' for an empty cache.
    config, params: the model.
    lengths: int `[B]`, tokens of each prompt.
    tokens: that will be written.
    empty: what `init_cache` is told of an empty one.

  Raises:
    ValueError: it is of another model, has neither one row nor B, or no room.
  """
  if not saved:
    return init_cache(config, len(lengths), **empty)
  cache = load_cache(saved, config, params)
  if cache.batch_size == 1:
    cache = repeat(cache, len(lengths))
  if cache.batch_size != len(lengths):
    raise ValueError(
      f'{saved} has {cache.batch_size} rows for {len(lengths)} prompts: give '
      'a prompt for each row.'
    )
  check_fits(cache, np.asarray(cache.length) + lengths, tokens)
  return cache
