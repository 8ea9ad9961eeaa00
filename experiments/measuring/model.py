"""A model: random streams in its cache, what it reads, one decode step."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from experiments.measuring import clock, forms, llama_cpp, peers
from experiments.measuring.attention import normal
from experiments.measuring.clock import Entry, Expected, Pace
from experiments.training.variants import array_bytes
from kvjax.attention.grouped import Grouped
from kvjax.attention.rotary import Rotary
from kvjax.caches.kind import Kind
from kvjax.decoding.allocate import init_cache
from kvjax.decoding.cache import Cache
from kvjax.decoding.steps import decode_step
from kvjax.layers.int8_weight import CodedWeight
from kvjax.memory.planning import plan
from kvjax.models.config import Layer, ModelConfig
from kvjax.models.initialize import init_params
from kvjax.models.mlp import MLP
from kvjax.models.quantize import quantize
from kvjax.native import load
from kvjax.streams.codecs import Codec, Int8

BLOCKWISE = 'blockwise'  # the kernel that other kernels are compared with
SLOTS = 64  # every kernel reads a multiple of as many slots
TOLERANCE = {'float32': 1e-4, 'bfloat16': 5e-2}
ROUNDED = 1e-3  # of weights of four bits, which multiply rows of 16 bits
# The mark of each kernel in a lowered program; the block loop is plain JAX.
MARKS = {'ffi': load.DECODE, 'mosaic_gpu': 'mosaic_gpu', 'cudnn': 'cudnn'}

Streams = Sequence[Mapping[str, jax.Array]]  # `[B, K, S, W]` of each layer


def build(shape: Mapping[str, Any]) -> tuple[ModelConfig, dict[str, Any]]:
  """Returns a GQA decoder and random parameters."""
  config = describe(shape)
  return config, init_params(config, jax.random.key(0))


def describe(shape: Mapping[str, Any]) -> ModelConfig:
  """Returns a GQA decoder of a shape."""
  width = shape['key_width']
  attention = Grouped(
    shape['num_heads'], shape['num_kv_heads'], width, rotary=Rotary(width)
  )
  layer = Layer(attention, MLP(shape['hidden']))
  return ModelConfig(
    shape['vocab_size'],
    shape['width'],
    (layer,) * shape['layers'],
    tied=shape.get('tied', False),
    dtype=shape['dtype'],
  )


@dataclasses.dataclass(frozen=True)
class ModelCase(clock.Case):
  """A model after a context of random streams.

  Attributes:
    config: of the model.
    params: of the model.
    batch: B.
    context: tokens that each row has seen.
  """

  fields = ('batch', 'context')

  config: ModelConfig
  params: Mapping[str, Any]
  batch: int
  context: int

  @property
  def token(self) -> jax.Array:
    """The token that is decoded, int32 `[B]`."""
    return jnp.arange(self.batch, dtype=jnp.int32) % self.config.vocab_size

  @functools.cached_property
  def streams(self) -> Streams:
    """The context's streams of each layer."""
    layers = []
    for index, layer in enumerate(self.config.layers):
      streams = layer.attention.streams()
      shapes = [
        (self.batch, x.heads, self.context, x.width) for x in streams.values()
      ]
      layers.append(dict(zip(streams, normal(index, *shapes), strict=True)))
    return layers


@dataclasses.dataclass(frozen=True)
class StepCase(ModelCase):
  """One decode step.

  Attributes:
    transformers: kinds of transformers' caches that take part; None for all.
  """

  record = 'step'

  transformers: Sequence[str] | None = None

  @property
  def decoded(self) -> int:
    return self.batch

  def entries(self, pace: Pace) -> dict[str, Entry]:
    """Returns kernels, codecs, eight-bit weights and forms, and the peers.

    The first logits that a runner waits for are compared with the logits of
    `blockwise` over the same numbers: codes of a cache stay codes, codes of
    weights become floats again. The peers are transformers with its caches,
    and llama.cpp after a prompt.
    """
    coded = functools.cache(lambda bits: quantize(self.params, bits))
    slots = self.context + pace.room

    def prepare(weights, kernel, codec):
      cache = filled(self, slots, codec=codec)
      size = step_bytes(self.config, weights, cache)
      return step_calls(self, cache, kernel, pace.calls, weights), size

    @functools.cache
    def expected(codec, bits):
      weights = decoded(coded(bits)) if bits else self.params
      call, size = prepare(weights, BLOCKWISE, codec)
      tolerance = TOLERANCE[self.config.dtype]
      if bits == 4:
        tolerance = max(tolerance, ROUNDED)
      return Expected(call(), size, tolerance, pace.calls)

    def ours(kernel, chosen, codec, bits):
      weights = coded(bits) if bits else self.params
      call, size = prepare(weights, chosen, codec)
      want = dataclasses.replace(expected(codec, bits), bytes=size)
      return want.runner(call, kernel)

    entries: dict[str, Entry] = {
      name + suffix: functools.partial(ours, kernel, chosen, codec, bits)
      for name, kernel, chosen in forms.raced(pace, self.config.dtype)
      for suffix, (codec, bits) in _codings(kernel, pace.alone).items()
    }
    if pace.alone:
      return entries
    torch_model = functools.cache(
      lambda: peers.torch_model(self.config, self.params)
    )

    def theirs(kind):
      call = peers.torch_decode(
        torch_model(), kind, self.streams, self.token, slots, pace.calls
      )
      return expected(None, None).runner(call)

    kinds = peers.caches() if self.transformers is None else self.transformers
    for kind in () if peers.transformers_absence() else kinds:
      entries[f'transformers {kind}'] = functools.partial(theirs, kind)
    return entries | llama_cpp.entries(self, pace.calls)


