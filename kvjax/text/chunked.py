"""Prompts of any length through two compiled programs."""

from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kvjax.arguments import is_whole
from kvjax.decoding.cache import Cache
from kvjax.decoding.checks import check_chunk
from kvjax.decoding.rows import fork
from kvjax.decoding.sampling import NO_TOKEN
from kvjax.decoding.steps import prefill
from kvjax.decoding.tracing import in_trace
from kvjax.kernels.kernel import Kernel
from kvjax.models.config import ModelConfig
from kvjax.models.encoder import Encoded

CHUNKS = 128, 16


def prefill_in_chunks(
  config: ModelConfig,
  params: Mapping[str, Any],
  cache: Cache,
  tokens: Any,
  lengths: Any = None,
  *,
  chunks: tuple[int, int] = CHUNKS,
  encoded: Encoded | None = None,
  donate: bool = True,
  kernel: str | Kernel | None = None,
) -> tuple[jax.Array, Cache]:
  """Feeds prompts as `kvjax.prefill` does, and compiles two programs at most.

  (One more for a source, which the first chunk brings.)

  `prefill` compiles a program for every length that it meets. Once compiled, a
  prompt in chunks takes longer than an exact `prefill`: each chunk reads all
  weights, which on a CPU takes as long as the arithmetic of ten tokens. Of a
  prompt of 150 tokens or more it took 1.0 to 1.3 times as long, of a shorter
  one up to 1.7 times (`experiments.benchmark --sections=cold`).

  A kind that evicts does so between chunks, so which tokens it keeps may differ
  from one `prefill` of the whole prompt.

  Args:
    config: the model.
    params: its parameters.
    cache: empty or warm.
    tokens: int `[B, T]`; a negative id is padding.
    lengths: int `[B]`, tokens of each row; None for T. Padding is on the right.
    chunks: tokens of a large and of a small chunk. The last chunk is padded.
    encoded: the source of an encoder-decoder, as in `prefill`.
    donate: reuse the buffers of `cache`, which cannot be used again.
    kernel: that must attend, as in `prefill`.

  Returns:
    Float32 logits `[B, V]` of each row's last token, and the new cache.

  Raises:
    ValueError: `chunks` are not two sizes, the larger first, or what `prefill`
      refuses; nothing has been fed then.
    DonatedCacheError: the cache was given to an earlier call.
  """
  _check_chunks(chunks)
  ids, is_token = check_chunk(config, cache, tokens, lengths, 'right', encoded)
  if in_trace():  # one program in any case: the caller's
    return prefill(
      config, params, cache, ids, lengths, encoded=encoded, kernel=kernel
    )
  is_token, ids = jax.device_get((is_token, ids))
  fed = np.where(is_token, ids, NO_TOKEN)
  last = np.flatnonzero(is_token.any(axis=0)).max(initial=0)
  fed = fed[:, : last + 1]  # a longer padding would be a chunk of no token
  cache = cache if donate else fork(cache)
  logits = None
  for start, size in _split(fed.shape[1], chunks):
    piece = fed[:, start : start + size]
    missing = size - piece.shape[1]
    piece = np.pad(piece, ((0, 0), (0, missing)), constant_values=NO_TOKEN)
    new, cache = prefill(
      config,
      params,
      cache,
      jax.device_put(piece),
      encoded=encoded,
      kernel=kernel,
    )
    encoded = None  # later chunks find it in the cache
    goes_on = jax.device_put((piece >= 0).any(axis=1, keepdims=True))
    logits = new if logits is None else jnp.where(goes_on, new, logits)
  assert logits is not None  # `check_chunk` refuses prompts of no token
  return logits, cache


def _split(tokens: int, chunks: tuple[int, int]) -> Iterator[tuple[int, int]]:
  """Yields start and size of each chunk.

  What the large chunks leave over is fed in small ones, or as one more large
  chunk if that is more than half full.
  """
  large, small = chunks
  start = 0
  while (rest := tokens - start) > 0:
    size = large if rest > large // 2 else small
    yield start, size
    start += size


def _check_chunks(chunks: Any) -> None:
  if (
    not isinstance(chunks, tuple)
    or len(chunks) != 2
    or not all(is_whole(size, 1) for size in chunks)
    or chunks[0] < chunks[1]
  ):
    raise ValueError(
      f'chunks={chunks!r} must be two sizes in tokens, the larger first: '
      f'{CHUNKS}.'
    )
