"""One prompt answered through several caches, shown as the text comes."""

import dataclasses
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

import kvjax
from experiments.reporting.blocks import without_controls
from experiments.training.variants import array_bytes
from kvjax.decoding.allocate import check_sizes
from kvjax.text import Batch, encode_prompts, make_batch, prefill_in_chunks
from kvjax.text.tokenizer import Tokenizer

Record = dict[str, Any]
BLOCK = 8  # tokens of one device program


@dataclasses.dataclass(frozen=True)
class Question:
  """What is answered.

  Attributes:
    prompt: through the chat template, if there is one.
    tokens: most of the answer.
    window: tokens that sinks and bounded may remember.
  """

  prompt: str
  tokens: int
  window: int

  def __post_init__(self):
    check_sizes(tokens=self.tokens, window=self.window)
    if self.window < 8:
      raise ValueError(f'answer.window={self.window} must be at least 8.')

  def encode(
    self, config: kvjax.ModelConfig, tokenizer: Tokenizer
  ) -> tuple[Batch, int]:
    """Returns the prompt, and the capacity that it and the answer need."""
    ids = encode_prompts(tokenizer, [self.prompt])
    batch = make_batch(config, ids)
    return batch, batch.tokens.shape[1] + self.tokens - 1

  def caches(self) -> dict[str, Mapping[str, Any]]:
    """Returns options of each cache by name; the first forgets nothing."""
    return {
      'dense': {},
      'int8': {'codec': kvjax.Int8()},
      'sinks': {'kinds': kvjax.Sinks(sinks=4, window=self.window - 4)},
      'bounded': {'kinds': kvjax.Bounded(self.window - 7, slack=7)},
    }


def answer(
  question: Question,
  config: kvjax.ModelConfig,
  params: Any,
  tokenizer: Tokenizer,
  stops: tuple[int, ...],
) -> Iterator[Record]:
  """Streams an answer through each cache to stdout; yields a record each."""
  batch, capacity = question.encode(config, tokenizer)
  for name, options in question.caches().items():
    cache = kvjax.init_cache(config, 1, capacity, **options)
    size = array_bytes(cache)
    print(f'\n{name} ({size:,} bytes): ', end='', flush=True)
    logits, cache = prefill_in_chunks(config, params, cache, batch.ids)
    text = _Shown(tokenizer, stops)
    kvjax.generate(
      config,
      params,
      cache,
      logits,
      question.tokens,
      stop_tokens=stops,
      block=BLOCK,
      stream=text.feed,
    )
    print()
    yield {
      'record': 'answer',
      'cache': name,
      'prompt': question.prompt,
      'text': text.text,
      'cache_bytes': size,
    }


class _Shown:
  """Text of one row, printed as soon as it is readable."""

  def __init__(self, tokenizer: Tokenizer, stops: tuple[int, ...]):
    self.text = ''
    self._decode = tokenizer.stream()
    self._stops = stops

  def feed(self, new: np.ndarray) -> None:
    for token in new[0].tolist():
      if token >= 0 and token not in self._stops:
        piece = self._decode(token)
        self.text += piece
        print(without_controls(piece), end='', flush=True, file=sys.stdout)
