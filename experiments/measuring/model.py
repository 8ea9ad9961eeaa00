"""A model: random streams in its cache, what it reads, one decode step."""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.measuring import clock, forms, llama_cpp, peers
from experiments.measuring.attention import normal
from experiments.measuring.clock import Entry, Expected, Pace
from experiments.training.variants import array_bytes
from kvjax.attention.grouped import Grouped
from kvjax.attention.rotary import Rotary
from kvjax.decoding.allocate import init_cache
from kvjax.decoding.cache import Cache
from kvjax.decoding.steps import decode_step
from kvjax.kernels.hopper.launch import DTYPES
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

  def read(self, cache: Cache, params: Mapping[str, Any] | None = None) -> int:
    """Returns bytes that a step reads: of weights, and of filled slots."""
    slots = cache.books[0].positions.shape[2]
    stored = array_bytes(cache.stores) * self.context // slots
    return weights_read(self.params if params is None else params) + stored

  def expected(self, want: Any, size: int, times: int = 1) -> Expected:
    """Returns what runners must compute, as exactly as the dtype allows."""
    return Expected(want, size, TOLERANCE[self.config.dtype], times)


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
    coded = functools.cache(lambda: quantize(self.params))

    def prepare(weights, kernel, codec):
      cache = filled(self, self.context + pace.room, codec)
      call = step_calls(self, cache, kernel, pace.calls, weights)
      return call, self.read(cache, weights)

    @functools.cache
    def expected(codec, narrow):
      weights = decoded(coded()) if narrow else self.params
      call, size = prepare(weights, BLOCKWISE, codec)
      return self.expected(call(), size, pace.calls)

    def ours(way):
      weights = coded() if way.narrow else self.params
      kernel = forms.kernel_of(way.kernel, way.form)
      call, size = prepare(weights, kernel, way.codec)
      want = dataclasses.replace(expected(way.codec, way.narrow), bytes=size)
      return want.runner(call, way.kernel)

    entries: dict[str, Entry] = {
      way.name: functools.partial(ours, way) for way in _ways(self, pace)
    }
    if pace.alone:
      return entries
    torch_model = functools.cache(
      lambda: peers.torch_model(self.config, self.params)
    )

    def theirs(kind):
      slots = self.context + pace.room
      call = peers.torch_decode(
        torch_model(), kind, self.streams, self.token, slots, pace.calls
      )
      return expected(None, False).runner(call)

    kinds = peers.caches() if self.transformers is None else self.transformers
    for kind in () if peers.absent() else kinds:
      entries[f'transformers {kind}'] = functools.partial(theirs, kind)
    return entries | llama_cpp.entries(
      self.config,
      self.params,
      self.context,
      self.token,
      pace.calls,
      weights_read(self.params),
    )


@dataclasses.dataclass(frozen=True)
class _Way:
  """How kvjax takes a step.

  Attributes:
    name: of the row.
    kernel: that attends.
    codec: of the cache.
    narrow: whether weights are in eight bits.
    form: of the kernel, as in `forms`; '' for the default one.
  """

  name: str
  kernel: str
  codec: Codec | None = None
  narrow: bool = False
  form: str = ''


def _ways(case: StepCase, pace: Pace) -> Iterator[_Way]:
  for kernel in pace.usable():
    name = f'kvjax {kernel}'
    if kernel == 'mosaic_gpu':
      if case.config.dtype in DTYPES:
        for form in ('', *(() if pace.alone else pace.forms)):
          yield _Way(forms.named(kernel, form), kernel, form=form)
      continue
    yield _Way(name, kernel)
    yield _Way(f'{name} int8', kernel, Int8())
    # Only this kernel multiplies by codes as they are stored.
    if kernel == 'ffi' and not pace.alone:
      yield _Way(f'{name} weights int8', kernel, narrow=True)
      yield _Way(
        f'{name} weights int8, cache int8', kernel, Int8(), narrow=True
      )


def decoded(params: Mapping[str, Any]) -> Any:
  """Returns params whose codes are floats again."""
  coded = lambda x: isinstance(x, CodedWeight)
  wide = lambda x: (x.codes * x.scale[..., None]).astype(x.dtype)
  return jax.tree.map(
    lambda x: wide(x) if coded(x) else x, params, is_leaf=coded
  )


def filled(case: ModelCase, slots: int, codec: Codec | None = None) -> Cache:
  """Returns a cache of at least `slots` after the context of a case."""
  capacity = aligned(slots)
  cache = init_cache(case.config, case.batch, capacity, codec=codec)
  return fill(cache, case.streams)


def fill(cache: Any, streams: Streams) -> Cache:
  """Returns an empty cache of one kind after streams were written to it."""
  batch, _, context, _ = next(iter(streams[0].values())).shape
  positions = jnp.arange(context, dtype=jnp.int32)[None, :]
  positions = jnp.broadcast_to(positions, (batch, context))
  (kind,) = cache.layout.kinds()
  place = jax.jit(kind.place)
  book, places = place(cache.books[0], cache.length, positions)
  return cache.replace(
    length=jnp.full((batch,), context, jnp.int32),
    books=(book,),
    stores=write_layers(cache, streams, places),
  )


def aligned(slots: int) -> int:
  """Returns the least capacity of at least `slots` that every kernel reads."""
  return -(-slots // SLOTS) * SLOTS


def write_layers(cache: Any, streams: Streams, places: Any) -> tuple[Any, ...]:
  """Returns the stores of a cache after streams were written to places."""
  return tuple(
    _write(layer_store, store, layer, places)
    for store, layer_store, layer in zip(
      cache.stores, cache.layout.stores, streams, strict=True
    )
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

  return clock.queued(clock.carry_state(step, cache), calls, np.asarray)


def weights_read(params: Mapping[str, Any]) -> int:
  """Returns bytes that a step reads: an embedding counts if it is the head."""
  skip = params['embedding'].nbytes if 'head' in params else 0
  return array_bytes(params) - skip


def step_bytes(
  config: ModelConfig, params: Mapping[str, Any], cache: Cache
) -> int:
  """Returns bytes that one decode step must read from memory, at least.

  Counts the params that a token reads (of experts, those of a single row,
  because other rows may choose others) and the slots that hold a token. Waits
  for the cache's books.
  """
  head: Any = params['embedding' if config.tied else 'head']
  stored = 'int8' if isinstance(head, CodedWeight) else head.dtype
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
