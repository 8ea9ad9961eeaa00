"""Writes answers to prompts, streamed, through an empty or a saved cache."""

import dataclasses
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

import kvjax
from experiments.generate.speed import Stopwatch
from experiments.generate.streaming import Streaming, interrupts
from kvjax.decoding.allocate import check_sizes
from kvjax.kernels import KERNELS
from kvjax.text.prompts import Batch


def check_fits(cache: kvjax.Cache, lengths: Any, tokens: int) -> None:
  """Raises ValueError if prompts of `lengths [B]` leave no room for `tokens`.

  Accepts a `cache_spec` as well, of which nothing is allocated.
  """
  limit = cache.layout.limit
  # The last token is returned and not fed.
  need = int(np.max(np.asarray(lengths))) + tokens - 1
  if limit is not None and need > limit:
    raise ValueError(
      f'capacity={limit} is less than the {need} tokens of prompt and '
      f'answer (tokens={tokens}). Use capacity={need}, or fewer tokens.'
    )


def open_cache(
  saved: str | pathlib.Path,
  model: tuple[kvjax.ModelConfig, Mapping[str, Any]],
  lengths: np.ndarray,
  tokens: int,
  empty: Mapping[str, Any],
) -> kvjax.Cache:
  """Returns an empty cache, or a saved one with a row a prompt.

  Args:
    saved: a file that `save_cache` wrote; '' for an empty cache.
    model: its config and parameters.
    lengths: int `[B]`, tokens of each prompt.
    tokens: that will be written.
    empty: options of `init_cache` for an empty one.

  Raises:
    ValueError: it is of another model, has neither one row nor B, or no room.
  """
  config, params = model
  if not saved:
    return kvjax.init_cache(config, len(lengths), **empty)
  cache = kvjax.load_cache(saved, config, params)
  if cache.batch_size == 1:
    cache = kvjax.repeat(cache, len(lengths))
  if cache.batch_size != len(lengths):
    raise ValueError(
      f'{saved} has {cache.batch_size} rows for {len(lengths)} prompts: give '
      'a prompt for each row.'
    )
  check_fits(cache, np.asarray(cache.length) + lengths, tokens)
  return cache


@dataclasses.dataclass(frozen=True)
class Answer:
  """How to answer.

  Attributes:
    tokens: most to generate.
    stop_tokens: ids after which a row ends.
    block: tokens of one device program; text appears once a block.
    seed: of sampling.
    kernel: that must attend; None for the fastest.
    sampling: fields of `Sampling`.
  """

  tokens: int
  stop_tokens: tuple[int, ...] = ()
  block: int = 8
  seed: int = 0
  kernel: str | None = None
  sampling: Mapping[str, Any] = dataclasses.field(default_factory=dict)

  def __post_init__(self):
    check_sizes(tokens=self.tokens, block=self.block)
    kvjax.Sampling(**self.sampling)  # raises
    if self.kernel not in (None, *KERNELS):
      raise ValueError(
        f'kernel={self.kernel!r} must be one of {", ".join(KERNELS)}.'
      )


def write(
  how: Answer,
  model: tuple[kvjax.ModelConfig, Mapping[str, Any]],
  cache: kvjax.Cache,
  prompts: Batch,
  text: Streaming,
  *,
  source: Batch | None = None,
  read: Callable[[kvjax.Cache], None] = lambda cache: None,
) -> tuple[kvjax.Cache, Stopwatch, bool]:
  """Feeds prompts and streams answers until they end, or Ctrl-C is pressed.

  Args:
    how: to answer.
    model: its config and parameters.
    cache: empty or warm, with room; donated.
    prompts: a row each.
    text: takes the tokens as they come.
    source: what an encoder-decoder reads.
    read: called with the cache when the prompts are in it.

  Returns:
    The cache, a watch that saw the tokens, and whether Ctrl-C ended it all.
  """
  config, params = model
  with Stopwatch() as watch, interrupts() as pressed:
    encoded = None
    if source is not None:
      encoded = kvjax.encode(config, params, source.ids, source.lengths)
    logits, cache = kvjax.prefill(
      config,
      params,
      cache,
      prompts.ids,
      prompts.lengths,
      encoded=encoded,
      kernel=how.kernel,
    )
    read(cache)

    def stream(new: np.ndarray) -> bool:
      watch.feed(new)
      text.feed(new)
      return pressed()

    _, cache = kvjax.generate(
      config,
      params,
      cache,
      logits,
      how.tokens,
      stop_tokens=how.stop_tokens,
      block=how.block,
      seed=how.seed,
      kernel=how.kernel,
      stream=stream,
      **how.sampling,
    )
    jax.block_until_ready(cache.length)
    text.close()
    return cache, watch, pressed()


def records(
  prompts: Sequence[str], text: Streaming, interrupted: bool
) -> list[dict[str, Any]]:
  """Returns a record a row: prompt, text, tokens, and how it ended."""
  return [
    {
      'record': 'text',
      'prompt': prompt,
      'text': text.texts[row],
      'tokens': text.tokens[row],
      'stopped': text.stopped[row],
      'interrupted': interrupted and not text.stopped[row],
    }
    for row, prompt in enumerate(prompts)
  ]
