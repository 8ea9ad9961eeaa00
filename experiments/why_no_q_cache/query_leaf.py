"""A cache with a query leaf, and what XLA makes of it.

The step of a model whose attention stores queries as well as keys and values,
in three forms: the leaf goes in and comes out, goes in and does not
come out, or is the carry of a loop and does not come out.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

import kvjax
from experiments.why_no_q_cache.readers import readers
from kvjax.attention.variant import Table
from kvjax.decoding.allocate import cache_spec
from kvjax.decoding.options import DecodeOptions
from kvjax.memory.compiled.measurement import Measured, measure
from kvjax.streams.stream import Stream
from kvjax.streams.view import Streams

LEAF = 'query'


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


def leaves(cache: kvjax.Cache) -> tuple[jax.Array, ...]:
  """Returns the query leaf of every layer, `[B, N, S, H]`."""
  return tuple(store[LEAF] for store in cache.stores)


def forms(
  config: kvjax.ModelConfig, batch_size: int, capacity: int, num_tokens: int = 3
) -> tuple[Form, ...]:
  """Compiles the three forms and returns what each occupies.

  Args:
    config: a decoder of grouped attention.
    batch_size: B.
    capacity: slots a row.
    num_tokens: steps of the loop of the third form.
  """
  programs = _Programs(config, recording(config), batch_size, capacity)
  step = measure(programs.compile(programs.step))
  loop = measure(programs.compile(programs.loop(num_tokens, False)))
  return (
    _form('in and out', programs.compile(programs.in_and_out), step),
    _form('in, not out', programs.compile(programs.in_not_out), step),
    _form(
      'in the carry of a loop, not out',
      programs.compile(programs.loop(num_tokens, True)),
      loop,
    ),
  )


@dataclasses.dataclass(frozen=True)
class _Programs:
  """One step with and without the leaf, which is an argument by itself."""

  plain: kvjax.ModelConfig
  recorded: kvjax.ModelConfig
  batch_size: int
  capacity: int

  def compile(self, function: Callable[..., Any]) -> Any:
    # Only a donated argument that is returned can be aliased; others warn.
    donate = ('cache',) + ('query',) * (function == self.in_and_out)
    jitted = jax.jit(function, donate_argnames=donate)
    return jitted.lower(*jax.eval_shape(self._arguments)).compile()

  def _arguments(self) -> tuple[Any, ...]:
    params = kvjax.init_params(self.plain, jax.random.key(0))
    cache = kvjax.init_cache(self.plain, self.batch_size, self.capacity)
    whole = kvjax.init_cache(self.recorded, self.batch_size, self.capacity)
    return params, cache, leaves(whole), jnp.zeros(self.batch_size, jnp.int32)

  def _decode(self, config, params, cache, token):
    one_block = DecodeOptions(block=self.capacity)
    return kvjax.decode_step(config, params, cache, token, options=one_block)

  def step(self, params, cache, query, token):
    del query
    return self._decode(self.plain, params, cache, token)

  def in_and_out(self, params, cache, query, token):
    spec = cache_spec(self.recorded, self.batch_size, self.capacity)
    pairs = zip(cache.stores, query, strict=True)
    stores = tuple({**store, LEAF: leaf} for store, leaf in pairs)
    whole = dataclasses.replace(cache, stores=stores, layout=spec.layout)
    logits, whole = self._decode(self.recorded, params, whole, token)
    stores = tuple(
      {name: leaf for name, leaf in store.items() if name != LEAF}
      for store in whole.stores
    )
    part = dataclasses.replace(whole, stores=stores, layout=cache.layout)
    return logits, part, leaves(whole)

  def in_not_out(self, params, cache, query, token):
    logits, cache, _ = self.in_and_out(params, cache, query, token)
    return logits, cache

  def loop(self, num_tokens: int, record: bool) -> Callable[..., Any]:
    def run(params, cache, query, token):
      blank = tuple(map(jnp.zeros_like, query)) if record else ()

      def body(carry, _):
        cache, query = carry
        if record:
          logits, *carry = self.in_and_out(params, cache, query, token)
          return tuple(carry), logits
        logits, cache = self.step(params, cache, query, token)
        return (cache, query), logits

      carry, logits = jax.lax.scan(body, (cache, blank), length=num_tokens)
      return logits, carry[0]

    return run


def _form(name: str, compiled: Any, base: Measured) -> Form:
  sizes = measure(compiled)
  try:
    query_readers = readers(compiled, LEAF)
  except ValueError:  # XLA dropped the argument, because nothing uses it.
    query_readers = None
  return Form(
    name,
    sizes.arguments - base.arguments,
    sizes.alias - base.alias,
    sizes.temporaries - base.temporaries,
    query_readers,
    readers(compiled, "cache.stores[0]['key']"),
  )
