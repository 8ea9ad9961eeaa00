"""What a memory plan shows people: tables and pictures."""

from collections.abc import Mapping, Sequence

import numpy as np

from experiments.measuring.separation import lives
from experiments.reporting import plots
from experiments.reporting.blocks import Block, Heading, Picture, Table, Text
from kvjax.display import UNITS, binary_size
from kvjax.memory.compiled.measurement import Measured
from kvjax.memory.compiled.reconciliation import PlannedBuffer
from kvjax.memory.fitting import Fit
from kvjax.memory.planning import MemoryPlan
from kvjax.memory.speed.devices import Device
from kvjax.memory.speed.least_time import StepTime
from kvjax.memory.temporaries.attention_call import QUERY

TOKENS = 5  # of the lifetime chart
SUMMED = ('params', 'cache', 'step')
FORMULAS = (
  'A number before the letters counts equal arrays; `bytes`: the size of one '
  'number. B: rows; T: new tokens of a row; S: slots; N: heads; K: heads of '
  'keys and values; G: N / K; H: width of a key; E: of a value; D: of the '
  'model; R: of a latent; P: of rotary features; F: hidden; V: vocabulary. '
  '`elements`: numbers in all weights of the line; `block`: slots that are '
  'read at once; `moment`: the fullest moment of a step.'
)
PARTS = {
  'in cache': '`in cache`: a share of lines of the cache.',
  'in logits': '`in logits`: alive when a step is fullest, in memory that the '
  'logits will need.',
  'encode': '`encode`: alive when a source is read, before the steps.',
  'another moment': '`another moment`: alive when a step, or the reading of a '
  'source, is less full.',
  'sampling': '`sampling`: what `generate` carries from step to step.',
  'never': '`never`: a cache of past queries, which no step would read.',
}
WEIGHTS = {'attention', 'mlp', 'experts', 'layers', 'encoder'}


def plan_table(name: str, plan: MemoryPlan) -> tuple[Block, ...]:
  """Returns every line of a plan with its formula.

  The lines that add up to the total come first, and all others after it.
  """
  columns = ('part', 'what', 'bytes', 'size', 'formula', 'in numbers')
  summed, others = [], []
  for x in plan.lines:
    row = [x.part, x.name, x.bytes, binary_size(x.bytes), x.symbols, x.numbers]
    (summed if x.part in SUMMED else others).append(row)
  sums = [plan.total_bytes, binary_size(plan.total_bytes)]
  device = 'of one device' if plan.devices > 1 else 'in all'
  parts = {row[0] for row in others}
  notes = [text for part, text in PARTS.items() if part in parts]
  return (
    Heading(f'The plan of {name}'),
    Table(
      f'Bytes {device}, which add up to the total',
      columns,
      summed,
      note=FORMULAS,
      total=['total', 'params + cache + step', *sums, '', ''],
    ),
    Table(
      'Bytes that are not in the total',
      columns,
      others,
      note=' '.join(notes),
    ),
  )


def query_bytes(plan: MemoryPlan) -> int:
  """Returns the bytes of the queries of one layer of one step."""
  return next(x.bytes for x in plan.lines if x.name == QUERY)


def query_text(plan: MemoryPlan) -> Text:
  """Returns the answer to why Q has no line among what is kept."""
  return Text(
    f'Q takes {query_bytes(plan):,} bytes in one layer of one step, at any '
    'context, and is dead before the next layer. A cache of every past query '
    f'would take {plan.query_cache_bytes:,} bytes '
    f'({binary_size(plan.query_cache_bytes)}; the cache itself: '
    f'{binary_size(plan.cache_bytes)}), and no later step would read one of '
    'them: see `docs/why_no_q.md`.'
  )


def verdict(fit: Fit, device: str, time: StepTime) -> tuple[Block, ...]:
  """Returns whether the request fits, what would, and its step time."""
  if fit.fits:
    free = binary_size(fit.memory_bytes - fit.plan.peak_bytes)
    text = f'It fits: {free} of {device} stay free.'
  else:
    text = (
      f'It does not fit {device}: {fit.short_bytes:,} bytes '
      f'({binary_size(fit.short_bytes)}) too many.'
    )
  step = (
    'A step reads every active weight and the whole cache once: no less than '
    f'{1e3 * time.seconds:.3g} ms at the bandwidth of {device} '
    f'({1e3 * time.weights:.3g} for weights, {1e3 * time.cache:.3g} for the '
    'cache).'
  )
  columns = {'change': 'change', 'bytes then': 'total_bytes'}
  remedies = Table.of('What would fit', columns, fit.remedies)
  blocks = Heading('Does it fit?'), Text(text), Text(step)
  return (*blocks, remedies) if fit.remedies else blocks


def breakdown(plans: Mapping[str, MemoryPlan], device: Device) -> Picture:
  """Returns what the plans are made of, and where a device's memory ends."""
  title = 'What it occupies, and where memory ends'
  canvas, (axes,) = plots.figure(1, 9.5, 0.62 * len(plans) + 2.0, title)
  parts = [_parts(plan) for plan in plans.values()]
  ends = np.zeros(len(plans))
  for part, colour in zip(parts[0], plots.COLOURS, strict=False):
    sizes = np.array([row[part] for row in parts]) / UNITS['GiB']
    axes.barh(list(plans), sizes, left=ends, color=colour, label=part)
    ends += sizes
  totals = [binary_size(sum(row.values())) for row in parts]
  axes.bar_label(axes.containers[-1], totals, padding=4, color=plots.INK)
  axes.grid(visible=False, axis='y')  # It would strike the labels through.
  end = device.memory / UNITS['GiB']
  axes.axvline(end, color=plots.INK, linestyle='--', label=device.name)
  axes.invert_yaxis()
  axes.margins(x=0.16)
  axes.set_xlabel('GiB of one device')
  canvas.legend(frameon=False, ncols=5, loc='outside lower left')
  return Picture(
    'breakdown',
    plots.png(canvas),
    'Parameters, cache and what one step needs. Q is in the last part, and '
    'too thin to be seen.',
  )


