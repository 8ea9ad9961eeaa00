"""The token loop, on the device, in blocks of one size a call."""

import contextlib
import dataclasses
import functools
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, overload

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from kvjax.arguments import (
  check_array,
  check_callbacks,
  check_flags,
  is_whole,
)
from kvjax.decoding.allocate import check_sizes
from kvjax.decoding.cache import Cache, is_spent
from kvjax.decoding.checks import (
  check_config_and_cache,
  check_room,
  check_source,
)
from kvjax.decoding.logit_adjustments import (
  Adjust,
  adjust_logits,
  as_pytrees,
)
from kvjax.decoding.program import program
from kvjax.decoding.rows import fork
from kvjax.decoding.sampling import NO_TOKEN, Sampling, row_keys, sample
from kvjax.decoding.steps import decode_step
from kvjax.decoding.tracing import in_trace, is_traced
from kvjax.kernels.kernel import Kernel
from kvjax.models.config import ModelConfig

OnProgress = Callable[[int, int], None]
OnTokens = Callable[[np.ndarray], bool | None]


@struct.dataclass
class SamplingState:
  """A generation between two tokens.

  Attributes:
    token: int32 `[B]`, sampled last and not fed yet.
    count: int32 `[B]`, tokens sampled so far.
    alive: bool `[B]`, rows that go on.
    keys: a random key a row.
    limit: int32 `[B]`, most tokens a row may sample.
    tokens: int32 `[B, num_tokens]`, sampled so far, then -1; None where no
      adjustment reads them.
  """

  token: jax.Array
  count: jax.Array
  alive: jax.Array
  keys: jax.Array
  limit: jax.Array
  tokens: jax.Array | None = None


@dataclasses.dataclass(frozen=True)
class GenerateOptions:
  """Static choices of a generation.

  Attributes:
    sampling: how tokens are drawn.
    stop_tokens: ids after which a row stops.
    kernel: that must attend; None for the fastest.
  """

  sampling: Sampling
  stop_tokens: tuple[int, ...]
  kernel: str | Kernel | None = None


