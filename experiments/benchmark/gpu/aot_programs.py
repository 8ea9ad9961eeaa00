"""Steps, prefills and kernels compiled for a Hopper GPU, and what must hold."""

import dataclasses
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax

from experiments.benchmark.gpu import aot_compile
from experiments.benchmark.gpu.correctness import Problem
from experiments.measuring import forms
from experiments.measuring.variants import VARIANTS, with_attention
from kvjax.checkpoints.load import load_config
from kvjax.decoding.parse import parse_cache
from kvjax.memory.compiled.calls import compile_call
from kvjax.memory.compiled.measurement import measure
from kvjax.memory.planning import plan as plan_of
from kvjax.models.config import ModelConfig

Record = dict[str, Any]
Reports = Callable[[], dict[str, int]]
Call = tuple[Record, ModelConfig]  # the first fields of its record, the model

SIZES = 'batch_size', 'capacity', 'new_tokens_per_step'
STEPS = (  # variant, kernel, its form, batch, capacity, and a codec
  ('gqa', 'mosaic_gpu', '', 8, 4096),
  ('gqa', 'mosaic_gpu', '', 1, 32_768),
  ('mha', 'mosaic_gpu', '', 8, 4096),
  ('gqa', 'mosaic_gpu', 'inside', 8, 4096),
  ('gqa', 'mosaic_gpu', 'inside', 1, 32_768),
  ('gqa', 'blockwise', '', 8, 4096),
  ('mha', 'blockwise', '', 8, 4096),
  ('mla', 'blockwise', '', 8, 4096),
  ('gqa', 'blockwise', '', 8, 4096, 'int8'),
  ('gqa', 'blockwise', '', 8, 4096, 'affine'),
)
# Of the few layers of a step, and of the whole model.
PREFILLS = (  # variant, batch, capacity, tokens
  ('gqa', 1, 4096, 2048),
  ('gqa', 4, 2048, 512),
  ('mha', 2, 4096, 1024),
  ('mla', 2, 4096, 1024),
)
# Windows, experts, heads of both, latents among experts, and all layers of a
# small model.
OTHERS = (  # model, layers, batch, capacity, tokens
  ('mistral-7b-v0.1', 4, 1, 16_384, 8192),
  ('mixtral-8x7b-v0.1', 4, 2, 2048, 512),
  ('gemma-2-9b', 4, 2, 8192, 1024),
  ('deepseek-v3', 4, 1, 4096, 1024),
  ('llama-3.2-1b', 16, 2, 8192, 4096),
)
# The fields of a `Problem` each.
KERNELS: tuple[Any, ...] = (
  (4, 1, 128, 128, 'bfloat16', {}, None),
  (8, 4, 128, 128, 'bfloat16', {}, None),
  (1, 1, 64, 64, 'float16', {}, None),
  (4, 1, 192, 128, 'bfloat16', {}, None),
  (4, 1, 128, 128, 'bfloat16', {'window': 1024, 'sink_tokens': 4}, 50.0),
  (4, 1, 128, 128, 'bfloat16', {'chunk': 1024}, None),
)
ROWS, HEADS, SLOTS = 8, 8, 4096  # of a kernel by itself
# A plan is an upper bound: per cent of XLA's peak by which it may exceed it.
WITHIN = {'step': 5, 'sharded': 5, 'prefill': 10}


def steps(model: ModelConfig) -> list[Call]:
  """Returns each decode step."""
  names = 'variant', 'kernel', 'form', *SIZES[:2], 'codec'
  return [
    (
      {'record': 'step', **dict(zip(names, (*step, 'plain'), strict=False))},
      with_attention(model, step[0]),
    )
    for step in STEPS
  ]


def prefills(model: ModelConfig, few: int) -> list[Call]:
  """Returns each prefill, of `few` layers and of the whole model."""
  depths = dict.fromkeys((few, len(model.layers)))
  variants = [(x, n, *sizes) for n in depths for x, *sizes in PREFILLS]
  calls = []
  for name, layers, *sizes in (*variants, *OTHERS):
    known = name in VARIANTS
    config = with_attention(model, name) if known else load_config(name)
    fields = {'record': 'prefill', 'kernel': 'blockwise', 'variant': name}
    fields |= dict(zip(SIZES, sizes, strict=True))
    short = dataclasses.replace(config, layers=config.layers[:layers])
    calls.append((fields, short))
  return calls


def compare(call: Call, sharding: Any, reports: Reports) -> Record:
  """Returns the record of one call, compiled and planned, and what fails.

  Args:
    call: a step or a prefill.
    sharding: of every argument.
    reports: of `aot_compile.assembler`.
  """
  record, _ = examine(call, {'sharding': sharding}, reports)
  return record | {'failed': failures(record)}


