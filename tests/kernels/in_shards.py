"""Kernels inside the shards of a mesh of two devices, as JSON.

Runs in a process with two CPU devices: python -m tests.kernels.in_shards
"""

import importlib
import json
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType

import kvjax
from kvjax import kernels
from kvjax.memory import compile_call, measure, plan
from kvjax.sharding import Rules, of_cache, of_params

ROWS, CAPACITY = 1, 128
ATTENTION = kvjax.Grouped(2, 1, 64, rotary=kvjax.Rotary(64))
LAYER = kvjax.Layer(ATTENTION, kvjax.MLP(24))
CONFIG = kvjax.ModelConfig(54, 32, (LAYER,), dtype='bfloat16')
RULES = Rules(heads='context', slots='context')
MESH = jax.make_mesh((2,), ('context',), axis_types=(AxisType.Auto,))
# JAX checks, when one device is done, that no device holds a barrier.
CALLBACKS = importlib.import_module(
  'jax._src.pallas.mosaic_gpu.interpret.gpu_callbacks'
)
no_check = mock.patch.object(
  CALLBACKS, '_assert_no_barriers_allocated', lambda token: token
)


def main() -> None:
  params = kvjax.init_params(CONFIG, jax.random.key(0))
  split = jax.device_put(params, of_params(CONFIG, MESH, RULES))
  prompt = jax.random.randint(jax.random.key(1), (ROWS, 90), 0, 54)
  cache = kvjax.init_cache(CONFIG, ROWS, CAPACITY, mesh=MESH, rules=RULES)
  alone = kvjax.init_cache(CONFIG, ROWS, CAPACITY)

  def decode(params, cache, kernel):
    _, cache = kvjax.prefill(CONFIG, params, cache, prompt)
    token = jnp.array([3], jnp.int32)
    logits, _ = kvjax.decode_step(CONFIG, params, cache, token, kernel=kernel)
    return np.asarray(logits).tolist()

  blockwise = decode(params, alone, 'blockwise')
  with no_check, kernels.interpreted():
    interpreted = decode(split, cache, 'mosaic_gpu')
  sizes = {'batch_size': ROWS, 'capacity': CAPACITY}
  options = {**sizes, 'mesh': MESH, 'rules': RULES}
  found = {
    'logits': {'one device': blockwise, 'shards': interpreted},
    'lowered': {
      'cuda': lower('gpu', 'cuda', 'mosaic_gpu'),
      'tpu': lower('tpu', 'tpu', None),
    },
    'alias': measure(compile_call(CONFIG, **options)).alias,
    'planned': plan(CONFIG, **options).cache_bytes,
  }
  print(json.dumps(found))


def lower(target: str, platform: str, kernel: str | None) -> str:
  """Returns the text of a step that is lowered for absent devices."""
  options = {'batch_size': ROWS, 'capacity': CAPACITY}
  given = jax.tree.map(
    lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place),
    jax.eval_shape(
      lambda: (
        kvjax.init_params(CONFIG, jax.random.key(0)),
        kvjax.init_cache(CONFIG, ROWS, CAPACITY, mesh=MESH, rules=RULES),
      )
    ),
    (
      of_params(CONFIG, MESH, RULES),
      of_cache(CONFIG, MESH, RULES, **options),
    ),
  )

  def step(params, cache, token):
    return kvjax.decode_step(CONFIG, params, cache, token, kernel=kernel)

  with kernels.targeting(target):
    traced = jax.jit(step).trace(*given, jnp.zeros(ROWS, jnp.int32))
    return traced.lower(lowering_platforms=(platform,)).as_text()


if __name__ == '__main__':
  main()
