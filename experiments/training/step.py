"""One optax step, and a run of them."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import optax
from flax import struct

from experiments.training.loss import loss
from experiments.training.text import Corpus, training_batch
from kvjax.models.config import ModelConfig
from kvjax.models.initialize import init_params


@dataclasses.dataclass(frozen=True)
class Recipe:
  """How to train; frozen, so that a compiled step knows it.

  Attributes:
    steps: updates.
    batch: rows an update.
    length: tokens a row that are predicted.
    learning_rate: peak; linear warm-up, then a cosine to a tenth.
    warmup: updates of the warm-up.
    weight_decay: of AdamW (arXiv 1711.05101).
    clip: bound of the gradient's norm.
  """

  steps: int
  batch: int
  length: int
  learning_rate: float = 3e-3
  warmup: int = 20
  weight_decay: float = 0.01
  clip: float = 1.0

  def __post_init__(self):
    for name in ('steps', 'batch', 'length'):
      if getattr(self, name) < 1:
        raise ValueError(f'{name}={getattr(self, name)} must be at least 1.')
    if not self.learning_rate > 0:
      raise ValueError(
        f'learning_rate={self.learning_rate} must be greater than 0.'
      )

  def optimizer(self) -> optax.GradientTransformation:
    """Returns clipped AdamW under this schedule."""
    rate = optax.warmup_cosine_decay_schedule(
      0.0,
      self.learning_rate,
      min(self.warmup, self.steps // 2),
      self.steps,
      0.1 * self.learning_rate,
    )
    # One flat vector: a kernel for all parameters, not several for each.
    return optax.flatten(
      optax.chain(
        optax.clip_by_global_norm(self.clip),
        optax.adamw(rate, b2=0.98, weight_decay=self.weight_decay),
      )
    )


@struct.dataclass
class TrainState:
  """Parameters and what the optimizer remembers."""

  params: Any
  moments: Any


def init_state(
  config: ModelConfig, recipe: Recipe, key: jax.Array
) -> TrainState:
  """Returns the state before the first update."""
  params = init_params(config, key)
  return TrainState(params, recipe.optimizer().init(params))


@functools.partial(
  jax.jit, static_argnames=('config', 'recipe'), donate_argnames='state'
)
def train_step(
  config: ModelConfig, recipe: Recipe, state: TrainState, tokens: jax.Array
) -> tuple[jax.Array, TrainState]:
  """Returns the loss of `tokens [B, T + 1]` in nats, and the updated state."""
  value, gradient = jax.value_and_grad(loss, 1)(config, state.params, tokens)
  updates, moments = recipe.optimizer().update(
    gradient, state.moments, state.params
  )
  return value, TrainState(optax.apply_updates(state.params, updates), moments)


def train(
  config: ModelConfig,
  recipe: Recipe,
  corpus: Corpus,
  *,
  seed: int,
  progress: Callable[[int], None] = lambda step: None,
) -> tuple[Any, np.ndarray]:
  """Trains a model from its seed; the same seed gives the same parameters.

  Args:
    config: the model, with a vocabulary of bytes.
    recipe: how to train it.
    corpus: what to read.
    seed: of parameters and batches.
    progress: called after each update with the number of updates.

  Returns:
    The parameters, and the training loss `[steps]` in nats a byte.
  """
  state = init_state(config, recipe, jax.random.key(seed))
  losses = []
  for step in range(recipe.steps):
    tokens = training_batch(
      corpus, seed=seed, step=step, batch=recipe.batch, length=recipe.length
    )
    value, state = train_step(config, recipe, state, tokens)
    losses.append(float(value))
    progress(step + 1)
  return state.params, np.asarray(losses, np.float32)
