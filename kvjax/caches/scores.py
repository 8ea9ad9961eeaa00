"""Score functions: what a bounded cache forgets first."""

import dataclasses
from typing import Protocol

import jax
import jax.numpy as jnp

from kvjax.arguments import check_fields


class Score(Protocol):
  """Ranks slots from what they received. Frozen and hashable."""

  @property
  def observes(self) -> bool:
    """Whether `accumulate` wants weights."""
    ...

  def accumulate(self, total: jax.Array, weights: jax.Array) -> jax.Array:
    """Returns the new statistic `[B, K, S]` after a step's weights.

    Asked only of a score that `observes`; a new token's `total` is 0.
    """
    ...

  def priority(self, total: jax.Array, age: jax.Array) -> jax.Array:
    """Returns `[B, K, S]`; the lowest is forgotten first.

    `age` is 0 for the newest token of the row.
    """
    ...


@dataclasses.dataclass(frozen=True)
class HeavyHitters:
  """Attention mass received so far (H2O, arXiv 2306.14048, algorithm 1).

  Attributes:
    recent: newest tokens that are never forgotten; below the budget. None for
      half the budget of the cache, as in the paper: with 0 a new token, which
      has received little yet, goes first (a SmolLM2 of 135M parameters then
      reads a text at perplexity 190 instead of 24).
  """

  recent: int | None = None
  observes: bool = dataclasses.field(default=True, init=False)

  def __post_init__(self):
    check_fields(self, at_least={'recent': 0})

  def accumulate(self, total, weights):
    return total + weights

  def priority(self, total, age):
    return jnp.where(age < (self.recent or 0), jnp.inf, total)


@dataclasses.dataclass(frozen=True)
class LastQuery:
  """Attention of the newest queries alone (TOVA, arXiv 2401.06104)."""

  observes: bool = dataclasses.field(default=True, init=False)

  def accumulate(self, total, weights):
    return weights

  def priority(self, total, age):
    return jnp.where(age == 0, jnp.inf, total)


@dataclasses.dataclass(frozen=True)
class Recency:
  """The oldest goes first: a ring by another name, and its oracle."""

  observes: bool = dataclasses.field(default=False, init=False)

  def accumulate(self, total, weights):
    return total

  def priority(self, total, age):
    return -age.astype(jnp.float32)
