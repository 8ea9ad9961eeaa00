"""Next-token loss, one optax step, and a run of such steps."""

import dataclasses
import functools
import math
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax

import kvjax
from experiments.reporting.writer import follow
from experiments.training.text import Corpus, training_batch
from kvjax.decoding.allocate import check_sizes


def next_token_loss(logits: jax.Array, tokens: jax.Array) -> jax.Array:
  """Returns `-log p(tokens[:, t] | tokens[:, :t])` for t >= 1.

  Args:
    logits: float32 `[B, T, V]`, after each token.
    tokens: int32 `[B, T]`.

  Returns:
    Float32 `[B, T - 1]`, nats.
  """
  chex.assert_rank(logits, 3)
  chex.assert_shape(tokens, logits.shape[:2])
  return optax.softmax_cross_entropy_with_integer_labels(
    logits[:, :-1], tokens[:, 1:]
  )


def to_bits(nats: Any) -> Any:
  """Returns an amount of information in bits."""
  return nats / math.log(2)


@dataclasses.dataclass(frozen=True)
class Recipe:
  """How to train; hashable, because `jit` takes it as a static argument.

  Attributes:
    steps: updates.
    batch: rows an update.
    length: tokens a row that are predicted.
    learning_rate: peak; linear warm-up, then a cosine to a tenth.
    warmup: updates of the warm-up.
  """

  steps: int
  batch: int
  length: int
  learning_rate: float = 3e-3
  warmup: int = 20

  def __post_init__(self):
    check_sizes(steps=self.steps, batch=self.batch, length=self.length)
    if not self.learning_rate > 0:
      raise ValueError(
        f'learning_rate={self.learning_rate} must be greater than 0.'
      )

  def optimizer(self) -> optax.GradientTransformation:
    """Returns clipped AdamW (arXiv 1711.05101) under this schedule."""
    rate = optax.warmup_cosine_decay_schedule(
      0.0,
      self.learning_rate,
      min(self.warmup, self.steps // 2),
      self.steps,
      0.1 * self.learning_rate,
    )
    # On one flat vector an update is one kernel instead of several a tensor.
    return optax.flatten(
      optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.adamw(rate, b2=0.98, weight_decay=0.01),
      )
    )


@functools.partial(
  jax.jit,
  static_argnames=('config', 'recipe'),
  donate_argnames=('params', 'moments'),
)
def train_step(
  config: kvjax.ModelConfig,
  recipe: Recipe,
  params: Any,
  moments: Any,
  tokens: jax.Array,
) -> tuple[jax.Array, Any, Any]:
  """Returns the mean loss of `tokens [B, T + 1]` in nats, and the new state.

  The state is the parameters and the optimizer's moments; both are donated.
  """

  def mean_loss(params):
    logits = kvjax.forward(config, params, tokens)
    return jnp.mean(next_token_loss(logits, tokens))

  loss, gradient = jax.value_and_grad(mean_loss)(params)
  updates, moments = recipe.optimizer().update(gradient, moments, params)
  return loss, optax.apply_updates(params, updates), moments


def train(
  config: kvjax.ModelConfig,
  recipe: Recipe,
  corpus: Corpus,
  *,
  seed: int,
  label: str = 'train',
) -> tuple[Any, np.ndarray]:
  """Trains a model from its seed; the same seed gives the same parameters.

  Args:
    config: the model, with a vocabulary of bytes.
    recipe: how to train it.
    corpus: what to read.
    seed: of parameters and batches.
    label: of the progress bar.

  Returns:
    The parameters, and the training loss `[steps]` in nats a byte.
  """
  params = kvjax.init_params(config, jax.random.key(seed))
  moments = recipe.optimizer().init(params)
  losses = []
  for step in follow(label, range(recipe.steps), recipe.steps):
    tokens = training_batch(
      corpus, seed=seed, step=step, batch=recipe.batch, length=recipe.length
    )
    loss, params, moments = train_step(config, recipe, params, moments, tokens)
    losses.append(float(loss))
  return params, np.asarray(losses, np.float32)
