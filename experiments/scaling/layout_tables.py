"""What people see of layouts: a table, the best one, and a picture."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from experiments.reporting import plots
from experiments.reporting.blocks import Picture, Table, Text
from experiments.scaling.communication import Machine
from experiments.scaling.layouts import Workload, device_bytes, layouts, step

Row = dict[str, Any]

BATCHES = tuple(2**power for power in range(10))
NOTE = (
  'Of one device. `heads`: kv heads are split, and copied where they are fewer '
  'than devices; `slots`, `rows`: those devices share the slots or the rows '
  'instead. `data n`: n replicas of the weights. `experts by`: experts over '
  'all devices, by one `sum`, or by an `exchange` of rows, which kvjax does '
  'not do. `cache ms`: reading it, or attention, where that is longer.'
)


def rows(work: Workload, machine: Machine) -> list[Row]:
  """Returns a record a layout, the fastest of those that fit first."""
  found = []
  for layout in layouts(work, machine):
    cost, (params, cache) = (
      step(work, layout, machine),
      device_bytes(work, layout),
    )
    time = cost.local
    row = {'record': 'layout', 'layout': layout.name}
    row |= {'exchanges': layout.experts == 'exchange'}
    row |= {'batch': work.batch, 'context': work.context}
    row |= {'params': params, 'cache': cache}
    row |= {'fits': params + cache <= machine.device.memory}
    row |= {'calls': cost.calls, 'sent': cost.sent}
    row |= {'weights': max(time.weights, time.arithmetic)}
    row |= {'attention': max(time.cache, time.attention)}
    row |= {'communication': cost.communication, 'seconds': cost.seconds}
    found.append(row)
  return sorted(found, key=lambda row: (not row['fits'], row['seconds']))


def table(title: str, records: Sequence[Row]) -> Table:
  """Returns a row a layout."""

  def scaled(field: str, unit: float, digits: int) -> Callable[[Row], float]:
    return lambda row: round(row[field] / unit, digits)

  columns = {
    'layout': 'layout',
    'params GB': scaled('params', 1e9, 1),
    'cache GB': scaled('cache', 1e9, 1),
    'fits': 'fits',
    'calls': 'calls',
    'MB sent': scaled('sent', 1e6, 1),
    'weights ms': scaled('weights', 1e-3, 2),
    'cache ms': scaled('attention', 1e-3, 2),
    'calls ms': scaled('communication', 1e-3, 2),
    'ms': scaled('seconds', 1e-3, 2),
    'tokens/s': lambda row: round(row['batch'] / row['seconds']),
  }
  return Table.of(f'Layouts of {title}', columns, records, NOTE)


def verdict(records: Sequence[Row]) -> Text:
  """Returns the best layout in one line."""
  fitting = [row for row in records if row['fits']]
  if not fitting:
    least = min(row['params'] + row['cache'] for row in records)
    return Text(f'No layout fits: the smallest takes {least / 1e9:.0f} GB.')
  best, *others = fitting
  line = f'Best: {_costs(best)}, of which {best["calls"]} calls take '
  line += f'{1e3 * best["communication"]:.1f}.'
  known = next((row for row in others if not row['exchanges']), None)
  if best['exchanges'] and known:
    line += f' Without an exchange: {_costs(known)}.'
  return Text(line)


def _costs(row: Row) -> str:
  return f'{row["layout"]}, {1e3 * row["seconds"]:.1f} ms a step'


def picture(title: str, work: Workload, machine: Machine) -> Picture:
  """Returns times by rows, of the layouts that are somewhere the fastest."""
  times: dict[str, dict[float, float]] = {}
  shown = {'heads', 'slots'}
  for batch in BATCHES:
    here = dataclasses.replace(work, batch=batch)
    fitting = [row for row in rows(here, machine) if row['fits']]
    shown |= {row['layout'] for row in fitting[:1]}
    for row in fitting:
      points = times.setdefault(row['layout'], {})
      points[batch] = 1e3 * row['seconds']
  series = {name: times[name] for name in times if name in shown}
  png = plots.lines(f'A step of {title}', series, 'rows', 'ms')
  return Picture('layouts', png, 'A line ends where the layout does not fit.')
