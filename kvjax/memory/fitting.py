"""What fits in a given memory, and what would make more fit.

The plan decides: it only grows with rows and with tokens, so the largest of
either that still fits is found by bisection over whole plans, exactly.
"""

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from kvjax.arguments import is_whole
from kvjax.caches.bounded import Bounded
from kvjax.caches.kind import Kind
from kvjax.caches.sinks import Sinks
from kvjax.decoding.allocate import check_sizes
from kvjax.display import Display, Displayed, binary_size
from kvjax.memory.planning import MemoryPlan, plan
from kvjax.memory.speed.devices import Device, device
from kvjax.mesh.rules import Rules, over_heads, partition_of
from kvjax.models.config import ModelConfig
from kvjax.renamed import renamed_arguments
from kvjax.streams.codecs import Codecs, Int8

MOST = 1 << 30  # rows or tokens from which a size counts as unlimited


@dataclasses.dataclass(frozen=True)
class Remedy:
  """A change under which the request fits.

  Attributes:
    change: to make, in words.
    total_bytes: what the request occupies then.
  """

  change: str
  total_bytes: int


@dataclasses.dataclass(frozen=True, repr=False)
class Fit(Displayed):
  """What fits on each device.

  Attributes:
    memory_bytes: of one device, less what is reserved.
    batch_size: the largest, or the one requested; 0 if not even one row fits,
      None if there is no limit.
    capacity: the largest, or the one requested; None if there is no limit.
    fits: whether the request does.
    short_bytes: by how much it does not.
    frontier: `(capacity, largest batch)` pairs; None for no limit.
    remedies: changes that would make it fit, the first the smallest change.
    plan: of the batch and capacity above, or of the request.
  """

  memory_bytes: int
  batch_size: int | None
  capacity: int | None
  fits: bool
  short_bytes: int
  frontier: tuple[tuple[int, int | None], ...]
  remedies: tuple[Remedy, ...]
  plan: MemoryPlan

  def display(self) -> Display:
    rows, tokens = (
      'any number' if n is None else f'{n:,}'
      for n in (self.batch_size, self.capacity)
    )
    short = f', {binary_size(self.short_bytes)} too few'
    return dataclasses.replace(
      self.plan.display(),
      title=f'{rows} rows of {tokens} tokens in '
      f'{binary_size(self.memory_bytes)}{"" if self.fits else short}',
      notes=[
        f'With {x.change} it takes {binary_size(x.total_bytes)}.'
        for x in self.remedies
      ],
    )


@dataclasses.dataclass(frozen=True)
class _Question:
  """A model and all choices but the two sizes."""

  config: ModelConfig
  limit: int
  options: dict[str, Any]

  def plan(self, batch: int, capacity: int) -> MemoryPlan:
    return plan(
      self.config, batch_size=batch, capacity=capacity, **self.options
    )

  def fits(self, batch: int, capacity: int) -> bool:
    return self.plan(batch, capacity).peak_bytes <= self.limit

  def largest_batch(self, capacity: int) -> int | None:
    rows = self.step('batch')
    count = _largest(lambda n: self.fits(n * rows, capacity), MOST)
    return None if count is None else rows * count

  def largest_capacity(self, batch: int) -> int | None:
    slots = self.step('slots')
    most = (self.config.positions or MOST) // slots
    least = self.options['new_tokens_per_step']
    count = _largest(lambda n: self.fits(batch, max(n * slots, least)), most)
    if count is None:
      count = most if self.config.positions else None
    return None if count is None else slots * count

  def step(self, axis: str) -> int:
    # A mesh splits what comes out even: only its multiples grow steadily.
    cut = partition_of(self.options['mesh'], self.options['rules'])
    return cut.size(cut.rules[axis])

  def but(self, **options: Any) -> '_Question':
    return dataclasses.replace(self, options={**self.options, **options})


