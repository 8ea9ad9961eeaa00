"""Random programs whose peak a plan must bound.

Models, caches and calls drawn from seeds, compiled for this machine and
compared with `MemoryPlan.total_bytes`.
"""

import dataclasses
import random
from typing import Any

import jax

import kvjax
from kvjax.memory import MemoryPlan, compile_call, measure, plan

OVER = {'step': 0.05, 'prefill': 0.10}  # of XLA's peak, at most


@dataclasses.dataclass(frozen=True)
class Case:
  """One program to compile; the fields are arguments of `compile_call`."""

  config: kvjax.ModelConfig
  batch_size: int
  capacity: int
  new_tokens_per_step: int
  kinds: kvjax.Kind | None
  codec: kvjax.Codec | None

  def compile(self) -> jax.stages.Compiled:
    """Compiles a decode step, or a prefill of several tokens, donated."""
    return compile_call(**vars(self))

  def plan(self) -> MemoryPlan:
    """Returns the plan of the same call."""
    return plan(**vars(self), backend='cpu')

  def __str__(self) -> str:
    attention = self.config.layers[0].attention
    kind = 'default' if self.kinds is None else self.kinds.name
    codec = '' if self.codec is None else ' int8'
    return (
      f'{type(attention).__name__} {attention.num_heads} heads, '
      f'{kind}{codec}, B={self.batch_size} T={self.new_tokens_per_step} '
      f'S={self.capacity}'
    )


def compare(seed: int) -> dict[str, Any]:
  """Returns what was planned and what XLA assigned for the case of a seed."""
  case = draw(seed)
  planned, measured = case.plan(), measure(case.compile())
  return {
    'record': 'case',
    'seed': seed,
    'case': str(case),
    'planned': planned.temporaries_bytes,
    'temporaries': measured.temporaries,
    'planned_total': planned.total_bytes,
    'peak': measured.peak,
    'over': planned.total_bytes / measured.peak - 1,
    'allowed': OVER['step' if case.new_tokens_per_step == 1 else 'prefill'],
    'cache': planned.cache_bytes,
  }


def holds(record: dict[str, Any]) -> bool:
  """Returns whether a plan is never under the peak, nor far over it."""
  return 0 <= record['over'] <= record['allowed']


def draw(seed: int) -> Case:
  """Returns the case of a seed."""
  rng = random.Random(seed)
  hidden = rng.choice((128, 352, 768, 1_536))
  attention = _attention(rng)
  layer = kvjax.Layer(attention, kvjax.MLP(hidden, gated=rng.random() < 0.7))
  layers = (layer,) * rng.randint(1, 3)
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
    batch_size=rng.choice((1, 2, 3, 4, 8)),
    capacity=max(capacity, tokens),
    new_tokens_per_step=tokens,
    kinds=_kind(rng),
    codec=kvjax.Int8() if rng.random() < 0.25 else None,
  )


def _attention(rng: random.Random) -> Any:
  width = rng.choice((16, 32, 64))
  kv_heads = rng.choice((1, 2, 3, 4))
  groups = rng.choice((1, 2, 4, 6))
  if rng.random() < 0.25:
    latent = rng.choice((48, 96))
    rotary = kvjax.Rotary(rng.choice((8, 16)))
    rank = rng.choice((None, 64))
    heads = kv_heads * groups
    return kvjax.Latent(heads, latent, width, width, rotary, query_rank=rank)
  return kvjax.Grouped(
    kv_heads * groups, kv_heads, width, rotary=kvjax.Rotary(width)
  )


def _kind(rng: random.Random) -> kvjax.Kind | None:
  window = rng.choice((48, 128, 300))
  ring, sinks = kvjax.Ring(window), kvjax.Sinks(sinks=4, window=window)
  return rng.choice((None, None, kvjax.Paged(page=16), ring, sinks))