Coding = tuple[Codec | None, int | None]  # of the cache; bits of a weight


def _codings(kernel: str, alone: bool) -> dict[str, Coding]:
  """Returns how the cache and the weights are stored, by row suffix."""
  codings: dict[str, Coding] = {'': (None, None)}
  if kernel != 'mosaic_gpu':
    codings[' int8'] = (Int8(), None)
  # Only this kernel multiplies by codes as they are stored.
  if kernel == 'ffi' and not alone:
    codings[' weights int8'] = (None, 8)
    codings[' weights int8, cache int8'] = (Int8(), 8)
    codings[' weights int4, cache int8'] = (Int8(), 4)
  return codings


def decoded(params: Mapping[str, Any]) -> Any:
  """Returns params whose codes are floats again."""
  coded = lambda x: isinstance(x, CodedWeight)
  return jax.tree.map(
    lambda x: x[...] if coded(x) else x, params, is_leaf=coded
  )


def filled(
  case: ModelCase,
  slots: int,
  kinds: Kind | None = None,
  codec: Codec | None = None,
) -> Cache:
  """Returns a cache of one kind after the context of a case.

  A kind that chooses which tokens it keeps gets the last ones: a step costs the
  same whichever they are.

  Args:
    case: the model and its streams.
    slots: the least capacity.
    kinds: of all layers; None for the default one.
    codec: of all streams; None for the default one.
  """
  capacity = -(-slots // SLOTS) * SLOTS
  cache: Any = init_cache(
    case.config, case.batch, capacity, kinds=kinds, codec=codec
  )
  kind: Any = cache.layout.kinds()[0]
  first = 0
  if kind.book_per_layer:
    first = max(0, case.context - kind.budget + 1)
  positions = jnp.arange(first, case.context, dtype=jnp.int32)[None, :]
  positions = jnp.broadcast_to(positions, (case.batch, positions.shape[1]))
  place = jax.jit(kind.place)
  placed = [place(book, cache.length, positions) for book in cache.books]
  _, places = placed[0]
  stores = [
    _write(
      layout, store, {n: x[:, :, first:] for n, x in layer.items()}, places
    )
    for layout, store, layer in zip(
      cache.layout.stores, cache.stores, case.streams, strict=True
    )
  ]
  return cache.replace(
    length=jnp.full((case.batch,), case.context, jnp.int32),
    books=tuple(book for book, _ in placed),
    stores=tuple(stores),
  )


# One layer a program: a program of all layers takes a time to compile that
# grows with their number.
@functools.partial(
  jax.jit, static_argnames='layer_store', donate_argnames='store'
)
def _write(layer_store, store, streams, places):
  encoded = layer_store.encode(streams)
  return layer_store.kind.write(store, encoded, places)


def step_calls(
  case: ModelCase,
  cache: Cache,
  kernel: str | None,
  calls: int = 1,
  params: Mapping[str, Any] | None = None,
) -> Callable[[], Any]:
  """Returns a function that decodes `calls` more tokens at each call.

  Args:
    case: the model and the token.
    cache: that the first step reads and donates.
    kernel: that attends; None for the default one.
    calls: steps that are queued before the host waits for one.
    params: None for those of the case.
  """
  weights = case.params if params is None else params
  token = case.token

  def step(cache):
    return decode_step(case.config, weights, cache, token, kernel=kernel)

  return clock.stepped(step, cache, calls)


def step_bytes(
  config: ModelConfig, params: Mapping[str, Any], cache: Cache
) -> int:
  """Returns bytes that one decode step must read from memory, at least.

  Counts the params that a token reads (of experts, those of a single row,
  because other rows may choose others) and the slots that hold a token, and
  leaves out norms and tables of positions, which are small. Waits for the
  cache's books.
  """
  head: Any = params['embedding' if config.tied else 'head']
  coded = isinstance(head, CodedWeight)
  stored = f'int{head.bits}' if coded else head.dtype
  planned = plan(config, batch_size=1, capacity=1, param_dtype=stored)
  live = 0.0
  for index, store in zip(cache.layout.books, cache.stores, strict=True):
    if index >= 0:
      is_token = cache.books[index].positions >= 0
      live += float(jnp.mean(is_token)) * array_bytes(store)
  crossed = array_bytes(cache.cross or ())
  return planned.active_params_bytes + round(live) + crossed


def attending_kernels(program: Callable[..., Any], *args: Any) -> str:
  """Returns names of the kernels that attend in a program on this device.

  Args:
    program: traceable; interpreted kernels leave no mark in it.
    args: pytrees of arrays.
  """
  text = jax.jit(program).lower(*args).as_text()
  names = [name for name, mark in MARKS.items() if mark in text]
  return ' '.join(names) or BLOCKWISE
