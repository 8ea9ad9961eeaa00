"""Tables of how a decode step grows: by arithmetic, and as it was timed."""

import dataclasses
import itertools
from collections.abc import Sequence
from operator import itemgetter
from typing import Any

import kvjax
from experiments.measuring.variants import VARIANTS, with_attention
from experiments.reporting import plots
from experiments.reporting.blocks import Block, Picture, Table
from experiments.reporting.groups import grouped, of_kind
from kvjax.memory import device, intensity, roofline
from kvjax.memory.parts.param_bytes import param_lines
from kvjax.memory.speed.bounds import attention_core
from kvjax.memory.speed.devices import Device

Row = dict[str, Any]
Part = tuple[list[Row], Table]  # records, and the table of them

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


def intensities(card: Device) -> Part:
  """Returns operations a byte, and the tokens from which arithmetic rules."""
  base = kvjax.load_config(BASE)
  configs = {f'{v.upper()}, {BASE}': with_attention(base, v) for v in VARIANTS}
  configs |= {name: kvjax.load_config(name) for name in OTHERS}
  ridge = card.flops / card.bandwidth
  rows = []
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
    [[_round(value) for value in row.values()][1:] for row in rows],
    f'{card.name}: {ridge:.0f} operations in the time of a byte. With more '
    'tokens a row than the last column (drafts, a short extension) attention '
    f'waits for arithmetic; projections from {ridge:.0f} rows in bfloat16, '
    f'{ridge / 2:.0f} in a byte a weight.',
  )


def predictions(card: Device) -> Part:
  """Returns least times of models on one card and several."""
  rows = []
  for (name, size), cards, batch in itertools.product(MODELS, CARDS, ROWS):
    config = kvjax.load_config(name)
    bound = roofline(
      config,
      batch_size=batch,
      context=CONTEXT,
      device=card,
      num_devices=cards,
      weight_bytes=size,
    )
    memory = sum(line.bytes for line in param_lines(config, size))
    memory += bound.cache * card.bandwidth * cards
    row = {
      'record': 'prediction',
      'name': name,
      'cards': cards,
      'batch': batch,
      'context': CONTEXT,
      'weight_bytes': size,
      **{name: getattr(bound, name) for name in TIMES},
      'fits': memory <= card.memory * cards,
    }
    rows.append(row)
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


def published() -> Part:
  """Returns the bound of each step time that others have published."""
  rows = []
  for step in PUBLISHED:
    bound = roofline(
      kvjax.load_config(step.name),
      batch_size=step.batch,
      context=step.context,
      device=device(step.card),
      num_devices=step.cards,
      weight_bytes=step.weight_bytes,
      cache_bytes=step.cache_bytes,
    )
    row = {'record': 'published', **dataclasses.asdict(step)}
    rows.append(row | {'bound': bound.seconds})
  columns = {
    '': 'name',
    'cards': lambda row: f'{row["cards"]} {row["card"]}',
    'rows': 'batch',
    'context': 'context',
    'bound ms': lambda row: round(1e3 * row['bound'], 2),
    'published': lambda row: round(1e3 * row['seconds'], 2),
    'share': lambda row: round(row['bound'] / row['seconds'], 3),
    'source': 'where',
  }
  return rows, Table.of('Published step times', columns, rows)


def curves(records: Sequence[Row]) -> tuple[Block, ...]:
  """Returns the exponents of growth, and the curves."""
  points = grouped(of_kind(records, 'growth'), itemgetter('axis'))
  cells = []
  for growth in of_kind(records, 'exponent'):
    axis = growth['axis']
    ends = []
    for row in (points[axis][0], points[axis][-1]):
      speed = row['bytes'] / row['seconds'] / 1e9
      ends += [row['at'], round(1e3 * row['seconds'], 3), round(speed, 1)]
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
      row['at'] / rows[0]['at']: row['seconds'] / rows[0]['seconds']
      for row in rows
    }
    for axis, rows in points.items()
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
