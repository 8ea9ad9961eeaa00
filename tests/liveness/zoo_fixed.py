"""Queries that are known beforehand: the same in every row, or a table."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name as name

from tests.liveness import zoo
from tests.liveness.zoo import INF, D, Entry, H, Program, causal, weight

QUERIES = weight(3, H, seed=5)
Rows = tuple[jax.Array, ...]


def project(x: jax.Array) -> Rows:
  return x @ weight(D, H), x @ weight(D, H, seed=1)


def by_scan(x: jax.Array) -> jax.Array:
  """The running softmax."""

  def step(carry: Rows, row: Rows) -> tuple[Rows, jax.Array]:
    m, l, acc = carry
    k, v = row
    s = QUERIES @ k
    new = jnp.maximum(m, s)
    scale, p = jnp.exp(m - new), jnp.exp(s - new)
    l = l * scale + p
    acc = acc * scale[:, None] + p[:, None] * v[None]
    return (new, l, acc), acc / l[:, None]

  start = jnp.full(3, -jnp.inf), jnp.zeros(3), jnp.zeros((3, H))
  return jax.lax.scan(step, start, project(x))[1]


def by_mask(x: jax.Array) -> jax.Array:
  """A masked softmax over the past."""
  k, v = project(x)
  scores = jnp.einsum('NH,SH->NS', QUERIES, name(k, 'k'))[:, None, :]
  scores = jnp.where(causal(len(x))[None], scores, -jnp.inf)
  p = jax.nn.softmax(scores, axis=-1)
  return jnp.einsum('NTS,SE->TNE', p, name(v, 'v'))


def by_row(x: jax.Array) -> jax.Array:
  """The query repeated in every row, head by head, and an added mask."""
  k, v = project(x)
  bias = jnp.where(causal(len(x)), 0.0, -1e9)

  def head(query: jax.Array) -> jax.Array:
    scores = jnp.tile(query, (len(x), 1)) @ k.T + bias
    e = jnp.exp(scores - scores.max(-1, keepdims=True))
    return (e / e.sum(-1, keepdims=True)) @ v

  return jax.vmap(head, 0, 1)(QUERIES)


def by_loop(x: jax.Array) -> jax.Array:
  """A scan over heads, and a softmax with its `where` argument."""
  k, v = project(x)

  def head(_: jax.Array, query: jax.Array) -> tuple[jax.Array, jax.Array]:
    scores = jnp.broadcast_to((k @ query)[None], (len(x), len(x)))
    return _, jax.nn.softmax(scores, -1, where=causal(len(x))) @ v

  return jax.lax.scan(head, jnp.zeros(()), QUERIES)[1].swapaxes(0, 1)


def by_library(x: jax.Array) -> jax.Array:
  q = jnp.broadcast_to(QUERIES * np.float32(H**0.5), (len(x), 3, H))
  k, v = (a[:, None] for a in project(x))
  return jax.nn.dot_product_attention(q, k, v, is_causal=True)


def channelwise(x: jax.Array) -> jax.Array:
  """AFT-simple (arXiv 2105.14103, section 3.3): a softmax a channel."""
  k, v = project(x)
  scores = jnp.where(causal(len(x))[..., None], k[None], -jnp.inf)
  p = jax.nn.softmax(scores, axis=1)
  return jax.nn.sigmoid(x @ weight(D, H)) * jnp.einsum('TSE,SE->TE', p, v)


# --- What no running sum holds ---------------------------------------------


def windowed(x: jax.Array) -> jax.Array:
  k, v = project(x)
  near = causal(len(x)) & ~jnp.tril(jnp.ones((len(x), len(x)), bool), -4)
  scores = jnp.where(near[None], (QUERIES @ k.T)[:, None], -jnp.inf)
  return jnp.einsum('NTS,SE->TNE', jax.nn.softmax(scores, -1), v)


WIDE = 4 * H


def table(length: int) -> jax.Array:
  """Queries by position: another one in every row.

  So wide that scores of the rows to come are fewer than what they are made of.
  """
  at = jnp.arange(length, dtype=jnp.float32)[:, None]
  return jnp.sin(at * jnp.arange(1, WIDE + 1, dtype=jnp.float32)[None])


def by_position(
  x: jax.Array, scores: Callable[..., Any] = lambda q, k: q @ k.T
) -> jax.Array:
  k, v = x @ weight(D, WIDE), x @ weight(D, H, seed=1)
  scored = jnp.where(causal(len(x)), scores(table(len(x)), k), -jnp.inf)
  return jax.nn.softmax(scored, axis=-1) @ v


def by_position_einsum(x: jax.Array) -> jax.Array:
  turned = lambda q, k: jnp.einsum('SH,TH->ST', k, q).T
  return by_position(x, turned)


def sharpened(x: jax.Array) -> jax.Array:
  """One query, but a temperature of each row's own."""
  k, v = project(x)
  rate = jnp.log(2 + jnp.arange(len(x), dtype=jnp.float32))
  scores = jnp.broadcast_to((k @ QUERIES[0])[None], (len(x), len(x)))
  scores = scores * jnp.broadcast_to(rate[:, None], scores.shape)
  return zoo.softmax_rows(scores, causal(len(x))) @ v


def by_token(x: jax.Array) -> jax.Array:
  """The query is a fixed one, and a little of the token."""
  k, v = project(x)
  q = QUERIES[:1] + 0.1 * (x @ weight(D, H, seed=2))
  return zoo.softmax_rows(q @ k.T, causal(len(x))) @ v


SPELLINGS: dict[str, Program] = {
  'named': by_mask,
  'row': by_row,
  'loop': by_loop,
  'library': by_library,
  'scan': by_scan,
}

ENTRIES: dict[str, Entry] = {
  'fixed_queries': Entry(
    SPELLINGS,
    ((12, 1), (12, 1), (12 * H, 1)),
    frozenset(('carry', 'carry.2', 'carry.3')),
    (('k', 0), ('v', 0)),
  ),
  'attention_free': Entry({'plain': channelwise}, ((4 * H, 1),) * 3),
  'fixed_queries_window': Entry({'plain': windowed}, ((12, 3), (4 * H, 3))),
  'queries_by_position': Entry(
    {'plain': by_position, 'einsum': by_position_einsum},
    ((4 * H, INF), (4 * WIDE, INF)),
  ),
  'a_temperature_a_row': Entry({'plain': sharpened}, ((4, INF), (4 * H, INF))),
  'a_query_with_a_token': Entry(
    {'plain': by_token}, ((4 * H, INF), (4 * H, INF))
  ),
}
