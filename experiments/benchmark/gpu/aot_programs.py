"""Steps, prefills and kernels compiled for a Hopper GPU, and what must hold."""

import dataclasses
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp

from experiments.benchmark.gpu import aot_compile
from experiments.measuring import forms
from experiments.measuring.variants import with_attention
from kvjax.checkpoints.load import load_config
from kvjax.decoding.allocate import init_cache
from kvjax.kernels import Kernel, Scoring, attend_view
from kvjax.memory.compiled.calls import compile_call
from kvjax.memory.compiled.measurement import measure
from kvjax.memory.planning import MemoryPlan
from kvjax.memory.planning import plan as plan_of
from kvjax.models.config import ModelConfig
from kvjax.streams.codecs import Plain
from kvjax.streams.view import contiguous_view
from kvjax.streams.visibility import Visibility

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
# Groups, tokens, key width, value width, dtype, rule, softcap.
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


def steps(
  model: ModelConfig, sharding: Any, reports: Reports
) -> Iterator[dict[str, Any]]:
  """Yields a record of each decode step."""
  for variant, kernel, form, batch, capacity in STEPS:
    config = with_attention(model, variant)
    named = {'record': 'step', 'variant': variant, 'kernel': kernel}
    named['form'] = form
    sizes = {'batch_size': batch, 'capacity': capacity}
    yield _compared(named, config, sizes, sharding, reports)


def prefills(
  model: ModelConfig, few: int, sharding: Any, reports: Reports
) -> Iterator[dict[str, Any]]:
  """Yields a record of each prefill, of `few` layers and of the whole model."""
  for layers in dict.fromkeys((few, len(model.layers))):
    for variant, *sizes in PREFILLS:
      config = _of(with_attention(model, variant), layers)
      yield _prefill(variant, config, sizes, sharding, reports)
  for name, layers, *sizes in OTHERS:
    config = load_config(name)
    config = _of(config, layers or len(config.layers))
    yield _prefill(name, config, sizes, sharding, reports)


def _of(model: ModelConfig, layers: int) -> ModelConfig:
  return dataclasses.replace(model, layers=model.layers[:layers])


def _prefill(variant, config, sizes, sharding, reports) -> dict[str, Any]:
  batch, capacity, tokens = sizes
  named = {'record': 'prefill', 'variant': variant, 'kernel': 'blockwise'}
  call = {'batch_size': batch, 'capacity': capacity}
  call['new_tokens_per_step'] = tokens
  return _compared(named, config, call, sharding, reports)


def _compared(
  named: dict[str, Any],
  config: ModelConfig,
  sizes: dict[str, Any],
  sharding: Any,
  reports: Reports,
) -> dict[str, Any]:
  """Returns the record of one call, compiled and planned, and what fails."""
  kernel = named['kernel']
  begun = time.perf_counter()
  chosen = forms.kernel_of(kernel, named.get('form', ''))
  compiled = compile_call(config, kernel=chosen, sharding=sharding, **sizes)
  record = {
    **named,
    **sizes,
    'layers': len(config.layers),
    'seconds': round(time.perf_counter() - begun, 1),
    **reports(),
  }
  plan = plan_of(config, backend='gpu', kernel=kernel, **sizes)
  tokens = sizes.get('new_tokens_per_step', 1)
  batch, capacity = sizes['batch_size'], sizes['capacity']
  cache = jax.eval_shape(lambda: init_cache(config, batch, capacity))
  record |= _sizes(compiled, plan, cache, tokens, config.vocab_size)
  if named['record'] == 'step':
    record |= _structure(compiled, cache)
  return record | {'failed': _failed(record)}


def _sizes(
  compiled: jax.stages.Compiled,
  plan: MemoryPlan,
  cache: Any,
  tokens: int,
  vocab_size: int,
) -> dict[str, Any]:
  found = measure(compiled)
  batch, leaves = cache.batch_size, len(jax.tree.leaves(cache))
  return {
    'arguments': found.arguments,
    'planned_arguments': plan.params_bytes
    + plan.cache_bytes
    + 4 * batch * tokens,
    'outputs': found.outputs,
    # Logits, and a table of pointers to them and the leaves.
    'planned_outputs': plan.cache_bytes
    + 4 * batch * vocab_size
    + 8 * (1 + leaves),
    'alias': found.alias,
    'cache': plan.cache_bytes,
    'temporaries': found.temporaries,
    'planned_temporaries': plan.temporaries_bytes,
    'peak': found.peak,
    'planned_peak': plan.total_bytes,
    'ratio': plan.total_bytes / found.peak,
  }


