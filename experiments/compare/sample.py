"""A continuation of a prompt, and what the model looked at on the way."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import kvjax
from kvjax.decoding.allocate import check_sizes


@dataclasses.dataclass(frozen=True)
class Sample:
  """How to continue a text.

  Attributes:
    prompt: what to continue; empty for text of the corpus.
    tokens: to generate.
    temperature: of sampling; 0 for greedy.
    top_p: of nucleus sampling (arXiv 1904.09751); 1 for all tokens.
    capacity: of the cache, for prompt and continuation.
  """

  prompt: str
  tokens: int
  temperature: float
  top_p: float
  capacity: int

  def __post_init__(self):
    check_sizes(tokens=self.tokens)
    kvjax.Sampling(self.temperature, top_p=self.top_p)  # raises
    length = max(len(self.prompt.encode()), 1)
    need = length + self.tokens
    if need > self.capacity:
      raise ValueError(
        f'A prompt of {length} bytes and {self.tokens} tokens exceed capacity='
        f'{self.capacity}. Use capacity={need} or a shorter prompt.'
      )

  def with_prompt(self, text: np.ndarray) -> 'Sample':
    """Returns this, with the beginning of text `[T]` where it has no prompt."""
    beginning = _text(text[: min(60, self.capacity - self.tokens)], 'ignore')
    return dataclasses.replace(self, prompt=self.prompt or beginning)


def continuation(
  sample: Sample, config: kvjax.ModelConfig, params: Any, seed: int
) -> str:
  """Returns text that the model writes after the prompt, through its cache."""
  tokens = _bytes(sample.prompt)
  cache = kvjax.init_cache(config, 1, sample.capacity)
  logits, cache = kvjax.prefill(config, params, cache, tokens)
  written, _ = kvjax.generate(
    config,
    params,
    cache,
    logits,
    sample.tokens,
    temperature=sample.temperature,
    top_p=sample.top_p,
    seed=seed,
    block=sample.tokens,
  )
  return _text(written[0], 'replace')


def attention(
  config: kvjax.ModelConfig, params: Any, prompt: str
) -> tuple[dict[str, np.ndarray], list[str]]:
  """Returns where the first two heads of each layer look in a text.

  Args:
    config, params: the model.
    prompt: its first 24 bytes are read.

  Returns:
    Weights `[T, T]` by layer and head, and a character a byte.
  """
  text = prompt.encode()[:24].decode(errors='ignore')
  layers = tuple(range(len(config.layers)))
  _, weights = kvjax.forward(
    config, params, _bytes(text), attention_layers=layers
  )
  panels = {
    f'layer {layer}, head {head}': np.asarray(of_head)
    for layer in layers
    for head, of_head in enumerate(weights[layer][0, :2])
  }
  labels = [chr(b) if 32 < b < 127 else '·' for b in text.encode()]
  return panels, labels


def _bytes(text: str) -> jax.Array:
  return jnp.asarray(np.frombuffer(text.encode(), np.uint8), jnp.int32)[None, :]


def _text(tokens: Any, errors: str) -> str:
  return bytes(np.asarray(tokens, np.uint8)).decode('utf-8', errors)
