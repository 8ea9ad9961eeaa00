"""A cache with a query leaf, and what XLA makes of it.

The step of a model whose attention stores queries as well as keys and values,
in three forms: the leaf goes in and comes out, goes in and does not
come out, or is the carry of a loop and does not come out.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

import kvjax
from experiments.why_no_q_cache.readers import readers
from kvjax.attention.variant import Table
from kvjax.decoding.options import DecodeOptions
from kvjax.memory.compiled.measurement import Measured, measure
from kvjax.streams.stream import Stream
from kvjax.streams.view import Streams

LEAF = 'query'
LOOP_STEPS = 3  # of the form whose leaf is the carry of a loop


@dataclasses.dataclass(frozen=True)
class Recording(kvjax.Grouped):
  """Grouped attention that caches its queries too, which nothing reads."""

  def streams(self) -> dict[str, Stream]:
    return super().streams() | {LEAF: Stream(self.num_heads, self.key_width)}

  def project_streams(self, params: Any, x: jax.Array, table: Table) -> Streams:
    query = self.project_queries(params, x, table)['key']
    rows = query.reshape(query.shape[0], self.num_heads, *query.shape[3:])
    return {**super().project_streams(params, x, table), LEAF: rows}


@dataclasses.dataclass(frozen=True)
class Form:
  """One form of the program; bytes beyond those of the one without the leaf.

  Attributes:
    name: which form.
    arguments: bytes of arguments.
    aliased: bytes of donated arguments that hold outputs.
    temporaries: bytes.
    query_readers: instructions that read the leaf; None where the program has
      no such argument.
    key_readers: instructions that read the keys.
  """

  name: str
  arguments: int
  aliased: int
  temporaries: int
  query_readers: tuple[str, ...] | None
  key_readers: tuple[str, ...]


def recording(config: kvjax.ModelConfig) -> kvjax.ModelConfig:
  """Returns the model of grouped attention whose cache has a query leaf.

  Raises:
    ValueError: a layer's attention is not `Grouped`, or shares its streams.
  """
  layers = []
  for index, layer in enumerate(config.layers):
    old = layer.attention
    if not isinstance(old, kvjax.Grouped) or old.shared_from is not None:
      raise ValueError(
        f'layer {index} has {type(old).__name__} attention; only '
        'Grouped that owns its streams records queries. Use such layers.'
      )
    fields = {f.name: getattr(old, f.name) for f in dataclasses.fields(old)}
    layers.append(dataclasses.replace(layer, attention=Recording(**fields)))
  return dataclasses.replace(config, layers=tuple(layers))


def forms(
  config: kvjax.ModelConfig, batch_size: int, capacity: int
) -> tuple[Form, ...]:
  """Compiles the three forms and returns what each occupies.

  Args:
    config: a decoder of grouped attention.
    batch_size: B.
    capacity: slots a row.
  """
  one_block = DecodeOptions(block=capacity)

  def compile(model, in_loop, is_returned=True):
    def run(params, cache, token):
      def step(cache, _):
        logits, cache = kvjax.decode_step(
          model, params, cache, token, options=one_block
        )
        return cache, logits

      if in_loop:
        cache, logits = jax.lax.scan(step, cache, length=LOOP_STEPS)
      else:
        cache, logits = step(cache, None)
      return logits, cache if is_returned else _drop_leaf(cache)

    arguments = jax.eval_shape(
      lambda: (
        kvjax.init_params(model, jax.random.key(0)),
        kvjax.init_cache(model, batch_size, capacity),
        jnp.zeros(batch_size, jnp.int32),
      )
    )
    return jax.jit(run, donate_argnames='cache').lower(*arguments).compile()

  programs = {
    'in and out': (False, True),
    'in, not out': (False, False),
    'in the carry of a loop, not out': (True, False),
  }
  recorded = recording(config)
  bases = [measure(compile(config, in_loop)) for in_loop in (False, True)]
  return tuple(
    _form(
      name,
      compile(recorded, in_loop, is_returned),
      bases[in_loop],
      len(config.layers),
    )
    for name, (in_loop, is_returned) in programs.items()
  )


def _drop_leaf(cache: kvjax.Cache) -> kvjax.Cache:
  stores = tuple(
    {name: leaf for name, leaf in store.items() if name != LEAF}
    for store in cache.stores
  )
  return dataclasses.replace(cache, stores=stores)


def _form(name: str, compiled: Any, base: Measured, num_layers: int) -> Form:
  sizes = measure(compiled)
  leaves = [f"cache.stores[{i}]['{LEAF}']" for i in range(num_layers)]
  try:
    query_readers = tuple(i for leaf in leaves for i in readers(compiled, leaf))
  except ValueError:  # The program has no such argument: nothing uses it.
    query_readers = None
  return Form(
    name,
    sizes.arguments - base.arguments,
    sizes.alias - base.alias,
    sizes.temporaries - base.temporaries,
    query_readers,
    readers(compiled, "cache.stores[0]['key']"),
  )
