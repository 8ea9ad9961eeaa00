"""From logits to a token: a frozen choice and a pure function."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kvjax.arguments import check_array, check_fields, check_type, random_keys

NO_TOKEN = -1


@dataclasses.dataclass(frozen=True)
class Sampling:
  """How a token is drawn. Filters apply in the order of the fields.

  Attributes:
    temperature: divides logits; 0 takes the likeliest token.
    top_k: only the k likeliest; None for all.
    top_p: only the fewest whose probabilities reach p (nucleus, arXiv
      1904.09751); None for all.
    min_p: only those at least this fraction of the likeliest (arXiv
      2407.01082); None for all.
  """

  temperature: float = 0.0
  top_k: int | None = None
  top_p: float | None = None
  min_p: float | None = None

  def __post_init__(self):
    check_fields(self, at_least={'temperature': 0, 'top_k': 1})
    for name in ('top_p', 'min_p'):
      p = getattr(self, name)
      if p is not None and not 0 < p <= 1:
        raise ValueError(f'{name}={p} must be in (0, 1], or None for all.')


def sample(
  logits: jax.Array, keys: jax.Array, sampling: Sampling
) -> tuple[jax.Array, jax.Array]:
  """Draws a token a row.

  Args:
    logits: float32 `[B, V]`.
    keys: JAX random keys `[B]`, or raw ones `[B, 2]`; a row's draw depends on
      its own alone.
    sampling: how to draw.

  Returns:
    Tokens int32 `[B]`, -1 for a row without a distribution (a NaN, an infinite
    logit, or none that is finite), and their log-probabilities `[B]` under the
    model (temperature 1, no filter).
  """
  check_array('logits', logits, (None, None), jnp.floating)
  if not logits.shape[1]:
    raise ValueError(
      f'logits has shape {list(logits.shape)}: give one of each token, V.'
    )
  keys = random_keys('keys', keys, (logits.shape[0],))
  check_type('sampling', sampling, Sampling, 'give kvjax.Sampling(...).')
  if sampling.temperature == 0:
    tokens = jnp.argmax(logits, axis=-1)
  else:
    kept = filter_logits(_divide(logits, sampling.temperature), sampling)
    tokens = jax.vmap(jax.random.categorical)(keys, kept)
  tokens = tokens.astype(jnp.int32)
  log_probs = jax.nn.log_softmax(logits, axis=-1)
  picked = jnp.take_along_axis(log_probs, tokens[:, None], axis=1)[:, 0]
  # The largest is NaN where any is, and -inf where a mask excludes all tokens.
  lost = ~jnp.isfinite(jnp.max(logits, axis=-1))
  return jnp.where(lost, NO_TOKEN, tokens), picked


def _divide(logits: jax.Array, temperature: float) -> jax.Array:
  """Returns logits over any temperature: the best stay at 0, the masked -inf.

  XLA multiplies by a reciprocal. That of a temperature near the largest float
  may be flushed to 0, which would make a masked logit NaN.
  """
  best = jnp.max(logits, axis=-1, keepdims=True)
  below = logits - jnp.where(jnp.isfinite(best), best, 0)
  is_divided = (below < 0) & jnp.isfinite(below)
  return jnp.where(is_divided, below / temperature, below)


def filter_logits(logits: jax.Array, sampling: Sampling) -> jax.Array:
  """Returns logits `[B, V]` with -inf for tokens that filters exclude."""
  if sampling.top_k is not None:
    top_k = min(sampling.top_k, logits.shape[-1])
    ids = jax.lax.top_k(logits, top_k)[1]
    logits = _only(logits, ids, jnp.ones(ids.shape, bool))
  if sampling.top_p is not None:
    ids = jnp.argsort(logits, axis=-1, descending=True)
    probs = jax.nn.softmax(jnp.take_along_axis(logits, ids, axis=-1), axis=-1)
    before = jnp.cumsum(probs, axis=-1) - probs
    logits = _only(logits, ids, before < sampling.top_p)
  if sampling.min_p is not None:
    best = jnp.max(logits, axis=-1, keepdims=True)
    floor = best + jnp.log(jnp.float32(sampling.min_p))
    logits = jnp.where(logits < floor, -jnp.inf, logits)
  return logits


def _only(logits: jax.Array, ids: jax.Array, keep: jax.Array) -> jax.Array:
  """Returns logits with -inf but at `ids [B, n]` where `keep`: ties differ."""
  put = jax.vmap(lambda row, ids, keep: row.at[ids].set(keep))
  kept = put(jnp.zeros(logits.shape, bool), ids, keep)
  return jnp.where(kept, logits, -jnp.inf)


def row_keys(seed: Any, batch: int) -> jax.Array:
  """Returns a key a row of one integer seed, or of seeds `[B]`."""
  if not isinstance(seed, jax.Array):
    seed = jax.device_put(_host_seeds(seed))
  check_array('seed', seed, (batch,) if seed.ndim else (), jnp.integer)
  return _row_keys(seed, batch)


def _host_seeds(seed: Any) -> np.ndarray:
  """Returns seeds as integers that a device takes; ValueError for others."""
  seeds = np.asarray(seed)
  if (
    not np.issubdtype(seeds.dtype, np.integer)
    or not ((-(2**31) <= seeds) & (seeds < 2**32)).all()
  ):
    raise ValueError(
      f'seed={seed!r} must be an integer from -2**31 to 2**32 - 1, or one a '
      'row.'
    )
  return seeds.astype(np.uint32)


@functools.partial(jax.jit, static_argnums=1)
def _row_keys(seed: jax.Array, batch: int) -> jax.Array:
  if seed.ndim:
    return jax.vmap(jax.random.key)(seed)
  rows = jnp.arange(batch, dtype=jnp.uint32)
  return jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(seed), rows)