@overload
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
  adjust: Adjust | Sequence[Adjust] | None = None,
  seed: Any = 0,
  stop_tokens: Sequence[int] = (),
  stop_lengths: Any = None,
  log_probs: Literal[False] = False,
  block: int = 32,
  progress: OnProgress | None = None,
  stream: OnTokens | None = None,
  donate: bool = True,
  kernel: str | Kernel | None = None,
) -> tuple[jax.Array, Cache]: ...
@overload
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
  adjust: Adjust | Sequence[Adjust] | None = None,
  seed: Any = 0,
  stop_tokens: Sequence[int] = (),
  stop_lengths: Any = None,
  log_probs: Literal[True],
  block: int = 32,
  progress: OnProgress | None = None,
  stream: OnTokens | None = None,
  donate: bool = True,
  kernel: str | Kernel | None = None,
) -> tuple[jax.Array, Cache, jax.Array]: ...
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
  adjust: Adjust | Sequence[Adjust] | None = None,
  seed: Any = 0,
  stop_tokens: Sequence[int] = (),
  stop_lengths: Any = None,
  log_probs: bool = False,
  block: int = 32,
  progress: OnProgress | None = None,
  stream: OnTokens | None = None,
  donate: bool = True,
  kernel: str | Kernel | None = None,
) -> tuple[Any, ...]:
  """Samples tokens, each from the logits after the one before.

  The cache has then seen every returned token but each row's last, so that
  `decode_step` on that one continues. A row that stopped, whose logits are NaN,
  or of whose tokens `adjust` leaves none, returns -1 from then on.

  Args:
    config: the model.
    params: its parameters.
    cache: the rows so far.
    logits: float32 `[B, V]` of each row's last token.
    num_tokens: tokens to sample.
    temperature: divides the logits; 0, the default, is greedy.
    top_k: sample among the k likeliest tokens; None for all.
    top_p: sample among the likeliest tokens of this much probability.
    min_p: sample among tokens of this share of the likeliest's probability.
    adjust: a pure function `f(logits, tokens)` that returns float32 logits `[B,
      V]` to sample from, or a tuple of such, applied in order. `tokens` int32
      `[B, num_tokens]` are what was sampled so far, then -1; the prompt is not
      among them. The function is traced into the device program. An equal one
      compiles nothing anew (a frozen dataclass, or the same function; a lambda
      is equal to itself only), and arrays in a pytree are traced, such as those
      of `jax.tree_util.Partial(f, array)`. See `RepetitionPenalty`,
      `LogitBias` and `AllowedTokens`.
    seed: an int, or int `[B]`: a row's draws depend on its own seed and on
      how many tokens it has sampled, on nothing else.
    stop_tokens: ids after which a row stops; it returns the id.
    stop_lengths: int `[B]`, tokens after which a row stops.
    log_probs: also return log-probabilities of what was sampled: at
      temperature 1 and without filters, after `adjust`.
    block: most tokens of one device program; rows that stop are looked at,
      and `progress` is called, between blocks of equal size.
    progress: called with tokens done and `num_tokens`.
    stream: called with new tokens int32 `[B, n]` as soon as they are there,
      the first at once, then a block each time. If it returns True nothing
      more is sampled, and what was is returned as if the rows had stopped.
      An exception that it raises, and an interrupt, has tokens and cache so
      far as `partial` (None for a cache that a failed call took along).
    donate: reuse the buffers of `cache`, which cannot be used again.
    kernel: that must attend, as in `prefill`; None for the fastest.

  Returns:
    Tokens int32 `[B, num_tokens]` and the cache; with `log_probs`, also
    float32 `[B, num_tokens]`, NaN where there is no token.

  Raises:
    ValueError: an option is out of range, the room is short, or params or
      cache are of another config.
    DonatedCacheError: the cache was given to an earlier call.
  """
  check_config_and_cache(config, cache)
  check_sizes(num_tokens=num_tokens, block=block)
  check_flags(log_probs=log_probs, donate=donate)
  check_callbacks(progress=progress, stream=stream)
  shape = cache.batch_size, config.vocab_size
  check_array('logits', logits, shape, jnp.floating)
  options = GenerateOptions(
    sampling=Sampling(temperature, top_k, top_p, min_p),
    stop_tokens=_check_stop_tokens(config, stop_tokens),
    kernel=kernel,
  )
  adjusts = as_pytrees(adjust)
  width = num_tokens if adjusts else 0
  limit = _limit(cache.batch_size, num_tokens, stop_lengths)
  keys = row_keys(seed, cache.batch_size)
  check_source(config, cache)
  if in_trace():
    if stream is not None:
      raise ValueError('stream= reads tokens: call generate outside jit.')
    state, first = _sample_first(logits, limit, keys, options, adjusts, width)
    cache, _, rest = _sample_block(
      config, params, cache, state, options, num_tokens - 1, adjusts
    )
    parts = [first, rest]
  else:
    check_room(cache, np.maximum(limit - 1, 0))
    # Every block donates its cache. The first block must not take the caller's.
    cache = cache if donate else fork(cache)
    state, first = _sample_first(
      logits, jax.device_put(limit), keys, options, adjusts, width
    )
    callbacks = _Callbacks(
      num_tokens=num_tokens,
      may_stop=bool(options.stop_tokens) or stop_lengths is not None,
      progress=progress,
      stream=stream,
    )
    parts = [first]
    done = 1
    size = _block_size(num_tokens - 1, block)
    try:
      while callbacks.continues(done, state, parts[-1]):
        with _interrupts_wait():
          cache, state, part = _sample_block(
            config,
            params,
            cache,
            state,
            options,
            size,
            adjusts,
            donate=True,
          )
          parts.append(part)
        done += size
    except BaseException as error:  # of a callback, or the user's interrupt
      # A call that failed has taken the cache along.
      kept = None if is_spent(cache) else cache
      vars(error)['partial'] = _join(parts, num_tokens)[0], kept
      error.add_note('What was sampled: `tokens, cache = error.partial`.')
      raise
  tokens, scores = _join(parts, num_tokens)
  return (tokens, cache, scores) if log_probs else (tokens, cache)


