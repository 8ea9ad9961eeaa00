"""One attention layer with its projections, against the layer of flax.nnx.

The layer of kvjax is a step of a model with one layer, whose MLP is one unit
wide and adds nothing. An embedding, norms and a head of few rows remain, and
they stand around flax's layer too.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from experiments.measuring import clock
from experiments.measuring.clock import Entry, Pace
from experiments.measuring.model import (
  BLOCKWISE,
  ModelCase,
  filled,
  step_calls,
)
from kvjax.attention.grouped import Grouped
from kvjax.models.config import Layer, ModelConfig
from kvjax.models.decoder import embed, unembed
from kvjax.models.initialize import init_params
from kvjax.models.mlp import MLP

VOCABULARY = 8


@dataclasses.dataclass(frozen=True)
class LayerCase(ModelCase):
  """One token a row, in float32 and without rotation, which flax has not."""

  record = 'layer'

  @classmethod
  def of(cls, shape: Mapping[str, Any], batch: int, context: int):
    """Returns the case of a layer of a model of a shape."""
    attention = Grouped(
      shape['num_heads'], shape['num_kv_heads'], shape['key_width']
    )
    layer = Layer(attention, MLP(1))
    config = ModelConfig(VOCABULARY, shape['width'], (layer,))
    params = init_params(config, jax.random.key(0))
    mlp = params['layers'][0]['mlp']
    mlp['down'] = jnp.zeros_like(mlp['down'])
    return cls(config, params, batch, context)

  def entries(self, pace: Pace) -> dict[str, Entry]:
    slots = self.context + pace.room

    cache = filled(self, slots)
    size = self.read(cache)
    expected = self.expected(step_calls(self, cache, BLOCKWISE)(), size)

    def ours(kernel):
      call = step_calls(self, filled(self, slots), kernel)
      return expected.runner(call, kernel)

    entries: dict[str, Entry] = {
      f'kvjax {kernel}': functools.partial(ours, kernel)
      for kernel in pace.usable()
      if kernel != 'mosaic_gpu'
    }
    # flax reads every slot of its cache, whether or not the slot is filled.
    return entries | {'flax.nnx': lambda: expected.runner(_flax(self, slots))}


def _flax(case: LayerCase, slots: int) -> clock.Call:
  """Returns a step of flax's layer, with the same weights and streams."""
  config = case.config
  graph, state = nnx.split(_module(case, slots))

  @functools.partial(jax.jit, donate_argnames='state')
  def run(state, params, token):
    x = embed(config, params, token[:, None], jnp.zeros_like(token)[:, None])
    norm = params['layers'][0]['attention_norm']
    module = nnx.merge(graph, state)
    x = x + module(config.norm(norm, x))
    return unembed(config, params, x)[:, 0], nnx.split(module)[1]

  step = functools.partial(run, params=case.params, token=case.token)
  return clock.queued(clock.carry_state(step, state), 1, np.asarray)


def _module(case: LayerCase, slots: int) -> Any:
  attention: Any = case.config.layers[0].attention
  weights = case.params['layers'][0]['attention']
  width, head = case.config.width, attention.key_width
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
    heads = weights[name].reshape(-1, head, width)
    getattr(module, name).kernel.set_value(jnp.moveaxis(heads, 2, 0))
  output = weights['output'].reshape(width, -1, head)
  module.out.kernel.set_value(jnp.moveaxis(output, 0, 2))
  module.init_cache((case.batch, slots, width))
  empty = ((0, 0), (0, slots - case.context), (0, 0), (0, 0))
  for name in ('key', 'value'):
    tokens = jnp.swapaxes(case.streams[0][name], 1, 2)
    getattr(module, f'cached_{name}').set_value(jnp.pad(tokens, empty))
  module.cache_index.set_value(jnp.array(case.context, jnp.int32))
  return module
