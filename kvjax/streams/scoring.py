"""How scores are made, whatever kernel makes them."""

import dataclasses
from collections.abc import Callable

import jax

from kvjax.streams.visibility import Visibility

# (query positions, key positions, kv heads) -> [B, K, G, T, S], to be added.
Bias = Callable[[jax.Array, jax.Array, int], jax.Array]


@dataclasses.dataclass(frozen=True)
class Scoring:
  """How scores are made of queries and keys. Static, apart from its arrays.

  Attributes:
    value: name of the stream whose average is the output.
    scale: multiplies every product of query and key.
    softcap: scores become `softcap * tanh(score / softcap)` (Gemma 2).
    visibility: which keys a query sees.
    bias: additive bias from positions; None for none.
    sinks: logits `[K, G]` that join the softmax and carry no value (gpt-oss).
  """

  scale: float
  value: str = 'value'
  softcap: float | None = None
  visibility: Visibility = Visibility()
  bias: Bias | None = None
  sinks: jax.Array | None = None
