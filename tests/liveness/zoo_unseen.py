"""Programs of recent papers that the analyser was not written for.

Written down from the papers' formulas, then analysed once;
docs/dev/unseen_programs.md says what came of each. Second spellings came later.
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
  index_q = (x @ weight(D, 2 * 3)).reshape(len(x), 2, 3)
  index_k = x @ weight(D, 3, seed=4)
  gate = x @ weight(D, 2, seed=5)
  index = jax.nn.relu(jnp.einsum('THI,SI->THS', index_q, index_k))
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


# --- Fifteen more, those that are not like others in the zoo ---------------


def sparse(x: jax.Array) -> jax.Array:
  """Native sparse attention (arXiv 2502.11089): summaries of blocks, a window.

  Blocks of four are made one key and value once they are complete.
  """
  q, k, v = project(x)
  blocks = len(x) // 4

  def summary(a: jax.Array, seed: int) -> jax.Array:
    rows = a[: 4 * blocks].reshape(blocks, 4 * H)
    return jax.nn.gelu(rows @ weight(4 * H, H, seed=seed))

  ends = 4 * jnp.arange(blocks)[None] + 3
  seen = ends <= jnp.arange(len(x))[:, None]
  e = jnp.where(seen, jnp.exp(q @ summary(k, 11).T), 0.0)
  far = e @ summary(v, 12) / (1 + e.sum(-1, keepdims=True))
  gate = jax.nn.sigmoid(x @ weight(D, 2, seed=9))
  return gate[:, :1] * far + gate[:, 1:] * near(q, k, v)


def near(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
  i = jnp.arange(len(q))
  back = i[:, None] - i[None]
  return zoo.softmax_rows(q @ k.T, (back >= 0) & (back < 4)) @ v


def sparse_convolved(x: jax.Array) -> jax.Array:
  """The same with a strided convolution, and all keys in one softmax."""
  q, k, v = jnp.split(x @ weight(D, 3 * H), 3, -1)

  def summary(a: jax.Array, seed: int) -> jax.Array:
    kernel = weight(4, H, H, seed=seed)
    numbers = ('NWC', 'WIO', 'NWC')
    rows = jax.lax.conv_general_dilated(
      a[None], kernel, (4,), 'VALID', dimension_numbers=numbers
    )
    return jax.nn.silu(rows[0])

  keys = summary(k, 1)
  ends = 4 * jnp.arange(1, len(keys) + 1)[None] - 1
  hidden = jnp.where(ends > jnp.arange(len(x))[:, None], -1e9, 0.0)
  none = jnp.zeros((len(x), 1))
  scores = jnp.concatenate([q @ keys.T + hidden, none], 1)
  far = jax.nn.softmax(scores)[:, :-1] @ summary(v, 2)
  return jnp.concatenate([far, near(q, k, v)], -1)


def block_choice(x: jax.Array) -> jax.Array:
  """MoBA (arXiv 2502.13189): the two best of the past blocks, by mean key."""
  q, k, v = project(x)
  T, blocks = len(x), -(-len(x) // 4)
  rows = jnp.pad(k, ((0, 4 * blocks - T), (0, 0))).reshape(blocks, 4, H)
  own = jnp.arange(T)[:, None] // 4
  past = own > jnp.arange(blocks)[None]
  gate = jnp.where(past, q @ rows.mean(1).T, -jnp.inf)
  chosen = past & (gate >= jax.lax.top_k(gate, 2)[0][:, -1:])
  chosen |= own == jnp.arange(blocks)[None]
  mask = jnp.repeat(chosen, 4, axis=1)[:, :T] & zoo.causal(T)
  return zoo.softmax_rows(q @ k.T, mask) @ v


def lightning(x: jax.Array) -> jax.Array:
  """Lightning attention (arXiv 2501.08313): products in blocks of four."""
  T, blocks = len(x), -(-len(x) // 4)
  rows = [
    jnp.pad(a, ((0, 4 * blocks - T), (0, 0))).reshape(blocks, 4, H)
    for a in project(x)
  ]
  i = jnp.arange(4.0)
  back = i[:, None] - i[None]
  decay = jnp.where(back >= 0, 0.9 ** jnp.maximum(back, 0), 0.0)

  def block(state, row):
    q, k, v = row
    out = (q @ k.T * decay) @ v + 0.9 ** (i + 1.0)[:, None] * (q @ state)
    state = 0.9**4 * state + (0.9 ** (3.0 - i)[:, None] * k).T @ v
    return state, out

  out = jax.lax.scan(block, jnp.zeros((H, H)), tuple(rows))[1]
  return out.reshape(-1, H)[:T]


def segments(x: jax.Array) -> jax.Array:
  """Infini-attention (arXiv 2404.07143): a memory of the segments before."""
  T, count = len(x), -(-len(x) // 4)
  rows = [
    jnp.pad(a, ((0, 4 * count - T), (0, 0))).reshape(count, 4, H)
    for a in project(x)
  ]
  feature = lambda a: jax.nn.elu(a) + 1

  def segment(carry, row):
    memory, total = carry
    q, k, v = row
    far = feature(q) @ memory / (feature(q) @ total + 1e-6)[:, None]
    own = zoo.softmax_rows(q @ k.T, zoo.causal(4)) @ v
    memory, total = memory + feature(k).T @ v, total + feature(k).sum(0)
    return (memory, total), 0.5 * far + 0.5 * own

  start = jnp.zeros((H, H)), jnp.zeros(H)
  out = jax.lax.scan(segment, start, tuple(rows))[1]
  return out.reshape(-1, H)[:T]


def titans(x: jax.Array) -> jax.Array:
  """Titans (arXiv 2501.00663): a memory learnt by gradients with momentum."""
  q, k, v = project(x)
  rate, keep, lose = jax.nn.sigmoid(x @ weight(D, 3, seed=4)).T

  def loss(memory, k, v):
    return jnp.sum((k @ memory - v) ** 2)

  def step(carry, row):
    memory, surprise = carry
    q, k, v, rate, keep, lose = row
    surprise = keep * surprise - rate * jax.grad(loss)(memory, k, v)
    memory = (1 - lose) * memory + surprise
    return (memory, surprise), q @ memory

  zero = jnp.zeros((H, H))
  return jax.lax.scan(step, (zero, zero), (q, k, v, rate, keep, lose))[1]


def contextual(x: jax.Array) -> jax.Array:
  """CoPE (arXiv 2405.18719): a position is a sum of gates, and between two."""
  q, k, v = project(x)
  scores, past = q @ k.T, zoo.causal(len(x))
  gates = jnp.where(past, jax.nn.sigmoid(scores), 0.0)
  at = jnp.minimum(jnp.cumsum(gates[:, ::-1], 1)[:, ::-1], 4.0)
  low, high = jnp.floor(at), jnp.ceil(at)
  table = q @ weight(H, 5, seed=8)
  pick = lambda i: jnp.take_along_axis(table, i.astype(jnp.int32), 1)
  bias = pick(high) * (at - low) + pick(low) * (1 - at + low)
  return zoo.softmax_rows(scores + bias, past) @ v


def turned_keys(x: jax.Array) -> jax.Array:
  """PaTH (arXiv 2505.16381): every token reflects all keys before it."""
  q, k, v = project(x)
  w = x @ weight(D, H, seed=5)
  w = w / jnp.linalg.norm(w, axis=-1, keepdims=True)
  at = jnp.arange(len(x))

  def step(keys, row):
    q, k, w, t = row
    keys = keys - 2 * jnp.outer(keys @ w, w)
    keys = jnp.where((at == t)[:, None], k[None], keys)
    return keys, jax.nn.softmax(jnp.where(at <= t, keys @ q, -jnp.inf)) @ v

  return jax.lax.scan(step, jnp.zeros((len(x), H)), (q, k, w, at))[1]


ROW = 4 * H
KV = ((ROW, INF), (ROW, INF))

ENTRIES: dict[str, Entry] = {
  'selective': Entry({'plain': selective}, ((4, 1), *KV)),
  'stick_breaking': Entry({'plain': stick_breaking}, KV),
  'indexed': Entry({'plain': indexed}, ((12, INF), *KV)),
  'value_residual': Entry({'plain': value_residual}, (*KV, *KV)),
  'sparse': Entry(
    {'plain': sparse, 'convolved': sparse_convolved},
    ((H, INF), (H, INF), (ROW, 3), (ROW, 3)),  # a fourth of a row a token
  ),
  'block_choice': Entry({'plain': block_choice}, ((H, INF), *KV)),
  'lightning': Entry({'plain': lightning}, ((ROW, 3), (ROW, 3), (ROW * H, 4))),
  'segments': Entry(
    {'plain': segments}, ((ROW, 3), (ROW, 3), (ROW, 4), (ROW * H, 4))
  ),
  'titans': Entry({'plain': titans}, ((ROW * H, 1), (ROW * H, 1))),
  'contextual': Entry({'plain': contextual}, KV),
  # Old keys and the newest are two tensors: the old are made anew every step.
  'turned_keys': Entry(
    {'plain': turned_keys}, ((ROW, 1), (ROW, 1), (ROW, INF))
  ),
  'ssd': Entry({'plain': ssd}, ((ROW * H, 1),)),
}
