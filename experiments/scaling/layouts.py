"""Layouts of a model on many devices, and the time of a step of each.

    step = weights + cache + communication

The first two are `kvjax.memory.StepTime` of the bytes of one device. A layer
makes two all-reduces of [B, D], one behind attention and one behind its MLP.
What more it makes depends on the layout (`docs/scaling.md`).
"""

import dataclasses
import functools
import itertools
import math
from typing import Any, NamedTuple

import jax.numpy as jnp

from experiments.scaling.communication import Call, Machine
from kvjax import ModelConfig
from kvjax.memory import MemoryPlan, StepTime, plan
from kvjax.memory.parts.param_bytes import active_elements
from kvjax.memory.speed.bounds import attention_core
from kvjax.sharding import Rules

SUM = 4  # bytes of a number that is summed over devices, and of a logit
ACTIVATION = 2  # of one that is only moved
DISPATCHED = 1  # of one on its way to an expert


@dataclasses.dataclass(frozen=True)
class Workload:
  """A step whose time is wanted.

  Attributes:
    config: the model.
    batch: B rows, a fraction where only the trend is wanted.
    context: tokens of each row.
    weight_bytes: of an element of the weights.
    cache_bytes: of an element of the cache.
  """

  config: ModelConfig
  batch: float
  context: int
  weight_bytes: float = 2
  cache_bytes: float = 2


@dataclasses.dataclass(frozen=True)
class Layout:
  """How a mesh of data x model x context devices splits a model.

  Weights are split over model x context, kv heads over model.

  Attributes:
    data: replicas of the weights, each for a part of the rows.
    model: devices that split the kv heads.
    context: devices among which `split` divides the cache of some kv heads.
    split: 'slots', 'rows', or 'heads' for a whole copy on each of them.
    experts: '' for experts split within a replica. Over all devices: 'sum'
      for one all-reduce of all rows, 'exchange' for rows sent to their experts
      and back.
  """

  data: int = 1
  model: int = 1
  context: int = 1
  split: str = 'heads'
  experts: str = ''

  @property
  def group(self) -> int:
    """Devices of a replica."""
    return self.model * self.context

  @property
  def sharing_experts(self) -> int:
    """Devices that split the experts."""
    return self.group * (self.data if self.experts else 1)

  @property
  def mesh(self) -> dict[str, int]:
    """Sizes of the mesh axes, the last of them neighbours."""
    return {'data': self.data, 'model': self.model, 'context': self.context}

  @property
  def rules(self) -> Rules:
    """What the mesh axes split."""
    weights = 'model', 'context'
    return Rules(
      batch=('data', 'context') if self.split == 'rows' else 'data',
      heads=weights,
      kv_heads='model',
      experts=('data', *weights) if self.experts else weights,
      slots='context' if self.split == 'slots' else (),
    )

  @property
  def name(self) -> str:
    parts = [f'data {self.data}'] if self.data > 1 else []
    parts += [self.split] if self.group > 1 else []
    parts += [f'experts by {self.experts}'] if self.experts else []
    return ', '.join(parts)


class Step(NamedTuple):
  """What a step costs.

  Attributes:
    local: what a device needs by itself.
    communication: seconds.
    calls: number of collectives.
    sent: bytes that a device sends.
  """

  local: StepTime
  communication: float
  calls: int
  sent: float

  @property
  def seconds(self) -> float:
    return self.local.seconds + self.communication


