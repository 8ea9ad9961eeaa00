"""Writes answers to prompts, streamed, and says what that took."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from experiments.generate.compilation import compilation
from experiments.generate.speed import Stopwatch
from experiments.generate.streaming import Streaming, interrupts
from kvjax.decoding.allocate import check_sizes
from kvjax.decoding.cache import Cache
from kvjax.decoding.generation import generate
from kvjax.decoding.steps import prefill
from kvjax.kernels import KERNELS
from kvjax.models.config import ModelConfig
from kvjax.models.encoder import encode
from kvjax.text.prompts import Batch


@dataclasses.dataclass(frozen=True)
class Answer:
  """How to answer.

  Attributes:
    tokens: most to generate.
    stop_tokens: ids after which a row ends.
    block: tokens of one device program; so often text appears.
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
    if self.kernel not in (None, *KERNELS):
      raise ValueError(
        f'kernel={self.kernel!r} must be one of {", ".join(KERNELS)}.'
      )


def write(
  how: Answer,
  config: ModelConfig,
  params: Mapping[str, Any],
  cache: Cache,
  prompts: Batch,
  text: Streaming,
  *,
  source: Batch | None = None,
  read: Callable[[Cache], None] = lambda cache: None,
) -> tuple[Cache, Stopwatch, bool]:
  """Feeds prompts and streams answers until they end, or Ctrl-C is pressed.

  Args:
    how: to answer.
    config, params: the model.
    cache: empty or warm, with room; donated.
    prompts: a row each.
    text: takes the tokens as they come.
    source: what an encoder-decoder reads.
    read: called with the cache once it has read the prompts.

  Returns:
    The cache, when tokens came, and whether Ctrl-C ended it.
  """
  with compilation() as compiled, interrupts() as pressed:
    watch, encoded = Stopwatch(compiled), None
    if source is not None:
      encoded = encode(config, params, source.ids, source.lengths)
    logits, cache = prefill(
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

    _, cache = generate(
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
  rows = zip(prompts, text.texts, text.tokens, text.stopped, strict=True)
  return [
    {
      'record': 'text',
      'prompt': prompt,
      'text': written,
      'tokens': tokens,
      'stopped': stopped,
      'interrupted': interrupted and not stopped,
    }
    for prompt, written, tokens, stopped in rows
  ]