@renamed_arguments(cache='kinds=')
def fit(
  config: ModelConfig,
  memory_bytes: int | str | Device,
  *,
  batch_size: int | None = None,
  capacity: int | None = None,
  reserve_bytes: int = 0,
  new_tokens_per_step: int = 1,
  kinds: Kind | Sequence[Kind | None] | None = None,
  codec: Codecs = None,
  param_dtype: Any = None,
  cache_dtype: Any = None,
  source_length: int | None = None,
  mesh: Any = None,
  rules: Rules | None = None,
  backend: str | None = None,
  frontier: Sequence[int] = (),
) -> Fit:
  """Returns the largest batch or context that a device (of a mesh) can hold.

  With a capacity, the largest batch at it; with a batch size, the largest
  capacity at it; with both, whether they fit, and what would make them.

  Args:
    config: the model.
    memory_bytes: of one device: bytes, or a named device ('H200', 'TPU v5e').
    batch_size: B rows; None to ask for the most.
    capacity: tokens a row; None to ask for the most.
    reserve_bytes: kept free, for the driver and other programs.
    new_tokens_per_step: T, as in `plan`.
    kinds: of the layers, as in `plan`.
    codec: of the streams, as in `plan`.
    param_dtype: as in `plan`.
    cache_dtype: as in `plan`.
    source_length: of an encoder's source, as in `plan`.
    mesh: sizes of named axes, as in `plan`.
    rules: what they split, as in `plan`.
    backend: as in `plan`; None for that of a named device.
    frontier: contexts whose largest batches are wanted.

  Raises:
    ValueError: a size is not positive, neither a batch nor a capacity is
      given, the frontier is no sequence, or no device has that name.
  """
  limit, platform = _limit(memory_bytes, reserve_bytes)
  most = config.positions or math.inf
  contexts = [n for n in _contexts(frontier) if n <= most]
  if batch_size is None and capacity is None:
    raise ValueError('fit needs batch_size or capacity: give one, or both.')
  options = dict(
    new_tokens_per_step=new_tokens_per_step,
    kinds=kinds,
    codec=codec,
    param_dtype=param_dtype,
    cache_dtype=cache_dtype,
    source_length=source_length,
    mesh=mesh,
    rules=rules,
    backend=backend or platform,
  )
  question = _Question(config, limit, options)
  rows = 1 if batch_size is None else batch_size
  tokens = new_tokens_per_step if capacity is None else capacity
  found = question.plan(rows, tokens)
  short = max(found.peak_bytes - limit, 0)
  if short:
    batch_size, capacity = batch_size or 0, capacity or 0
  elif batch_size is None:
    batch_size = question.largest_batch(tokens)
    found = question.plan(batch_size or MOST, tokens)
  elif capacity is None:
    capacity = question.largest_capacity(rows)
    found = question.plan(rows, capacity or MOST)
  return Fit(
    memory_bytes=limit,
    batch_size=batch_size,
    capacity=capacity,
    fits=not short,
    short_bytes=short,
    frontier=tuple((n, question.largest_batch(n)) for n in contexts),
    remedies=tuple(_remedies(question, rows, tokens)) if short else (),
    plan=found,
  )


def budget_for(
  config: ModelConfig,
  cache_bytes: int,
  tokens: int,
  *,
  kind: Kind | None = None,
  codec: Codecs = None,
  batch_size: int = 1,
  cache_dtype: Any = None,
) -> int:
  """Returns how many tokens a cache may keep of `tokens` in so many bytes.

  It inverts `plan`: a cache with this budget takes at most `cache_bytes`, and
  one more token would take more, unless all `tokens` fit. So caches of several
  kinds and codecs can be compared at equal bytes.

  Args:
    config: the model.
    cache_bytes: of all that `init_cache` allocates: codes, scales, positions,
      statistics.
    tokens: of a row; the capacity of a kind that chooses among them.
    kind: of every layer; what is found is its `budget` or `window`, in place of
      its own. None, or a kind without these: the capacity.
    codec: of the streams, as in `plan`.
    batch_size: B rows.
    cache_dtype: of the streams, as in `plan`.

  Raises:
    ValueError: a size is not positive, or the smallest cache of that kind takes
      more.
  """
  check_sizes(cache_bytes=cache_bytes, tokens=tokens, batch_size=batch_size)
  fields = {field.name for field in dataclasses.fields(kind)} if kind else {}
  field = next((name for name in ('budget', 'window') if name in fields), None)

  def size(count: int) -> int:
    chosen: Any = kind
    if field:
      chosen = dataclasses.replace(chosen, **{field: count})
    planned = plan(
      config,
      batch_size=batch_size,
      capacity=tokens if field else count,
      kinds=chosen,
      codec=codec,
      cache_dtype=cache_dtype,
    )
    return planned.cache_bytes

  least = _least(kind, field) if field else 1
  if tokens < least:
    raise ValueError(
      f'tokens={tokens} must be at least the {least} that {kind} keeps.'
    )
  if size(least) > cache_bytes:
    raise ValueError(
      f'cache_bytes={cache_bytes} are too few: {least} tokens take '
      f'{size(least)} bytes. Give more, or another kind or codec.'
    )
  most = tokens - least + 1
  count = _largest(lambda n: size(least - 1 + n) <= cache_bytes, most)
  return tokens if count is None else least - 1 + count


