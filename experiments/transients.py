"""How well does the plan predict the temporaries that XLA needs?

  python -m experiments.transients --count=200 --seed=0          some minutes

Draws models, caches and calls from a seed, compiles each for this machine and
holds `MemoryPlan.step_bytes` against the temporaries of the compiled program.
Prints the worst ten, and writes every case as a JSON line.
"""

import dataclasses
import random
from typing import Any

import jax
import jax.numpy as jnp

import kvjax


@dataclasses.dataclass(frozen=True)
class Case:
  """One program to compile: a model, its cache and the tokens of a call."""

  config: kvjax.ModelConfig
  batch: int
  capacity: int
  tokens: int
  kind: kvjax.Kind | None
  codec: kvjax.Codec | None
  kernel: str

  def compile(self) -> jax.stages.Compiled:
    """Compiles a decode step, or a prefill of several tokens, donated."""

    def call(params, cache, tokens):
      run = kvjax.decode_step if self.tokens == 1 else kvjax.prefill
      return run(self.config, params, cache, tokens, kernel=self.kernel)

    cache = jax.eval_shape(
        lambda: kvjax.init_cache(
            self.config,
            self.batch,
            self.capacity,
            kinds=self.kind,
            codec=self.codec,
        )
    )
    params = jax.eval_shape(
        lambda: kvjax.init_params(self.config, jax.random.key(0))
    )
    shape = (self.batch,) if self.tokens == 1 else (self.batch, self.tokens)
    tokens = jax.ShapeDtypeStruct(shape, jnp.int32)
    jitted = jax.jit(call, donate_argnames='cache')
    return jitted.lower(params, cache, tokens).compile()


def draw(seed: int) -> Case:
  """Returns the case of a seed."""
  rng = random.Random(seed)
  layers = (_layer(rng),) * rng.randint(1, 3)
  config = kvjax.ModelConfig(
      vocab_size=rng.choice((257, 1_009, 4_001, 16_001)),
      width=rng.choice((96, 160, 256, 384)),
      layers=layers,
      tied=rng.random() < 0.5,
  )
  tokens = 1 if rng.random() < 0.6 else rng.choice((7, 32, 100, 256, 300, 600))
  capacity = rng.choice((64, 512, 1_024, 2_048, 4_096))
  return Case(
      config,
      batch=rng.choice((1, 2, 3, 4, 8)),
      capacity=max(capacity, tokens),
      tokens=tokens,
      kind=_kind(rng, tokens),
      codec=kvjax.Int8() if rng.random() < 0.25 else None,
      kernel='blockwise',
  )


def _layer(rng: random.Random) -> kvjax.Layer:
  hidden = rng.choice((128, 352, 768, 1_536))
  return kvjax.Layer(
      _attention(rng), kvjax.MLP(hidden, gated=rng.random() < 0.7)
  )


def _attention(rng: random.Random) -> Any:
  width = rng.choice((16, 32, 64))
  kv_heads = rng.choice((1, 2, 3, 4))
  groups = rng.choice((1, 2, 4, 6))
  if rng.random() < 0.25:
    return kvjax.Latent(
        kv_heads * groups,
        rng.choice((48, 96)),
        width,
        width,
        kvjax.Rotary(rng.choice((8, 16))),
        query_rank=rng.choice((None, 64)),
    )
  return kvjax.Grouped(
      kv_heads * groups, kv_heads, width, rotary=kvjax.Rotary(width)
  )


def _kind(rng: random.Random, tokens: int) -> kvjax.Kind | None:
  window = rng.choice((48, 128, 300))
  return rng.choice(
      (
          None,
          None,
          kvjax.Paged(page=16),
          kvjax.Ring(window=window),
          kvjax.Sinks(sinks=4, window=window),
      )
  )
