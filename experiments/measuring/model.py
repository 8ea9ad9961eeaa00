"""A whole model: a decode step, a prefill, the generation of N tokens."""

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.measuring import clock, forms, llama_cpp, peers
from experiments.measuring.attention import normal
from experiments.measuring.clock import Runner
from experiments.measuring.ran import ran
from kvjax.attention.grouped import Grouped
from kvjax.attention.rotary import Rotary
from kvjax.decoding.cache import Cache, init_cache
from kvjax.decoding.generation import generate
from kvjax.decoding.steps import decode_step, extend, prefill
from kvjax.kernels import KERNELS, available
from kvjax.kernels.hopper.launch import DTYPES
from kvjax.layers.int8_weight import CodedWeight
from kvjax.models.config import Layer, ModelConfig
from kvjax.models.decoder import init_params
from kvjax.models.mlp import MLP
from kvjax.models.quantize import quantize
from kvjax.models.uncached import forward
from kvjax.streams.codecs import Int8

BLOCKWISE = 'blockwise'  # the kernel that others are held against
ROOM = 256  # slots beyond the context, for the tokens that are timed
SLOTS = 64  # of which every kernel reads a multiple
TOLERANCE = {'float32': 1e-4, 'bfloat16': 5e-2}


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
  layers = (layer,) * shape['layers']
  return ModelConfig(
    shape['vocab_size'],
    shape['width'],
    layers,
    tied=shape.get('tied', False),
    dtype=shape['dtype'],
  )


def step(
  config: ModelConfig,
  params: Mapping[str, Any],
  batch: int,
  context: int,
  repeats: int,
  kernels: Sequence[str] = KERNELS,
  room: int = ROOM,
  calls: int = 1,
  caches: Sequence[str] | None = None,
  variations: Sequence[str] = (),
  *,
  alone: bool = False,
) -> dict[str, Any]:
  """Returns results of one decode step after a context of random streams.

  Steps are queued, `calls` of them before one is waited for. Everybody's first
  logits that were waited for are held against those of `blockwise` over the
  same numbers: codes of a cache stay codes, those of weights are floats again.
  Peers are transformers' caches, those named or all, and llama.cpp, after a
  prompt; `alone` is without, and without int8 weights, which are no matter of
  attention.
  `mosaic_gpu` also takes part in `variations`, as in `forms`.
  """
  streams = [layer_streams(config, batch, context, i) for i in _layers(config)]
  token = jnp.arange(batch, dtype=jnp.int32) % config.vocab_size

  coded = functools.cache(lambda: quantize(params))
  tolerance = TOLERANCE[config.dtype]

  def ours(weights, kernel, codec):
    cache = filled(config, batch, context, streams, codec, room)
    size = weights_read(weights) + cache_read(cache, context)
    return step_calls(config, weights, cache, token, kernel, calls), size

  @functools.cache
  def plain(codec, narrow):
    call, size = ours(decoded(coded()) if narrow else params, BLOCKWISE, codec)
    return call(), size

  def entry(kernel, codec, narrow, form):
    chosen = forms.kernel_of(kernel, form)
    call, size = ours(coded() if narrow else params, chosen, codec)
    want, _ = plain(codec, narrow)
    return _runner(call, want, size, kernel, tolerance, calls)

  def theirs(kind, model):
    call = peers.torch_decode(
      model, kind, streams, token, context + room, calls
    )
    return _runner(call, *plain(None, False), '', tolerance, calls)

  entries: dict[str, Any] = {
    name: functools.partial(entry, *choice)
    for name, *choice in _ours(config, kernels, variations)
    if not (alone and choice[2])
  }
  if not alone:
    entries |= _theirs(config, params, theirs, caches)
    given = config, params, context, token, calls, weights_read(params)
    entries |= llama_cpp.entries(*given)
  runners, skipped = clock.enter(entries)
  return clock.race(runners, repeats) | skipped


def _theirs(config, params, entry, caches) -> dict[str, Any]:
  """Returns entries of transformers' caches, where it is installed."""
  if peers.missing('torch', 'transformers'):
    return {}
  model = peers.torch_model(config, params)
  return {
    f'transformers {kind}': functools.partial(entry, kind, model)
    for kind in (peers.caches() if caches is None else caches)
  }


