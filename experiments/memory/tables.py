"""What a memory plan shows people: tables and pictures, no arithmetic."""

from collections.abc import Mapping, Sequence
from typing import Any

from experiments.measuring.separation import lives
from experiments.memory import plots
from experiments.memory.plots import size
from experiments.reporting.blocks import Block, Heading, Picture, Table, Text
from kvjax.memory.compiled.measurement import Measured
from kvjax.memory.compiled.reconciliation import PlannedBuffer
from kvjax.memory.fitting import Fit
from kvjax.memory.planning import MemoryPlan
from kvjax.memory.speed.least_time import StepTime
from kvjax.memory.temporaries.attention_call import QUERY

TOKENS = 5  # of the lifetime chart
WEIGHTS = {'attention', 'mlp', 'experts', 'layers', 'encoder'}


def plan_table(name: str, plan: MemoryPlan) -> tuple[Block, ...]:
  """Returns every line of a plan with its formula."""
  rows = [[x.part, x.name, x.bytes, x.symbols, x.numbers] for x in plan.lines]
  rows.append(['total', 'params + cache + step', plan.total_bytes, '', ''])
  device = 'of one device' if plan.devices > 1 else 'in all'
  return (
    Heading(f'The plan of {name}'),
    Table(
      f'Bytes {device}',
      ('part', 'what', 'bytes', 'formula', 'in numbers'),
      rows,
      note='`step` is alive when a step is fullest, `in logits` then too, '
      'in memory the logits will need; `encode` when a source is read, '
      'before; `in cache` is a share of the lines '
      'above it; `never` is what nobody would read.',
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
    f'({size(plan.query_cache_bytes)}; the cache itself: '
    f'{size(plan.cache_bytes)}), and no later step would read one of them: '
    'see `docs/why_no_q.md`.'
  )


def fits(found: Fit, device: str, time: StepTime) -> tuple[Block, ...]:
  """Returns whether the request fits, what would, and its step time."""
  plan = found.plan
  if found.fits:
    free = size(found.memory_bytes - plan.peak_bytes)
    verdict = f'It fits: {free} of {device} stay free.'
  else:
    verdict = (
      f'It does not fit {device}: {found.short_bytes:,} bytes '
      f'({size(found.short_bytes)}) too many.'
    )
  step = (
    'A step reads every active weight and the whole cache once: no less than '
    f'{1e3 * time.seconds:.3g} ms at the bandwidth of {device} '
    f'({1e3 * time.weights:.3g} for weights, {1e3 * time.cache:.3g} for the '
    'cache).'
  )
  blocks: list[Block] = [Heading('Does it fit?'), Text(verdict), Text(step)]
  if found.remedies:
    rows = [[r.change, r.total_bytes] for r in found.remedies]
    blocks.append(Table('What would fit', ('change', 'bytes then'), rows))
  return tuple(blocks)


def breakdown(
  plans: Mapping[str, MemoryPlan], limit: int, device: str
) -> Picture:
  """Returns the stacked bars of several plans."""
  rows = {name: _parts(plan) for name, plan in plans.items()}
  title = 'What it occupies, and where memory ends'
  return Picture(
    'breakdown',
    plots.stacked(title, rows, limit, device),
    'Parameters, cache and what one step needs. Q is in the last part, and '
    'too thin to be seen.',
  )


def growth(
  caches: Mapping[str, Mapping[int, int]],
  limit: tuple[str, int] | None,
  query: int,
) -> Picture:
  """Returns the caches of variants against the context."""
  title = 'The cache grows with the context; Q does not'
  return Picture(
    'growth',
    plots.against_context(title, caches, limit, query),
    'The dashed line is what the device has besides parameters. The sliver '
    'below is the only memory that Q ever has.',
  )


def frontier(
  lines: Mapping[str, Mapping[int, int]], device: str
) -> tuple[Block, ...]:
  """Returns the largest batch at each context, as picture and table."""
  contexts = sorted({n for points in lines.values() for n in points})
  rows = [
    [name, *(points.get(n) for n in contexts)] for name, points in lines.items()
  ]
  return (
    Table(
      f'Rows that fit {device}, by context',
      ('attention', *(f'{n:,}' for n in contexts)),
      rows,
    ),
    Picture(
      'frontier',
      plots.frontier('How many rows, of how many tokens', lines, device),
      'Below a line it fits.',
    ),
  )


def lifetimes() -> tuple[Block, ...]:
  """Returns who is alive in which step, found by changing one row at a time."""
  title = 'Q lives one step; K and V live to the end'
  return (
    Heading('Who lives until when'),
    Picture(
      'lives',
      plots.lives(title, lives(TOKENS), TOKENS),
      'A tensor is alive in a step that reads it. Found by changing one '
      'row of Q, K or V at a time in an attention, not from a formula.',
    ),
  )


def against_xla(
  plan: MemoryPlan, found: Measured, rows: Sequence[PlannedBuffer]
) -> tuple[Block, ...]:
  """Returns the plan next to what XLA assigned, and what is unaccounted for."""
  results = plan.step_bytes - plan.temporaries_bytes
  sums = (
    ('arguments', plan.params_bytes + plan.cache_bytes, found.arguments),
    ('outputs, less alias', results, found.outputs - found.alias),
    ('temporaries', plan.temporaries_bytes, found.temporaries),
    ('peak', plan.total_bytes, found.peak),
  )
  blocks = [
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
      rows,
      note='Of a line of the step, the largest buffer of its scope that '
      'is not larger; no buffer where the compiler fused it away.',
    ),
  ]
  if found.devices:
    blocks.append(_counters(plan, found))
  return tuple(blocks)


def _counters(plan: MemoryPlan, found: Measured) -> Table:
  """Returns what the allocator of each accelerator counts, process-wide."""
  rows = [
    [device, name, plan.total_bytes, stats[name]]
    for device, stats in found.devices.items()
    for name in ('bytes_in_use', 'peak_bytes_in_use', 'bytes_limit')
    if name in stats
  ]
  return Table(
    'What the devices count, of the whole process',
    ('device', 'counter', 'planned', 'counted'),
    rows,
  )


def _parts(plan: MemoryPlan) -> dict[str, int]:
  lines: Sequence[Any] = plan.lines_of('params')
  body = sum(line.bytes for line in lines if line.name in WEIGHTS)
  return {
    'layers': body,
    'embedding, head, norms': plan.params_bytes - body,
    'cache': plan.cache_bytes,
    'one step': plan.step_bytes,
  }
