"""The least time of a decode step: bytes over bandwidth, or arithmetic.

A step of few rows reads every active parameter and every cached token once,
and waits for memory; with many rows the projections wait for arithmetic
instead (jax-ml.github.io/scaling-book, "All About Transformer Inference"):

    B kv / bandwidth + max(2 B N / flops, weights / bandwidth)

That book's attention always waits for memory; where its own operations are
given, the first term is the longer of the two.
"""

import dataclasses

from kvjax.memory.speed.devices import Device


@dataclasses.dataclass(frozen=True)
class StepTime:
  """A lower bound of one decode step, in seconds.

  Attributes:
    weights: reading the parameters.
    cache: reading the cache.
    arithmetic: the projections' multiplications and additions.
    attention: those of scores and weighted sums.
  """

  weights: float
  cache: float
  arithmetic: float
  attention: float = 0.0

  @property
  def seconds(self) -> float:
    cache = max(self.cache, self.attention)
    return cache + max(self.weights, self.arithmetic)


def step_time(
  *,
  batch_size: int,
  cache_bytes_per_row: float,
  weight_bytes: float,
  params: float,
  device: Device,
  num_devices: int = 1,
  attention_operations: float = 0.0,
) -> StepTime:
  """Returns the bound for weights and cache spread evenly over devices.

  Args:
    batch_size: B rows.
    cache_bytes_per_row: bytes that one row's context occupies and a step
      reads, summed over layers.
    weight_bytes: of the active parameters.
    params: N active parameters, each multiplied once a row.
    device: whose bandwidth and rate count.
    num_devices: that share the bytes and the arithmetic.
    attention_operations: of one row's scores and weighted sums, all layers.
  """
  bandwidth = device.bandwidth * num_devices
  flops = device.flops * num_devices
  return StepTime(
    weights=weight_bytes / bandwidth,
    cache=batch_size * cache_bytes_per_row / bandwidth,
    arithmetic=2 * batch_size * params / flops,
    attention=batch_size * attention_operations / flops,
  )
