"""Programs that read sparsely, and one whose policy observes queries.

DSA (DeepSeek-V3.2: an indexer chooses tokens), Quest (arXiv 2406.10774: bounds
of pages choose pages), and an observation window as SnapKV has it (2404.14469).
All are of one length, as a program with a table of its mask is.
"""

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name as name

from tests.liveness import zoo
from tests.liveness.zoo import D, H, softmax_rows, weight

LENGTH, PAGE, TOP = 12, 3, 2


def causal(T: int) -> jax.Array:
  """Returns a table of one length: pages divide no other."""
  return zoo.causal(LENGTH)


def project(x: jax.Array, names: tuple[str, ...]) -> list[jax.Array]:
  return [name(x @ weight(D, H, seed=i), n) for i, n in enumerate(names)]


def attend(q, k, v, mask):
  return softmax_rows(q @ k.T, mask) @ v


def largest(scores: jax.Array, count: int) -> jax.Array:
  """Returns bool, as the scores: the largest of each row."""
  return scores >= jax.lax.top_k(scores, count)[0][:, -1:]


def indexed(x: jax.Array) -> jax.Array:
  """DSA: an index key a token, and the tokens whose index scores are best."""
  q, k, v, qi, ki, wi = project(x, ('q', 'k', 'v', 'qi', 'ki', 'wi'))
  seen = causal(len(x))
  score = jax.nn.relu(qi @ ki.T) * wi[:, :1]
  return attend(q, k, v, seen & largest(jnp.where(seen, score, -jnp.inf), 4))


def choose_pages(q, k, v, low, high, begun):
  """Returns attention to the pages of the greatest bounds `[T or 1, P, H]`."""
  bound = jnp.maximum(q[:, None] * low, q[:, None] * high).sum(-1)
  chosen = largest(jnp.where(begun, bound, -jnp.inf), TOP)
  mask = causal(len(q)) & jnp.repeat(chosen, PAGE, axis=1)
  return attend(q, k, v, mask)


def whole_pages(x: jax.Array) -> jax.Array:
  """Quest with bounds over whole pages: tokens to come are in them."""
  T = len(x)
  q, k, v = project(x, ('q', 'k', 'v'))
  pages = k.reshape(T // PAGE, PAGE, H)
  low, high = name(pages.min(1), 'low'), name(pages.max(1), 'high')
  begun = jnp.arange(T // PAGE)[None] * PAGE <= jnp.arange(T)[:, None]
  return choose_pages(q, k, v, low[None], high[None], begun)


def causal_pages(x: jax.Array) -> jax.Array:
  """Quest with bounds over the tokens of a page so far."""
  T = len(x)
  q, k, v = project(x, ('q', 'k', 'v'))
  of_page = jnp.arange(T)[None] // PAGE == jnp.arange(T // PAGE)[:, None]
  so_far = causal(T)[:, None] & of_page[None]  # [T, P, T]
  begun = so_far.any(-1)
  keys, is_in = k[None, None], so_far[..., None]
  low = jnp.where(is_in, keys, jnp.inf).min(2)
  high = jnp.where(is_in, keys, -jnp.inf).max(2)
  low, high = (jnp.where(begun[..., None], x, 0) for x in (low, high))
  low, high = name(low, 'min'), name(high, 'max')
  return choose_pages(q, k, v, low, high, begun)


def observed(window: int):
  """A policy that reads the tokens which the last queries weighed most."""

  def program(x: jax.Array) -> jax.Array:
    q, k, v = project(x, ('q', 'k', 'v'))
    seen = causal(len(x))
    rows = softmax_rows(q @ k.T, seen)
    recent = sum(
      jnp.pad(rows, ((back, 0), (0, 0)))[: len(x)] for back in range(window)
    )
    return attend(q, k, v, seen & largest(recent, 4))

  return program
