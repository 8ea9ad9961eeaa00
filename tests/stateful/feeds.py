"""New tokens: for the model of rows, and as arguments of a call."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from tests.contract.table import VOCAB

WIDTH = 4  # of every chunk; rows fill it as they like


def ids(seed: int, batch: int, width: int) -> np.ndarray:
  rng = np.random.default_rng(seed)
  return rng.integers(0, VOCAB, (batch, width), np.int32)


def chunk(
  masks: Sequence[int], seed: int, padding: str
) -> tuple[list[tuple[int, ...]], dict[str, Any]]:
  """Returns new tokens of each row, and the arguments that feed them.

  With padding 'ids' the places without a token have a negative id, anywhere in
  a row; otherwise lengths say how many there are, on that side.
  """
  tokens = ids(seed, len(masks), WIDTH)
  has_token = np.array([[m >> i & 1 for i in range(WIDTH)] for m in masks]) > 0
  if padding == 'ids':
    tokens = np.where(has_token, tokens, -1)
    feed: dict[str, Any] = {'tokens': tokens}
  else:
    lengths = has_token.sum(axis=1)
    steps = np.arange(WIDTH)
    first = WIDTH - lengths if padding == 'left' else np.zeros_like(lengths)
    has_token = (steps >= first[:, None]) & (steps < (first + lengths)[:, None])
    feed = {'tokens': tokens, 'lengths': lengths, 'padding': padding}
  new = [
    tuple(row[mask].tolist())
    for row, mask in zip(tokens, has_token, strict=True)
  ]
  return new, feed | {'tokens': tokens}


def logits_by_row(logits: Any, feed: dict[str, Any]) -> list[np.ndarray]:
  """Returns logits `[T, V]` of each row's own tokens."""
  tokens, lengths = feed['tokens'], feed.get('lengths')
  found = []
  for i, (line, row) in enumerate(zip(np.asarray(logits), tokens, strict=True)):
    if lengths is None:
      found.append(line[row >= 0])
    elif feed['padding'] == 'left':
      found.append(line[WIDTH - lengths[i] :])
    else:
      found.append(line[: lengths[i]])
  return found
