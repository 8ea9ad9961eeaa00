"""Looking at a cache, and checking it for overflow."""

import jax
import numpy as np

from kvjax.decoding.cache import Cache, check_alive
from kvjax.decoding.summary import Inspection, summarize


def inspect(cache: Cache) -> Inspection:
  """Returns kind, filled slots, positions and bytes of every layer.

  Reads lengths and books (it waits for them), never a stream. Inside a trace,
  what is not known reads `?`.
  """
  check_alive(cache)
  return summarize(cache.layout, cache)


def check(cache: Cache) -> None:
  """Raises ValueError if a row was given tokens that it refused, or no source.

  A row refuses tokens that do not fit, or that the vocabulary does not have.
  Waits for the device. `rewind` clears the flag.
  """
  check_alive(cache)
  if cache.source is not None:
    source = jax.device_get(cache.source)
    rows = np.flatnonzero((source < 0).all(axis=1)).tolist()
    if rows:
      raise ValueError(
        f'Rows {rows} hold no source, and their logits are NaN. Call prefill '
        'with encoded=kvjax.encode(config, params, source).'
      )
  overflow = jax.device_get(cache.overflow)
  if overflow.any():
    rows = np.flatnonzero(overflow).tolist()
    raise ValueError(
      f'Rows {rows} were given tokens beyond the capacity of '
      f'{cache.layout.capacity}, or outside the vocabulary; those were not '
      'written and the logits of these rows have been NaN since. Rewind the '
      'rows, or decode with a larger capacity.'
    )
