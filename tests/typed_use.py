"""What a type checker sees in a user's file: `make lint` checks it."""

from typing import Any, assert_type

import jax

import kvjax

Step = tuple[jax.Array, kvjax.Cache]


def use(config: kvjax.ModelConfig, params: dict[str, Any], ids: jax.Array):
  """Calls what has a result that depends on a flag, and what loads lazily."""
  cache = kvjax.init_cache(config, 1, 8)
  assert_type(cache, kvjax.Cache)
  assert_type(kvjax.forward(config, params, ids), jax.Array)
  logits, weights = kvjax.forward(config, params, ids, attention_layers=[0])
  assert_type(weights, tuple[jax.Array, ...])
  assert_type(kvjax.prefill(config, params, cache, ids), Step)
  assert_type(kvjax.extend(config, params, cache, ids), Step)
  assert_type(kvjax.decode_step(config, params, cache, ids), Step)
  assert_type(
    kvjax.extend(config, params, cache, ids, attention_layers=[0]),
    tuple[jax.Array, kvjax.Cache, tuple[tuple[jax.Array, jax.Array], ...]],
  )
  assert_type(kvjax.generate(config, params, cache, logits, 3), Step)
  assert_type(
    kvjax.generate(config, params, cache, logits, 3, log_probs=True),
    tuple[jax.Array, kvjax.Cache, jax.Array],
  )
  adjust = (kvjax.RepetitionPenalty(1.3, ids), kvjax.LogitBias({1: 2.0}))
  assert_type(
    kvjax.generate(config, params, cache, logits, 3, adjust=adjust), Step
  )
  assert_type(kvjax.load_config('gpt-2'), kvjax.ModelConfig)
  plan = kvjax.memory.plan(
    config, batch_size=1, capacity=8, kinds=kvjax.Dense()
  )
  assert_type(plan.total_bytes, int)


def nonsense() -> None:
  """A name that is not there is an error, although modules load lazily."""
  kvjax.nonsense  # pyright: ignore[reportAttributeAccessIssue]  # noqa: B018
