"""Decode steps and kernels compiled for a Hopper GPU, and what must hold."""

import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp

from kvjax.benchmark import ahead
from kvjax.caches.codecs import Plain
from kvjax.caches.view import contiguous_view
from kvjax.caches.visibility import Visibility
from kvjax.decoding.cache import init_cache
from kvjax.kernels import Scoring, attend_view
from kvjax.memory.measured import measure
from kvjax.memory.plan import plan as plan_of
from kvjax.memory.program import compile_call
from kvjax.memory.variants import with_attention
from kvjax.models.config import ModelConfig

Reports = Callable[[], dict[str, int]]

STEPS = (  # variant, kernel, batch, capacity
    ('gqa', 'mosaic_gpu', 8, 4096),
    ('gqa', 'mosaic_gpu', 1, 32_768),
    ('mha', 'mosaic_gpu', 8, 4096),
    ('gqa', 'blockwise', 8, 4096),
    ('mha', 'blockwise', 8, 4096),
    ('mla', 'blockwise', 8, 4096),
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
ROWS, HEADS, SLOTS = 8, 8, 4096  # of a kernel by itself
WITHIN = 0.01  # of the plan's peak


def steps(
    model: ModelConfig, sharding: Any, reports: Reports
) -> Iterator[dict[str, Any]]:
  """Yields a record of each decode step."""
  for variant, kernel, batch, capacity in STEPS:
    config = with_attention(model, variant)
    sizes: Any = {'batch_size': batch, 'capacity': capacity}
    begun = time.perf_counter()
    compiled = compile_call(config, kernel=kernel, sharding=sharding, **sizes)
    record = {
        'record': 'step',
        'variant': variant,
        'kernel': kernel,
        **sizes,
        'layers': len(config.layers),
        'seconds': round(time.perf_counter() - begun, 1),
        **reports(),
    }
    planned = plan_of(config, backend='gpu', kernel=kernel, **sizes)
    cache = jax.eval_shape(
        lambda c=config, b=batch, s=capacity: init_cache(c, b, s)
    )
    record |= _measured(compiled, planned, cache, config.vocab_size)
    yield record | {'failed': _failed(record)}


def _measured(compiled, plan, cache, vocab_size) -> dict[str, Any]:
  found = measure(compiled)
  batch, leaves = cache.batch_size, len(jax.tree.leaves(cache))
  small, large = ahead.leaf_sizes(cache)
  return {
      'arguments': found.arguments,
      'planned_arguments': plan.params_bytes + plan.cache_bytes + 4 * batch,
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
      'smallest_leaf': small.nbytes,
      'largest_leaf': large.nbytes,
      'calls': ahead.kernel_calls(compiled),
      'moved': ahead.moved(compiled, small.size),
  }


def _failed(record: dict[str, Any]) -> list[str]:
  """Returns what does not hold of a step."""
  held = {
      'alias is the cache': record['alias'] == record['cache'],
      'arguments': record['arguments'] == record['planned_arguments'],
      'outputs': record['outputs'] == record['planned_outputs'],
      'peak within 1 %': abs(record['ratio'] - 1) <= WITHIN,
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
  return [name for name, holds in held.items() if not holds]


def alone(sharding: Any, reports: Reports) -> Iterator[dict[str, Any]]:
  """Yields a record of each kernel by itself."""
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
    compiled = jax.jit(_attend(scoring)).lower(*given).compile()
    record = {
        'record': 'kernel',
        'groups': groups,
        'tokens': tokens,
        'width': width,
        'value_width': value,
        'dtype': dtype,
        'rule': rule,
        'softcap': softcap,
        'temporaries': measure(compiled).temporaries,
        **reports(),
    }
    bad = [] if record['kernels'] and not record['spills'] else ['no spills']
    yield record | {'failed': bad}


def _attend(scoring: Scoring) -> Callable[..., Any]:
  codec = Plain()

  def attend(q, k, v, positions, held):
    view = contiguous_view({'key': k, 'value': v}, held, SLOTS, ordered=True)
    view = view.map(dict, lambda x: {n: codec.stored(x[n]) for n in x})
    return attend_view(
        {'key': q}, positions, view, scoring, kernel='mosaic_gpu'
    )

  return attend
