"""The token loop, on the device, in blocks with a known trip count."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from kvjax.decoding.cache import (
  Cache,
  check_alive,
  check_sizes,
  in_trace,
  is_traced,
)
from kvjax.decoding.rows import fork
from kvjax.decoding.sampling import NO_TOKEN, Sampling, row_keys, sample
from kvjax.decoding.steps import check_room, check_source, decode_step
from kvjax.models.config import ModelConfig

Progress = Callable[[int, int], None]
Stream = Callable[[np.ndarray], bool | None]


@struct.dataclass
class Run:
  """A generation under way.

  Attributes:
    token: int32 `[B]`, sampled last and not fed yet.
    count: int32 `[B]`, tokens sampled so far.
    alive: bool `[B]`, rows that go on.
    keys: a random key a row.
    limit: int32 `[B]`, most tokens a row may sample.
  """

  token: jax.Array
  count: jax.Array
  alive: jax.Array
  keys: jax.Array
  limit: jax.Array


@dataclasses.dataclass(frozen=True)
class Rules:
  """Static choices of a generation: how to draw, where to stop, who attends."""

  sampling: Sampling
  stop_tokens: tuple[int, ...]
  kernel: str | None = None


def generate(
  config: ModelConfig,
  params: Mapping[str, Any],
  cache: Cache,
  logits: jax.Array,
  num_tokens: int,
  *,
  temperature: float = 0.0,
  top_k: int | None = None,
  top_p: float | None = None,
  min_p: float | None = None,
  seed: Any = 0,
  stop_tokens: Sequence[int] = (),
  stop_lengths: Any = None,
  log_probs: bool = False,
  block: int = 32,
  progress: Progress | None = None,
  stream: Stream | None = None,
  donate: bool = True,
  kernel: str | None = None,
) -> Any:
  """Samples tokens, each from the logits after the one before.

  The cache has then seen every returned token but each row's last, so that
  `decode_step` on that one continues. A row that stopped, or whose logits are
  NaN, returns -1 from then on.

  Args:
    config: the model.
    params: its parameters.
    cache: the rows so far.
    logits: float32 `[B, V]` of each row's last token.
    num_tokens: tokens to sample.
    temperature, top_k, top_p, min_p: see `Sampling`; greedy by default.
    seed: an int, or int `[B]`: a row's draws depend on its own seed and on
      how many tokens it has sampled, on nothing else.
    stop_tokens: ids after which a row stops; it returns the id.
    stop_lengths: int `[B]`, tokens after which a row stops.
    log_probs: also return log-probabilities of what was sampled.
    block: tokens of one device program; rows that stop are looked at, and
      `progress` is called, between blocks.
    progress: called with tokens done and `num_tokens`.
    stream: called with new tokens int32 `[B, n]` as soon as they are there,
      the first at once, then a block each time. If it returns True nothing
      more is sampled, and what was is returned as if the rows had stopped.
    donate: reuse the buffers of `cache`, which cannot be used again.
    kernel: that must attend, of `kernels.KERNELS`; None for the fastest.

  Returns:
    Tokens int32 `[B, num_tokens]` and the cache; with `log_probs`, also
    float32 `[B, num_tokens]`, NaN where there is no token.

  Raises:
    ValueError: an option is out of range, or the room is short.
    DonatedCacheError: the cache was given to an earlier call.
  """
  check_alive(cache)
  check_sizes(num_tokens=num_tokens, block=block)
  chex.assert_shape(logits, (cache.batch_size, config.vocab_size))
  sampling = Sampling(temperature, top_k, top_p, min_p)
  rules = Rules(sampling, tuple(stop_tokens), kernel)
  limit = _limit(cache.batch_size, num_tokens, stop_lengths)
  run = _new_run(limit, seed)
  check_source(config, cache)
  if in_trace():
    if stream is not None:
      raise ValueError('stream= reads tokens: call generate outside jit.')
    run, first = _start(logits, run, rules)
    steps = num_tokens - 1
    cache, _, rest = _steps(config, params, cache, run, rules, steps)
    parts = [first, rest]
  else:
    check_room(cache, np.maximum(limit - 1, 0))
    # Later blocks are given what earlier ones return, never the caller's own.
    cache = cache if donate else fork(cache)
    run, first = _start_jit(logits, run, rules)
    stops = bool(rules.stop_tokens) or stop_lengths is not None
    told = _Told(num_tokens, stops, progress, stream)
    cache, parts = _blocks(
      config, params, cache, run, rules, first, block, told
    )
  tokens, scores = _join(parts, num_tokens)
  return (tokens, cache, scores) if log_probs else (tokens, cache)


@dataclasses.dataclass(frozen=True)
class _Told:
  """What happens between blocks: who is told, and whether another follows."""

  num_tokens: int
  stops: bool
  progress: Progress | None
  stream: Stream | None

  def goes_on(self, done: int, run: Run, part: Any) -> bool:
    ends = self.stream is not None and self.stream(np.asarray(part[0]).T)
    ends = ends or done == self.num_tokens
    ends = ends or (self.stops and not np.asarray(run.alive).any())
    if self.progress is not None:
      self.progress(self.num_tokens if ends else done, self.num_tokens)
    return not ends


def _blocks(config, params, cache, run, rules, first, block, told):
  """Runs blocks until no row goes on; returns the cache and all tokens."""
  done, parts = 1, [first]
  while told.goes_on(done, run, parts[-1]):
    count = min(block, told.num_tokens - done)
    cache, run, part = _steps_jit(config, params, cache, run, rules, count)
    parts.append(part)
    done += count
  return cache, parts


def _new_run(limit: Any, seed: Any) -> Run:
  batch = len(limit)
  return Run(
    token=jnp.full((batch,), NO_TOKEN, jnp.int32),
    count=jnp.zeros((batch,), jnp.int32),
    alive=jnp.asarray(limit > 0),
    keys=row_keys(seed, batch),
    limit=jnp.asarray(limit),
  )


def _limit(batch: int, num_tokens: int, stop_lengths: Any) -> Any:
  if stop_lengths is None:
    return np.full((batch,), num_tokens, np.int32)
  if is_traced(stop_lengths):
    chex.assert_shape(stop_lengths, (batch,))
    return jnp.minimum(stop_lengths, num_tokens).astype(jnp.int32)
  limit = np.asarray(stop_lengths)
  whole = np.issubdtype(limit.dtype, np.integer)
  if limit.shape != (batch,) or not whole or limit.min() < 0:
    raise ValueError(
      f'stop_lengths={limit.tolist()} must be {batch} integers, one a row, '
      'none negative.'
    )
  return np.minimum(limit, num_tokens).astype(np.int32)


def _draw(logits, run, rules):
  """Samples a token for every row that is alive."""
  keys = jax.vmap(jax.random.fold_in)(run.keys, run.count)
  token, score = sample(logits, keys, rules.sampling)
  token = jnp.where(run.alive, token, NO_TOKEN)
  score = jnp.where(token >= 0, score, jnp.nan)
  count = run.count + (token >= 0).astype(jnp.int32)
  alive = run.alive & (token >= 0) & (count < run.limit)
  for stop in rules.stop_tokens:
    alive &= token != stop
  run = run.replace(token=token, count=count, alive=alive)
  return run, (token, score)


def _start(logits, run, rules):
  run, (token, score) = _draw(logits, run, rules)
  return run, (token[None], score[None])


_start_jit = jax.jit(_start, static_argnames='rules')


def _steps(config, params, cache, run, rules, count):
  """Feeds and samples `count` tokens; returns them `[count, B]`."""

  def step(carry, _):
    cache, run = carry
    fed = jnp.where(run.alive, run.token, NO_TOKEN)
    logits, cache = decode_step(config, params, cache, fed, kernel=rules.kernel)
    run, drawn = _draw(logits, run, rules)
    return (cache, run), drawn

  (cache, run), drawn = jax.lax.scan(step, (cache, run), length=count)
  return cache, run, drawn


_steps_jit = jax.jit(
  _steps,
  static_argnames=('config', 'rules', 'count'),
  donate_argnames=('cache',),
)


def _join(parts, num_tokens):
  tokens = jnp.concatenate([t for t, _ in parts]).T
  scores = jnp.concatenate([s for _, s in parts]).T
  missing = ((0, 0), (0, num_tokens - tokens.shape[1]))
  tokens = jnp.pad(tokens, missing, constant_values=NO_TOKEN)
  return tokens, jnp.pad(scores, missing, constant_values=jnp.nan)
