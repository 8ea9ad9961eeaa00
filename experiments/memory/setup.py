"""The config of a memory report, checked and turned into what kvjax takes."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

import kvjax
from experiments.measuring.variants import with_attention
from kvjax import memory
from kvjax.decoding.allocate import check_sizes
from kvjax.decoding.parse import parse_cache


@dataclasses.dataclass(frozen=True)
class MemorySetup:
  """The config, checked and turned into what the library takes."""

  name: str
  model: kvjax.ModelConfig
  variants: dict[str, kvjax.ModelConfig]
  device: memory.Device
  options: dict[str, Any]
  batch: int
  context: int
  contexts: tuple[int, ...]

  def plan(self, model: kvjax.ModelConfig, capacity: int) -> memory.MemoryPlan:
    return memory.plan(
      model, batch_size=self.batch, capacity=capacity, **self.options
    )

  def fit(self, model: kvjax.ModelConfig) -> memory.Fit:
    return memory.fit(
      model,
      self.device,
      batch_size=self.batch,
      capacity=self.context,
      frontier=self.contexts,
      **self.options,
    )


def check(config: Any) -> MemorySetup:
  """Returns the setup; raises ValueError for what makes no sense."""
  check_sizes(batch=config.batch, context=config.context)
  name = config.checkpoint or config.model
  model = kvjax.load_config(name)
  mesh = {'heads': config.devices} if config.devices != 1 else None
  kind, codec = parse_cache(config.cache)
  device = memory.device(config.device)
  longest = model.positions or max(*config.contexts, config.context)
  variants = {v.upper(): with_attention(model, v) for v in config.compare}
  setup = MemorySetup(
    name=name,
    model=model,
    variants={name: model}
    | {label: other for label, other in variants.items() if other != model},
    device=device,
    options={
      'kinds': kind,
      'codec': codec,
      'mesh': mesh,
      'backend': device.platform,
      'source_length': config.source or None,
    },
    batch=config.batch,
    context=config.context,
    contexts=tuple(n for n in config.contexts if n <= longest),
  )
  setup.plan(model, config.context)  # raises
  return setup


def least_time(
  setup: MemorySetup, planned: memory.MemoryPlan
) -> memory.StepTime:
  """Returns the bound of a step of the whole batch at the whole context."""
  size = jnp.dtype(setup.model.dtype).itemsize
  return memory.step_time(
    batch_size=1,
    cache_bytes_per_row=planned.cache_bytes,
    weight_bytes=planned.active_params_bytes / planned.devices,
    params=setup.batch * planned.active_params_bytes / size / planned.devices,
    device=setup.device,
  )


def compiled(setup: MemorySetup) -> jax.stages.Compiled:
  """Compiles the decode step for this machine, from shapes alone."""
  here = ('kinds', 'codec', 'source_length')
  return memory.compile_call(
    setup.model,
    batch_size=setup.batch,
    capacity=setup.context,
    **{name: setup.options[name] for name in here},
  )
