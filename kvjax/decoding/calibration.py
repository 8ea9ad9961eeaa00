"""Constants of keys, measured on a text."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kvjax.arguments import check_array, check_type
from kvjax.caches.dense import Dense
from kvjax.decoding.allocate import init_cache
from kvjax.decoding.steps import prefill
from kvjax.models.config import ModelConfig, check_config
from kvjax.streams.codecs import Centred, Plain


def calibrate(
  config: ModelConfig,
  params: Mapping[str, Any],
  tokens: jax.Array,
  codec: Centred,
  lengths: Any = None,
) -> Centred:
  """Returns the codec with the mean of each layer's and head's keys.

  The first tokens of a row, which the codec leaves exact, do not count.
  A few hundred tokens of any text the model may read are enough. They are read
  into a dense float32 cache, which is then given up.

  Args:
    config: the model.
    params: its parameters.
    tokens: int `[B, T]`.
    codec: whose constant is measured.
    lengths: int `[B]`, tokens of each row; None for T.

  Raises:
    ValueError: the codec is no `Centred`, or a layer cannot have a constant.
  """
  check_config(config)
  fix = 'give kvjax.Centred(kvjax.Affine(bits=4)), say.'
  check_type('codec', codec, Centred, fix)
  check_array('tokens', tokens, (None, None), jnp.integer)
  keys = [layer.attention.streams().get('key') for layer in config.layers]
  nothing = [key and np.zeros((key.heads, key.width)) for key in keys]
  # It stores keys where the codec would take its constant off.
  exact = dataclasses.replace(codec, codec=Plain(), constant=nothing, whole=0)
  rows, length = tokens.shape
  cache = init_cache(
    config, rows, length, jnp.float32, kinds=Dense(), codec=exact
  )
  _, cache = prefill(config, params, cache, tokens, lengths)
  is_token = (cache.books[0].positions >= codec.whole)[..., None]
  constant = [
    np.asarray(jnp.mean(store['key'], axis=(0, 2), where=is_token))
    if store
    else None
    for store in cache.stores
  ]
  return dataclasses.replace(codec, constant=constant)
