"""Programs written down after the analyser: one spelling each, no names.

RWKV (arXiv 2305.13048), gated delta nets (2412.06464), the differential
transformer (2410.05258), the forgetting transformer (2503.02130), attention
sinks (2309.17453), chunked attention (Llama 4), top-k scores, ALiBi
(2108.12409), mixtures of experts.
"""

import jax
import jax.numpy as jnp

from tests.liveness import zoo
from tests.liveness.zoo import INF, D, Entry, H, K, N, weight


def project(x: jax.Array) -> list[jax.Array]:
  return [x @ weight(D, H, seed=i) for i in range(3)]


def past(T: int) -> jax.Array:
  """Returns [T, T] how far a key is behind the query."""
  i = jnp.arange(T)
  return i[:, None] - i[None, :]


def rwkv(x: jax.Array) -> jax.Array:
  before = jnp.pad(x[:-1], ((1, 0), (0, 0)))
  mixed, other = x * 0.3 + before * 0.7, x * 0.7 + before * 0.3
  k, v = mixed @ weight(D, H), other @ weight(D, H, seed=1)

  def step(carry, row):
    a, b, p = carry
    k, v = row
    top = jnp.maximum(p, k)
    old, new = jnp.exp(p - top), jnp.exp(k - top)
    out = (old * a + new * v) / (old * b + new)
    top = jnp.maximum(p - 0.5, k)
    old, new = jnp.exp(p - 0.5 - top), jnp.exp(k - top)
    return (old * a + new * v, old * b + new, top), out

  zero = jnp.zeros(H)
  return jax.lax.scan(step, (zero, zero, zero - 1e30), (k, v))[1]


def gated_delta(x: jax.Array) -> jax.Array:
  q, k, v = project(x)
  k = k / jnp.linalg.norm(k, axis=-1, keepdims=True)
  beta, alpha = (jax.nn.sigmoid(x @ weight(D, 1, seed=i))[:, 0] for i in (3, 4))

  def step(state, row):
    q, k, v, a, b = row
    state = a * (state - b * jnp.outer(k, k @ state)) + b * jnp.outer(k, v)
    return state, q @ state

  return jax.lax.scan(step, jnp.zeros((H, H)), (q, k, v, alpha, beta))[1]


def differential(x: jax.Array) -> jax.Array:
  T = x.shape[0]
  q, k = (
    (x @ weight(D, 2 * N * H, seed=i)).reshape(T, 2, N, H) for i in (0, 1)
  )
  v = (x @ weight(D, N * H)).reshape(T, N, H)
  scores = jnp.einsum('TCNH,SCNH->CNTS', q, k)
  p = zoo.softmax_rows(scores, jnp.broadcast_to(zoo.causal(T), scores.shape))
  return jnp.einsum('NTS,SNE->TNE', p[0] - 0.4 * p[1], v)


def forgetting(x: jax.Array) -> jax.Array:
  q, k, v = project(x)
  gate = jnp.cumsum(jax.nn.log_sigmoid(x @ weight(D, 1))[:, 0])
  scores = q @ k.T + gate[:, None] - gate[None, :]
  return zoo.softmax_rows(scores, zoo.causal(x.shape[0])) @ v


def top_scores(x: jax.Array) -> jax.Array:
  q, k, v = project(x)
  scores = jnp.where(zoo.causal(x.shape[0]), q @ k.T, -jnp.inf)
  least = jax.lax.top_k(scores, 3)[0][:, -1:]
  return zoo.softmax_rows(scores, scores >= least) @ v


def alibi(x: jax.Array) -> jax.Array:
  q, k, v = project(x)
  back = past(x.shape[0])
  scores = q @ k.T - 0.5 * back.astype(jnp.float32)
  return zoo.softmax_rows(scores, back >= 0) @ v


def sinks(x: jax.Array) -> jax.Array:
  q, k, v = project(x)
  back = past(x.shape[0])
  first = jnp.arange(x.shape[0])[None, :] < 2
  return zoo.softmax_rows(q @ k.T, (back >= 0) & ((back < 4) | first)) @ v


def chunked(x: jax.Array) -> jax.Array:
  q, k, v = project(x)
  chunk = jnp.arange(x.shape[0]) // 4
  same = chunk[:, None] == chunk[None, :]
  return zoo.softmax_rows(q @ k.T, zoo.causal(x.shape[0]) & same) @ v


def mapped_rows(x: jax.Array) -> jax.Array:
  """A map over query rows."""
  q, k, v = project(x)
  at = jnp.arange(x.shape[0])

  def one(row):
    q, t = row
    return jax.nn.softmax(jnp.where(at <= t, k @ q, -jnp.inf)) @ v

  return jax.lax.map(one, (q, at))


def token_choice(x: jax.Array) -> jax.Array:
  score, chosen = jax.lax.top_k(x @ weight(D, 3), 2)
  gates = jnp.einsum(
    'TC,TCE->TE', jax.nn.softmax(score, -1), jax.nn.one_hot(chosen, 3)
  )
  experts = jnp.einsum('TE,EDF,TD->TF', gates, weight(3, D, D), x)
  return zoo.grouped(K)(x) + experts


def expert_choice(x: jax.Array) -> jax.Array:
  gates = jax.nn.softmax(x @ weight(D, 3), -1)
  score, rows = jax.lax.top_k(gates.T, 2)
  y = jnp.zeros_like(x)
  for e in range(3):
    out = score[e][:, None] * (x[rows[e]] @ weight(D, D, seed=e))
    y = y.at[rows[e]].add(out)
  return y


def batch_statistics(x: jax.Array) -> jax.Array:
  return (x - x.mean(0, keepdims=True)) @ weight(D, D)


ROW, KV = 4 * H, ((4 * H, INF), (4 * H, INF))


def _acausal(program: zoo.Program) -> Entry:
  return Entry({'plain': program}, (), causal=False)


ENTRIES: dict[str, Entry] = {
  'rwkv': Entry({'plain': rwkv}, ((ROW, 1),) * 3 + ((4 * D, 1),)),
  'gated_delta': Entry({'plain': gated_delta}, ((ROW * H, 1),)),
  'differential': Entry(
    {'plain': differential}, ((ROW * N, INF), (2 * ROW * N, INF))
  ),
  'forgetting': Entry({'plain': forgetting}, ((4, INF), *KV)),
  'top_scores': Entry({'plain': top_scores}, KV),
  'alibi': Entry({'plain': alibi}, KV),
  'sinks': Entry({'plain': sinks}, KV),
  'chunked': Entry({'plain': chunked}, ((ROW, 3), (ROW, 3))),
  'mapped_rows': Entry({'plain': mapped_rows}, KV),
  'token_choice': Entry(
    {'plain': token_choice}, ((4 * K * H, INF), (4 * K * H, INF))
  ),
  'expert_choice': _acausal(expert_choice),
  'batch_statistics': _acausal(batch_statistics),
}
