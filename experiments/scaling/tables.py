"""Tables of how a decode step grows: by arithmetic, and as it was timed."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from experiments.measuring.variants import VARIANTS, with_attention
from experiments.reporting import plots
from experiments.reporting.blocks import Block, Picture, Table
from kvjax.memory.parts.param_bytes import param_lines
from kvjax.memory.speed.bounds import attention_core, intensity, roofline
from kvjax.memory.speed.devices import Device, device
from kvjax.models.config import ModelConfig

Row = dict[str, Any]
Load = Callable[[str], ModelConfig]
Part = tuple[list[Row], Block]

BASE = 'llama-3-8b'
OTHERS = ('deepseek-v3', 'kimi-k2-instruct', 'step-3')
# Models and the bytes of a weight.
MODELS = (('llama-3-8b', 2), ('llama-3-70b', 2), ('deepseek-v3', 1))
CARDS = (1, 8, 16)
ROWS = (1, 32, 256)
CONTEXT = 8192
TIMES = ('seconds', 'weights', 'cache', 'arithmetic', 'attention')


@dataclasses.dataclass(frozen=True)
class Published:
  """The time of a step that others have published.

  Attributes:
    name: of the model.
    card: as in `device`.
    cards: the number of cards.
    batch: rows.
    context: tokens a row.
    seconds: of a step.
    where: the source.
    weight_bytes: of a weight.
    cache_bytes: of a cached number.
  """

  name: str
  card: str
  cards: int
  batch: int
  context: int
  seconds: float
  where: str
  weight_bytes: int = 2
  cache_bytes: int = 2


_BOOK = 'scaling book, a bound itself'
_INT8 = f'{_BOOK}, int8 cache'
_FAST = 'gpt-fast, measured, card at 330 W'
_LLAMA_13B = {1: 4.98, 8: 12.13, 16: 20.30, 32: 36.65, 64: 69.33, 240: 249.09}
PUBLISHED = (
  *(
    Published('llama-2-13b', 'TPU v5e', 8, rows, 8192, ms / 1e3, _BOOK)
    for rows, ms in _LLAMA_13B.items()
  ),
  Published('llama-3-8b', 'A100-80', 1, 1, 128, 1 / 93.9, _FAST),
  Published('llama-3-70b', 'TPU v5e', 8, 32, 8192, 17e-3, _INT8, 1, 1),
  Published('llama-2-70b', 'A100-80', 1, 1, 128, 1 / 19.1, _FAST, 1),
)


def intensities(load: Load, card: Device) -> Part:
  """Returns operations a byte, and the tokens from which arithmetic rules."""
  base = load(BASE)
  configs = {f'{v.upper()}, {BASE}': with_attention(base, v) for v in VARIANTS}
  configs |= {name: load(name) for name in OTHERS}
  ridge = card.flops / card.bandwidth
  rows: list[Row] = []
  for name, config in configs.items():
    attention = config.layers[-1].attention
    elements, operations = attention_core(attention)
    a_byte = intensity(attention)
    row = {'record': 'intensity', 'name': name}
    row |= {'elements': elements, 'operations': operations}
    row |= {'bfloat16': a_byte, 'int8': 2 * a_byte, 'tokens': ridge / a_byte}
    rows.append(row)
  return rows, Table(
    'Attention, a cached token and layer',
    ('', 'elements', 'operations', 'a byte', 'int8', 'tokens at the ridge'),
    [list(map(_round, list(row.values())[1:])) for row in rows],
    f'{card.name}: {ridge:.0f} operations in the time of a byte. With more '
    'tokens a row than the last column (drafts, a short extension) attention '
    f'waits for arithmetic; projections from {ridge:.0f} rows in bfloat16, '
    f'{ridge / 2:.0f} in a byte a weight.',
  )


def predictions(load: Load, card: Device) -> Part:
  """Returns least times of models on one card and several."""
  rows = [
    _predict(name, load(name), size, card, cards, batch)
    for name, size in MODELS
    for cards in CARDS
    for batch in ROWS
  ]
  cells = []
  for row in rows:
    times = [round(1e3 * row[name], 2) for name in TIMES]
    speed = round(row['batch'] / row['seconds'])
    fits = '' if row['fits'] else 'does not fit'
    cells.append([row['name'], row['cards'], row['batch'], *times, speed, fits])
  return rows, Table(
    f'Least step on {card.name}, {CONTEXT:,} tokens a row',
    ('', 'cards', 'rows', 'ms', *TIMES[1:], 'tokens/s', ''),
    cells,
    'ms: the longer of cache and attention, and of weights and arithmetic. '
    'All spread evenly, nothing communicated, a bfloat16 cache, a byte a '
    'weight of DeepSeek-V3.',
  )


def _predict(name, config, weight_bytes, card, cards, batch) -> Row:
  bound = roofline(
    config,
    batch_size=batch,
    context=CONTEXT,
    device=card,
    num_devices=cards,
    weight_bytes=weight_bytes,
  )
  memory = sum(line.bytes for line in param_lines(config, weight_bytes))
  memory += bound.cache * card.bandwidth * cards
  return {
    'record': 'prediction',
    'name': name,
    'cards': cards,
    'batch': batch,
    'context': CONTEXT,
    'weight_bytes': weight_bytes,
    **{name: getattr(bound, name) for name in TIMES},
    'fits': memory <= card.memory * cards,
  }


def published(load: Load) -> Part:
  """Returns the bound of each step time that others have published."""
  rows: list[Row] = []
  for step in PUBLISHED:
    bound = roofline(
      load(step.name),
      batch_size=step.batch,
      context=step.context,
      device=device(step.card),
      num_devices=step.cards,
      weight_bytes=step.weight_bytes,
      cache_bytes=step.cache_bytes,
    )
    row = {'record': 'published', **dataclasses.asdict(step)}
    del row['weight_bytes'], row['cache_bytes']
    rows.append(row | {'bound': bound.seconds})
  cells = [
    [
      row['name'],
      f'{row["cards"]} {row["card"]}',
      row['batch'],
      row['context'],
      round(1e3 * row['bound'], 2),
      round(1e3 * row['seconds'], 2),
      round(row['bound'] / row['seconds'], 3),
      row['where'],
    ]
    for row in rows
  ]
  columns = ('cards', 'rows', 'context', 'bound ms', 'published', 'share')
  return rows, Table('Published step times', ('', *columns, ''), cells)


def curves(records: Sequence[Row]) -> tuple[Block, ...]:
  """Returns the exponents of growth, and the curves."""
  points: dict[str, dict[int, Row]] = {}
  for row in (row for row in records if row['record'] == 'growth'):
    points.setdefault(row['axis'], {})[row['at']] = row
  series: dict[str, dict[float, float]] = {
    axis: {size: 1e3 * row['seconds'] for size, row in rows.items()}
    for axis, rows in points.items()
  }
  cells = []
  for growth in (row for row in records if row['record'] == 'exponent'):
    axis = growth['axis']
    ends = []
    for size in (min(points[axis]), max(points[axis])):
      row = points[axis][size]
      speed = row['bytes'] / row['seconds'] / 1e9
      ends += [size, round(series[axis][size], 3), round(speed, 1)]
    slopes = [round(growth[name], 2) for name in ('exponent', 'last')]
    cells.append([axis, growth['kernel'], *ends, *slopes])
  ends = ('from', 'ms', 'GB/s', 'to', 'ms', 'GB/s')
  table = Table(
    'Exponent of growth',
    ('axis', 'kernel', *ends, 'exponent', 'of the last doubling'),
    cells,
    'Attention alone, but layers: a whole step.',
  )
  relative = {
    axis: {
      size / min(times): ms / times[min(times)] for size, ms in times.items()
    }
    for axis, times in series.items()
  }
  sizes = {size: size for times in relative.values() for size in times}
  png = plots.lines(
    'Time and size, over those of the first point',
    relative | {'slope 1': sizes},
    'size',
    'time',
    dashed=('slope 1',),
  )
  return table, Picture('growth', png, 'Along the dashed line bytes rule.')


def _round(x: Any) -> Any:
  return round(x, 2) if isinstance(x, float) else x
