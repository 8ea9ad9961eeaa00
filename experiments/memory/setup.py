"""The config of a memory report, checked and turned into what kvjax takes."""

import dataclasses
from typing import Any

import jax.numpy as jnp

import kvjax
from experiments.measuring.variants import with_attention
from kvjax import memory
from kvjax.decoding.allocate import check_sizes
from kvjax.decoding.parse import parse_cache
from kvjax.sharding import over_heads


@dataclasses.dataclass(frozen=True)
class MemorySetup:
  """What is planned.

  Attributes:
    name: of the model.
    models: the model by its name, and variants that differ from it.
    device: that must hold it.
    request: batch size, cache and source, as arguments of `memory.plan`.
    placement: mesh, rules and backend, as arguments of `memory.plan`.
    contexts: capacities to compare, none beyond the positions of the model.
  """

  name: str
  models: dict[str, kvjax.ModelConfig]
  device: memory.Device
  request: dict[str, Any]
  placement: dict[str, Any]
  contexts: tuple[int, ...]


def check(config: Any) -> MemorySetup:
  """Returns the setup; raises ValueError for what makes no sense."""
  check_sizes(batch=config.batch, context=config.context)
  name = config.checkpoint or config.model
  model = kvjax.load_config(name)
  kind, codec = parse_cache(config.cache)
  device = memory.device(config.device)
  variants = {v.upper(): with_attention(model, v) for v in config.compare}
  differing = {label: v for label, v in variants.items() if v != model}
  mesh, rules = over_heads(config.devices)
  setup = MemorySetup(
    name=name,
    models={name: model} | differing,
    device=device,
    request={
      'batch_size': config.batch,
      'kinds': kind,
      'codec': codec,
      'source_length': config.source or None,
    },
    placement={
      'mesh': mesh or None,
      'rules': rules if mesh else None,
      'backend': device.platform,
    },
    contexts=tuple(n for n in config.contexts if n <= (model.positions or n)),
  )
  options = setup.request | setup.placement
  memory.plan(model, capacity=config.context, **options)  # raises
  return setup


def least_time(setup: MemorySetup, plan: memory.MemoryPlan) -> memory.StepTime:
  """Returns the bound of a step of the whole batch at the whole context."""
  params_bytes = plan.active_params_bytes / plan.devices
  params = params_bytes / jnp.dtype(setup.models[setup.name].dtype).itemsize
  return memory.step_time(
    batch_size=1,
    cache_bytes_per_row=plan.cache_bytes,
    weight_bytes=params_bytes,
    params=setup.request['batch_size'] * params,
    device=setup.device,
  )
