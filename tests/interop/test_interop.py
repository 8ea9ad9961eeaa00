"""Flax's modules: weights there and back, their own decode, caches in them."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx

import kvjax
from kvjax import interop

BATCH, LENGTH, WIDTH = 2, 5, 14


def draw(tree: Any) -> Any:
  """Returns random leaves of the same shapes: no bias is zero, no norm one."""
  rng = np.random.default_rng(0)
  return jax.tree.map(
    lambda x: jnp.asarray(rng.normal(size=x.shape) * 0.4, x.dtype), tree
  )


def activations() -> jax.Array:
  x = np.random.default_rng(1).normal(size=(BATCH, LENGTH, WIDTH))
  return jnp.asarray(x, jnp.float32)


def through_kvjax(variant, params, x, **options):
  cache = interop.init_cache(variant, BATCH, LENGTH, **options)
  attend = jax.jit(interop.attend, static_argnums=0)
  found = []
  for t in range(LENGTH):
    y, cache = attend(variant, params, cache, x[:, t : t + 1])
    found.append(np.asarray(y))
  return np.concatenate(found, axis=1)


def nnx_module(**options):
  module = nnx.MultiHeadAttention(
    6, WIDTH, qkv_features=18, rngs=nnx.Rngs(0), **options
  )
  nnx.update(module, draw(nnx.state(module, nnx.Param)))
  return module


def same(a, b):
  assert jax.tree.structure(a) == jax.tree.structure(b)
  jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.mark.parametrize(
  'options',
  [{'num_kv_heads': 2}, {'normalize_qk': True, 'use_bias': False}],
  ids=['gqa', 'mha_normed'],
)
def test_nnx_decodes_the_same(options):
  """Their own decode never with is_causal: then it sees key 0 alone."""
  module, x = nnx_module(**options), activations()
  variant, params = interop.from_nnx(module)
  assert variant.num_kv_heads == options.get('num_kv_heads', 6)
  module.init_cache(x.shape)
  decode = nnx.jit(lambda module, x: module(x, decode=True))
  theirs = [decode(module, x[:, t : t + 1]) for t in range(LENGTH)]
  ours = through_kvjax(variant, params, x)
  np.testing.assert_allclose(ours, np.concatenate(theirs, 1), atol=1e-5)
  other = nnx.MultiHeadAttention(
    6, WIDTH, qkv_features=18, rngs=nnx.Rngs(1), **options
  )
  same(interop.from_nnx(interop.to_nnx(variant, params, other))[1], params)


def test_linen_decodes_the_same():
  x = activations()
  module = linen.MultiHeadDotProductAttention(3, qkv_features=15, decode=True)
  variables = module.init(jax.random.key(0), x)
  weights, state = draw(variables['params']), variables['cache']
  variant, params = interop.from_linen(weights)
  same(interop.to_linen(variant, params), weights)

  @jax.jit
  def decode(state, x):
    inputs = {'params': weights, 'cache': state}
    y, new = module.apply(inputs, x, mutable=['cache'])
    return y, new['cache']

  theirs = []
  for t in range(LENGTH):
    y, state = decode(state, x[:, t : t + 1])
    theirs.append(y)
  ours = through_kvjax(variant, params, x)
  np.testing.assert_allclose(ours, np.concatenate(theirs, 1), atol=1e-5)


class NnxAttention(nnx.Module):
  """An nnx module that remembers in a kvjax cache."""

  def __init__(self, module: nnx.MultiHeadAttention, cache: kvjax.Cache):
    self.variant, params = interop.from_nnx(module)
    self.params = nnx.data(jax.tree.map(nnx.Param, params))
    self.leaves = nnx.data([nnx.Cache(x) for x in jax.tree.leaves(cache)])
    self.treedef = jax.tree.structure(cache)

  def __call__(self, x: jax.Array) -> jax.Array:
    cache = self.treedef.unflatten([leaf[...] for leaf in self.leaves])
    params = jax.tree.map(
      lambda p: p[...], self.params, is_leaf=lambda p: isinstance(p, nnx.Param)
    )
    y, cache = interop.attend(self.variant, params, cache, x)
    for leaf, new in zip(self.leaves, jax.tree.leaves(cache), strict=True):
      leaf[...] = new
    return y


class LinenAttention(linen.Module):
  """A linen module that remembers in a kvjax cache."""

  variant: kvjax.Grouped
  kind: kvjax.Kind
  capacity: int

  @linen.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    make = lambda key: self.variant.init(key, x.shape[-1], x.dtype)
    params = self.param('attention', make)
    cache = self.variable(
      'cache',
      'kv',
      interop.init_cache,
      self.variant,
      x.shape[0],
      self.capacity,
      kinds=self.kind,
    )
    y, new = interop.attend(self.variant, params, cache.value, x)
    if not self.is_initializing():
      cache.value = new
    return y


def test_a_cache_inside_modules():
  """A ring in each: they agree with each other, and with a full window."""
  module, x = nnx_module(num_kv_heads=2), activations()
  variant, params = interop.from_nnx(module)
  ring = kvjax.Ring(window=3)
  want = through_kvjax(
    dataclasses.replace(variant, visibility=kvjax.Visibility(window=3)),
    params,
    x,
    kinds=kvjax.Dense(),
  )
  inside = NnxAttention(
    module, interop.init_cache(variant, BATCH, LENGTH, kinds=ring)
  )
  call = nnx.jit(lambda module, x: module(x))
  found = [call(inside, x[:, t : t + 1]) for t in range(LENGTH)]
  np.testing.assert_allclose(np.concatenate(found, 1), want, atol=1e-5)

  linen_module = LinenAttention(variant, ring, LENGTH)
  state = linen_module.init(jax.random.key(0), x[:, :1])
  assert int(state['cache']['kv'].length[0]) == 0
  state, found = {'params': {'attention': params}, 'cache': state['cache']}, []
  step = jax.jit(lambda s, x: linen_module.apply(s, x, mutable=['cache']))
  for t in range(LENGTH):
    y, new = step(state, x[:, t : t + 1])
    state = state | new
    found.append(y)
  np.testing.assert_allclose(np.concatenate(found, 1), want, atol=1e-5)


def test_rows_that_overflow_are_nan():
  variant = kvjax.Grouped(2, 1, 3)
  params = variant.init(jax.random.key(0), WIDTH, jnp.float32)
  cache = interop.init_cache(variant, BATCH, LENGTH - 1)
  active = jnp.ones((BATCH, LENGTH), bool).at[1, 2:].set(False)
  y, cache = interop.attend(variant, params, cache, activations(), active)
  assert np.isnan(y[0]).all() and np.isfinite(y[1, :2]).all()
  assert cache.length.tolist() == [0, 2]


def test_refusals():
  module = nnx_module()
  weights = nnx.to_pure_dict(nnx.state(module, nnx.Param))
  with pytest.raises(ValueError, match="params have .'query'.; an"):
    interop.from_linen({'query': weights['query']})
  wide = weights | {'key': {'kernel': jnp.zeros((9, 6, 3))}}
  with pytest.raises(ValueError, match='key reads 9 features and query 14'):
    interop.from_linen(wide)
  narrow = weights | {'out': {'kernel': jnp.zeros((6, 3, 4))}}
  with pytest.raises(ValueError, match='out makes 4 features of 14'):
    interop.from_linen(narrow)
  variant, params = interop.from_nnx(module)
  for name, value in {
    'softcap': 5.0,
    'clip': 0.5,
    'temperature': kvjax.Temperature(0.1, length=8),
    'qk_norm': kvjax.Norm(centered=True, weighted=False),
  }.items():
    other = dataclasses.replace(variant, **{name: value})
    with pytest.raises(
      ValueError, match=f'{name}=.*: attention of Flax has no'
    ):
      interop.to_linen(other, params)
  with pytest.raises(ValueError, match='params are quantized.*floating'):
    interop.to_linen(variant, kvjax.quantize(params))
  with pytest.raises(ValueError, match='The module has weights'):
    interop.to_nnx(variant, params, nnx_module(num_kv_heads=2))
  kind = kvjax.Bounded(budget=3, prefill='chunks')
  cache = interop.init_cache(variant, BATCH, LENGTH, kinds=kind)
  with pytest.raises(ValueError, match='5 tokens at once.*evicts every 1'):
    interop.attend(variant, params, cache, activations())