def layouts(work: Workload, machine: Machine) -> list[Layout]:
  """Returns the layouts that split heads and rows evenly; maybe none.

  A replica is the machine, a node or a device.
  """
  found = []
  for data in sorted({1, machine.devices // machine.node, machine.devices}):
    group = machine.devices // data
    if work.batch % data or _heads(work.config) % group:
      continue
    model = math.gcd(group, *(_kv_heads(x) for x in work.config.layers))
    context = group // model
    splits = ['heads', 'slots', 'rows'] if context > 1 else ['heads']
    if work.batch / data % context:
      splits.remove('rows')
    spread = ['']
    if data > 1 and _expert_elements(work.config):
      spread += ['sum', 'exchange']
    pairs = itertools.product(splits, spread)
    found += [Layout(data, model, context, *pair) for pair in pairs]
  return found


def check(work: Workload, machine: Machine) -> None:
  """Raises ValueError where no layout splits a step evenly."""
  if not layouts(work, machine):
    raise ValueError(
      f'no layout splits {_heads(work.config)} heads or batch={work.batch} '
      f'evenly over {machine.devices} devices. Choose another machine or a '
      f'batch that is a multiple of {machine.devices}.'
    )
  device_bytes(work, layouts(work, machine)[0])  # raises


def step(work: Workload, layout: Layout, machine: Machine) -> Step:
  """Returns what a step costs on a machine."""
  config, device = work.config, machine.device
  rows = work.batch / layout.data
  active = active_elements(config)
  unread = 0 if config.tied else config.vocab_size * config.width
  idle = _expert_elements(config)
  idle -= _expert_elements(config, work.batch if layout.experts else rows)
  read = _params(work, layout) - unread / layout.group
  read = (read - idle / layout.sharing_experts) * work.weight_bytes
  size, operations = _attention_work(work, layout)
  made = calls(work, layout)
  return Step(
    local=StepTime(
      weights=read / device.bandwidth,
      cache=size / device.bandwidth,
      arithmetic=2 * rows * active / layout.group / device.flops,
      attention=operations / device.flops,
    ),
    communication=sum(call.seconds(machine) for call in made),
    calls=len(made),
    sent=sum(size for x in made for _, size in x.stages(machine)),
  )


def device_bytes(work: Workload, layout: Layout) -> tuple[float, float]:
  """Returns bytes of the weights and of the cache of one device."""
  smallest = _plan(work.config, layout, work.context)
  rows = work.batch / layout.data / layout.context
  cache = smallest.cache_bytes / jnp.dtype(work.config.dtype).itemsize
  return (
    _params(work, layout) * work.weight_bytes,
    cache * rows * work.cache_bytes,
  )


def _params(work: Workload, layout: Layout) -> float:
  """Returns elements of the weights of one device."""
  size = _plan(work.config, layout, work.context).params_bytes
  return size / jnp.dtype(work.config.dtype).itemsize


@functools.lru_cache(maxsize=256)
def _plan(config: ModelConfig, layout: Layout, context: int) -> MemoryPlan:
  """Returns the plan of the fewest rows that every layout splits evenly."""
  return plan(
    config,
    batch_size=layout.data * layout.context,
    capacity=context,
    mesh=layout.mesh,
    rules=layout.rules,
  )


def _attention_work(work: Workload, layout: Layout) -> tuple[float, float]:
  """Returns bytes of the cache of a device, and operations on it."""
  rows = work.batch / layout.data
  parts = 1 if layout.split == 'heads' else layout.context
  size = operations = 0.0
  for layer in work.config.layers:
    attention = layer.attention
    span = min(attention.visibility.window or work.context, work.context)
    elements, made = attention_core(attention)
    kv = math.gcd(layout.model, _kv_heads(layer))
    size += elements * span * work.cache_bytes * rows / kv / parts
    operations += made * span * rows / layout.group
  return size, operations


def calls(work: Workload, layout: Layout) -> list[Call]:
  """Returns the collectives of a step, in order."""
  config, group = work.config, layout.group
  rows = work.batch / layout.data
  summed = rows * config.width * SUM
  found = [
    Call('embedding', 'all-reduce', rows * config.width * ACTIVATION, group)
  ]
  for layer in config.layers:
    found += _attention_calls(layer, layout, rows)
    found.append(Call('attention', 'all-reduce', summed, group))
    experts = layout.experts if _experts_of(layer, config.width) else ''
    if experts:
      found += _expert_calls(layer, layout, work)
    if experts != 'sum':
      found.append(Call('mlp', 'all-reduce', summed, group))
  found.append(
    Call('logits', 'all-gather', rows * config.vocab_size * SUM, group)
  )
  return [call for call in found if call.devices > 1]


def _attention_calls(
  layer: Any, layout: Layout, rows: float
) -> tuple[Call, ...]:
  """Returns what brings queries to the cache, and outputs back."""
  if layout.split == 'heads':
    return ()
  attention, devices = layer.attention, layout.context
  heads = attention.num_heads / math.gcd(layout.model, _kv_heads(layer))
  value = getattr(attention, 'latent_width', 0)
  query = value + attention.rotary.width if value else attention.key_width
  value = value or attention.value_width or attention.key_width
  if layout.split == 'rows':
    size = rows * heads / devices * ACTIVATION
    return (
      Call('queries', 'all-to-all', size * query, devices),
      Call('outputs', 'all-to-all', size * value, devices),
    )
  return (
    Call('queries', 'all-gather', rows * heads * query * ACTIVATION, devices),
    # Each output with the logarithm of its sum, by which parts are weighed.
    Call('parts', 'all-to-all', rows * heads * (value + 1) * SUM, devices),
  )


def _expert_calls(
  layer: Any, layout: Layout, work: Workload
) -> tuple[Call, ...]:
  """Returns what brings rows of all replicas to their experts, and back."""
  devices, size = layout.sharing_experts, work.batch * work.config.width
  if layout.experts == 'sum':
    return (
      Call('rows', 'all-gather', size * ACTIVATION, devices),
      Call('experts', 'all-reduce', size * SUM, devices),
    )
  rows = math.ceil(work.batch / devices)
  size = rows * layer.mlp.top * work.config.width
  return (
    Call('dispatch', 'all-to-all', size * DISPATCHED, devices),
    Call('combine', 'all-to-all', size * ACTIVATION, devices),
  )


def _heads(config: ModelConfig) -> int:
  return math.gcd(*(layer.attention.num_heads for layer in config.layers))


def _kv_heads(layer: Any) -> int:
  return getattr(layer.attention, 'num_kv_heads', 1)


def _experts_of(layer: Any, width: int) -> float:
  """Returns elements of one routed expert of a layer; 0 without any."""
  mlp = layer.mlp
  more = getattr(mlp, 'num_experts', 0) - getattr(mlp, 'top', 0)
  return (mlp.num_params(width) - mlp.num_active(width)) / more if more else 0


def _expert_elements(config: ModelConfig, rows: float = math.inf) -> float:
  """Returns elements of the experts that some rows visit (`read_elements`)."""
  total = 0.0
  for layer in config.layers:
    mlp: Any = layer.mlp
    if one := _experts_of(layer, config.width):
      visited = 1 - (1 - mlp.top / mlp.num_experts) ** rows
      total += one * mlp.num_experts * visited
  return total
