"""What inference occupies, to the byte, from the config alone.

Parameters and cache are exact: the cache is the very specification that
`init_cache` allocates from. The transient of a step is a formula over the
phases of a layer, of which the largest counts; XLA fuses more or less than it
says, and `measure` of a compiled step tells by how much.

Every line says its formula in symbols and in numbers. Q has a line like any
other: it lives in one layer of one step, whatever the context.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kvjax.caches.codecs import Codec
from kvjax.caches.kind import Kind
from kvjax.caches.spec import Leaf
from kvjax.decoding.cache import Cache, cache_spec, check_sizes
from kvjax.kernels.blockwise import BLOCK
from kvjax.models.config import Layer, ModelConfig, relative_bias


@dataclasses.dataclass(frozen=True)
class Line:
  """One line of a plan.

  Attributes:
    part: 'params', 'cache', 'step', or 'never' for what nobody would read.
    name: what it is.
    bytes: integer, exact.
    symbols: its formula.
    numbers: the formula with numbers put in.
  """

  part: str
  name: str
  bytes: int
  symbols: str
  numbers: str


@dataclasses.dataclass(frozen=True)
class MemoryPlan:
  """Bytes of inference; integers until they are printed.

  Attributes:
    params_bytes: parameters.
    cache_bytes: all that `init_cache` allocates.
    step_bytes: transient of one decode step.
    total_bytes: the sum of the three.
    bytes_per_token: stream bytes (codes and scales; no positions) that one
      more token of one row adds while nothing is full.
    growing_bytes_per_token: of that, what goes on growing when every window
      is full.
    cap_bytes: what the layers that stop growing hold of one row at most.
    active_params_bytes: parameters that a step of one token reads.
    query_cache_bytes: what a cache of every past query would take. Nothing
      would ever read it.
    lines: where all this comes from.
  """

  params_bytes: int
  cache_bytes: int
  step_bytes: int
  total_bytes: int
  bytes_per_token: int
  growing_bytes_per_token: int
  cap_bytes: int
  active_params_bytes: int
  query_cache_bytes: int
  lines: tuple[Line, ...]

  def __str__(self) -> str:
    head = ('part', 'name', 'bytes', 'formula', 'in numbers')
    rows = [head] + [
        (x.part, x.name, f'{x.bytes:,}', x.symbols, x.numbers)
        for x in self.lines
    ]
    rows.append(('total', '', f'{self.total_bytes:,}', '', ''))
    widths = [max(len(r[i]) for r in rows) for i in range(4)]
    return '\n'.join(_pad(row, widths) for row in rows)


def plan(
    config: ModelConfig,
    *,
    batch_size: int,
    capacity: int,
    prompt_length: int | None = None,
    new_tokens_per_step: int = 1,
    cache: Kind | Sequence[Kind | None] | None = None,
    codec: Codec | None = None,
    param_dtype: Any = None,
    cache_dtype: Any = None,
    source_length: int | None = None,
) -> MemoryPlan:
  """Returns what decoding occupies, before anything is allocated or traced.

  Args:
    config: the model.
    batch_size: B rows.
    capacity: most tokens a row may hold.
    prompt_length: checked against the capacity; None for no check.
    new_tokens_per_step: T tokens a row of one call.
    cache: kinds, as in `init_cache(kinds=)`.
    codec: how streams are stored.
    param_dtype: of the parameters; None for the config's.
    cache_dtype: of the streams; None for the config's.
    source_length: positions of the source of an encoder-decoder.

  Raises:
    ValueError: a size is not positive, or the prompt exceeds the capacity.
  """
  check_sizes(
      batch_size=batch_size,
      capacity=capacity,
      new_tokens_per_step=new_tokens_per_step,
  )
  if prompt_length is not None and not 0 < prompt_length <= capacity:
    raise ValueError(
        f'prompt_length={prompt_length} must be between 1 and the capacity of '
        f'{capacity}.'
    )
  spec = cache_spec(
      config,
      batch_size,
      capacity,
      cache_dtype,
      kinds=cache,
      codec=codec,
      source_length=source_length,
  )
  size = jnp.dtype(param_dtype or config.dtype).itemsize
  lines = [
      *_param_lines(config, size),
      *_cache_lines(spec),
      *_step_lines(config, spec, batch_size, new_tokens_per_step, size),
  ]
  past = _query_line(config, batch_size, capacity, spec)
  sums = {
      part: sum(x.bytes for x in lines if x.part == part)
      for part in ('params', 'cache', 'step')
  }
  growing, capped, cap = _per_token(spec)
  return MemoryPlan(
      params_bytes=sums['params'],
      cache_bytes=sums['cache'],
      step_bytes=sums['step'],
      total_bytes=sum(sums.values()),
      bytes_per_token=growing + capped,
      growing_bytes_per_token=growing,
      cap_bytes=cap,
      active_params_bytes=_active(config) * size,
      query_cache_bytes=past.bytes,
      lines=(*lines, past),
  )


def tree_bytes(tree: Any) -> int:
  """Returns the bytes of a tree of `Leaf`s, arrays or shapes."""
  return sum(_leaf_bytes(leaf) for leaf in _leaves(tree))


def _leaves(tree: Any) -> list[Any]:
  return jax.tree.leaves(tree, is_leaf=lambda x: isinstance(x, Leaf))


def _leaf_bytes(leaf: Any) -> int:
  # In Python's integers: a plan of 10^15 bytes is a plan like any other.
  count = 1
  for size in leaf.shape:
    count *= int(size)
  return count * np.dtype(leaf.dtype).itemsize


def _param_lines(config: ModelConfig, size: int) -> Iterator[Line]:
  width, vocab = config.width, config.vocab_size
  tables = 1 if config.tied else 2
  extra = vocab if config.head_bias else 0
  extra += config.positions * width
  relative = relative_bias(config.layers)
  extra += relative[0] * relative[1] if relative else 0
  yield Line(
      'params',
      'embedding, head, positions',
      (tables * vocab * width + extra) * size,
      '(tables V D + more) bytes',
      f'({tables} x {vocab} x {width} + {extra}) x {size}',
  )
  for name, count in _layer_counts(config.layers, config).items():
    yield Line(
        'params',
        name,
        count * size,
        'elements bytes',
        f'{count} x {size}',
    )
  if config.encoder is not None:
    count = _encoder_count(config)
    yield Line(
        'params', 'encoder', count * size, 'elements bytes', f'{count} x {size}'
    )


def _layer_counts(
    layers: tuple[Layer, ...], config: ModelConfig
) -> dict[str, int]:
  width = config.width
  attention = sum(layer.attention.num_params(width) for layer in layers)
  cross = sum(
      layer.cross.num_params(width)
      for layer in layers
      if layer.cross is not None
  )
  norms = sum(_norms(layer) for layer in layers) + 1
  return {
      'attention': attention + cross,
      'mlp': sum(layer.mlp.num_params(width) for layer in layers),
      'norms': norms * config.norm.num_params(width),
  }


def _norms(layer: Layer) -> int:
  halves = 2 if layer.cross is None else 3
  if layer.parallel:
    halves = 1 if layer.parallel == 'shared' else 2
  return halves * (2 if layer.norms == 'both' else 1)


def _encoder_count(config: ModelConfig) -> int:
  encoder = config.encoder
  if encoder is None:
    return 0
  width = config.width
  inner = dataclasses.replace(
      config, layers=encoder.layers, norm=encoder.norm, encoder=None
  )
  count = sum(_layer_counts(encoder.layers, inner).values())
  count += encoder.positions * width
  relative = relative_bias(encoder.layers)
  count += relative[0] * relative[1] if relative else 0
  if encoder.features is not None:
    count += 3 * width * (encoder.features + width) + 2 * width
  return count


def _active(config: ModelConfig) -> int:
  """Returns elements that a step reads: of an untied embedding, one row."""
  width, vocab = config.width, config.vocab_size
  layers = sum(
      layer.attention.num_params(width) + layer.mlp.num_active(width)
      for layer in config.layers
  )
  cross = sum(
      layer.cross.num_params(width)
      for layer in config.layers
      if layer.cross is not None
  )
  return vocab * width + layers + cross


def _cache_lines(spec: Cache) -> Iterator[Line]:
  layout = spec.layout
  groups: dict[str, list[int]] = {}
  for index, memory in enumerate(layout.memories):
    if memory is None:
      groups.setdefault('layers that share', []).append(index)
      continue
    codec = {type(c).__name__.lower() for _, c in memory.codecs}
    name = f'{memory.kind.name} {" and ".join(sorted(codec))}'
    groups.setdefault(name, []).append(index)
  for name, layers in groups.items():
    stores = [spec.stores[i] for i in layers]
    one = _leaves(stores[0])
    numbers = ' + '.join(
        f'{" x ".join(map(str, x.shape))} x {np.dtype(x.dtype).itemsize}'
        for x in one
    )
    yield Line(
        'cache',
        f'{name}, {len(layers)} layers',
        tree_bytes(stores),
        'layers sum(B K S H bytes)',
        f'{len(layers)} x ({numbers or 0})',
    )
  books = (spec.length, spec.overflow, spec.books)
  yield Line(
      'cache',
      'lengths, positions, tables',
      tree_bytes(books),
      'sum(leaves)',
      ' + '.join(str(_leaf_bytes(x)) for x in _leaves(books)),
  )
  if spec.cross is not None:
    yield Line(
        'cache',
        'cross keys and values',
        tree_bytes((spec.cross, spec.source)),
        'layers 2 B K S H bytes + 4 B S',
        f'{len(spec.cross)} layers',
    )


def _step_lines(
    config: ModelConfig, spec: Cache, batch: int, tokens: int, size: int
) -> Iterator[Line]:
  """Yields what a call of T tokens needs at its fullest moment."""
  rows = batch * tokens
  widest = max(config.layers, key=lambda x: x.attention.query_width)
  query = widest.attention.query_width
  new = max(_new_elements(layer) for layer in config.layers)
  hidden = max(
      getattr(layer.mlp, 'hidden', config.width) for layer in config.layers
  )
  slots = max(m.kind.row_slots for m in spec.layout.memories if m is not None)
  block = min(BLOCK, slots)
  heads = max(layer.attention.num_heads for layer in config.layers)
  yield Line(
      'step',
      'scores of one block',
      2 * rows * heads * block * 4,
      '2 B T N block 4',
      f'2 x {batch} x {tokens} x {heads} x {block} x 4',
  )
  yield Line(
      'step',
      'one block, decoded',
      batch * block * new * 4,
      'B block (K H + K E) 4',
      f'{batch} x {block} x {new} x 4',
  )
  made = {
      'hidden': (config.width, 'B T D', 2),
      'query (one layer, then dead)': (query, 'B T N H', 1),
      'new keys and values': (new, 'B T (K H + K E)', 1),
      'mlp': (hidden, '2 B T F', 2),
  }
  for name, (width, symbols, times) in made.items():
    yield Line(
        'step',
        name,
        rows * width * times * size,
        f'{symbols} bytes',
        f'{times} x {batch} x {tokens} x {width} x {size}',
    )
  vocab = config.vocab_size
  yield Line(
      'step', 'logits', batch * vocab * 4, '4 B V', f'4 x {batch} x {vocab}'
  )


def _new_elements(layer: Layer) -> int:
  streams = layer.attention.streams().values()
  return sum(s.heads * s.width for s in streams)


def _query_line(config, batch, capacity, spec) -> Line:
  count = sum(layer.attention.query_width for layer in config.layers)
  memory = next(m for m in spec.layout.memories if m is not None)
  size = np.dtype(memory.dtype).itemsize
  return Line(
      'never',
      'a cache of past queries',
      batch * capacity * count * size,
      'B S sum(N H) bytes',
      f'{batch} x {capacity} x {count} x {size}: nothing would read it',
  )


def _per_token(spec: Cache) -> tuple[int, int, int]:
  """Returns bytes a token: growing, of capped layers; and the cap of a row."""
  growing = capped = cap = 0
  for memory, store in zip(spec.layout.memories, spec.stores, strict=True):
    if memory is None:
      continue
    lead = len(memory.kind.lead(1, 1))
    heads = [name for _, name in memory.kind.lead(1, 1)].index('kv_heads')
    one = sum(
        leaf.shape[heads]
        * int(np.prod(leaf.shape[lead:], dtype=object))
        * np.dtype(leaf.dtype).itemsize
        for leaf in _leaves(store)
    )
    if memory.kind.limit is None:
      capped += one
      cap += one * memory.kind.row_slots
    else:
      growing += one
  return growing, capped, cap


def _pad(row: tuple[str, ...], widths: list[int]) -> str:
  cells = [row[0].ljust(widths[0]), row[1].ljust(widths[1])]
  cells += [row[2].rjust(widths[2]), row[3].ljust(widths[3]), row[4]]
  return '  '.join(cells).rstrip()
