"""Sums over the past that are written as masked products keep a state."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kvjax import liveness
from tests.liveness import zoo, zoo_mixers
from tests.liveness.zoo import D, H, weight

E = 5


def past(T: int) -> jax.Array:
  """Returns [T, T] how far a key is behind the query."""
  i = jnp.arange(T)
  return i[:, None] - i[None, :]


def normalised(x: jax.Array) -> jax.Array:
  q, k, v = zoo_mixers.features(x)
  scores = jnp.where(zoo.causal(len(x)), q @ k.T, 0.0)
  return (scores @ v) / scores.sum(-1, keepdims=True) @ weight(H, D)


def linear(x: jax.Array) -> jax.Array:
  q, k, v = zoo_mixers.features(x)
  mask = jnp.tril(jnp.ones((len(x), len(x))))
  scores = jnp.einsum('th,sh->ts', q, k)
  return jnp.einsum('ts,se->te', scores * mask, v)


def mean(x: jax.Array) -> jax.Array:
  mask = jnp.tril(jnp.ones((len(x), len(x))))
  return (mask / mask.sum(1, keepdims=True)) @ (x @ weight(D, H))


def retention(x: jax.Array) -> jax.Array:
  """RetNet's parallel form (arXiv 2307.08621), equation 5, three heads."""
  T, back = len(x), past(len(x))
  rate = jnp.array([0.9, 0.7, 0.5])[:, None, None]
  far = jnp.broadcast_to(jnp.maximum(back, 0).astype(jnp.float32), (3, T, T))
  decay = jnp.where(jnp.broadcast_to(back >= 0, far.shape), rate**far, 0.0)
  q, k = (
    zoo.rotate((x @ weight(D, 3 * H, seed=i)).reshape(T, 3, H)) for i in (0, 1)
  )
  v = (x @ weight(D, 3 * E, seed=2)).reshape(T, 3, E)
  scores = jnp.einsum('tnh,snh->nts', q, k) * decay
  return jnp.einsum('nts,sne->tne', scores, v).reshape(T, -1)


def window(x: jax.Array) -> jax.Array:
  """No row is a multiple of the one before: it stays a product."""
  q, k, v = zoo_mixers.features(x)
  back = past(len(x))
  return jnp.where((back >= 0) & (back < 3), q @ k.T, 0.0) @ v


@pytest.mark.parametrize(
  'program, states',
  [
    (linear, [4 * H * H]),
    (normalised, [4 * H, 4 * H * H]),
    (mean, [4 * H]),
    (retention, [4 * 3 * H * E]),
  ],
  ids=lambda value: getattr(value, '__name__', None),
)
def test_keeps_one_state_and_runs_it(
  program: zoo.Program, states: list[int]
) -> None:
  report = liveness.analyze(program, weight(8, D) * 3)
  kept = sorted(
    (r.bytes_per_token, r.live_for) for r in report.tensors if r.kept
  )
  assert kept == [(size, 1) for size in states], report
  assert report.bytes_per_token == 0
  assert 'a sum over the past' in report.notes[0]
  init, extend = liveness.derive(program, weight(8, D))
  x = weight(13, D, seed=5)
  y, cache = jax.jit(extend)(init(13), x)
  np.testing.assert_allclose(y, program(x), rtol=2e-4, atol=2e-5)
  assert sorted(leaf.nbytes for leaf in cache.streams.values()) == states


def test_a_window_stays_a_window() -> None:
  report = liveness.analyze(window, weight(8, D) * 3)
  kept = [(r.bytes_per_token, r.live_for) for r in report.tensors if r.kept]
  assert kept == [(4 * H, 2)] * 2
  assert not [n for n in report.notes if 'sum over' in n]