def decoded(params: Mapping[str, Any]) -> Any:
  """Returns params whose codes are floats again."""
  coded = lambda x: isinstance(x, CodedWeight)
  wide = lambda x: (x.codes * x.scale[..., None]).astype(x.dtype)
  return jax.tree.map(
    lambda x: wide(x) if coded(x) else x, params, is_leaf=coded
  )


def _runner(call, want, size, kernel, tolerance, times=1) -> Runner:
  error = clock.difference(call(), want)
  return Runner(call, size, kernel, error, tolerance, times)


def prompt(
  config: ModelConfig,
  params: Mapping[str, Any],
  tokens: int,
  repeats: int,
  kernels: Sequence[str] = (),
) -> dict[str, Any]:
  """Returns results of a prefill of one row, and of the uncached forward.

  And of a prefill by each of `kernels`, beside that by the default one.
  """
  ids = np.random.default_rng(0).integers(0, config.vocab_size, (1, tokens))
  given = jnp.asarray(ids, jnp.int32)
  plain = jax.jit(lambda p, t: forward(config, p, t)[:, -1])
  make = functools.partial(init_cache, config, 1, tokens)

  def ours(kernel=None):
    logits, _ = prefill(config, params, make(), given, kernel=kernel)
    return jax.block_until_ready(logits)

  whole = lambda: np.asarray(plain(params, given))
  default = functools.partial(prefill, config)
  want = whole()
  size = weights_read(params)
  tolerance = max(1e-3, TOLERANCE[config.dtype])
  entries: dict[str, Any] = {
    name: functools.partial(_runner, call, want, size, by, tolerance)
    for name, call, by in (
      ('kvjax', ours, ran(default, params, make(), given)),
      ('kvjax uncached', whole, ran(plain, params, given)),
    )
  }
  for kernel in kernels:
    call = functools.partial(ours, forms.kernel_of(kernel))
    entries[f'kvjax {kernel}'] = functools.partial(
      _runner, call, want, size, kernel, tolerance
    )
  if not peers.missing('torch', 'transformers'):
    entries['transformers'] = lambda: _runner(
      peers.torch_prefill(config, params, ids), want, size, '', tolerance
    )
  runners, skipped = clock.enter(entries)
  return clock.race(runners, repeats) | skipped


def tokens(
  config: ModelConfig,
  params: Mapping[str, Any],
  batch: int,
  context: int,
  count: int,
  repeats: int,
  kernel: str | None = None,
) -> dict[str, Any]:
  """Returns results of generating N tokens, and of N times one step."""
  streams = [layer_streams(config, batch, context, i) for i in _layers(config)]
  logits = jnp.zeros((batch, config.vocab_size)).at[:, 1].set(1.0)
  cache = filled(config, batch, context, streams, None, count)
  token = jnp.zeros((batch,), jnp.int32)
  one = functools.partial(decode_step, config)
  by = kernel or ran(one, params, cache, token)
  size = count * (weights_read(params) + cache_read(cache, context))

  def whole():
    out, _ = generate(
      config,
      params,
      cache,
      logits,
      count,
      donate=False,
      block=count,
      kernel=kernel,
    )
    return jax.block_until_ready(out)

  def generated():
    error = _behind(config, params, cache, logits, whole())
    return Runner(whole, size, by, error, TOLERANCE[config.dtype])

  steps = functools.partial(
    _steps, config, params, cache, logits, count, kernel
  )

  def stepped():
    error = _behind(config, params, cache, logits, steps())
    return Runner(steps, size, by, error, TOLERANCE[config.dtype])

  runners, skipped = clock.enter(
    {f'kvjax {by} generate': generated, f'kvjax {by} steps': stepped}
  )
  return clock.race(runners, repeats) | skipped


def _steps(config, params, cache, logits, count, kernel) -> jax.Array:
  """Returns what `generate` does, by as many calls that are waited for."""
  token = np.asarray(logits).argmax(axis=1).astype(np.int32)
  out = []
  for index in range(count):  # the given cache stays as it is, likewise
    out.append(token)
    seen, cache = decode_step(
      config, params, cache, token, donate=index > 0, kernel=kernel
    )
    token = np.asarray(seen).argmax(axis=1).astype(np.int32)
  return jnp.stack(out, axis=1)


