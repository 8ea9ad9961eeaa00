"""Tables of how a decode step grows: on paper, and as it was timed."""

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
MODELS = (('llama-3-8b', 2), ('llama-3-70b', 2), ('deepseek-v3', 1))
CARDS, ROWS, CONTEXT = (1, 8, 16), (1, 32, 256), 8192

# Model, bytes of a weight, card, cards, rows, context, seconds a step, where.
PUBLISHED: tuple[tuple[Any, ...], ...] = (
    *(
        (
            'llama-2-13b', 2, 'TPU v5e', 8, rows, 8192, ms / 1e3,
            'scaling book, a bound itself',
        )
        for rows, ms in (
            (1, 4.98), (8, 12.13), (16, 20.30), (32, 36.65), (64, 69.33),
            (240, 249.09),
        )
    ),
    (
        'llama-3-8b', 2, 'A100-80', 1, 1, 128, 1 / 93.9,
        'gpt-fast, measured, card at 330 W',
    ),
    (
        'llama-3-70b', 1, 'TPU v5e', 8, 32, 8192, 17e-3,
        'scaling book, a bound itself, int8 cache',
    ),
    (
        'llama-2-70b', 1, 'A100-80', 1, 1, 128, 1 / 19.1,
        'gpt-fast, measured, card at 330 W',
    ),
)  # fmt: skip


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
    found = intensity(attention)
    rows.append({
        'record': 'intensity', 'name': name, 'elements': elements,
        'operations': operations, 'bfloat16': found, 'int8': 2 * found,
        'tokens': ridge / found,
    })  # fmt: skip
  names = 'name', 'elements', 'operations', 'bfloat16', 'int8', 'tokens'
  return rows, Table(
    'Attention, a cached token and layer',
    ('', 'elements', 'operations', 'a byte', 'int8', 'tokens at the ridge'),
    [[_round(row[name]) for name in names] for row in rows],
    f'{card.name}: {ridge:.0f} operations in the time of a byte. With more '
    'tokens a row than the last column (drafts, a short extension) attention '
    f'waits for arithmetic; projections from {ridge:.0f} rows in bfloat16, '
    f'{ridge / 2:.0f} in a byte a weight.',
  )


def predictions(load: Load, card: Device) -> Part:
  """Returns least times of models on one card and several."""
  rows: list[Row] = []
  for name, size in MODELS:
    config = load(name)
    for cards in CARDS:
      for batch in ROWS:
        found = roofline(
            config, batch_size=batch, context=CONTEXT, device=card,
            num_devices=cards, weight_bytes=size,
        )  # fmt: skip
        held = sum(line.bytes for line in param_lines(config, size))
        held += found.cache * card.bandwidth * cards
        rows.append({
            'record': 'prediction', 'name': name, 'cards': cards,
            'batch': batch, 'context': CONTEXT, 'weight_bytes': size,
            'seconds': found.seconds, 'weights': found.weights,
            'cache': found.cache, 'arithmetic': found.arithmetic,
            'attention': found.attention,
            'fits': held <= card.memory * cards,
        })  # fmt: skip
  times = 'seconds', 'weights', 'cache', 'arithmetic', 'attention'
  return rows, Table(
      f'Least step on {card.name}, {CONTEXT:,} tokens a row',
      ('', 'cards', 'rows', 'ms', *times[1:], 'tokens/s', ''),
      [
          [
              row['name'], row['cards'], row['batch'],
              *(round(1e3 * row[name], 2) for name in times),
              round(row['batch'] / row['seconds']),
              '' if row['fits'] else 'does not fit',
          ]
          for row in rows
      ],
      'ms: the longer of cache and attention, and of weights and arithmetic. '
      'All spread evenly, nothing communicated, a bfloat16 cache, a byte a '
      'weight of DeepSeek-V3.',
  )  # fmt: skip


def published(load: Load) -> Part:
  """Returns the bound beside step times that others have published."""
  rows: list[Row] = []
  for name, size, card, cards, batch, context, seconds, where in PUBLISHED:
    found = roofline(
        load(name), batch_size=batch, context=context, device=device(card),
        num_devices=cards, weight_bytes=size,
        cache_bytes=1 if 'int8' in where else 2,
    )  # fmt: skip
    rows.append({
        'record': 'published', 'name': name, 'card': card, 'cards': cards,
        'batch': batch, 'context': context, 'seconds': seconds,
        'bound': found.seconds, 'where': where,
    })  # fmt: skip
  return rows, Table(
      'Published step times',
      ('', 'cards', 'rows', 'context', 'bound ms', 'published', 'share', ''),
      [
          [
              row['name'], f'{row["cards"]} {row["card"]}', row['batch'],
              row['context'], round(1e3 * row['bound'], 2),
              round(1e3 * row['seconds'], 2),
              round(row['bound'] / row['seconds'], 3), row['where'],
          ]
          for row in rows
      ],
  )  # fmt: skip


def curves(records: Sequence[Row]) -> tuple[Block, ...]:
  """Returns the exponents of growth, and the curves."""
  points: dict[str, dict[int, Row]] = {}
  for row in records:
    if row['record'] == 'growth':
      points.setdefault(row['axis'], {})[row['at']] = row
  series: dict[str, dict[float, float]] = {
    axis: {at: 1e3 * row['seconds'] for at, row in found.items()}
    for axis, found in points.items()
  }
  rows = []
  for found in (r for r in records if r['record'] == 'exponent'):
    axis = found['axis']
    ends = []
    for at in (min(points[axis]), max(points[axis])):
      row = points[axis][at]
      speed = row['bytes'] / row['seconds'] / 1e9
      ends += [at, round(series[axis][at], 3), round(speed, 1)]
    slopes = round(found['exponent'], 2), round(found['last'], 2)
    rows.append([axis, found['kernel'], *ends, *slopes])
  ends = 'from', 'ms', 'GB/s', 'to', 'ms', 'GB/s'
  table = Table(
    'Exponent of growth',
    ('axis', 'kernel', *ends, 'exponent', 'of the last doubling'),
    rows,
    'Attention alone, but layers: a whole step.',
  )
  longer = {
    axis: {at / min(found): ms / found[min(found)] for at, ms in found.items()}
    for axis, found in series.items()
  }
  sizes = {size: size for found in longer.values() for size in found}
  png = plots.lines(
    'Time and size, over those of the first point',
    longer | {'slope 1': sizes},
    'size',
    'time',
    dashed=('slope 1',),
  )
  return table, Picture('growth', png, 'Along the dashed line bytes rule.')


def _round(x: Any) -> Any:
  return round(x, 2) if isinstance(x, float) else x
