"""When a decode step waits for memory, and when for arithmetic.

Attention reads `el` elements of each cached token and layer, and makes one
product a query head with the key and one with the value:

    Grouped   el = K (H + E)   operations = 2 N (H + E)     2 N / K an element
    Latent    el = R + P       operations = 2 N (2 R + P)   about 4 N

however long the context and however many the rows: batching helps weights,
which all rows share, and never a cache. Once the operations a byte exceed those
that a device does while it reads one, attention waits for arithmetic
(DeepSeek-V3 in bfloat16: 242, an H200: 206).
"""

from typing import Any

from kvjax.memory.parts.param_bytes import active_elements
from kvjax.memory.speed.devices import Device
from kvjax.memory.speed.least_time import StepTime, step_time
from kvjax.models.config import ModelConfig


def attention_core(attention: Any) -> tuple[int, int]:
  """Returns elements read and operations made a cached token, of one layer."""
  latent = getattr(attention, 'latent_width', None)
  if latent is not None:
    elements, product = latent + attention.rotary.width, 2 * latent
    return elements, 2 * attention.num_heads * (
      product + attention.rotary.width
    )
  width = attention.key_width + (attention.value_width or attention.key_width)
  return attention.num_kv_heads * width, 2 * attention.num_heads * width


def intensity(attention: Any, element_bytes: float = 2.0) -> float:
  """Returns operations a byte of cache, for one token a row.

  Args:
    attention: a `Grouped` or a `Latent`.
    element_bytes: bytes of an element of the cache.
  """
  elements, operations = attention_core(attention)
  return operations / (elements * element_bytes)


def read_elements(config: ModelConfig, rows: float) -> float:
  """Returns parameters that a step of some rows reads.

  Rows that pick experts evenly and by themselves visit `E (1 - (1 - k/E)^B)`
  of E, k each.
  """
  more = 0.0
  for layer in config.layers:
    mlp: Any = layer.mlp
    count = getattr(mlp, 'num_experts', 0)
    if count > 1 and count > mlp.top:
      width = config.width
      one = (mlp.num_params(width) - mlp.num_active(width)) / (count - mlp.top)
      visited = count * (1 - (1 - mlp.top / count) ** rows)
      more += one * max(visited - mlp.top, 0.0)
  return active_elements(config) + more


def roofline(
  config: ModelConfig,
  *,
  batch_size: int,
  context: int,
  device: Device,
  num_devices: int = 1,
  weight_bytes: float = 2.0,
  cache_bytes: float = 2.0,
) -> StepTime:
  """Returns the least time of a decode step, from a config alone.

  Everything is spread evenly over the devices and nothing is communicated.
  Layers that share a cache read it each; a window or a chunk reads no more
  than itself.

  Args:
    config: the model.
    batch_size: B rows.
    context: tokens of each row.
    device: whose bandwidth and rate count.
    num_devices: that share bytes and arithmetic.
    weight_bytes: of an element of the weights.
    cache_bytes: of an element of the cache.
  """
  size = operations = 0.0
  for layer in config.layers:
    span = min(layer.attention.visibility.span or context, context)
    elements, work = attention_core(layer.attention)
    size += elements * span * cache_bytes
    operations += work * span
  return step_time(
    batch_size=batch_size,
    cache_bytes_per_row=size,
    weight_bytes=read_elements(config, batch_size) * weight_bytes,
    params=active_elements(config),
    device=device,
    num_devices=num_devices,
    attention_operations=operations,
  )
