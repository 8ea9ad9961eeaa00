"""What a device says that one call occupied, compared with the plan.

A device remembers its peak since the process began and forgets nothing: the
call must be the first that needs that much. It is compiled before anything is
allocated on the device, because a compiler tries out kernels there. Its
arguments are zeros, which need no scratch memory to be made.
"""

from typing import Any

import jax
import jax.numpy as jnp

from kvjax.memory import plan
from kvjax.memory.compiled.calls import compile_call
from kvjax.models.config import ModelConfig


def measure(
  config: ModelConfig, kernel: str, batch: int, capacity: int, tokens: int
) -> dict[str, Any]:
  """Returns planned and found bytes of a step, or of a prefill.

  Args:
    config: the model.
    kernel: that attends.
    batch: B.
    capacity: tokens a row may hold.
    tokens: T of the call; 1 for a decode step.

  Returns:
    `planned`, `found` and their `ratio`; `skipped` and why where the device
    does not say, or remembers a larger peak.
  """
  device: Any = jax.devices()[0]
  if not device.memory_stats():
    return {'skipped': f'{device.platform} does not say what it has in use'}
  sizes: dict[str, Any] = {'batch_size': batch, 'capacity': capacity}
  sizes['new_tokens_per_step'] = tokens
  planned = plan(config, backend='gpu', kernel=kernel, **sizes).total_bytes
  compiled = compile_call(config, kernel=kernel, **sizes)
  before = device.memory_stats()
  shapes, _ = compiled.args_info
  given = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
  jax.block_until_ready(compiled(*given))
  after = device.memory_stats()
  if after['peak_bytes_in_use'] <= before['peak_bytes_in_use']:
    return {'planned': planned, 'skipped': 'an earlier peak hides it'}
  found = after['peak_bytes_in_use'] - before['bytes_in_use']
  return {'planned': planned, 'found': found, 'ratio': planned / found}