def _block_size(tokens: int, most: int) -> int:
  """Returns tokens of each block, so that one program is compiled for all.

  Fewer than one token a block is left over. No row is alive by then.
  """
  blocks = -(-tokens // most)
  return -(-tokens // max(blocks, 1))


@contextlib.contextmanager
def _interrupts_wait() -> Iterator[None]:
  """Lets an interrupt of the user (SIGINT) wait until the block ends.

  Otherwise it could come after a program was given the cache and before the
  result has a name. Only the main thread is interrupted.
  """
  handler = signal.getsignal(signal.SIGINT)
  in_main = threading.current_thread() is threading.main_thread()
  if not (in_main and callable(handler)):
    yield
    return
  waiting: list[tuple[Any, ...]] = []
  signal.signal(signal.SIGINT, lambda *args: waiting.append(args))
  try:
    yield
  finally:
    signal.signal(signal.SIGINT, handler)
    if waiting:
      handler(*waiting[-1])


@dataclasses.dataclass(frozen=True)
class _Callbacks:
  """What the host does between two blocks.

  Attributes:
    num_tokens: that were ordered.
    may_stop: a row may stop before that.
    progress, stream: see `generate`.
  """

  num_tokens: int
  may_stop: bool
  progress: OnProgress | None
  stream: OnTokens | None

  def continues(self, done: int, state: SamplingState, part: Any) -> bool:
    """Calls back with the newest block; returns whether another follows.

    Waits for the device only if someone reads tokens, or a row may stop.
    """
    ends = done >= self.num_tokens
    if self.stream is not None:
      new = jax.device_get(part[0]).T
      left_over = max(done - self.num_tokens, 0)
      ends |= bool(self.stream(new[:, : new.shape[1] - left_over]))
    ends = ends or (self.may_stop and not jax.device_get(state.alive).any())
    if self.progress is not None:
      self.progress(self.num_tokens if ends else done, self.num_tokens)
    return not ends


def _check_stop_tokens(config: ModelConfig, tokens: Any) -> tuple[int, ...]:
  """Returns ids as a tuple; ValueError for what is no id of the vocabulary."""
  ids = tuple(tokens) if isinstance(tokens, Iterable) else None
  if ids is None or not all(
    is_whole(token, 0, config.vocab_size - 1) for token in ids
  ):
    raise ValueError(
      f'stop_tokens={tokens!r} must be a sequence of ids from 0 to '
      f'{config.vocab_size - 1}, those of the vocabulary.'
    )
  return tuple(map(int, ids))


def _limit(batch: int, num_tokens: int, stop_lengths: Any) -> Any:
  if stop_lengths is None:
    return np.full((batch,), num_tokens, np.int32)
  if is_traced(stop_lengths):
    check_array('stop_lengths', stop_lengths, (batch,), jnp.integer)
    return jnp.minimum(stop_lengths, num_tokens).astype(jnp.int32)
  limit = np.asarray(jax.device_get(stop_lengths))
  whole = np.issubdtype(limit.dtype, np.integer)
  if limit.shape != (batch,) or not whole or limit.min() < 0:
    raise ValueError(
      f'stop_lengths={limit.tolist()} must be {batch} integers, one a row, '
      'none negative.'
    )
  return np.minimum(limit, num_tokens).astype(np.int32)


def _draw(logits, state, options, adjusts):
  """Samples a token for every row that is alive."""
  if adjusts:
    logits = adjust_logits(adjusts, logits, state.tokens)
  keys = jax.vmap(jax.random.fold_in)(state.keys, state.count)
  token, score = sample(logits, keys, options.sampling)
  token = jnp.where(state.alive, token, NO_TOKEN)
  score = jnp.where(token >= 0, score, jnp.nan)
  if adjusts:
    put = lambda row, place, token: row.at[place].set(token, mode='drop')
    # The token of a row that stopped is -1, as are the places after its last.
    tokens = jax.vmap(put)(state.tokens, state.count, token)
    state = state.replace(tokens=tokens)
  count = state.count + (token >= 0).astype(jnp.int32)
  alive = state.alive & (token >= 0) & (count < state.limit)
  for stop in options.stop_tokens:
    alive &= token != stop
  state = state.replace(token=token, count=count, alive=alive)
  return state, (token, score)


@program(static=('options', 'width'), donated=())
def _sample_first(logits, limit, keys, options, adjusts=(), width=0):
  """Samples from the caller's logits; returns tokens and scores `[1, B]`."""
  tokens = None
  if adjusts:
    tokens = jnp.full((logits.shape[0], width), NO_TOKEN, jnp.int32)
  state = SamplingState(
    token=jnp.full(limit.shape, NO_TOKEN, jnp.int32),
    count=jnp.zeros(limit.shape, jnp.int32),
    alive=jnp.asarray(limit > 0),
    keys=keys,
    limit=jnp.asarray(limit),
    tokens=tokens,
  )
  state, (token, score) = _draw(logits, state, options, adjusts)
  return state, (token[None], score[None])


@program(static=('config', 'options', 'count'))
def _sample_block(config, params, cache, state, options, count, adjusts=()):
  """Feeds and samples `count` tokens; returns them `[count, B]`."""

  def step(carry, _):
    cache, state = carry
    fed = jnp.where(state.alive, state.token, NO_TOKEN)
    logits, cache = decode_step(
      config, params, cache, fed, kernel=options.kernel
    )
    state, drawn = _draw(logits, state, options, adjusts)
    return (cache, state), drawn

  (cache, state), drawn = jax.lax.scan(step, (cache, state), length=count)
  return cache, state, drawn


@functools.partial(jax.jit, static_argnums=1)
def _join(parts, num_tokens):
  tokens = jnp.concatenate([t for t, _ in parts]).T
  scores = jnp.concatenate([s for _, s in parts]).T
  tokens, scores = tokens[:, :num_tokens], scores[:, :num_tokens]
  missing = ((0, 0), (0, num_tokens - tokens.shape[1]))
  tokens = jnp.pad(tokens, missing, constant_values=NO_TOKEN)
  return tokens, jnp.pad(scores, missing, constant_values=jnp.nan)
