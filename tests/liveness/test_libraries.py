"""Attention of JAX, Flax NNX and Flax Linen, analysed as they are."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from kvjax import liveness
from tests.liveness import zoo

D, N, H = 12, 3, 4


def kept(report: liveness.LivenessReport) -> list[tuple[int, float]]:
  return sorted(
    (r.bytes_per_token, r.live_for) for r in report.tensors if r.kept
  )


def test_jax_nn() -> None:
  w = [zoo.weight(D, N * H, seed=i) for i in range(3)]

  def program(x: jax.Array) -> jax.Array:
    q, k, v = ((x @ a).reshape(1, -1, N, H) for a in w)
    out = jax.nn.dot_product_attention(q, k, v, is_causal=True)
    return out.reshape(x.shape[0], N * H)

  def biased(x: jax.Array) -> jax.Array:
    """A mask and a bias of the caller's, no batch, one product for all."""
    q, k, v = jnp.split((x @ jnp.concatenate(w, 1)).reshape(-1, 3, N, H), 3, 1)
    mask = zoo.causal(len(x))[None]
    bias = jnp.zeros((1, len(x), len(x)))
    parts = (a[:, 0] for a in (q, k, v))
    out = jax.nn.dot_product_attention(*parts, bias, mask)
    return out.reshape(x.shape[0], N * H)

  for spelling in (program, biased):
    report = liveness.analyze(spelling, zoo.weight(8, D))
    assert report.causal
    assert kept(report) == [(N * H * 4, math.inf)] * 2


def test_jax_nn_window_and_groups() -> None:
  wq = zoo.weight(D, 4 * H)
  wkv = zoo.weight(D, 2 * 2 * H)

  def program(x: jax.Array) -> jax.Array:
    q = (x @ wq).reshape(1, -1, 4, H)
    k, v = jnp.split((x @ wkv).reshape(1, -1, 2, 2 * H), 2, -1)
    out = jax.nn.dot_product_attention(
      q, k, v, is_causal=True, local_window_size=(3, 0)
    )
    return out.reshape(x.shape[0], 4 * H)

  report = liveness.analyze(program, zoo.weight(8, D))
  assert kept(report) == [(2 * H * 4, 3)] * 2


def test_nnx() -> None:
  layer = nnx.MultiHeadAttention(
    N, D, decode=False, use_bias=True, rngs=nnx.Rngs(0)
  )

  def program(x: jax.Array) -> jax.Array:
    mask = nnx.make_causal_mask(x[..., 0])
    return layer(x, mask=mask)

  x = zoo.weight(1, 8, D)
  for spelling in (program, jax.vmap(program)):
    report = liveness.analyze(spelling, x, axis=1)
    assert report.causal
    assert kept(report) == [(D * 4, math.inf)] * 2


def test_linen() -> None:
  layer = nn.MultiHeadDotProductAttention(num_heads=N, qkv_features=D)
  x = zoo.weight(1, 8, D)
  params = layer.init(jax.random.key(0), x)

  def program(x: jax.Array) -> jax.Array:
    return layer.apply(params, x, mask=nn.make_causal_mask(x[..., 0]))

  for spelling in (program, jax.vmap(program)):
    report = liveness.analyze(spelling, x, axis=1)
    assert report.causal
    assert kept(report) == [(D * 4, math.inf)] * 2
  init, extend = liveness.derive(program, x, axis=1)
  y, _ = jax.jit(extend)(init(11), zoo.weight(1, 11, D))
  np.testing.assert_allclose(
    y, program(zoo.weight(1, 11, D)), rtol=1e-4, atol=1e-5
  )
