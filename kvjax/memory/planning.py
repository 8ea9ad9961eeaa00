"""What inference occupies, from the config alone.

Parameters and cache are exact: the cache is the very specification that
`init_cache` allocates from. The transient of a step is an upper bound over the
moments of a layer, of which the fullest counts. `measure(compile_call(...))`
compiles the call from shapes and gives the exact figure.

Every line says its formula in symbols and in numbers. Q has a line like any
other: it lives in one layer of one step, whatever the context.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from kvjax.caches.kind import Kind
from kvjax.context import PLATFORMS, target
from kvjax.decoding.allocate import cache_spec, check_sizes
from kvjax.decoding.cache import Cache
from kvjax.display import Display, Displayed, binary_size
from kvjax.kernels import KERNELS
from kvjax.memory.parts.cache_bytes import cache_lines, per_token, query_line
from kvjax.memory.parts.call_shape import CallShape
from kvjax.memory.parts.encoder_bytes import encode_lines
from kvjax.memory.parts.int8_bytes import active_bytes, coded_lines, coded_parts
from kvjax.memory.parts.lines import Dim, Line, Term
from kvjax.memory.parts.param_bytes import param_lines
from kvjax.memory.temporaries.upper_bound import LOGITS, step_lines
from kvjax.mesh.rules import Partition, Rules, partition_of
from kvjax.models.config import ModelConfig, named_dtype
from kvjax.models.quantize import WEIGHTS
from kvjax.renamed import renamed_arguments
from kvjax.streams.codecs import Codecs

COPIES = 'the next cache, as this one is not donated'
RESULTS = LOGITS, COPIES
SAMPLING = 21  # token, count and limit int32, key 2 uint32, alive bool: a row


@dataclasses.dataclass(frozen=True, repr=False)
class MemoryPlan(Displayed):
  """Bytes of inference, of one device; integers until they are printed.

  Parameters and cache are exact. A step's temporaries, and with them its total,
  are an upper bound: `measure(compile_call(...))` gives the exact figure.

  Attributes:
    params_bytes: parameters.
    cache_bytes: all that `init_cache` allocates.
    step_bytes: transient of one call at its fullest moment, its logits
      included; with `donate=False` the second cache as well.
    temporaries_bytes: of that, what XLA counts as temporaries and not as
      output.
    total_bytes: the sum of the three.
    encode_bytes: transient of one `encode` at its fullest moment, its result
      included; over when the first step begins. 0 without a source.
    bytes_per_token: stream bytes (codes and scales; no positions) that one
      more token of one row adds while nothing is full; as codes, and in the
      ring of exact tokens, where a codec has both.
    growing_bytes_per_token: of that, what goes on growing when every window
      is full.
    cap_bytes: what the layers that stop growing hold of one row at most.
    active_params_bytes: parameters that a step of one token reads, of the
      whole model.
    query_cache_bytes: what a cache of every past query would take. Nothing
      would ever read it.
    sampling_bytes: what `generate` carries in addition to the cache.
    devices: of the mesh; 1 without one.
    lines: where all this comes from.
    temporaries_are: 'upper bound': what `temporaries_bytes` is of XLA's.
  """

  params_bytes: int
  cache_bytes: int
  step_bytes: int
  temporaries_bytes: int
  total_bytes: int
  encode_bytes: int
  bytes_per_token: int
  growing_bytes_per_token: int
  cap_bytes: int
  active_params_bytes: int
  query_cache_bytes: int
  sampling_bytes: int
  devices: int
  lines: tuple[Line, ...]
  temporaries_are: str = 'upper bound'

  def display(self) -> Display:
    parts = {
      'params': self.params_bytes,
      'cache': self.cache_bytes,
      'step': self.step_bytes,
      'total': self.total_bytes,
    }
    place = 'inference' if self.devices == 1 else 'one device'
    return Display(
      f'Memory of {place}; the step is an {self.temporaries_are}',
      ('part', 'size', 'bytes'),
      [[x, binary_size(n), f'{n:,}'] for x, n in parts.items()],
      left=('part',),
    )

  def line_table(self) -> str:
    """Returns every line with its formula, in symbols and in numbers."""
    columns = 'part', 'name', 'bytes', 'formula', 'in numbers'
    rows = [
      (x.part, x.name, f'{x.bytes:,}', x.symbols, x.numbers) for x in self.lines
    ]
    name = f'temporaries: {self.temporaries_are}'
    rows.append(('total', name, f'{self.total_bytes:,}', '', ''))
    left = tuple(name for name in columns if name != 'bytes')
    return Display('', columns, rows, left=left).text()

  @property
  def peak_bytes(self) -> int:
    """The most that is ever alive: in a step, or while the source is read."""
    return self.total_bytes + max(self.encode_bytes - self.step_bytes, 0)

  def lines_of(self, part: str) -> tuple[Line, ...]:
    """Returns the lines of one part."""
    return tuple(line for line in self.lines if line.part == part)


@renamed_arguments(cache='kinds=')
def plan(
  config: ModelConfig,
  *,
  batch_size: int,
  capacity: int,
  prompt_length: int | None = None,
  new_tokens_per_step: int = 1,
  kinds: Kind | Sequence[Kind | None] | None = None,
  codec: Codecs = None,
  param_dtype: Any = None,
  cache_dtype: Any = None,
  source_length: int | None = None,
  mesh: Any = None,
  rules: Rules | None = None,
  backend: str | None = None,
  kernel: str | None = None,
  donate: bool = True,
) -> MemoryPlan:
  """Returns what decoding occupies, before anything is allocated or traced.

  Args:
    config: the model.
    batch_size: B rows.
    capacity: most tokens a row may hold.
    prompt_length: checked against the capacity; None for no check.
    new_tokens_per_step: T tokens a row of one call.
    kinds: of cache, as in `init_cache`.
    codec: how streams are stored.
    param_dtype: of the parameters; None for the config's. 'int8' or 'int4'
      for those that `quantize` makes, all else in the config's.
    cache_dtype: of the streams; None for the config's.
    source_length: positions of the source of an encoder-decoder; None leaves
      the source, its keys and values and its encoder's transient out.
    mesh: a JAX mesh, or sizes by axis name, of devices that share the work;
      the plan is then that of one device.
    rules: what the axes of the mesh split; None for axes named as what they
      split: batch, heads, experts, slots (and copies).
    backend: 'cpu', 'gpu' or 'tpu', for which attention differs in what it
      reads at once; None for the default one.
    kernel: 'mosaic_gpu' for what that one needs; None, 'ffi' or 'blockwise'
      for the block loop, which needs most of these: on a Hopper GPU, which
      decodes by 'mosaic_gpu' where that serves, no less than what is needed.
    donate: the step is given the cache's buffers; otherwise a second cache is
      alive together with the first.

  Raises:
    ValueError: a size is not positive, the prompt or the tokens of one call
      exceed the capacity, the mesh has an axis that nothing is split by, or no
      kind, codec, dtype, backend or kernel is so called.
  """
  check_sizes(
    batch_size=batch_size,
    capacity=capacity,
    new_tokens_per_step=new_tokens_per_step,
  )
  _check_names(config, backend, kernel, source_length)
  # NumPy's integers would wrap at 2^63 bytes; Python's never do.
  batch_size = int(batch_size)
  capacity = int(capacity)
  new_tokens_per_step = int(new_tokens_per_step)
  _check_prompt(prompt_length, capacity)
  cut = partition_of(mesh, rules)
  spec = cache_spec(
    config,
    batch_size,
    capacity,
    cache_dtype,
    kinds=kinds,
    codec=codec,
    source_length=source_length,
    partition=cut,
  )
  _check_room(spec, new_tokens_per_step)
  dtype = _param_dtype(config, param_dtype)
  bits = WEIGHTS.get(dtype.name)
  coded = coded_parts(config, cut, bits=bits) if bits else {}
  dtype = np.dtype(config.dtype) if coded else dtype
  lines = [*param_lines(config, dtype.itemsize, cut, coded)]
  lines += [*coded_lines(coded), *cache_lines(spec, cut)]
  call = CallShape(
    batch_size, new_tokens_per_step, dtype, backend or target(), kernel
  )
  copies = [] if donate else [_copies(lines)]
  lines += [*step_lines(config, spec, call, cut), *copies]
  if source_length is not None:
    length = int(source_length)
    lines += encode_lines(config, batch_size, length, call.size, cut)
  read = active_bytes(config, dtype.itemsize, bits=bits)
  return _summed(config, spec, batch_size, capacity, read, cut, tuple(lines))


def _check_names(
  config: ModelConfig,
  backend: str | None,
  kernel: str | None,
  source_length: int | None,
) -> None:
  if not isinstance(config, ModelConfig):
    raise ValueError(
      f'config={config!r} is no ModelConfig. Give one, or '
      'kvjax.load_config(name).'
    )
  for name, value, known in (
    ('backend', backend, PLATFORMS),
    ('kernel', kernel, KERNELS),
  ):
    if value not in (None, *known):
      known = ', '.join(known)
      raise ValueError(f'{name}={value!r} is unknown; known: {known}.')
  if source_length is not None and config.encoder is None:
    raise ValueError(
      f'source_length={source_length}, but the model has no encoder. Leave '
      'it out.'
    )


def _check_prompt(prompt_length: int | None, capacity: int) -> None:
  if prompt_length is None:
    return
  check_sizes(prompt_length=prompt_length)
  if prompt_length > capacity:
    raise ValueError(
      f'prompt_length={prompt_length} exceeds capacity={capacity}. Raise the '
      'capacity to the prompt and all that is to follow, or cut the prompt.'
    )


def _param_dtype(config: ModelConfig, dtype: Any) -> np.dtype:
  found = named_dtype(config.dtype if dtype is None else dtype, 'param_dtype')
  if found.name in WEIGHTS:
    return found
  # Sub-byte floats too: nothing here multiplies or packs them.
  if not jnp.issubdtype(found, jnp.floating) or jnp.finfo(found).bits < 8:
    raise ValueError(
      f'param_dtype={found} is no floating type of eight bits or more. Give '
      'bfloat16, float8_e4m3fn, say, or int8 or int4 for quantized weights.'
    )
  return found


def _check_room(spec: Cache, tokens: int) -> None:
  limit = spec.layout.limit
  if limit is not None and tokens > limit:
    raise ValueError(
      f'new_tokens_per_step={tokens} do not fit a cache of {limit} tokens a '
      'row. Raise the capacity or feed fewer at once.'
    )


def _summed(
  config: ModelConfig,
  spec: Cache,
  batch: int,
  capacity: int,
  read: int,
  cut: Partition,
  lines: tuple[Line, ...],
) -> MemoryPlan:
  past = query_line(config, batch, capacity, spec, cut)
  rows = Dim('B', batch)  # every device samples
  sampling = Term('token, count, limit, key, alive', (rows,), SAMPLING)
  sampling = sampling.line('sampling', cut)
  step = [x for x in lines if x.part == 'step']
  sums = {
    part: sum(x.bytes for x in lines if x.part == part)
    for part in ('params', 'cache', 'step', 'encode')
  }
  growing, capped, cap = per_token(spec, cut)
  return MemoryPlan(
    params_bytes=sums['params'],
    cache_bytes=sums['cache'],
    step_bytes=sums['step'],
    temporaries_bytes=sum(x.bytes for x in step if x.name not in RESULTS),
    total_bytes=sums['params'] + sums['cache'] + sums['step'],
    encode_bytes=sums['encode'],
    bytes_per_token=growing + capped,
    growing_bytes_per_token=growing,
    cap_bytes=cap,
    active_params_bytes=read,
    query_cache_bytes=past.bytes,
    sampling_bytes=sampling.bytes,
    devices=cut.devices,
    lines=(*lines, sampling, past),
  )


def _copies(lines: list[Line]) -> Line:
  size = sum(line.bytes for line in lines if line.part == 'cache')
  return Line('step', COPIES, size, 'the cache again', str(size))
