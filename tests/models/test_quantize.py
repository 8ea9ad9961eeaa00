"""Eight-bit weights: what is coded, and that products read it as it decodes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import kvjax
from kvjax.kernels.matmul import cpu_library
from kvjax.layers.int8_weight import CodedWeight
from kvjax.layers.linear import matmul
from tests.facts import tiny

GQA = kvjax.Grouped(4, 2, 16, rotary=kvjax.Rotary(16), projection_bias=True)
MLA = kvjax.Latent(3, 32, 16, 16, rotary=kvjax.Rotary(16), query_rank=16)
EXPERTS = kvjax.Experts(5, 2, 32, shared=kvjax.MLP(48), bias=True)
LAYERS = kvjax.Layer(GQA, EXPERTS), kvjax.Layer(MLA, kvjax.MLP(64))
CONFIG = kvjax.ModelConfig(53, 64, LAYERS, tied=True)


def is_coded(leaf):
  return isinstance(leaf, CodedWeight)


def decoded(params):
  """Returns the float params that the codes stand for."""

  def one(x):
    if is_coded(x) and x.bits == 4:
      return x[...]
    return x.codes.astype(x.dtype) * x.scale[..., None] if is_coded(x) else x

  return jax.tree.map(one, params, is_leaf=is_coded)


def places(params):
  """Returns the paths of what is coded, without the names of lists."""
  found = jax.tree.leaves_with_path(params, is_leaf=is_coded)
  path = lambda k: jax.tree_util.keystr(k, simple=True, separator='.')
  return {path(k).removeprefix('layers.') for k, x in found if is_coded(x)}


def test_a_line_has_its_own_scale_and_zeros_stay_zeros():
  weight = jnp.asarray([[1.27, -0.5, 0.301], [0, 0, 0], [-254, 2, 0.9]])
  found = kvjax.quantize({'up': weight})['up']
  want = [[127, -50, 30], [0, 0, 0], [-127, 1, 0]]
  np.testing.assert_array_equal(found.codes, want)
  np.testing.assert_allclose(found.scale, [0.01, 1, 2], rtol=1e-6)
  assert found.codes.dtype == jnp.int8 and found.scale.dtype == jnp.float32
  assert found.shape == (3, 3) and found.nbytes == 9 + 12


@pytest.mark.parametrize('kernel', [None, 'blockwise'])
def test_a_coded_model_is_the_float_model_that_it_decodes_to(
  kernel, monkeypatch
):
  """Prefilled by plain products, then decoded: by the library where it is."""
  monkeypatch.setattr(cpu_library, 'SMALL', 0)
  params = kvjax.quantize(kvjax.init_params(CONFIG, jax.random.key(0)))
  tokens = jax.random.randint(jax.random.key(1), (2, 11), 0, 53)
  want = kvjax.forward(CONFIG, decoded(params), tokens)
  cache = kvjax.init_cache(CONFIG, 2, 16)
  start = tokens[:, :9]
  found, cache = kvjax.prefill(CONFIG, params, cache, start, kernel=kernel)
  tiny.close(found, want[:, 8])
  for i in (9, 10):
    token = tokens[:, i]
    found, cache = kvjax.decode_step(
      CONFIG, params, cache, token, kernel=kernel
    )
    tiny.close(found, want[:, i])


@pytest.mark.parametrize('kernel', [None, 'blockwise'])
def test_a_model_in_four_bits_is_the_float_model_that_it_decodes_to(
  kernel, monkeypatch
):
  """And the plan counts it to the byte; experts and MLA among it."""
  monkeypatch.setattr(cpu_library, 'SMALL', 0)
  attention = kvjax.Grouped(4, 2, 16, rotary=kvjax.Rotary(16))
  latent = kvjax.Latent(4, 32, 16, 16, rotary=kvjax.Rotary(16), query_rank=32)
  layers = (
    kvjax.Layer(attention, kvjax.Experts(5, 2, 32, shared=kvjax.MLP(64))),
    kvjax.Layer(latent, kvjax.MLP(64)),
  )
  config = kvjax.ModelConfig(53, 64, layers, tied=True)
  params = kvjax.init_params(config, jax.random.key(0))
  params = kvjax.quantize(params, bits=4)
  plan = kvjax.memory.plan(config, batch_size=1, capacity=1, param_dtype='int4')
  assert plan.params_bytes == sum(x.nbytes for x in jax.tree.leaves(params))
  tokens = jax.random.randint(jax.random.key(1), (1, 5), 0, 53)
  want = kvjax.forward(config, decoded(params), tokens)
  cache = kvjax.init_cache(config, 1, 8)
  _, cache = kvjax.prefill(config, params, cache, tokens[:, :4], kernel=kernel)
  found, _ = kvjax.decode_step(
    config, params, cache, tokens[:, 4], kernel=kernel
  )
  np.testing.assert_allclose(found, want[:, 4], atol=1e-4 * np.abs(want).max())


def test_four_bits_need_whole_blocks():
  params = {'layers': [{'mlp': {'up': jnp.ones((3, 48))}}]}
  with pytest.raises(ValueError, match=r'mlp\.up has 48 inputs: blocks of 32'):
    kvjax.quantize(params, bits=4)
  with pytest.raises(ValueError, match='bits=3 must be 8 or 4'):
    kvjax.quantize(params, bits=3)


def test_a_recent_model():
  """A gate of one channel stays a float, as a router does."""
  config = tiny.RECENT
  coded = kvjax.quantize(tiny.params(config))
  names = {place.rpartition('.')[2] for place in places(coded)}
  assert names == {
    *('query', 'key', 'value', 'output', 'gate', 'up', 'down', 'head')
  }
  ids = tiny.tokens(2, 9)
  want = kvjax.forward(config, decoded(coded), ids)
  cache = kvjax.init_cache(config, 2, 9)
  found, cache = kvjax.prefill(config, coded, cache, ids[:, :8])
  tiny.close(found, want[:, 7])
  found, _ = kvjax.decode_step(config, coded, cache, ids[:, 8])
  tiny.close(found, want[:, 8])


def test_a_tied_table_is_looked_up_and_multiplied_through_its_codes():
  """Activations have the dtype of the weight that the codes stand for."""
  reader = kvjax.Grouped(2, 2, 8, visibility=kvjax.Visibility(causal=False))
  layer = kvjax.Layer(reader, kvjax.MLP(11))
  config = kvjax.ModelConfig(
    31, 13, (layer,), tied=True, encoder=kvjax.Encoder((layer,))
  )
  params = kvjax.quantize(kvjax.init_params(config, jax.random.key(0)))
  source = jax.random.randint(jax.random.key(1), (2, 5), 0, 31)
  found = kvjax.encode(config, params, source).hidden
  tiny.close(found, kvjax.encode(config, decoded(params), source).hidden)
  narrow = jax.tree.map(lambda x: x.astype(jnp.bfloat16), decoded(params))
  table = kvjax.quantize(narrow)['embedding']
  assert table[source].dtype == jnp.bfloat16


def test_what_is_no_projection_stays_as_it_was():
  params = kvjax.init_params(CONFIG, jax.random.key(0))
  assert places(kvjax.quantize(params)) == {
    'embedding',
    *(f'0.attention.{x}' for x in ('query', 'key', 'value', 'output')),
    *(f'0.mlp.{x}' for x in ('gate', 'up', 'down')),
    *(f'0.mlp.shared.{x}' for x in ('gate', 'up', 'down')),
    *(f'1.attention.{x}' for x in ('query_down', 'query', 'latent', 'output')),
    *(f'1.mlp.{x}' for x in ('gate', 'up', 'down')),
  }
  untied = params | {'head': params['embedding']}
  assert {'head', 'embedding'} & places(kvjax.quantize(untied)) == {'head'}


def test_what_cannot_be_coded_is_refused_by_its_place():
  params = {'layers': [{'mlp': {'up': jnp.ones((3, 5))}}]}
  once = kvjax.quantize(params)
  with pytest.raises(
    ValueError, match=r'layers\.0\.mlp\.up is quantized already'
  ):
    kvjax.quantize(once)
  params['layers'][0]['mlp']['up'] = jnp.ones((3, 5), jnp.int32)
  with pytest.raises(ValueError, match=r'mlp\.up is int32: .*floating'):
    kvjax.quantize(params)


def test_a_gradient_passes_through_codes_and_not_to_them():
  weight = kvjax.quantize({'up': jnp.eye(32, 48)})['up']
  loss = lambda rows, weight: jnp.sum(matmul(rows, weight)[:, 3])
  rows = jnp.ones((2, 48))
  found = jax.grad(loss)(rows, weight)
  np.testing.assert_array_equal(found, jnp.eye(48)[3][None].repeat(2, 0))
  with pytest.raises(TypeError, match='int8'):
    jax.grad(loss, 1)(rows, weight)
