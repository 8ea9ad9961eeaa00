"""Steps, prefills and kernels compiled for a Hopper GPU, and what must hold."""

import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from experiments.benchmark.gpu import aot_compile
from experiments.benchmark.gpu.correctness import Problem
from experiments.measuring import forms
from experiments.measuring.variants import with_attention
from kvjax.checkpoints.load import load_config
from kvjax.decoding.allocate import init_cache
from kvjax.memory.compiled.calls import compile_call
from kvjax.memory.compiled.measurement import measure
from kvjax.memory.planning import plan as plan_of
from kvjax.models.config import ModelConfig

Record = dict[str, Any]
Reports = Callable[[], dict[str, int]]

STEPS = (  # variant, kernel, its form, batch, capacity
  ('gqa', 'mosaic_gpu', '', 8, 4096),
  ('gqa', 'mosaic_gpu', '', 1, 32_768),
  ('mha', 'mosaic_gpu', '', 8, 4096),
  ('gqa', 'mosaic_gpu', 'inside', 8, 4096),
  ('gqa', 'mosaic_gpu', 'inside', 1, 32_768),
  ('gqa', 'blockwise', '', 8, 4096),
  ('mha', 'blockwise', '', 8, 4096),
  ('mla', 'blockwise', '', 8, 4096),
)
# Of the few layers of a step, and of the whole model.
PREFILLS = (  # variant, batch, capacity, tokens
  ('gqa', 1, 4096, 2048),
  ('gqa', 4, 2048, 512),
  ('mha', 2, 4096, 1024),
  ('mla', 2, 4096, 1024),
)
# Windows, experts, heads of both, latents among experts, and all of a small
# one; layers, 0 for all of them.
OTHERS = (  # model, layers, batch, capacity, tokens
  ('mistral-7b-v0.1', 4, 1, 16_384, 8192),
  ('mixtral-8x7b-v0.1', 4, 2, 2048, 512),
  ('gemma-2-9b', 4, 2, 8192, 1024),
  ('deepseek-v3', 4, 1, 4096, 1024),
  ('llama-3.2-1b', 0, 2, 8192, 4096),
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
FORMS = 'after', 'inside'  # of each, in pairs
ROWS, HEADS, SLOTS = 8, 8, 4096  # of a kernel by itself
# A plan is an upper bound: per cent of XLA's peak by which it may exceed it.
WITHIN = {'step': 5, 'prefill': 10}

# What must hold of a record, by the words that name a failure of it.
Rules = Mapping[str, Callable[[Record], bool]]
_PLANNED: Rules = {
  'alias is the cache': lambda r: r['alias'] == r['cache'],
  'arguments': lambda r: r['arguments'] == r['planned_arguments'],
  'outputs': lambda r: r['outputs'] == r['planned_outputs'],
}
_STEP: Rules = {
  'no copy, no transpose': lambda r: (
    not any(op.startswith(('copy', 'transpose')) for op in r['moved'])
  ),
  'no spills': lambda r: not r['spills'],  # 0 kernels: assembled before
}
_IN_PLACE: Rules = {
  'no room for a copy': lambda r: r['temporaries'] < r['smallest_leaf'],
  'nothing moved': lambda r: not r['moved'],
  'a kernel a layer': lambda r: r['calls'] == r['layers'],
}
# Temporaries are the values of one layer without those of empty slots.
_IN_BLOCKS: Rules = {
  'one leaf at a time': lambda r: r['temporaries'] < 1.5 * r['largest_leaf']
}


def failures(record: Record) -> list[str]:
  """Returns what does not hold of a step or a prefill."""
  kind = record['record']
  within = WITHIN[kind]
  rules = {
    **_PLANNED,
    f'peak within {within} %': lambda r: 0 <= r['ratio'] - 1 <= within / 100,
  }
  if kind == 'step':
    in_place = record['kernel'] == 'mosaic_gpu'
    rules |= {**_STEP, **(_IN_PLACE if in_place else _IN_BLOCKS)}
  return [name for name, holds in rules.items() if not holds(record)]


def kernel_failures(record: Record, launches: int) -> list[str]:
  """Returns what does not hold; `launches` of the form that merges after."""
  fewer = record['form'] == 'after' or record['launches'] < launches
  rules = {
    'no spills': record['kernels'] and not record['spills'],
    'fewer launches': fewer,
  }
  return [name for name, holds in rules.items() if not holds]


def steps(
  model: ModelConfig, sharding: Any, reports: Reports
) -> Iterator[Record]:
  """Yields a record of each decode step."""
  for variant, kernel, form, *sizes in STEPS:
    named = {'record': 'step', 'variant': variant, 'kernel': kernel}
    config = with_attention(model, variant)
    yield _compare(named | {'form': form}, config, sizes, sharding, reports)


def prefills(
  model: ModelConfig, few: int, sharding: Any, reports: Reports
) -> Iterator[Record]:
  """Yields a record of each prefill, of `few` layers and of the whole model."""
  for layers in dict.fromkeys((few, len(model.layers))):
    for variant, *sizes in PREFILLS:
      config = with_attention(model, variant)
      yield _prefill(variant, config, layers, sizes, sharding, reports)
  for name, layers, *sizes in OTHERS:
    yield _prefill(name, load_config(name), layers, sizes, sharding, reports)


def _prefill(name, config, layers, sizes, sharding, reports) -> Record:
  if layers:
    config = dataclasses.replace(config, layers=config.layers[:layers])
  named = {'record': 'prefill', 'variant': name, 'kernel': 'blockwise'}
  return _compare(named, config, sizes, sharding, reports)


def _compare(named, config, sizes, sharding, reports) -> Record:
  """Returns the record of one call, compiled and planned, and what fails.

  Args:
    named: the first fields of the record.
    config: of the model.
    sizes: batch, capacity and, of a prefill, tokens.
    sharding: of `aot_compile.device`.
    reports: of `aot_compile.assembler`.
  """
  batch, capacity, *more_tokens = sizes
  call = {'batch_size': batch, 'capacity': capacity}
  if more_tokens:
    (call['new_tokens_per_step'],) = more_tokens
  begun = time.perf_counter()
  kernel = forms.kernel_of(named['kernel'], named.get('form', ''))
  compiled = compile_call(config, kernel=kernel, sharding=sharding, **call)
  seconds = round(time.perf_counter() - begun, 1)
  plan = plan_of(config, backend='gpu', kernel=named['kernel'], **call)
  measured = measure(compiled)
  cache: Any = jax.eval_shape(lambda: init_cache(config, batch, capacity))
  ids = 4 * batch * call.get('new_tokens_per_step', 1)
  logits = 4 * batch * config.vocab_size
  pointers = 8 * (1 + len(jax.tree.leaves(cache)))  # to logits and leaves
  record = {
    **named,
    **call,
    'layers': len(config.layers),
    'seconds': seconds,
    **reports(),
    'arguments': measured.arguments,
    'planned_arguments': plan.params_bytes + plan.cache_bytes + ids,
    'outputs': measured.outputs,
    'planned_outputs': plan.cache_bytes + logits + pointers,
    'alias': measured.alias,
    'cache': plan.cache_bytes,
    'temporaries': measured.temporaries,
    'planned_temporaries': plan.temporaries_bytes,
    'peak': measured.peak,
    'planned_peak': plan.total_bytes,
    'ratio': plan.total_bytes / measured.peak,
  }
  if named['record'] == 'step':
    leaves = jax.tree.leaves(cache.stores)
    leaf_bytes = [x.size * x.dtype.itemsize for x in leaves]
    smallest = min(x.size for x in leaves)
    record |= {
      'smallest_leaf': min(leaf_bytes),
      'largest_leaf': max(leaf_bytes),
      'calls': aot_compile.kernel_calls(compiled),
      'launches': aot_compile.launches(compiled),
      'moved': aot_compile.moved(compiled, smallest),
    }
  return record | {'failed': failures(record)}


def alone(sharding: Any, reports: Reports) -> Iterator[Record]:
  """Yields a record of each kernel by itself, in each of its forms."""
  for fields in KERNELS:
    problem = Problem(*fields)
    shapes = [(x, problem.dtype) for x in problem.shapes(ROWS, HEADS, SLOTS)]
    shapes.append(((ROWS, problem.tokens), jnp.int32))
    shapes.append(((ROWS, 1, SLOTS), jnp.int32))
    inputs = [
      jax.ShapeDtypeStruct(*shape, sharding=sharding) for shape in shapes
    ]
    launches = {}
    for form in FORMS:
      candidate = '' if form == 'after' else form
      kernel = forms.kernel_of('mosaic_gpu', candidate)
      compiled = problem.program(kernel, SLOTS).lower(*inputs).compile()
      launches[form] = aot_compile.launches(compiled)
      record = {
        'record': 'kernel',
        **dataclasses.asdict(problem),
        'form': form,
        'launches': launches[form],
        'temporaries': measure(compiled).temporaries,
        **reports(),
      }
      yield record | {'failed': kernel_failures(record, launches['after'])}