def _structure(compiled: jax.stages.Compiled, cache: Any) -> dict[str, Any]:
  small, large = aot_compile.leaf_sizes(cache)
  return {
    'smallest_leaf': small.nbytes,
    'largest_leaf': large.nbytes,
    'calls': aot_compile.kernel_calls(compiled),
    'launches': aot_compile.launches(compiled),
    'moved': aot_compile.moved(compiled, small.size),
  }


def _failed(record: dict[str, Any]) -> list[str]:
  """Returns what does not hold of a step or a prefill."""
  within = WITHIN[record['record']]
  held = {
    'alias is the cache': record['alias'] == record['cache'],
    'arguments': record['arguments'] == record['planned_arguments'],
    'outputs': record['outputs'] == record['planned_outputs'],
    f'peak within {within} %': 0 <= record['ratio'] - 1 <= within / 100,
  }
  if record['record'] == 'step':
    held |= _held(record)
  return [name for name, holds in held.items() if not holds]


def _held(record: dict[str, Any]) -> dict[str, bool]:
  """Returns what holds of a step's program beside its sizes."""
  held = {
    'no copy, no transpose': not any(
      op.startswith(('copy', 'transpose')) for op in record['moved']
    ),
    'no spills': not record['spills'],  # 0 kernels: assembled before
  }
  if record['kernel'] == 'mosaic_gpu':
    held |= {
      'no room for a copy': record['temporaries'] < record['smallest_leaf'],
      'nothing moved': not record['moved'],
      'a kernel a layer': record['calls'] == record['layers'],
    }
  else:  # beside the cache: values without those of empty slots, of one layer
    held['one leaf at a time'] = (
      record['temporaries'] < 1.5 * record['largest_leaf']
    )
  return held


def alone(sharding: Any, reports: Reports) -> Iterator[dict[str, Any]]:
  """Yields a record of each kernel by itself, in each of its forms."""
  for groups, tokens, width, value, dtype, rule, softcap in KERNELS:
    scoring = Scoring(
      width**-0.5,
      softcap=softcap,
      visibility=Visibility(**rule),
    )
    lead = ROWS, HEADS
    shapes = (
      ((*lead, groups, tokens, width), dtype),
      ((*lead, SLOTS, width), dtype),
      ((*lead, SLOTS, value), dtype),
      ((ROWS, tokens), jnp.int32),
      ((ROWS, 1, SLOTS), jnp.int32),
    )
    given = [
      jax.ShapeDtypeStruct(*shape, sharding=sharding) for shape in shapes
    ]
    described = {
        'groups': groups, 'tokens': tokens, 'width': width,
        'value_width': value, 'dtype': dtype, 'rule': rule, 'softcap': softcap,
    }  # fmt: skip
    launches = {}
    for form in FORMS:
      candidate = '' if form == 'after' else form
      chosen = forms.kernel_of('mosaic_gpu', candidate)
      compiled = jax.jit(_attend(scoring, chosen)).lower(*given).compile()
      launches[form] = aot_compile.launches(compiled)
      record = {
        'record': 'kernel',
        **described,
        'form': form,
        'launches': launches[form],
        'temporaries': measure(compiled).temporaries,
        **reports(),
      }
      yield record | {'failed': _kernel_failed(record, launches['after'])}


def _kernel_failed(record: dict[str, Any], launches: int) -> list[str]:
  """Returns what does not hold; `launches` of the form that merges after."""
  held = {
    'no spills': record['kernels'] and not record['spills'],
    'fewer launches': record['form'] == 'after'
    or record['launches'] < launches,
  }
  return [name for name, holds in held.items() if not holds]


def _attend(scoring: Scoring, kernel: str | Kernel) -> Callable[..., Any]:
  codec = Plain()

  def attend(q, k, v, positions, held):
    view = contiguous_view({'key': k, 'value': v}, held, SLOTS, ordered=True)
    view = view.map(dict, lambda x: {n: codec.stored(x[n]) for n in x})
    return attend_view({'key': q}, positions, view, scoring, kernel=kernel)

  return attend