def examine(
  call: Call, placed: dict[str, Any], reports: Reports
) -> tuple[Record, jax.stages.Compiled]:
  """Returns the record of one call and its program, of one device.

  Args:
    call: a step or a prefill.
    placed: `sharding=`, or `mesh=` and `rules=`, of `compile_call`.
    reports: of `aot_compile.assembler`.
  """
  named, config = call
  sizes = {name: named[name] for name in SIZES if name in named}
  batch, tokens = named['batch_size'], named.get('new_tokens_per_step', 1)
  begun = time.perf_counter()
  kernel = forms.kernel_of(named['kernel'], named.get('form', ''))
  _, codec = parse_cache(named.get('codec', 'plain'))
  compiled = compile_call(config, kernel=kernel, codec=codec, **placed, **sizes)
  seconds = round(time.perf_counter() - begun, 1)
  split = {name: placed[name] for name in ('mesh', 'rules') if name in placed}
  choices = {'backend': 'gpu', 'kernel': named['kernel'], 'codec': codec}
  plan = plan_of(config, **choices, **split, **sizes)
  measured = dataclasses.asdict(measure(compiled))
  del measured['devices']  # none is here
  (_, cache, _), _ = jax.tree.map(
    lambda x, place: (
      place and jax.ShapeDtypeStruct(place.shard_shape(x.shape), x.dtype)
    ),
    compiled.args_info,
    compiled.input_shardings,
  )
  ids, logits = 4 * batch * tokens, 4 * batch * config.vocab_size
  pointers = 8 * compiled.out_tree.num_leaves  # to logits and leaves
  record = {
    **named,
    'layers': len(config.layers),
    'seconds': seconds,
    **reports(),
    **measured,
    'planned_arguments': plan.params_bytes + plan.cache_bytes + ids,
    'planned_outputs': plan.cache_bytes + logits + pointers,
    'cache': plan.cache_bytes,
    'planned_temporaries': plan.temporaries_bytes,
    'planned_peak': plan.total_bytes,
    'ratio': plan.total_bytes / measured['peak'],
  }
  if named['record'] != 'prefill':
    leaves = jax.tree.leaves(cache.stores)
    leaf_bytes = [x.size * x.dtype.itemsize for x in leaves]
    record |= {
      'smallest_leaf': min(leaf_bytes),
      'largest_leaf': max(leaf_bytes),
      'calls': aot_compile.kernel_calls(compiled),
      'launches': aot_compile.launches(compiled),
      'moved': aot_compile.moved(compiled, min(x.size for x in leaves)),
    }
  return record, compiled


def failures(record: Record) -> list[str]:
  """Returns what does not hold of a step or a prefill."""
  within, temporaries = WITHIN[record['record']], record['temporaries']
  holds = {
    'alias is the cache': record['alias'] == record['cache'],
    'arguments': record['arguments'] == record['planned_arguments'],
    'outputs': record['outputs'] == record['planned_outputs'],
    f'peak within {within} %': 0 <= record['ratio'] - 1 <= within / 100,
  }
  if record['record'] != 'prefill':
    moved = record['moved']
    copied = [x for x in moved if x.startswith(('copy', 'transpose'))]
    holds['no copy, no transpose'] = not copied
    holds['no spills'] = not record['spills']  # 0 kernels: assembled before
    if record['kernel'] == 'mosaic_gpu':
      holds['no room for a copy'] = temporaries < record['smallest_leaf']
      holds['nothing moved'] = not moved
      holds['a kernel a layer'] = record['calls'] == record['layers']
    else:  # temporaries are one layer's values without those of empty slots
      holds['one leaf at a time'] = temporaries < 1.5 * record['largest_leaf']
  return [name for name, is_met in holds.items() if not is_met]


def alone(sharding: Any, reports: Reports) -> Iterator[Record]:
  """Yields a record of each kernel by itself, in each of its forms."""
  for fields in KERNELS:
    problem = Problem(*fields)
    inputs = problem.inputs(ROWS, HEADS, SLOTS, sharding)
    launches = {}
    for form, merge in (('', 'after'), ('inside', 'inside')):
      kernel = forms.kernel_of('mosaic_gpu', form)
      compiled = problem.program(kernel, SLOTS).lower(*inputs).compile()
      launches[merge] = aot_compile.launches(compiled)
      record = {
        'record': 'kernel',
        **dataclasses.asdict(problem),
        'form': merge,
        'launches': launches[merge],
        'temporaries': measure(compiled).temporaries,
        **reports(),
      }
      yield record | {'failed': kernel_failures(record, launches['after'])}


def kernel_failures(record: Record, launches: int) -> list[str]:
  """Returns what does not hold; `launches` of the form that merges after."""
  merges_after = record['form'] == 'after'
  holds = {
    'no spills': record['kernels'] and not record['spills'],
    'fewer launches': merges_after or record['launches'] < launches,
  }
  return [name for name, is_met in holds.items() if not is_met]
