"""The one attention core: queries, positions, views of slots -> output, lse.

Each view is attended by the kernel that serves it best; partial results are
merged by their log-sum-exp (Flash-Decoding). What every kernel promises:

- softmax and accumulation are float32, whatever the streams are;
- a masked weight is exactly 0, and masks are booleans: no finite sentinel that
  a real score could undercut;
- the value of a slot without a token counts as 0, so nothing stored there,
  NaN included, reaches a result;
- a row that sees no key returns 0, with log-sum-exp -inf.
"""

from collections.abc import Sequence

import chex
import jax
import jax.numpy as jnp

from kvjax.context import PARTITION
from kvjax.kernels.blockwise import (
  QUERY_BLOCK,
  attention_weights,
  by_query_blocks,
  received,
)
from kvjax.kernels.kernel import Kernel
from kvjax.kernels.log_sum_exp import merge
from kvjax.kernels.registry import attend_view
from kvjax.streams.scoring import Scoring
from kvjax.streams.view import Streams, View

__all__ = (
  'Scoring',
  'add_sinks',
  'attend',
  'attention_weights',
  'merge',
  'received',
)


def attend(
  queries: Streams,
  positions: jax.Array,
  segments: Sequence[View],
  scoring: Scoring,
  *,
  block: int | None = None,
  kernel: str | Kernel | None = None,
) -> tuple[jax.Array, jax.Array]:
  """Attends to disjoint segments of slots.

  Args:
    queries: for each key stream its queries `[B, K, G, T, H]`; a score is the
      sum of their products (one for grouped attention, two for MLA).
    positions: `[B, T]`, -1 for a row that is no token and sees nothing.
    segments: views whose slots hold different tokens.
    scoring: scale, temperature, mask, bias and sinks.
    block: slots read at once; None for the kernel's choice.
    kernel: one of `kernels.KERNELS`, or a record of a kernel that is not among
      them; None for the fastest for each view.

  Returns:
    Output `[B, K, G, T, E]` and log-sum-exp `[B, K, G, T]`, float32.

  Raises:
    ValueError: `kernel` cannot serve a view.
  """
  chex.assert_rank(list(queries.values()), 5)
  chex.assert_rank(positions, 2)
  queries = scoring.scale_queries(queries, positions)

  def attend_all(queries, positions):
    parts = [
      attend_view(queries, positions, view, scoring, block=block, kernel=kernel)
      for view in segments
    ]
    return parts[0] if len(parts) == 1 else merge(parts)

  is_long = positions.shape[1] > QUERY_BLOCK and PARTITION.value is None
  if is_long and len(segments) > 1:
    # Block by block, because the output of each segment is as large as that of
    # all, and XLA:CPU keeps those of every layer apart.
    out, lse = by_query_blocks(attend_all, queries, positions)
  else:
    out, lse = attend_all(queries, positions)
  return add_sinks(out, lse, scoring.sinks)


def add_sinks(
  out: jax.Array, lse: jax.Array, sinks: jax.Array | None
) -> tuple[jax.Array, jax.Array]:
  """Lets logits `[K, G]` without a value join a finished softmax.

  `out sigmoid(lse - sink)`, the same as one more key whose value is 0.
  """
  if sinks is None:
    return out, lse
  sinks = sinks.astype(jnp.float32)[None, :, :, None]
  out = out * jax.nn.sigmoid(lse - sinks)[..., None]
  return out, jnp.logaddexp(lse, sinks)
