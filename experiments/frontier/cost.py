"""What each cache costs: predictions behind a context, against the full cache.

A part is fed in pieces of one width, so that all parts share a program.
"""

import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import kvjax
from experiments.frontier.caches import Compressor, Params, Room, Row
from experiments.frontier.contexts import NONE, Part, Reading
from experiments.measuring.divergence import divergence
from experiments.reporting.writer import follow

Record = dict[str, Any]
PIECE = 40  # tokens that are fed in one call


@dataclasses.dataclass(frozen=True)
class Answered:
  """Which contexts are measured: those that the full cache answers.

  Attributes:
    contexts: that are wanted.
    right: share of a context's digits that must be right, at least.
    exact: share of its questions that must be answered exactly.
    most: candidates that are tried, about.
  """

  contexts: int
  right: float
  exact: float
  most: int

  def answered(self, figures: Record) -> list[int]:
    """Returns the rows of `compare` that are kept."""
    right, exact = figures['right_contexts'], figures['exact_contexts']
    return [
      row
      for row in range(len(right))
      if right[row] >= self.right and exact[row] >= self.exact
    ]


def measure(
  config: kvjax.ModelConfig,
  params: Params,
  reading: Reading,
  rows: Sequence[Row],
  room: Room,
) -> Iterator[Record]:
  """Yields a record a row and part of a reading."""
  source = Compressor(config, params, reading.contexts, room)
  full = {
    part.name: predict(config, params, source.dense, part)
    for part in reading.parts
  }
  for row in follow(reading.name, rows, len(rows)):
    sizes = row.sizes(config, reading.contexts, room)
    start, cache, stored = time.perf_counter(), None, 0
    for part in reading.parts:
      if cache is None or row.knows_future:
        cache, stored = source.compress(row, part)
      found = predict(config, params, cache, part)
      figures = compare(part, found, full[part.name])
      seconds = time.perf_counter() - start
      yield {
        'record': 'cost',
        **row.names,
        'reading': reading.name,
        'part': part.name,
        **sizes,
        'cache_bytes': stored,
        **figures,
        'seconds': seconds,
      }
      start = time.perf_counter()


def predict(
  config: kvjax.ModelConfig, params: Params, cache: kvjax.Cache, part: Part
) -> list[jax.Array]:
  """Returns log-probabilities `[R, A, V]` where the part has targets, J times.

  A is the most targets of a row; shorter rows repeat their last place.
  """
  found = []
  for tokens, targets in zip(part.tokens, part.targets, strict=True):
    logits, fed = [], cache
    width = -(-tokens.shape[1] // PIECE) * PIECE
    padded = _pad(tokens, width)
    for start in range(0, width, PIECE):
      piece = jnp.asarray(padded[:, start : start + PIECE])
      new, fed = kvjax.extend(config, params, fed, piece)
      logits.append(new)
    places = jnp.asarray(_places(targets)[0])
    found.append(_pick(jnp.concatenate(logits, axis=1), places))
  return found


def _pad(x: np.ndarray, width: int) -> np.ndarray:
  missing = ((0, 0), (0, width - x.shape[1]))
  return np.pad(x, missing, constant_values=NONE)


def _places(targets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Returns places of targets `[R, A]`, and which of them are real."""
  is_target = targets != NONE
  counts = is_target.sum(axis=1)
  order = np.argsort(~is_target, axis=1, kind='stable')[:, : counts.max()]
  index = np.arange(counts.max())[None]
  last = np.minimum(index, counts[:, None] - 1)
  places = np.take_along_axis(order, last, axis=1).astype(np.int32)
  return places, index < counts[:, None]


@jax.jit
def _pick(logits: jax.Array, places: jax.Array) -> jax.Array:
  chosen = jnp.take_along_axis(logits, places[..., None], axis=1)
  return jax.nn.log_softmax(chosen)


def compare(
  part: Part, found: Sequence[jax.Array], full: Sequence[jax.Array]
) -> Record:
  """Returns how far predictions are from those through the full cache.

  Args:
    part: what was predicted.
    found: log-probabilities `[R, A, V]` through a cache, J times.
    full: the same through one that forgets nothing.

  Returns:
    Mean and median `KL(full || cache)` over all predictions, the mean of each
    context and the median of those, nats of the targets, the share of targets
    that are the likeliest token, and of continuations where all of them are.
  """
  divergences, losses, hits, real = [], [], [], []
  for targets, scores, reference in zip(part.targets, found, full, strict=True):
    places, is_real = _places(targets)
    wanted = jnp.asarray(np.take_along_axis(targets, places, axis=1))
    loss = -jnp.take_along_axis(scores, wanted[..., None], axis=-1)[..., 0]
    divergences.append(np.asarray(divergence(reference, scores), np.float64))
    losses.append(np.asarray(loss, np.float64))
    hits.append(np.asarray(scores.argmax(axis=-1) == wanted))
    real.append(is_real)
  kl, nll, hit, is_real = map(np.stack, (divergences, losses, hits, real))
  of_context = np.where(is_real, kl, 0).sum((0, 2)) / is_real.sum((0, 2))
  right = np.where(is_real, hit, 0).sum((0, 2)) / is_real.sum((0, 2))
  exact = (hit | ~is_real).all(axis=2)
  return {
    'kl_mean': float(kl[is_real].mean()),
    'kl_median': float(np.median(kl[is_real])),
    'kl_contexts': of_context.tolist(),
    'kl_contexts_median': float(np.median(of_context)),
    'nll': float(nll[is_real].mean()),
    'right': float(hit[is_real].mean()),
    'right_contexts': right.tolist(),
    'exact': float(exact.mean()),
    'exact_contexts': exact.mean(axis=0).tolist(),
  }


def keep_answered(
  config: kvjax.ModelConfig,
  params: Params,
  draw: Callable[[Sequence[int]], Reading],
  room: Room,
  rule: Answered,
) -> Record:
  """Returns which contexts the full cache answers, by their numbers.

  No compressed cache is read before the choice is made.

  Args:
    config, params: the model.
    draw: makes the contexts of some numbers.
    room: of the caches.
    rule: which contexts are kept.

  Raises:
    ValueError: too few candidates are answered.
  """
  kept: list[int] = []
  tried = 0
  while len(kept) < rule.contexts:
    if tried >= rule.most:
      raise ValueError(
        f'The full cache answers {len(kept)} of {tried} contexts, and '
        f'{rule.contexts} are needed. Ask for less, or raise tried.'
      )
    numbers = range(tried, tried + rule.contexts)
    reading = draw(numbers)
    (part,) = reading.parts
    dense = Compressor(config, params, reading.contexts, room).dense
    full = predict(config, params, dense, part)
    figures = compare(part, full, full)
    kept += [tried + row for row in rule.answered(figures)]
    tried += rule.contexts
  return {'record': 'contexts', 'tried': tried, 'kept': kept[: rule.contexts]}
