"""How scores are made, whatever kernel makes them."""

import dataclasses
from collections.abc import Callable

import jax

from kvjax.streams.visibility import Visibility

Bias = Callable[[jax.Array, jax.Array, int], jax.Array]
"""From query positions, key positions and kv heads to what scores
`[B, K, G, T, S]` have added. One that reads traced arrays is a pytree of them,
such as a `jax.tree_util.Partial`: devices of a mesh are given each array."""


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