def _behind(config, params, cache, logits, tokens) -> float:
  """Returns how far tokens are from the likeliest, of the largest logit.

  Likely by the block loop's logits of the same tokens, read at once: two close
  ones may change places with a kernel, others may not.
  """
  seen, _ = extend(config, params, cache, tokens, kernel='blockwise')
  before = jnp.concatenate([logits[:, None], seen[:, :-1]], axis=1)
  chosen = jnp.take_along_axis(before, tokens[:, :, None], axis=2)[..., 0]
  behind = jnp.where(tokens < 0, jnp.inf, before.max(axis=2) - chosen)
  return float(jnp.max(behind) / jnp.max(jnp.abs(before)))


def _layers(config: ModelConfig) -> range:
  return range(len(config.layers))


def _ours(
  config: ModelConfig, kernels: Sequence[str], variations: Sequence[str]
) -> Iterator[tuple[str, str, Any, bool, str]]:
  """Yields name, kernel, codec, whether weights are in eight bits, form."""
  for kernel, reason in available().items():
    narrow = config.dtype in DTYPES
    if reason or kernel not in kernels:
      continue
    if kernel != 'mosaic_gpu' or narrow:
      for form in '', *(variations if kernel == 'mosaic_gpu' else ()):
        yield forms.named(kernel, form), kernel, None, False, form
    if kernel != 'mosaic_gpu':
      yield f'kvjax {kernel} int8', kernel, Int8(), False, ''
    if kernel == 'ffi':  # the one that multiplies by codes as they are stored
      yield f'kvjax {kernel} weights int8', kernel, None, True, ''
      yield f'kvjax {kernel} weights int8, cache int8', kernel, Int8(), True, ''


def layer_streams(config, batch, context, index):
  streams = config.layers[index].attention.streams()
  shapes = [(batch, x.heads, context, x.width) for x in streams.values()]
  return dict(zip(streams, normal(index, *shapes), strict=True))


def filled(config, batch, context, streams, codec, room=ROOM) -> Cache:
  """Returns a cache whose slots hold the given streams."""
  capacity = -(-(context + room) // SLOTS) * SLOTS
  return _fill(init_cache(config, batch, capacity, codec=codec), streams)


@functools.partial(jax.jit, donate_argnames='cache')
def _fill(cache: Any, streams: Sequence[Mapping[str, jax.Array]]) -> Cache:
  batch, _, context, _ = next(iter(streams[0].values())).shape
  slots = jnp.arange(context, dtype=jnp.int32)[None, :]
  slots = jnp.broadcast_to(slots, (batch, context))
  book = cache.layout.kinds()[0].place(cache.books[0], cache.length, slots)
  stores = []
  for store, memory, layer in zip(
    cache.stores, cache.layout.stores, streams, strict=True
  ):
    assert memory is not None
    new = memory.encode(layer)
    stores.append(memory.kind.write(store, new, slots[:, None]))
  return cache.replace(
    length=jnp.full((batch,), context, jnp.int32),
    books=(book[0],),
    stores=tuple(stores),
  )


def step_calls(
  config, params, cache, token, kernel, calls=1
) -> Callable[[], Any]:
  """Returns a function that decodes some more tokens at each call."""
  held = [cache]

  def one():
    logits, held[0] = decode_step(config, params, held[0], token, kernel=kernel)
    return logits

  return clock.queued(one, calls, np.asarray)


def weights_read(params: Mapping[str, Any]) -> int:
  """Returns bytes that a step reads: not an embedding that is no head."""
  skip = params['embedding'].nbytes if 'head' in params else 0
  return sum(x.nbytes for x in jax.tree.leaves(params)) - skip


def cache_read(cache: Cache, context: int) -> int:
  """Returns bytes of the filled slots."""
  slots = cache.books[0].positions.shape[2]
  size = sum(x.nbytes for x in jax.tree.leaves(cache.stores))
  return size * context // slots
