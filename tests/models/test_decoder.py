"""Layers as formulas, and whole models through a cache."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import kvjax
from kvjax.models.decoder import embed, run_layer, unembed
from kvjax.models.initialize import init_params
from tests.facts import tiny

NORM = kvjax.Norm(centered=True)
MIX = jax.random.normal(jax.random.key(3), (13, 13))


def formula(layer, p, x, scale):
  """Returns a layer's output by the order of its norms, written out."""
  norm = lambda name, h: NORM(p[name], h)
  attention, mlp = lambda h: h @ MIX, lambda h: layer.mlp(p['mlp'], h)
  if layer.parallel == 'shared':
    h = norm('attention_norm', x)
    return x + scale * (attention(h) + mlp(h))
  if layer.parallel == 'separate':
    a = attention(norm('attention_norm', x))
    return x + scale * (a + mlp(norm('mlp_norm', x)))
  for name, half in (('attention', attention), ('mlp', mlp)):
    h = x if layer.norms == 'post' else norm(f'{name}_norm', x)
    h = half(h)
    h = h if layer.norms == 'pre' else norm(f'{name}_post_norm', h)
    x = x + scale * h
  return x


def layer(attention=tiny.GQA, **more):
  """Returns a layer."""
  return kvjax.Layer(attention, kvjax.MLP(11), **more)


WINDOWED = dataclasses.replace(
  tiny.GQA, visibility=kvjax.Visibility(window=5), softcap=2.0
)
READER = dataclasses.replace(tiny.GQA, shared_from=0)
MODELS = {
  'parallel_shared': ((layer(parallel='shared'),), {'positions': 16}),
  'parallel_separate': (
    (layer(parallel='separate'),),
    {'residual_scale': 0.3, 'norm': NORM},
  ),
  'post': ((layer(norms='post'),), {'logit_scale': 0.4, 'head_bias': True}),
  'both': (
    (layer(WINDOWED, norms='both'), layer()),
    {'tied': True, 'logit_softcap': 3.0, 'embedding_scale': 3.6},
  ),
  'shared_streams': ((layer(), layer(tiny.MLA), layer(READER)), {}),
  'shared_window': (
    (
      layer(WINDOWED),
      layer(dataclasses.replace(WINDOWED, shared_from=0)),
    ),
    {},
  ),
  'alibi': ((layer(kvjax.Grouped(6, 1, 5, bias=kvjax.Alibi())),), {}),
  'sinks': ((layer(kvjax.Grouped(6, 3, 5, sinks=True)),), {}),
  'recent': (tiny.RECENT.layers, {'norm': tiny.RECENT.norm}),
}


@pytest.mark.parametrize(
  ('norms', 'parallel'),
  [
    ('pre', None),
    ('post', None),
    ('both', None),
    ('pre', 'shared'),
    ('pre', 'separate'),
  ],
)
def test_order_of_norms(norms, parallel, maybe_jit):
  made = layer(norms=norms, parallel=parallel)
  config = kvjax.ModelConfig(31, 13, (made,), norm=NORM)
  p = init_params(config, jax.random.key(0))['layers'][0]
  p = jax.tree.map(lambda x: x + 0.1, p)
  x = jax.random.normal(jax.random.key(1), (2, 3, 13))
  for scale in (1.0, 0.3):
    run = maybe_jit(
      lambda p, x, s=scale: run_layer(
        made, NORM, p, x, lambda h: (h @ MIX, 7), residual_scale=s
      )
    )
    got, extra = run(p, x)
    assert int(extra) == 7
    np.testing.assert_allclose(
      got, formula(made, p, x, scale), rtol=1e-5, atol=1e-5
    )


def xielu(z):
  """Returns equation 7 of arXiv 2411.13010 for beta 0.5, eps 0."""
  rise, fall = (np.log1p(np.exp(learned)) for learned in (0.3, -0.8))
  below = (np.exp(z) - 1) * (0.5 + fall) - (0.5 + fall) * z + 0.5 * z
  return np.where(z > 0, rise * z**2 + 0.5 * z, below)


def test_xielu_where_exp_has_no_number():
  """Two learned zeros: softplus gives ln 2."""
  mlp = kvjax.MLP(4, 'xielu', gated=False)
  p = mlp.init(jax.random.key(0), 4, jnp.float32)
  p |= {'up': jnp.eye(4), 'down': jnp.eye(4)}
  x = jnp.asarray([[1000.0, 2.0, 0.0, -1000.0]])
  ln2 = np.log(2)
  want = [1e6 * ln2 + 500, 4 * ln2 + 1, 0, 999 * (0.5 + ln2) - 500]
  np.testing.assert_allclose(mlp(p, x)[0], want, rtol=1e-6)
  slope = jax.grad(lambda x: mlp(p, x).sum())(x)
  want = [2000 * ln2 + 0.5, 4 * ln2 + 0.5, 0.5, -ln2]
  np.testing.assert_allclose(slope[0], want, rtol=1e-6)


