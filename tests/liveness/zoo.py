"""Uncached programs in several spellings, with what each must remember.

An `Entry` states the kept tensors by bytes a token and live range; spellings
with names are checked by name as well.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name as name

INF = math.inf
D, N, K, H, R, P = 10, 4, 2, 6, 5, 4  # model, heads, kv heads, widths
Program = Callable[[jax.Array], Any]


@dataclasses.dataclass(frozen=True)
class Entry:
  """A program: its spellings, and the verdict on every one."""

  spellings: dict[str, Program]
  kept: tuple[tuple[int, float], ...]  # (bytes a token, live for), sorted
  keep: frozenset[str] = frozenset()  # of the spelling called 'named'
  live_for: tuple[tuple[str, float], ...] = ()  # of the spelling 'named'
  causal: bool = True
  tokens: bool = False  # the input is token ids


def weight(*shape: int, seed: int = 0) -> jax.Array:
  draw = np.random.default_rng((seed, *shape))
  return jnp.asarray(draw.normal(size=shape) / 3, jnp.float32)


def causal(T: int) -> jax.Array:
  i = jnp.arange(T)
  return i[:, None] >= i[None, :]


def softmax_rows(scores: jax.Array, mask: jax.Array) -> jax.Array:
  return jax.nn.softmax(jnp.where(mask, scores, -jnp.inf), axis=-1)


def rotate(x: jax.Array, positions: jax.Array | None = None) -> jax.Array:
  """Rotates halves of the last axis; positions on the first."""
  half = x.shape[-1] // 2
  at = jnp.arange(x.shape[0]) if positions is None else positions
  rate = 10.0 ** -(jnp.arange(half, dtype=jnp.float32) / half)
  angle = at.astype(jnp.float32)[:, None] * rate[None, :]
  angle = angle.reshape(x.shape[0], *(1,) * (x.ndim - 2), half)
  angle = jnp.broadcast_to(angle, (*x.shape[:-1], half))
  a, b = x[..., :half], x[..., half:]
  c, s = jnp.cos(angle), jnp.sin(angle)
  return jnp.concatenate([a * c - b * s, b * c + a * s], -1)


def rotate_pairs(x: jax.Array) -> jax.Array:
  """Another rotation: x * cos + (x @ quarter turn) * sin."""
  width = x.shape[-1]
  turn = np.zeros((width, width), np.float32)
  turn[range(1, width, 2), range(0, width, 2)] = -1
  turn[range(0, width, 2), range(1, width, 2)] = 1
  rate = jnp.repeat(0.3 ** jnp.arange(width // 2, dtype=jnp.float32), 2)
  angle = jnp.arange(x.shape[0], dtype=jnp.float32)[:, None] * rate[None, :]
  angle = angle.reshape(x.shape[0], *(1,) * (x.ndim - 2), width)
  angle = jnp.broadcast_to(angle, x.shape)
  return x * jnp.cos(angle) + (x @ turn) * jnp.sin(angle)


# --- Grouped attention ----------------------------------------------------


def grouped(kv: int, window: int | None = None, rope: bool = True) -> Program:
  """Einsums over groups, with names."""
  G = N // kv
  wq, wk = weight(D, kv, G, H), weight(D, kv, H, seed=1)
  wv, wo = weight(D, kv, H, seed=2), weight(kv, G, H, D)

  def program(x: jax.Array) -> jax.Array:
    T = x.shape[0]
    q = jnp.einsum('TD,DKGH->TKGH', x, wq)
    k = jnp.einsum('TD,DKH->TKH', x, wk)
    if rope:
      q, k = rotate(q), rotate(k)
    q, k = name(q, 'q'), name(k, 'k')
    v = name(jnp.einsum('TD,DKE->TKE', x, wv), 'v')
    i = jnp.arange(T)
    mask = i[:, None] >= i[None, :]
    if window is not None:
      mask &= i[:, None] - i[None, :] < window
    scores = name(jnp.einsum('TKGH,SKH->KGTS', q, k), 'scores')
    p = softmax_rows(scores, jnp.broadcast_to(mask, scores.shape))
    out = name(jnp.einsum('KGTS,SKE->TKGE', p, v), 'out')
    return jnp.einsum('TKGE,KGED->TD', out, wo)

  return program


def repeated(kv: int, window: int | None = None, rope: bool = True) -> Program:
  """Two-dimensional products, repeated keys, vmap over heads; no names."""
  wqkv = weight(D, (N + 2 * kv) * H)
  wo = weight(N * H, D)

  def head(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    T = q.shape[0]
    bias = jnp.where(jnp.tril(jnp.ones((T, T), bool)), 0.0, -1e9)
    if window is not None:
      far = jnp.tril(jnp.ones((T, T), bool), -window)
      bias = bias + jnp.where(far, -1e9, 0.0)
    scores = q @ k.T / np.sqrt(H).astype(np.float32) + bias
    e = jnp.exp(scores - scores.max(-1, keepdims=True))
    return (e / e.sum(-1, keepdims=True)) @ v

  def program(x: jax.Array) -> jax.Array:
    T = x.shape[0]
    q, k, v = jnp.split(x @ wqkv, [N * H, (N + kv) * H], -1)
    q, k = q.reshape(T, N, H), k.reshape(T, kv, H)
    v = v.reshape(T, kv, H)
    if rope:
      q, k = rotate_pairs(q), rotate_pairs(k)
    k, v = jnp.repeat(k, N // kv, 1), jnp.repeat(v, N // kv, 1)
    out = jax.vmap(head, in_axes=1, out_axes=1)(q, k, v)
    return out.reshape(T, N * H) @ wo

  return program


def scanned(kv: int, window: int | None = None, rope: bool = True) -> Program:
  """A scan over the kv heads, masks by multiplication; no names."""
  G = N // kv
  wq, wk = weight(kv, D, G * H), weight(kv, D, H, seed=1)
  wv, wo = weight(kv, D, H, seed=2), weight(kv, G * H, D)

  def program(x: jax.Array) -> jax.Array:
    T = x.shape[0]
    i = jnp.arange(T)
    mask = i[:, None] >= i[None, :]
    if window is not None:
      mask &= i[None, :] > i[:, None] - window
    mask = jnp.broadcast_to(mask.astype(jnp.float32), (G, T, T))

    def body(y: jax.Array, w: Any) -> tuple[jax.Array, None]:
      q, k = (x @ w[0]).reshape(T, G, H), x @ w[1]
      if rope:
        q, k = rotate(q), rotate(k)
      e = jnp.exp(jnp.einsum('TGH,SH->GTS', q, k)) * mask
      out = jnp.einsum('GTS,SE->TGE', e / e.sum(-1, keepdims=True), x @ w[2])
      return y + out.reshape(T, G * H) @ w[3], None

    return jax.lax.scan(body, jnp.zeros_like(x), (wq, wk, wv, wo))[0]

  return program


def folded(kv: int, window: int | None = None, rope: bool = True) -> Program:
  """Positions and heads in one axis all along; no names."""
  wq, wk = weight(D, N * H), weight(D, kv * H, seed=1)
  wv, wo = weight(D, kv * H, seed=2), weight(N * H, D)

  def program(x: jax.Array) -> jax.Array:
    T = x.shape[0]
    q = rows(x @ wq, N, rope)
    k, v = rows(x @ wk, kv, rope), rows(x @ wv, kv, False)
    i = jnp.arange(T * N)
    j = jnp.arange(T * kv)
    past = i[:, None] // N >= j[None, :] // kv
    if window is not None:
      past &= i[:, None] // N - j[None, :] // kv < window
    same = (i[:, None] % N) // (N // kv) == j[None, :] % kv
    out = softmax_rows(q @ k.T, past & same) @ v
    return out.reshape(T, N * H) @ wo

  def rows(x: jax.Array, heads: int, turn: bool) -> jax.Array:
    x = x.reshape(x.shape[0] * heads, H)
    return rotate(x, jnp.arange(x.shape[0]) // heads) if turn else x

  return program


def four(kv: int, window: int | None = None, rope: bool = True) -> Any:
  return {
    'named': grouped(kv, window, rope),
    'repeated': repeated(kv, window, rope),
    'scanned': scanned(kv, window, rope),
    'folded': folded(kv, window, rope),
  }


def attention_entry(
  kv: int, window: int | None = None, rope: bool = True
) -> Entry:
  live = INF if window is None else window - 1
  size = kv * H * 4
  return Entry(
    four(kv, window, rope),
    ((size, live), (size, live)),
    frozenset('kv'),
    (('q', 0), ('k', live), ('v', live), ('scores', 0), ('out', 0)),
  )


ENTRIES: dict[str, Entry] = {
  'single': attention_entry(1, rope=False),
  'mha_rope': attention_entry(N),
  'gqa_rope': attention_entry(K),
  'mqa_rope': attention_entry(1),
  'gqa': attention_entry(K, rope=False),
  'window': attention_entry(K, window=4),
}
