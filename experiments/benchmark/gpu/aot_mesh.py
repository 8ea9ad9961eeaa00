"""Decode steps over eight Hopper GPUs, and what one of them holds and moves."""

from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np

from experiments.benchmark.gpu import aot_programs
from experiments.benchmark.gpu.aot_programs import Call, Record, Reports
from experiments.measuring.variants import with_attention
from kvjax.models.config import ModelConfig
from kvjax.sharding import Rules, assert_moves, collectives

DEVICES = 8
AXES = 'model', 'context'
LAYOUTS = {  # sizes of the mesh axes, and what they split
  'slots': ((2, 4), Rules(heads=AXES, slots='context')),
  'rows': ((2, 4), Rules(heads=AXES, kv_heads='model', batch='context')),
  'heads': ((8, 1), Rules(heads=AXES)),
  'slots of one head': ((1, 8), Rules(heads=AXES, slots='context')),
}
STEPS = (  # variant, kernel, layout, capacity
  ('gqa', 'mosaic_gpu', 'slots', 32_768),
  ('gqa', 'mosaic_gpu', 'rows', 32_768),
  ('gqa', 'mosaic_gpu', 'heads', 32_768),
  ('gqa', 'blockwise', 'slots', 32_768),
  ('gqa', 'blockwise', 'rows', 32_768),
  ('gqa', 'blockwise', 'heads', 32_768),
  ('mla', 'blockwise', 'slots of one head', 65_536),
)
BATCH = 8
SUM, ACTIVATION = 4, 2  # bytes of a number that is summed, and of one moved


def steps(model: ModelConfig) -> list[Call]:
  """Returns each decode step."""
  names = 'variant', 'kernel', 'layout', 'capacity'
  fields = {'record': 'sharded', 'devices': DEVICES, 'batch_size': BATCH}
  return [
    (
      fields | dict(zip(names, step, strict=True)),
      with_attention(model, step[0]),
    )
    for step in STEPS
  ]


def compare(call: Call, devices: Sequence[Any], reports: Reports) -> Record:
  """Returns the record of one step, compiled and planned, and what fails.

  Args:
    call: a step.
    devices: of `aot_compile.devices`.
    reports: of `aot_compile.assembler`.
  """
  named, config = call
  shape, rules = LAYOUTS[named['layout']]
  mesh = jax.sharding.Mesh(np.array(devices).reshape(shape), AXES)
  placed = {'mesh': mesh, 'rules': rules}
  record, compiled = aot_programs.examine(call, placed, reports)
  exchanged = [(x.kind, x.bytes) for x in collectives(compiled)]
  record |= {'exchanged': exchanged, 'exchanges': len(exchanged)}
  failed = aot_programs.failures(record)
  if sorted(exchanged) != sorted(expected(config, named['layout'])):
    failed.append('collectives as by formula')
  try:
    # The logits of so many words are larger than some weights of one device.
    assert_moves(compiled, no_gather_of=('cache',))
  except AssertionError:
    failed.append('no part of the cache is moved')
  return record | {'failed': failed}


def expected(config: ModelConfig, layout: str) -> Iterator[tuple[str, int]]:
  """Yields kind and bytes of every collective of a step."""
  (model, context), _ = LAYOUTS[layout]
  hidden = BATCH * config.width
  yield 'all-reduce', hidden * ACTIVATION  # embedding
  for layer in config.layers:
    attention: Any = layer.attention
    width = value = getattr(attention, 'latent_width', attention.key_width)
    if hasattr(attention, 'latent_width'):
      width += attention.rotary.width
    heads = BATCH * attention.num_heads // model
    if layout.startswith('slots'):
      yield 'all-gather', heads * width * ACTIVATION
      yield 'all-to-all', heads * (value + 1) * SUM  # and log-sum-exps
    elif layout == 'rows':
      yield 'all-to-all', heads // context * width * ACTIVATION
      yield 'all-to-all', heads // context * value * ACTIVATION
    yield 'all-reduce', hidden * SUM  # attention
    yield 'all-reduce', hidden * SUM  # MLP
  yield 'all-gather', BATCH * config.vocab_size * SUM
