"""Attention a second time: NumPy, float64, one score after the other."""

from collections.abc import Callable
from typing import Any

import numpy as np

Sees = Callable[[int, int], bool]


def attention(
  q: Any,
  positions: Any,
  k: Any,
  v: Any,
  slot_positions: Any,
  *,
  scale: float,
  sees: Sees = lambda p, s: s <= p,
  softcap: float | None = None,
  bias: Callable[[int, int, int], float] | None = None,
  sinks: Any = None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Returns output, log-sum-exp and weights of `[B, K, G, T, .]` loops.

  `sees(query, key)` and `bias(head, query, key)` are of positions;
  `slot_positions` is `[B, S]` or `[B, K, S]`.
  """
  q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
  out = np.zeros(q.shape[:4] + v.shape[-1:])
  lse, weights = (
    np.full(q.shape[:4], -np.inf),
    np.zeros(q.shape[:4] + k.shape[2:3]),
  )
  slot_positions = np.asarray(slot_positions)
  if slot_positions.ndim == 2:
    slot_positions = slot_positions[:, None]
  slot_positions = np.broadcast_to(slot_positions, k.shape[:3])
  for b, h, g, t in np.ndindex(q.shape[:4]):
    p = int(np.asarray(positions)[b, t])
    keys = [
      s
      for s in range(k.shape[2])
      if p >= 0
      and slot_positions[b, h, s] >= 0
      and sees(p, slot_positions[b, h, s])
    ]
    scores = scale * k[b, h, keys] @ q[b, h, g, t]
    if softcap is not None:
      scores = softcap * np.tanh(scores / softcap)
    if bias is not None:
      n = h * q.shape[2] + g
      scores = scores + [bias(n, p, int(slot_positions[b, h, s])) for s in keys]
    extra = [] if sinks is None else [float(np.asarray(sinks)[h, g])]
    every = np.concatenate([scores, extra])
    if not every.size:
      continue
    top = every.max()
    lse[b, h, g, t] = top + np.log(np.exp(every - top).sum())
    weights[b, h, g, t, keys] = np.exp(scores - lse[b, h, g, t])
    out[b, h, g, t] = weights[b, h, g, t, keys] @ v[b, h, keys]
  return out, lse, weights
