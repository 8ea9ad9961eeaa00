"""One attention layer with its projections, against the layer of flax.nnx."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from experiments.measuring import clock, forms
from experiments.measuring.attention import normal
from experiments.measuring.clock import Entry, Expected, Pace
from experiments.measuring.model import (
  BLOCKWISE,
  TOLERANCE,
  ModelCase,
  array_bytes,
  filled,
)
from kvjax.attention.grouped import Grouped
from kvjax.interop.layer import attend
from kvjax.interop.weights import to_nnx
from kvjax.models.config import Layer, ModelConfig
from kvjax.models.initialize import init_params
from kvjax.models.mlp import MLP


@dataclasses.dataclass(frozen=True)
class LayerCase(ModelCase):
  """One token a row, in float32 and without rotation, which flax has not.

  The model has this layer only; `params` are those of its attention.
  """

  record = 'layer'

  @classmethod
  def of(cls, shape: Mapping[str, Any], batch: int, context: int):
    """Returns the case of a layer of a model of a shape."""
    attention = Grouped(
      shape['num_heads'], shape['num_kv_heads'], shape['key_width']
    )
    config = ModelConfig(1, shape['width'], (Layer(attention, MLP(1)),))
    params = init_params(config, jax.random.key(0))
    return cls(config, params['layers'][0]['attention'], batch, context)

  def entries(self, pace: Pace) -> dict[str, Entry]:
    slots = self.context + pace.room
    attention: Any = self.config.layers[0].attention
    (x,) = normal(1, (self.batch, 1, self.config.width))
    cache = filled(self, slots)
    share = self.context / cache.layout.capacity
    size = array_bytes(self.params) + round(share * array_bytes(cache.stores))

    def call(kernel):
      run = functools.partial(attend, attention, kernel=kernel)
      run = jax.jit(run, donate_argnames='cache')
      step = lambda cache: run(self.params, cache, x)
      return clock.stepped(step, filled(self, slots))

    expected = Expected(call(BLOCKWISE)(), size, TOLERANCE['float32'])

    def ours(kernel):
      return expected.runner(call(kernel), kernel)

    entries: dict[str, Entry] = {
      name: functools.partial(ours, kernel)
      for name, kernel, _ in forms.raced(pace, 'float32')
    }
    # flax reads every slot of its cache, whether or not the slot is filled.
    flax = lambda: expected.runner(_flax(self, slots, x))
    return entries | {'flax.nnx': flax}


def _flax(case: LayerCase, slots: int, x: jax.Array) -> clock.Call:
  """Returns a step of flax's layer, with the same weights and streams."""
  attention: Any = case.config.layers[0].attention
  width = case.config.width
  module: Any = nnx.MultiHeadAttention(
    attention.num_heads,
    width,
    attention.num_heads * attention.key_width,
    num_kv_heads=attention.num_kv_heads,
    use_bias=False,
    decode=True,
    rngs=nnx.Rngs(0),
  )
  to_nnx(attention, case.params, module)
  module.init_cache((case.batch, slots, width))
  empty = ((0, 0), (0, slots - case.context), (0, 0), (0, 0))
  for name in ('key', 'value'):
    tokens = jnp.swapaxes(case.streams[0][name], 1, 2)
    getattr(module, f'cached_{name}').set_value(jnp.pad(tokens, empty))
  module.cache_index.set_value(jnp.array(case.context, jnp.int32))
  graph, state = nnx.split(module)

  @functools.partial(jax.jit, donate_argnames='state')
  def step(state, x):
    module = nnx.merge(graph, state)
    return module(x), nnx.split(module)[1]

  return clock.stepped(functools.partial(step, x=x), state)
