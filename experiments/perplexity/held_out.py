"""Text held out: what a model loses on it, uncached and through a cache.

Bits per byte are the mean loss of a token in bits, times tokens per byte of the
text (Gao et al. 2020, arXiv 2101.00027, section 3.1); perplexity is of tokens.
"""

import dataclasses
import math
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

import kvjax
from experiments.measuring.teacher_forcing import feed
from experiments.reporting.writer import follow
from experiments.training.step import next_token_loss, to_bits
from experiments.training.variants import array_bytes
from kvjax.memory.planning import plan
from kvjax.text.prompts import make_batch
from kvjax.text.tokenizer import Tokenizer

TOLERANCE = {'float32': 1e-4, 'bfloat16': 2e-2, 'float16': 2e-2}  # bits a byte
BLOCK = 32  # tokens of one device program


@dataclasses.dataclass(frozen=True, eq=False)
class HeldOut:
  """Windows of a text.

  Attributes:
    tokens: int32 `[B, T]`; each row begins with what the tokenizer puts before
      any text, as in training.
    first: the first token of a window whose loss counts.
    tokens_per_byte: of the whole text.
  """

  tokens: np.ndarray
  first: int
  tokens_per_byte: float

  def scores(self, losses: np.ndarray) -> dict[str, float]:
    """Returns bits per byte and perplexity of losses `[B, T - 1]` in nats."""
    mean = float(np.mean(losses[:, self.first - 1 :], dtype=np.float64))
    return {
      'bits_per_byte': to_bits(mean) * self.tokens_per_byte,
      'perplexity': math.exp(mean),
    }


def hold_out(
  config: kvjax.ModelConfig,
  tokenizer: Any,
  text: str,
  *,
  rows: int,
  length: int,
) -> HeldOut:
  """Returns windows of `length` tokens, spread evenly over a text.

  Raises:
    ValueError: the text is too short for one window, or an id is outside
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
    record: of `measure`.
    uncached: bits per byte of the same model without a cache.
    dtype: of the model's activations.
    exact: whether the cache forgets nothing that the model sees.
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


def measure(
  config: kvjax.ModelConfig,
  params: Any,
  text: HeldOut,
  caches: Mapping[str, Mapping[str, Any]],
  *,
  weights: str | None = None,
  kernel: str | None = None,
) -> Iterator[dict[str, Any]]:
  """Yields records: the uncached figures, then those through each cache.

  Args:
    config, params: the model.
    text: what it reads.
    caches: by name, `kinds` and `codec` of `init_cache`.
    weights: 'int8' or 'int4': all figures but the first are of the model in
      so many bits, the second of it without a cache.
    kernel: that must attend; None for the fastest.
  """
  rows, length = text.tokens.shape
  first = text.scores(uncached_losses(config, params, text.tokens))
  yield {'record': 'perplexity', 'cache': 'uncached', **first}

  def compare(name: str, losses: np.ndarray) -> dict[str, Any]:
    scores = text.scores(losses)
    more = scores['bits_per_byte'] - first['bits_per_byte']
    return {'record': 'perplexity', 'cache': name, **scores, 'more_bits': more}

  if weights:
    params = kvjax.quantize(params, bits=int(weights.removeprefix('int')))
    losses = uncached_losses(config, params, text.tokens)
    yield compare(f'uncached, {weights} weights', losses)
  for name, options in caches.items():
    cache = kvjax.init_cache(config, rows, length, **options)
    cache_bytes = array_bytes(cache)
    losses = cached_losses(config, params, cache, text.tokens, name, kernel)
    promised = plan(config, batch_size=rows, capacity=length, **options)
    yield compare(name, losses) | {
      'bytes_per_token': promised.bytes_per_token,
      'cache_bytes': cache_bytes,
      'planned_bytes': promised.cache_bytes,
    }


def uncached_losses(
  config: kvjax.ModelConfig, params: Any, tokens: np.ndarray
) -> np.ndarray:
  """Returns float32 `[B, T - 1]`, nats of each token but the first of a row.

  Row by row: logits of a vocabulary take more memory than a model's cache.
  """
  losses = []
  for row in follow('uncached', jnp.asarray(tokens)[:, None], len(tokens)):
    logits = kvjax.forward(config, params, row)
    losses.append(np.asarray(next_token_loss(logits, row)))
  return np.concatenate(losses)


def cached_losses(
  config: kvjax.ModelConfig,
  params: Any,
  cache: kvjax.Cache,
  tokens: np.ndarray,
  label: str,
  kernel: str | None,
) -> np.ndarray:
  """Returns the same, fed token by token through a cache.

  Args:
    config, params: the model.
    cache: empty, of B rows and room for T - 1 tokens; donated.
    tokens: int32 `[B, T]`; these are fed, not what the model would write.
    label: of the progress bar.
    kernel: that must attend; None for the fastest.
  """
  steps = tokens.shape[1] - 1
  # The last token of a row predicts nothing and is not fed. A padding of -1,
  # which is no token, makes all blocks equal, so that one program serves them.
  padding = ((0, 0), (0, -steps % BLOCK))
  fed = jnp.asarray(np.pad(tokens[:, :-1], padding, constant_values=-1))
  following = jnp.asarray(np.pad(tokens[:, 1:], padding))
  losses = []
  starts = range(0, steps, BLOCK)
  for start in follow(label, starts, len(starts)):
    part = np.s_[:, start : start + BLOCK]
    block_losses, cache = feed(
      config, params, cache, fed[part], following[part], kernel=kernel
    )
    losses.append(np.asarray(block_losses))
  return np.concatenate(losses, axis=1)[:, :steps]


def read_text(path: pathlib.Path) -> str:
  """Returns the text of a file.

  Raises:
    ValueError: it is no UTF-8 text.
  """
  try:
    return path.read_text('utf-8')
  except UnicodeDecodeError as error:
    raise ValueError(f'{path} is no UTF-8 text: {error}.') from None
