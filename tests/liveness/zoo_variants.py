"""Latent, tied, tensor-product, cross and shared attention; stacks."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name as name

from tests.liveness import zoo
from tests.liveness.zoo import INF, D, Entry, H, K, N, P, Program, R, weight


def softmax_mix(scores: jax.Array, v: jax.Array) -> jax.Array:
  """[N, T, S] and [S, N, E] -> [T, N, E] under the causal mask."""
  mask = jnp.broadcast_to(zoo.causal(v.shape[0]), scores.shape)
  return jnp.einsum('NTS,SNE->TNE', zoo.softmax_rows(scores, mask), v)


# --- MLA ------------------------------------------------------------------

WDQ, WUQ = weight(D, 7), weight(7, N, H + P)
WC, WR = weight(D, R), weight(D, P, seed=3)
WUK, WUV = weight(R, N, H, seed=1), weight(R, N, H, seed=2)
WO = weight(N, H, D)


def norm(x: jax.Array) -> jax.Array:
  return x * jax.lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + 1e-6)


def mla_expanded(x: jax.Array) -> jax.Array:
  T = x.shape[0]
  c_q = name(norm(x @ WDQ), 'c_q')
  q = jnp.einsum('TQ,QNH->TNH', c_q, WUQ)
  q = jnp.concatenate([q[..., :H], zoo.rotate(q[..., H:])], -1)
  c = name(norm(x @ WC), 'c')
  r = name(zoo.rotate(x @ WR), 'k_rope')
  k_nope = name(jnp.einsum('TR,RNH->TNH', c, WUK), 'k_nope')
  v = name(jnp.einsum('TR,RNE->TNE', c, WUV), 'v')
  shared = jnp.broadcast_to(r[:, None], (T, N, P))
  k = jnp.concatenate([k_nope, shared], -1)
  out = softmax_mix(jnp.einsum('TNH,SNH->NTS', name(q, 'q'), k), v)
  return jnp.einsum('TNE,NED->TD', out, WO)


def mla_expanded_plain(x: jax.Array) -> jax.Array:
  """Two-dimensional weights, two score products, no names."""
  T = x.shape[0]
  q = (norm(x @ WDQ) @ WUQ.reshape(7, -1)).reshape(T, N, H + P)
  kr = x @ jnp.concatenate([WC, WR], 1)
  c = norm(kr[:, :R])
  kv = c @ jnp.concatenate([WUK, WUV], 2).reshape(R, -1)
  kv = kv.reshape(T, N, 2 * H)
  r = zoo.rotate(kr[:, R:])
  scores = jnp.einsum('TNH,SNH->NTS', q[..., :H], kv[..., :H])
  scores += jnp.einsum('TNP,SP->NTS', zoo.rotate(q[..., H:]), r)
  out = softmax_mix(scores, kv[..., H:])
  return out.reshape(T, -1) @ WO.reshape(-1, D)


def mla_absorbed(x: jax.Array) -> jax.Array:
  q = jnp.einsum('TQ,QNH->TNH', name(norm(x @ WDQ), 'c_q'), WUQ)
  q_rope = zoo.rotate(q[..., H:])
  q_c = jnp.einsum('TNH,RNH->TNR', q[..., :H], WUK)
  c = name(norm(x @ WC), 'c')
  r = name(zoo.rotate(x @ WR), 'k_rope')
  scores = jnp.einsum('TNR,SR->NTS', q_c, c)
  scores += jnp.einsum('TNP,SP->NTS', q_rope, r)
  mask = jnp.broadcast_to(zoo.causal(x.shape[0]), scores.shape)
  mixed = jnp.einsum('NTS,SR->TNR', zoo.softmax_rows(scores, mask), c)
  return jnp.einsum('TNR,RNE,NED->TD', mixed, WUV, WO)


def mla_absorbed_joined(x: jax.Array) -> jax.Array:
  """One key [c, k_rope] whose first part is the value again; no names."""
  T = x.shape[0]
  q = (norm(x @ WDQ) @ WUQ.reshape(7, -1)).reshape(T, N, H + P)
  q_c = jnp.einsum('TNH,RNH->TNR', q[..., :H], WUK)
  q = jnp.concatenate([q_c, zoo.rotate(q[..., H:])], -1).reshape(T * N, -1)
  key = jnp.concatenate([norm(x @ WC), zoo.rotate(x @ WR)], -1)
  scores = (q @ key.T).reshape(T, N, T)
  mask = jnp.broadcast_to(zoo.causal(T)[:, None], scores.shape)
  out = (zoo.softmax_rows(scores, mask).reshape(T * N, T) @ key)[:, :R]
  return jnp.einsum('TNR,RNE,NED->TD', out.reshape(T, N, R), WUV, WO)


# --- GTA, TPA -------------------------------------------------------------


def gta(x: jax.Array) -> jax.Array:
  """One tied tensor: the value, whose half is the unrotated key."""
  T = x.shape[0]
  q = jnp.einsum('TD,DNH->TNH', x, weight(D, N, H))
  q = jnp.concatenate([q[..., : H - 2], zoo.rotate(q[..., H - 2 :])], -1)
  kv = name(jnp.einsum('TD,DKH->TKH', x, weight(D, K, H, seed=1)), 'kv')
  r = name(zoo.rotate(x @ weight(D, 2)), 'k_rope')
  shared = jnp.broadcast_to(r[:, None], (T, K, 2))
  k = jnp.concatenate([kv[..., : H - 2], shared], -1)
  k, v = jnp.repeat(k, N // K, 1), jnp.repeat(kv, N // K, 1)
  out = softmax_mix(jnp.einsum('TNH,SNH->NTS', q, k), v)
  return out.reshape(T, -1) @ weight(N * H, D)


def gta_plain(x: jax.Array) -> jax.Array:
  T = x.shape[0]
  q = (x @ weight(D, N * H)).reshape(T, K, N // K, H)
  both = x @ weight(D, K * H + 2)
  kv = both[:, : K * H].reshape(T, K, H)
  r = zoo.rotate(both[:, K * H :])
  scores = jnp.einsum('TKGH,SKH->KGTS', q[..., : H - 2], kv[..., : H - 2])
  scores += jnp.einsum('TKGP,SP->KGTS', zoo.rotate(q[..., H - 2 :]), r)
  mask = jnp.broadcast_to(zoo.causal(T), scores.shape)
  out = jnp.einsum('KGTS,SKE->TKGE', zoo.softmax_rows(scores, mask), kv)
  return out.reshape(T, -1) @ weight(N * H, D)


def tpa(x: jax.Array) -> jax.Array:
  """Keys and values as sums of two outer products of factors."""
  a_k = name((x @ weight(D, 2 * N)).reshape(-1, 2, N), 'a_k')
  b_k = (x @ weight(D, 2 * H)).reshape(-1, 2, H)
  b_k = name(zoo.rotate(b_k), 'b_k')
  a_v = name((x @ weight(D, 2 * N, seed=1)).reshape(-1, 2, N), 'a_v')
  b_v = name((x @ weight(D, 2 * H, seed=1)).reshape(-1, 2, H), 'b_v')
  q = zoo.rotate(jnp.einsum('TD,DNH->TNH', x, weight(D, N, H)))
  # Contracted with the query first, so that no full key is made.
  scores = jnp.einsum('TNH,SCH->CNTS', q, b_k)
  scores = jnp.einsum('CNTS,SCN->NTS', scores, a_k)
  mask = jnp.broadcast_to(zoo.causal(x.shape[0]), scores.shape)
  p = zoo.softmax_rows(scores, mask)
  out = jnp.einsum('CNTS,SCE->TNE', jnp.einsum('NTS,SCN->CNTS', p, a_v), b_v)
  return out.reshape(x.shape[0], -1) @ weight(N * H, D)


def tpa_heads(x: jax.Array) -> jax.Array:
  """One weight for all factors, a head at a time; no names."""
  edges = np.cumsum([2 * N, 2 * H, 2 * N])
  a_k, b_k, a_v, b_v = jnp.split(x @ weight(D, 4 * (N + H)), edges, -1)
  a_k, a_v = (a.reshape(-1, 2, N) for a in (a_k, a_v))
  b_k, b_v = zoo.rotate_pairs(b_k.reshape(-1, 2, H)), b_v.reshape(-1, 2, H)
  q = zoo.rotate_pairs((x @ weight(D, N * H)).reshape(-1, N, H))

  T = x.shape[0]

  def head(q: jax.Array, a_k: jax.Array, a_v: jax.Array) -> jax.Array:
    scores = (q @ b_k.reshape(T * 2, H).T).reshape(T, T, 2) * a_k[None]
    p = zoo.softmax_rows(scores.sum(-1), zoo.causal(T))
    return (p[..., None] * a_v[None]).reshape(T, T * 2) @ b_v.reshape(T * 2, H)

  out = jax.vmap(head, (1, 2, 2), 1)(q, a_k, a_v)
  return out.reshape(T, -1) @ weight(N * H, D)


# --- Cross attention, layers that share -----------------------------------

ENCODED = weight(5, D, seed=9)


def cross(x: jax.Array) -> jax.Array:
  k = name(jnp.einsum('SD,DNH->SNH', ENCODED, weight(D, N, H)), 'k')
  v = name(jnp.einsum('SD,DNH->SNH', ENCODED, weight(D, N, H, seed=1)), 'v')
  q = name(jnp.einsum('TD,DNH->TNH', x, weight(D, N, H, seed=2)), 'q')
  p = jax.nn.softmax(jnp.einsum('TNH,SNH->NTS', q, k), -1)
  return jnp.einsum('NTS,SNE->TNE', p, v).reshape(x.shape[0], -1) @ weight(
    N * H, D
  )


def cross_plain(x: jax.Array) -> jax.Array:
  def head(wq: jax.Array, wk: jax.Array, wv: jax.Array) -> jax.Array:
    p = jax.nn.softmax((x @ wq) @ (ENCODED @ wk).T, -1)
    return p @ (ENCODED @ wv)

  w = [weight(N, D, H, seed=i) for i in range(3)]
  out = jax.vmap(head, out_axes=1)(*w)
  return out.reshape(x.shape[0], -1) @ weight(N * H, D)


def shared_layers(x: jax.Array) -> jax.Array:
  """CLA: the second layer reads the keys and values of the first."""
  k = name(jnp.einsum('TD,DNH->TNH', x, weight(D, N, H)), 'k')
  v = name(jnp.einsum('TD,DNH->TNH', x, weight(D, N, H, seed=1)), 'v')
  for layer in range(2):
    q = jnp.einsum('TD,DNH->TNH', norm(x), weight(D, N, H, seed=2 + layer))
    q = name(q, f'q{layer}')
    out = softmax_mix(jnp.einsum('TNH,SNH->NTS', q, k), v)
    x = x + out.reshape(x.shape[0], -1) @ weight(N * H, D, seed=layer)
  return x


def shared_layers_scanned(x: jax.Array) -> jax.Array:
  k, v = x @ weight(D, N * H), x @ weight(D, N * H, seed=1)
  k, v = k.reshape(-1, N, H), v.reshape(-1, N, H)

  def layer(x: jax.Array, w: jax.Array) -> tuple[jax.Array, None]:
    q = (norm(x) @ w).reshape(-1, N, H)
    out = softmax_mix(jnp.einsum('TNH,SNH->NTS', q, k), v)
    return x + out.reshape(x.shape[0], -1) @ weight(N * H, D), None

  return jax.lax.scan(layer, x, weight(2, D, N * H))[0]


def learned_positions(attention: Program) -> Program:
  return lambda tokens: attention(
    jnp.take(weight(11, D), tokens, axis=0)
    + weight(99, D, seed=4)[: tokens.shape[0]]
  )


def stack(block: Program, layers: int = 3) -> Program:
  def program(x: jax.Array) -> jax.Array:
    for _ in range(layers):
      x = x + block(norm(x))
      x = x + jax.nn.gelu(norm(x) @ weight(D, 13)) @ weight(13, D)
    return x

  return program


def tied(x: jax.Array) -> jax.Array:
  """Key and value are one tensor."""
  q = x @ weight(D, H)
  k = name(x @ weight(D, H, seed=1), 'k')
  mask = zoo.causal(x.shape[0])
  return zoo.softmax_rows(q @ k.T, mask) @ name(k, 'v') @ weight(H, D)


def tied_plain(x: jax.Array) -> jax.Array:
  q, k = jnp.split(x @ weight(D, 2 * H), 2, -1)
  scores = jnp.einsum('th,sh->st', q, k)
  future = ~zoo.causal(x.shape[0]).T
  scores = jnp.where(future, jnp.finfo(jnp.float32).min, scores)
  return jax.nn.softmax(scores, 0).T @ k @ weight(H, D)


Q_NOT_C = (('c_q', 0), ('q', 0), ('k_rope', INF), ('k_nope', INF), ('v', INF))
F4 = np.dtype(np.float32).itemsize
FULL = N * H * F4

ENTRIES: dict[str, Entry] = {
  'mla_expanded': Entry(
    {'named': mla_expanded, 'plain': mla_expanded_plain},
    ((P * F4, INF), (FULL, INF), (FULL, INF)),
    frozenset(('k_nope', 'k_rope', 'v')),
    Q_NOT_C,
  ),
  'mla_absorbed': Entry(
    {'named': mla_absorbed, 'joined': mla_absorbed_joined},
    ((P * F4, INF), (R * F4, INF)),
    frozenset(('c', 'k_rope')),
    (('c_q', 0), ('c', INF)),
  ),
  'gta': Entry(
    {'named': gta, 'plain': gta_plain},
    ((2 * F4, INF), (K * H * F4, INF)),
    frozenset(('kv', 'k_rope')),
  ),
  'tpa': Entry(
    {'named': tpa, 'heads': tpa_heads},
    ((2 * N * F4, INF),) * 2 + ((2 * H * F4, INF),) * 2,
    frozenset(('a_k', 'b_k', 'a_v', 'b_v')),
  ),
  'cross': Entry(
    {'named': cross, 'plain': cross_plain},
    (),
    frozenset('kv'),  # static: no token adds to them
    (('q', 0), ('k', INF), ('v', INF)),
  ),
  'shared': Entry(
    {'named': shared_layers, 'scanned': shared_layers_scanned},
    ((FULL, INF), (FULL, INF)),
    frozenset('kv'),
    (('q0', 0), ('q1', 0)),
  ),
  'learned_positions': Entry(
    {
      'named': learned_positions(zoo.grouped(K, rope=False)),
      'repeated': learned_positions(zoo.repeated(K, rope=False)),
    },
    ((K * H * F4, INF), (K * H * F4, INF)),
    frozenset('kv'),
    tokens=True,
  ),
  'tied': Entry(
    {'named': tied, 'plain': tied_plain},
    ((H * F4, INF),),
    frozenset('k'),
    (('v', INF),),
  ),
  'stack': Entry(
    {'named': stack(zoo.grouped(K))},
    ((3 * K * H * F4, INF), (3 * K * H * F4, INF)),
    frozenset('kv'),
    (('q', 0), ('out', 0)),
  ),
}