def test_unknown_activations():
  known = 'gelu, gelu_tanh, relu, relu2, silu'
  with pytest.raises(ValueError, match=f"'sin'; known: {known}, xielu"):
    kvjax.MLP(11, 'sin')
  # Its learned numbers would be those of one expert.
  with pytest.raises(ValueError, match=f"'xielu'; known: {known}\\."):
    kvjax.Experts(4, 2, 11, activation='xielu')


@pytest.mark.parametrize('gated', [True, False])
@pytest.mark.parametrize('act', ['relu', 'relu2', 'silu', 'gelu_tanh', 'xielu'])
def test_mlp(gated, act, maybe_jit):
  mlp = kvjax.MLP(11, act, gated=gated, bias=True)
  p = mlp.init(jax.random.key(0), 13, jnp.float32)
  p = jax.tree.map(lambda x: x + 0.1, p)
  assert mlp.num_params(13) == sum(x.size for x in jax.tree.leaves(p))
  learned = {'rise': jnp.asarray([0.3]), 'fall': jnp.asarray([-0.8])}
  p |= learned if act == 'xielu' else {}
  x = jax.random.normal(jax.random.key(1), (2, 3, 13))
  f = {
    'relu': lambda z: np.maximum(z, 0),
    'relu2': lambda z: np.where(z > 0, z, 0) ** 2,
    'xielu': xielu,
    'silu': lambda z: z / (1 + np.exp(-z)),
    'gelu_tanh': lambda z: (
      z / 2 * (1 + np.tanh((2 / np.pi) ** 0.5 * (z + 0.044715 * z**3)))
    ),
  }[act]
  q = jax.tree.map(lambda x: np.asarray(x, np.float64), p)
  to = lambda n, h: h @ q[n].T + q[f'{n}_bias']
  up = to('up', np.asarray(x))
  hidden = f(to('gate', np.asarray(x))) * up if gated else f(up)
  got = maybe_jit(lambda p, x: mlp(p, x))(p, x)
  np.testing.assert_allclose(got, to('down', hidden), rtol=1e-4, atol=1e-5)


def test_the_two_ends():
  config = kvjax.ModelConfig(
    5,
    3,
    (layer(),),
    tied=True,
    embedding_scale=2.0,
    logit_scale=0.5,
    logit_softcap=1.5,
    positions=4,
    norm=kvjax.Norm(0.0),
  )
  table = jnp.arange(15.0).reshape(5, 3) - 7
  params = {
    'embedding': table,
    'positions': jnp.eye(4, 3),
    'norm': {'weight': jnp.ones(3)},
  }
  at = jnp.asarray([[2, 0]], jnp.int32)
  x = embed(config, params, jnp.asarray([[1, 4]], jnp.int32), at)
  np.testing.assert_allclose(x[0], [[-8, -6, -3], [11, 12, 14]])
  h = np.asarray(x[0]) / np.sqrt(
    (np.asarray(x[0]) ** 2).mean(-1, keepdims=True)
  )
  want = 1.5 * np.tanh(h @ np.asarray(table).T * 0.5 / 1.5)
  np.testing.assert_allclose(unembed(config, params, x)[0], want, rtol=1e-5)


@pytest.mark.parametrize(('layers', 'more'), MODELS.values(), ids=MODELS)
def test_cached_equals_uncached(layers, more):
  """In pieces of 8, 1 and 7, of one traced width, past every window."""
  config = kvjax.ModelConfig(tiny.VOCAB, 13, layers, **more)
  ids, params = tiny.tokens(2, 16), tiny.params(config)
  want = kvjax.forward(config, params, ids)
  cache = kvjax.init_cache(config, 2, 16, slack=3)
  got, cache = tiny.feed(config, cache, ids, (8, 1, 7))
  tiny.close(got, want)
  for index, made in enumerate(config.layers):
    shared = made.attention.shared_from is not None
    assert (cache.stores[index] == {}) == shared


def test_ragged_rows_of_forward():
  config = tiny.decoder()
  ids, params = tiny.tokens(2, 7), tiny.params(config)
  whole = kvjax.forward(config, params, ids)
  right = kvjax.forward(config, params, ids, lengths=[7, 4])
  tiny.close(right[1, :4], whole[1, :4])
  rolled = ids.at[1].set(jnp.roll(ids[1], 3))
  left = kvjax.forward(config, params, rolled, lengths=[7, 4], padding='left')
  tiny.close(left[1, 3:], whole[1, :4])
