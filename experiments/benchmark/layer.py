"""One attention layer, projections and all, beside flax.nnx's.

Ours is a step of a model with one layer, whose MLP is one unit wide and adds
nothing: embedding, norms and a head of few rows are all that it does besides,
and they stand around flax's layer too.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from experiments.measuring import clock
from experiments.measuring.clock import Runner
from experiments.measuring.model import (
  TOLERANCE,
  cache_read,
  filled,
  layer_streams,
  step_calls,
  weights_read,
)
from kvjax.attention.grouped import Grouped
from kvjax.kernels import available
from kvjax.models.config import Layer, ModelConfig
from kvjax.models.decoder import embed, unembed
from kvjax.models.initialize import init_params
from kvjax.models.mlp import MLP

VOCABULARY = 8


def measure(
  shape: Mapping[str, Any],
  batch: int,
  context: int,
  repeats: int,
  kernels: Sequence[str],
  room: int,
) -> dict[str, Any]:
  """Returns results of one token a row against a context of random streams.

  Args:
    shape: of a model of which this is a layer, in float32 and without rotation,
      which flax's has not.
    batch: B.
    context: tokens that the cache holds.
    repeats: turns of the race.
    kernels: of kvjax that take part, of those available.
    room: slots beyond the context; flax's reads them all.
  """
  config, params = _build(shape)
  streams = [layer_streams(config, batch, context, 0)]
  token = jnp.arange(batch, dtype=jnp.int32) % VOCABULARY
  size = weights_read(params)

  def ours(kernel):
    cache = filled(config, batch, context, streams, None, room)
    bytes_read = size + cache_read(cache, context)
    return step_calls(config, params, cache, token, kernel), bytes_read

  call, floor = ours('blockwise')
  want = call()

  def entry(kernel):
    call, _ = ours(kernel)
    return _runner(call, want, floor, kernel)

  def theirs():
    call = _flax(config, params, streams[0], token, context + room)
    return _runner(call, want, floor, '')

  entries: dict[str, Any] = {
    f'kvjax {kernel}': functools.partial(entry, kernel)
    for kernel, reason in available().items()
    if not reason and kernel in kernels and kernel != 'mosaic_gpu'
  }
  runners, skipped = clock.enter(entries | {'flax.nnx': theirs})
  return clock.race(runners, repeats) | skipped


def _runner(call, want, size, kernel) -> Runner:
  error = clock.difference(call(), want)
  return Runner(call, size, kernel, error, TOLERANCE['float32'])


def _build(shape: Mapping[str, Any]) -> tuple[ModelConfig, dict[str, Any]]:
  attention = Grouped(
    shape['num_heads'], shape['num_kv_heads'], shape['key_width']
  )
  layer = Layer(attention, MLP(1))
  config = ModelConfig(VOCABULARY, shape['width'], (layer,))
  params = init_params(config, jax.random.key(0))
  mlp = params['layers'][0]['mlp']
  mlp['down'] = jnp.zeros_like(mlp['down'])
  return config, params


def _flax(
  config: ModelConfig,
  params: Mapping[str, Any],
  streams: Mapping[Any, jax.Array],
  token: jax.Array,
  slots: int,
) -> Callable[[], Any]:
  """Returns a step of flax's layer, with the same weights and streams."""
  graph, state = nnx.split(_module(config, params, streams, slots))

  @functools.partial(jax.jit, donate_argnames='state')
  def step(state, params, token):
    x = embed(config, params, token[:, None], jnp.zeros_like(token)[:, None])
    norm = params['layers'][0]['attention_norm']
    module = nnx.merge(graph, state)
    x = x + module(config.norm(norm, x))
    return unembed(config, params, x)[:, 0], nnx.split(module)[1]

  held = [state]

  def call():
    logits, held[0] = step(held[0], params, token)
    return np.asarray(logits)

  return call


def _module(config, params, streams, slots) -> Any:
  attention: Any = config.layers[0].attention
  given, width = params['layers'][0]['attention'], config.width
  batch, _, context, head = streams['key'].shape
  module: Any = nnx.MultiHeadAttention(
    attention.num_heads,
    width,
    attention.num_heads * head,
    num_kv_heads=attention.num_kv_heads,
    use_bias=False,
    decode=True,
    rngs=nnx.Rngs(0),
  )
  for name in ('query', 'key', 'value'):
    heads = given[name].reshape(-1, head, width)
    getattr(module, name).kernel.set_value(jnp.moveaxis(heads, 2, 0))
  out = given['output'].reshape(width, -1, head)
  module.out.kernel.set_value(jnp.moveaxis(out, 0, 2))
  module.init_cache((batch, slots, width))
  for name in ('key', 'value'):
    tokens = jnp.swapaxes(streams[name], 1, 2)
    tokens = jnp.pad(tokens, ((0, 0), (0, slots - context), (0, 0), (0, 0)))
    getattr(module, f'cached_{name}').set_value(tokens)
  module.cache_index.set_value(jnp.array(context, jnp.int32))
  return module
