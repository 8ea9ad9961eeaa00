"""Writes answers to prompts, streamed, through an empty or a saved cache."""

import contextlib
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

import kvjax
from experiments.generate.speed import Stopwatch
from experiments.generate.streaming import Streaming, interrupts
from experiments.reporting.writer import progress
from kvjax.decoding.allocate import cache_spec, check_sizes
from kvjax.kernels import KERNELS
from kvjax.text import Batch, prefill_in_chunks, prompts, tokenizer

Model = tuple[kvjax.ModelConfig, Mapping[str, Any]]  # and its parameters


@dataclasses.dataclass(frozen=True)
class Request:
  """What to answer and how.

  Attributes:
    prompts: a row each; of an encoder-decoder, what its answers begin with.
    source: what an encoder-decoder reads.
    cache: options of `init_cache` for an empty cache.
    tokens: most to generate.
    least: of these that the cache must have room for.
    stop_tokens: ids after which a row ends.
    block: tokens of one device program; text appears once a block.
    seed: of sampling.
    kernel: that must attend; None for the fastest.
    sampling: fields of `Sampling`, and `adjust` of `generate`.
  """

  prompts: Batch
  source: Batch | None
  cache: Mapping[str, Any]
  tokens: int
  least: int
  stop_tokens: tuple[int, ...]
  block: int
  seed: int
  kernel: str | None
  sampling: Mapping[str, Any]

  def __post_init__(self):
    check_sizes(tokens=self.tokens, block=self.block)
    fields = dict(self.sampling)
    fields.pop('adjust', None)
    kvjax.Sampling(**fields)  # raises
    if self.kernel not in (None, *KERNELS):
      raise ValueError(
        f'kernel={self.kernel!r} must be one of {", ".join(KERNELS)}.'
      )

  def check_fits(self, cache: kvjax.Cache, past: int | np.ndarray = 0) -> None:
    """Raises ValueError if prompts after `past` tokens leave too little room.

    Accepts a `cache_spec` as well, of which nothing is allocated.
    """
    limit = cache.layout.limit
    # The last token is returned and not fed.
    need = int(np.max(past + self.prompts.lengths)) + self.least - 1
    if limit is not None and need > limit:
      raise ValueError(
        f'capacity={limit} is less than the {need} tokens of prompt and '
        f'answer (tokens={self.least}). Use capacity={need} or more, or a '
        'shorter prompt or answer.'
      )


def batches(
  config: kvjax.ModelConfig, path: str, rows: Sequence[Sequence[int]]
) -> tuple[Batch, Batch | None]:
  """Returns prompts, and what an encoder-decoder reads, of rows of ids."""
  batch = prompts.make_batch(config, rows)
  if config.encoder is None:
    return batch, None
  prompts.check_reads_text(config)
  start = [[tokenizer.start_token(path)]] * len(rows)
  return prompts.make_batch(config, start), batch


def check_cache(
  request: Request, config: kvjax.ModelConfig, saved: str, is_described: bool
) -> None:
  """Raises ValueError if an empty cache has no room, or two are named.

  Args:
    request: what to answer.
    config: of the model.
    saved: a file that `save_cache` wrote; '' for an empty cache.
    is_described: whether a kind or a capacity was named.
  """
  if not saved:
    rows = len(request.prompts.lengths)
    request.check_fits(cache_spec(config, rows, **request.cache))
  elif is_described:
    raise ValueError(
      f'prompt_cache={saved} has its own kind and capacity: leave out '
      '--cache and --capacity.'
    )


def penalty(value: float, prompts: Batch) -> kvjax.RepetitionPenalty:
  """Returns the penalty of what the prompts and the answers have said."""
  is_token = np.arange(prompts.tokens.shape[1]) < prompts.lengths[:, None]
  seen = np.where(is_token, prompts.tokens, -1)
  return kvjax.RepetitionPenalty(value, seen)


def open_cache(request: Request, model: Model, saved: str) -> kvjax.Cache:
  """Returns an empty cache, or a saved one with a row a prompt.

  Args:
    request: what to answer.
    model: its config and parameters.
    saved: a file that `save_cache` wrote; '' for an empty cache.

  Raises:
    ValueError: it is of another model, has neither one row nor B, or no room.
  """
  rows = len(request.prompts.lengths)
  if not saved:
    return kvjax.init_cache(model[0], rows, **request.cache)
  cache = kvjax.load_cache(saved, *model)
  if cache.batch_size == 1:
    cache = kvjax.repeat(cache, rows)
  if cache.batch_size != rows:
    raise ValueError(
      f'{saved} has {cache.batch_size} rows for {rows} prompts: give '
      'a prompt for each row.'
    )
  request.check_fits(cache, np.asarray(cache.length))
  return cache


def write(
  request: Request,
  model: Model,
  cache: kvjax.Cache,
  text: Streaming,
  save: str = '',
) -> tuple[kvjax.Cache, Stopwatch]:
  """Feeds prompts and streams answers until they end, or Ctrl-C is pressed.

  Args:
    request: what to answer.
    model: its config and parameters.
    cache: empty or warm, with room; donated.
    text: takes the tokens as they come.
    save: file for the cache when the prompts are in it; '' for none.

  Returns:
    The cache, and a watch that saw the tokens.
  """
  batch, source, kernel = request.prompts, request.source, request.kernel
  with Stopwatch() as watch, interrupts() as pressed:
    encoded = None
    if source is not None:
      encoded = kvjax.encode(*model, source.ids, source.lengths)
    logits, cache = prefill_in_chunks(
      *model,
      cache,
      batch.ids,
      batch.lengths,
      encoded=encoded,
      kernel=kernel,
    )
    if save:
      kvjax.save_cache(save, cache, *model)

    # One row is seen token by token; of several, nothing until one ends.
    several = len(batch.lengths) > 1
    bar = progress('generate', request.tokens) if several else None
    with bar or contextlib.nullcontext(lambda done: None) as advance:

      def stream(new: np.ndarray) -> bool:
        watch.feed(new)
        text.feed(new)
        advance(max(map(len, text.tokens)))
        return pressed()

      _, cache = kvjax.generate(
        *model,
        cache,
        logits,
        request.tokens,
        stop_tokens=request.stop_tokens,
        block=request.block,
        seed=request.seed,
        kernel=kernel,
        stream=stream,
        **request.sampling,
      )
      jax.block_until_ready(cache.length)
    text.close(interrupted=pressed())
  return cache, watch
