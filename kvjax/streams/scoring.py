"""How scores are made, whatever kernel makes them."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

from kvjax.arguments import check_fields
from kvjax.streams.visibility import Visibility

Bias = Callable[[jax.Array, jax.Array, int], jax.Array]
"""From query positions, key positions and kv heads to what scores
`[B, K, G, T, S]` have added. One that reads traced arrays is a pytree of them,
such as a `jax.tree_util.Partial`: devices of a mesh are given each array."""


@dataclasses.dataclass(frozen=True)
class Temperature:
  """A factor on queries that grows with their position (arXiv 2501.19399).

  `1 + weight * log(1 + floor((position + shift) / length))`.

  Attributes:
    weight: of the logarithm.
    length: positions of one step of the floor.
    shift: added to the position.
  """

  weight: float
  length: int
  shift: int = 0

  def __post_init__(self):
    check_fields(self, at_least={'length': 1, 'shift': 0})

  def scale(self, query: jax.Array, positions: jax.Array) -> jax.Array:
    """Returns a query `[B, K, G, T, H]` at positions `[B, T]`, scaled."""
    steps = (jnp.maximum(positions, 0) + self.shift) // self.length
    factor = 1 + self.weight * jnp.log1p(steps.astype(jnp.float32))
    factor = jnp.expand_dims(factor, (1, 2, 4))
    return (query.astype(jnp.float32) * factor).astype(query.dtype)


@dataclasses.dataclass(frozen=True)
class Scoring:
  """How scores are made of queries and keys. Static, apart from its arrays.

  Attributes:
    value: name of the stream whose average is the output.
    scale: multiplies every product of query and key.
    temperature: multiplies a query by its position, too; None for none.
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
  temperature: Temperature | None = None

  def scale_queries(
    self, queries: dict[str, jax.Array], positions: jax.Array
  ) -> dict[str, jax.Array]:
    """Returns queries `[B, K, G, T, H]` with the factor of their position."""
    if self.temperature is None:
      return queries
    return {
      name: self.temperature.scale(query, positions)
      for name, query in queries.items()
    }
