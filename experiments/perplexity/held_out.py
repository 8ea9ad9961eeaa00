"""Text held out: what a model loses on it, uncached and through a cache.

Bits per byte are the mean loss of a token in bits, times tokens per byte of the
text (Gao et al. 2020, arXiv 2101.00027, section 3.1); perplexity is of tokens.
"""

import dataclasses
import functools
import math
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.training.loss import bits, next_token_loss
from kvjax.decoding.cache import Cache
from kvjax.decoding.steps import decode_step
from kvjax.models.config import ModelConfig
from kvjax.models.uncached import forward
from kvjax.text.prompts import make_batch
from kvjax.text.tokenizer import Tokenizer

Progress = Callable[[int], None]
TOLERANCE = {'float32': 1e-4, 'bfloat16': 2e-2, 'float16': 2e-2}  # bits a byte


@dataclasses.dataclass(frozen=True, eq=False)
class HeldOut:
  """Windows of a text.

  Attributes:
    tokens: int32 `[B, T]`; each begins with what the tokenizer puts before any
      text, so that a model is asked as it was trained.
    first: the first token of a window that counts.
    tokens_per_byte: of the whole text.
  """

  tokens: np.ndarray
  first: int
  tokens_per_byte: float

  def scores(self, losses: np.ndarray) -> dict[str, float]:
    """Returns bits per byte and perplexity of losses `[B, T - 1]` in nats."""
    mean = float(np.mean(losses[:, self.first - 1 :], dtype=np.float64))
    return {
      'bits_per_byte': bits(mean) * self.tokens_per_byte,
      'perplexity': math.exp(mean),
    }


def hold_out(
  config: ModelConfig,
  tokenizer: Tokenizer,
  text: str,
  *,
  rows: int,
  length: int,
) -> HeldOut:
  """Returns windows of `length` tokens, spread evenly over a text.

  Raises:
    ValueError: the text is too short for one window, or an id lies outside
      the vocabulary.
  """
  ids = tokenizer.encode(text, special=False)
  lead = _lead(tokenizer)
  size = length - len(lead)
  count = min(rows, len(ids) // size if size > 1 else 0)
  if count < 1:
    raise ValueError(
      f'length={length} tokens a window, {len(lead)} of them before any '
      f'text, and {len(ids)} tokens of text: there must be 2 of a window and '
      'at least one window. Use a longer text or another length.'
    )
  starts = np.linspace(0, len(ids) - size, count).astype(int)
  windows = [[*lead, *ids[start : start + size]] for start in starts]
  return HeldOut(
    make_batch(config, windows).tokens,
    max(len(lead), 1),
    len(ids) / len(text.encode()),
  )


def refuted(
  record: Mapping[str, Any], uncached: float, dtype: str, *, exact: bool
) -> str:
  """Returns why figures of a cache cannot be right; '' if they can.

  Args:
    record: its `cache` by name, `cache_bytes`, `planned_bytes`,
      `bits_per_byte`.
    uncached: bits per byte of the same model without a cache.
    dtype: that it computes in.
    exact: the cache forgets nothing that the model sees.
  """
  if record['cache_bytes'] != record['planned_bytes']:
    return f'{record["cache"]}: other bytes than planned.'
  apart = abs(record['bits_per_byte'] - uncached)
  if exact and apart > TOLERANCE[dtype]:
    return f'The {record["cache"]} cache is not the uncached model.'
  return ''


def _lead(tokenizer: Tokenizer) -> list[int]:
  """Returns what the tokenizer puts before any text."""
  plain, whole = (tokenizer.encode('0', special=s) for s in (False, True))
  for start in range(len(whole) - len(plain) + 1):
    if whole[start : start + len(plain)] == plain:
      return whole[:start]
  return []


def uncached_losses(
  config: ModelConfig,
  params: Mapping[str, Any],
  tokens: np.ndarray,
  progress: Progress = lambda done: None,
) -> np.ndarray:
  """Returns float32 `[B, T - 1]`, nats of each token but the first of a row.

  Row by row: logits of a vocabulary take more memory than a model's cache.
  """
  found = []
  for row in jnp.asarray(tokens):
    logits = forward(config, params, row[None])
    found.append(np.asarray(next_token_loss(logits, row[None])))
    progress(len(found))
  return np.concatenate(found)


def cached_losses(
  config: ModelConfig,
  params: Mapping[str, Any],
  cache: Cache,
  tokens: np.ndarray,
  *,
  block: int = 32,
  kernel: str | None = None,
  progress: Progress = lambda done: None,
) -> tuple[np.ndarray, Cache]:
  """Returns the same, fed token by token through a cache, and the cache.

  Args:
    config, params: the model.
    cache: empty, of B rows and room for T - 1 tokens; donated.
    tokens: int32 `[B, T]`; what the model would have said is ignored.
    block: tokens of one device program.
    kernel: that must attend; None for the fastest.
    progress: called with tokens a row done.
  """
  steps = tokens.shape[1] - 1
  # A token of -1 is none: all blocks are of one size, and compile once.
  pad = ((0, 0), (0, -steps % block + 1))
  padded = jnp.asarray(np.pad(tokens, pad, constant_values=-1))
  found = []
  for start in range(0, steps, block):
    part = padded[:, start : start + block + 1]
    losses, cache = _block(config, params, cache, part, kernel=kernel)
    found.append(np.asarray(losses))
    progress(min(start + block, steps))
  return np.concatenate(found, axis=1)[:, :steps], cache


@functools.partial(
  jax.jit,
  static_argnames=('config', 'kernel'),
  donate_argnames='cache',
)
def _block(config, params, cache, tokens, *, kernel):
  """Feeds all of `tokens [B, n + 1]` but the last; returns losses `[B, n]`."""
  last = tokens.shape[1] - 1

  def step(cache, pair):
    token, following = pair
    # The last token of a row is asked for, never fed.
    fed = jnp.where(following >= 0, token, -1)
    logits, cache = decode_step(config, params, cache, fed, kernel=kernel)
    loss = optax.softmax_cross_entropy_with_integer_labels(
      logits, jnp.maximum(following, 0)
    )
    return cache, loss

  pairs = tokens[:, :last].T, tokens[:, 1:].T
  cache, losses = jax.lax.scan(step, cache, pairs)
  return losses.T, cache


def read_text(path: pathlib.Path) -> str:
  """Returns the text of a file.

  Raises:
    ValueError: it is no UTF-8 text.
  """
  try:
    return path.read_text('utf-8')
  except UnicodeDecodeError as error:
    raise ValueError(f'{path} is no UTF-8 text: {error}.') from None
