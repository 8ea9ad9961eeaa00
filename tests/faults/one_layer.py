"""A model of one layer, and short calls of it."""

import jax
import jax.numpy as jnp

import kvjax

V = 29
DEFAULTS = {'num_kv_heads': 2, 'key_width': 8, 'layers': 1, 'vocab_size': V}


def make_config(**changes: int) -> kvjax.ModelConfig:
  sizes = DEFAULTS | changes
  attention = kvjax.Grouped(4, sizes['num_kv_heads'], sizes['key_width'])
  layer = kvjax.Layer(attention, kvjax.MLP(11))
  return kvjax.ModelConfig(sizes['vocab_size'], 24, [layer] * sizes['layers'])


CONFIG = make_config()
PARAMS = kvjax.init_params(CONFIG, jax.random.key(0))
ONE = jnp.asarray([[1, 2, 3]], jnp.int32)
TWO = jnp.asarray([[1, 2, 3], [4, 5, 6]], jnp.int32)


def new_cache(rows: int = 1, **options: object) -> kvjax.Cache:
  return kvjax.init_cache(CONFIG, rows, 8, **options)


def fed(rows: int = 1) -> tuple[jax.Array, kvjax.Cache]:
  return kvjax.prefill(CONFIG, PARAMS, new_cache(rows), TWO[:rows])


def feed(tokens, cache=None, config=CONFIG, params=PARAMS, **options):
  cache = new_cache() if cache is None else cache
  return kvjax.extend(config, params, cache, tokens, **options)


def step(token, cache=None, config=CONFIG, params=PARAMS, **options):
  cache = fed()[1] if cache is None else cache
  return kvjax.decode_step(config, params, cache, token, **options)


def generate(num_tokens=3, logits=None, **options):
  first, cache = fed()
  logits = first if logits is None else logits
  return kvjax.generate(CONFIG, PARAMS, cache, logits, num_tokens, **options)


ID = jnp.asarray([1], jnp.int32)