def _least(kind: Any, field: str) -> int:
  """Returns the smallest value of a field that the kind allows."""
  for count in range(1, getattr(kind, field)):
    try:
      dataclasses.replace(kind, **{field: count})
    except ValueError:
      continue
    return count
  return getattr(kind, field)


def _contexts(frontier: Any) -> tuple[int, ...]:
  if not isinstance(frontier, Iterable):
    raise ValueError(
      f'frontier={frontier!r} must be contexts in a sequence: (1024, 4096).'
    )
  found = tuple(frontier)
  check_sizes(**{f'frontier[{i}]': n for i, n in enumerate(found)})
  return found


def _limit(memory: int | str | Device, reserve: int) -> tuple[int, str | None]:
  """Returns bytes to fill, and the platform of a named device."""
  if isinstance(memory, str):
    memory = device(memory)
  platform = None
  if isinstance(memory, Device):
    memory, platform = memory.memory, memory.platform
  if not is_whole(memory, 1, math.inf):
    raise ValueError(
      f'memory_bytes={memory!r} must be a positive integer, or the name of a '
      'device.'
    )
  if not is_whole(reserve, 0, memory - 1):
    raise ValueError(
      f'reserve_bytes={reserve!r} must be between 0 and memory_bytes={memory}.'
    )
  return int(memory) - int(reserve), platform


def _largest(fits: Callable[[int], bool], most: int) -> int | None:
  """Returns the largest n that fits, 0 if none, None if `most` does."""
  low, high = 0, 1
  while high < most and fits(high):
    low, high = high, 2 * high
  high = min(high, most)
  if high == most and fits(most):
    return None
  while high - low > 1:
    middle = (low + high) // 2
    low, high = (middle, high) if fits(middle) else (low, middle)
  return low


def _remedies(question: _Question, rows: int, tokens: int) -> Iterator[Remedy]:
  """Yields what would fit: each change alone, then a smaller request."""
  for change, other in _changes(question, rows, tokens):
    total = other.plan(rows, tokens).peak_bytes
    if total <= question.limit:
      yield Remedy(change, total)
  fewer = question.largest_batch(tokens) if rows > 1 else 0
  if fewer:
    total = question.plan(fewer, tokens).peak_bytes
    yield Remedy(f'batch_size={fewer} rows', total)
  shorter = question.largest_capacity(rows)
  if shorter:
    total = question.plan(rows, shorter).peak_bytes
    yield Remedy(f'capacity={shorter} tokens', total)
  if question.options['mesh'] is not None:
    return
  for count in (2, 4, 8, 16, 32, 64):
    mesh, rules = over_heads(count)
    other = question.but(mesh=mesh, rules=rules)
    total = other.plan(rows, tokens).peak_bytes
    if total <= question.limit:
      yield Remedy(f'{count} devices that share the heads', total)
      return


def _changes(
  question: _Question, rows: int, tokens: int
) -> Iterator[tuple[str, _Question]]:
  if question.options['codec'] is None:
    yield 'codec=Int8()', question.but(codec=Int8())
  if question.options['kinds'] is not None:
    return

  def sinks(n: int) -> _Question:
    return question.but(kinds=_unless_windowed(question, Sinks(window=n)))

  window = _largest(lambda n: sinks(n).fits(rows, tokens), tokens)
  if window:
    yield f'Sinks(window={window}): forgets the middle', sinks(window)

  def bounded(n: int) -> _Question:
    return question.but(kinds=_unless_windowed(question, Bounded(budget=n)))

  budget = _largest(lambda n: bounded(n + 1).fits(rows, tokens), tokens)
  if budget:
    change = f'Bounded(budget={budget + 1}): keeps what attention weighs most'
    yield change, bounded(budget + 1)


def _unless_windowed(question: _Question, kind: Kind) -> list[Kind | None]:
  """Layers with a window or chunks of their own keep the ring they have."""
  return [
    kind if layer.attention.visibility.span is None else None
    for layer in question.config.layers
  ]