def _parts(plan: MemoryPlan) -> dict[str, int]:
  lines = plan.lines_of('params')
  body = sum(line.bytes for line in lines if line.name in WEIGHTS)
  return {
    'layers': body,
    'embedding, head, norms': plan.params_bytes - body,
    'cache': plan.cache_bytes,
    'one step': plan.step_bytes,
  }


def growth(
  caches: Mapping[str, Mapping[float, float]], device: Device, plan: MemoryPlan
) -> Picture:
  """Returns bytes of caches against the context, and of Q, which has none.

  Args:
    caches: by name, bytes of the cache by context.
    device: whose memory is shown, less the parameters of the plan.
    plan: whose queries are shown.
  """
  contexts = next(iter(caches.values()))
  query = query_bytes(plan)
  sliver = f'Q of a step: {binary_size(query)}'
  free = device.memory - plan.params_bytes
  limit = f'{device.name}: {binary_size(free)}'
  png = plots.lines(
    'The cache grows with the context; Q does not',
    {**caches, sliver: dict.fromkeys(contexts, query)},
    'context (tokens)',
    'bytes (all rows)',
    limit=(limit, free) if free > 0 else None,
    format=lambda count, _: binary_size(count),
  )
  return Picture(
    'growth',
    png,
    'The dashed line is what the device has besides parameters. The line '
    'below is the only memory that Q ever has.',
  )


def frontier(fits: Mapping[str, Fit], device: str) -> tuple[Block, ...]:
  """Returns the largest batch at each context, as picture and table."""
  batches = {name: dict(fit.frontier) for name, fit in fits.items()}
  contexts = next(iter(batches.values()))
  rows = [[name, *points.values()] for name, points in batches.items()]
  png = plots.lines(
    'How many rows, of how many tokens',
    # A logarithmic axis cannot show 0, nor that there is no limit.
    {
      name: {n: batch for n, batch in points.items() if batch}
      for name, points in batches.items()
    },
    'context (tokens)',
    f'rows that fit ({device})',
    format='{x:,.0f}',
  )
  return (
    Table(
      f'Rows that fit {device}, by context',
      ('attention', *(f'{n:,}' for n in contexts)),
      rows,
    ),
    Picture('frontier', png, 'Below a line it fits.'),
  )


def lifetimes(
  plans: Mapping[str, MemoryPlan], tokens: int
) -> tuple[Block, ...]:
  """Returns who is read in which step, and what `tokens` leave behind."""
  memory = {
    name: (plan.bytes_per_token, plan.query_cache_bytes / tokens)
    for name, plan in plans.items()
  }
  shared = any(plan.devices > 1 for plan in plans.values())
  png = plots.lifetimes(
    'Q lives one step; K and V live to the end',
    lives(TOKENS),
    memory,
    f'bytes per token, all layers{" of one device" if shared else ""}',
  )
  return (
    Heading('Who lives until when'),
    Picture(
      'lives',
      png,
      'A tensor is alive in a step that reads it. Found by changing one '
      'row of Q, K or V at a time in an attention, not from a formula.',
    ),
  )


def against_xla(
  plan: MemoryPlan, measured: Measured, buffers: Sequence[PlannedBuffer]
) -> tuple[Block, ...]:
  """Returns the plan next to what XLA assigned, and what is unaccounted for."""
  results = plan.step_bytes - plan.temporaries_bytes
  sums = (
    ('arguments', plan.params_bytes + plan.cache_bytes, measured.arguments),
    ('outputs, less alias', results, measured.outputs - measured.alias),
    ('temporaries', plan.temporaries_bytes, measured.temporaries),
    ('peak', plan.total_bytes, measured.peak),
  )
  counters = [
    [device, name, plan.total_bytes, stats[name]]
    for device, stats in measured.devices.items()
    for name in ('bytes_in_use', 'peak_bytes_in_use', 'bytes_limit')
    if name in stats
  ]
  blocks = (
    Table(
      'The plan against the compiled step of this machine',
      ('bytes of', 'planned', 'XLA', 'unaccounted'),
      [[name, one, two, f'{two - one:+,}'] for name, one, two in sums],
      note='Arguments hold the tokens too, and of an encoder-decoder not '
      'what only its source is read with; outputs, 8 bytes a leaf.',
    ),
    Table.of(
      'Line by line, with the buffer that pays for it',
      {
        'part': 'part',
        'line': 'name',
        'planned': 'planned',
        'XLA': 'assigned',
        'unaccounted': lambda row: (
          '' if row.unaccounted is None else f'{row.unaccounted:+,}'
        ),
        'paid by': 'where',
      },
      buffers,
      note='Of a line of the step, the largest buffer of its scope that '
      'is not larger; no buffer where the compiler fused it away.',
    ),
  )
  if not counters:
    return blocks
  columns = ('device', 'counter', 'planned', 'counted')
  title = 'What the devices count, of the whole process'
  return (*blocks, Table(title, columns, counters))
