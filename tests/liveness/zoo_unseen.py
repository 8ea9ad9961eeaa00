"""Five programs of recent papers that the analyser was not written for.

Written down from the papers' formulas, then analysed once; docs/liveness.md
says what came of each.
"""

import jax
import jax.numpy as jnp

from tests.liveness import zoo
from tests.liveness.zoo import INF, D, Entry, H, weight


def project(x: jax.Array, seed: int = 0) -> list[jax.Array]:
  return [x @ weight(D, H, seed=seed + i) for i in range(3)]


def selective(x: jax.Array) -> jax.Array:
  """Selective attention (arXiv 2410.02703): tokens mask others for later ones.

  F[t, s] = sum over u < t of relu(S[u, s]), not for s = u, nor of the first.
  """
  q, k, v = project(x)
  past = zoo.causal(len(x))
  scores = q @ k.T
  chosen = jnp.where(past, jax.nn.relu(scores), 0.0)
  chosen = chosen.at[:, 0].set(0.0)
  chosen = jnp.where(jnp.eye(len(x), dtype=bool), 0.0, chosen)
  mask = jnp.cumsum(jnp.pad(chosen, ((1, 0), (0, 0)))[:-1], 0)
  return zoo.softmax_rows(scores - mask, past) @ v


def stick_breaking(x: jax.Array) -> jax.Array:
  """Stick-breaking attention (arXiv 2410.17980), equation 3."""
  q, k, v = project(x)
  before = jnp.tril(jnp.ones((len(x), len(x)), bool), -1)
  scores = jnp.where(before, q @ k.T, -1e9)
  left = jnp.where(before, jax.nn.log_sigmoid(-scores), 0.0)
  after = jnp.cumsum(left[:, ::-1], 1)[:, ::-1] - left
  weights = jnp.exp(jax.nn.log_sigmoid(scores) + after)
  return jnp.where(before, weights, 0.0) @ v


def indexed(x: jax.Array) -> jax.Array:
  """DeepSeek-V3.2's sparse attention: a small indexer chooses four keys."""
  q, k, v = project(x)
  past = zoo.causal(len(x))
  asks = (x @ weight(D, 2 * 3)).reshape(len(x), 2, 3)
  asked = x @ weight(D, 3, seed=4)
  gate = x @ weight(D, 2, seed=5)
  index = jax.nn.relu(jnp.einsum('THI,SI->THS', asks, asked))
  index = jnp.where(past, jnp.einsum('THS,TH->TS', index, gate), -jnp.inf)
  least = jax.lax.top_k(index, 4)[0][:, -1:]
  return zoo.softmax_rows(q @ k.T, past & (index >= least)) @ v


def value_residual(x: jax.Array) -> jax.Array:
  """ResFormer (arXiv 2410.17897): later layers mix in the first layer's v."""
  first = None
  for layer in range(2):
    q, k, v = project(x, seed=7 * layer)
    first = v if first is None else first
    v = 0.5 * v + 0.5 * first if layer else v
    out = zoo.softmax_rows(q @ k.T, zoo.causal(len(x))) @ v
    x = x + out @ weight(H, D, seed=layer)
  return x


def ssd(x: jax.Array) -> jax.Array:
  """Mamba-2 (arXiv 2405.21060), section 3: a scan with a scalar decay."""
  b, c, u = project(x)
  a = jax.nn.sigmoid(x @ weight(D, 1))[:, 0]

  def step(state, row):
    a, b, c, u = row
    state = a * state + jnp.outer(b, u)
    return state, c @ state

  return jax.lax.scan(step, jnp.zeros((H, H)), (a, b, c, u))[1]


ROW = 4 * H
KV = ((ROW, INF), (ROW, INF))

ENTRIES: dict[str, Entry] = {
    'selective': Entry({'plain': selective}, ((4, 1), *KV)),
    'stick_breaking': Entry({'plain': stick_breaking}, KV),
    'indexed': Entry({'plain': indexed}, ((12, INF), *KV)),
    'value_residual': Entry({'plain': value_residual}, (*KV, *KV)),
    'ssd': Entry({'plain': ssd}, ((ROW * H, 1),)),
}
