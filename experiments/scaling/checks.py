"""What others have published of communication, next to this model of it."""

import dataclasses
from typing import Any

from scipy import optimize

import kvjax
from experiments.reporting.blocks import Table
from experiments.scaling.communication import (
  INFINIBAND,
  NVLINK_4,
  Call,
  Machine,
  machine,
)
from experiments.scaling.layouts import (
  Layout,
  Workload,
  calls,
  device_bytes,
  step,
)
from kvjax.memory import device

Row = dict[str, Any]

MLA = 'deepseek-v3'
NCCL = 'Triton-distributed#57, NCCL'
TWO_NODES = 'nccl#1244, NCCL on 2 nodes of 8 H20'
DEEPSEEK = 'arXiv 2505.09343, 2.3.2: 400 Gb/s, no latency, D of 7,000'
SIMULATED = 'aisimulate#240, measured on 8 B200'
BOOK = 'scaling book, applied inference: a bound'
# Bytes, devices, microseconds. Latency and bandwidth of `NVLINK_4` are from the
# first and the third.
REDUCED = (
  (128, 8, 19.19, NCCL),
  (2**20, 8, 32.42, NCCL),
  (2**24, 8, 135.68, NCCL),
  (2**20, 16, 121.8, TWO_NODES),
  (2**24, 16, 203.0, TWO_NODES),
)
# Tokens a row, and the concurrent rows between which DCP 8 overtakes TP 8.
CROSSINGS = {
  32_768: (8, 16),
  65_536: (4, 8),
  131_072: (2, 4),
  262_144: (0, 1),
}
SGLANG = 'sglang#33926, a kernel of Blackwell GPUs'
COPIES, SLOTS = Layout(context=8), Layout(context=8, split='slots')


def checks() -> tuple[list[Row], Table]:
  """Returns single figures: published, and of this model."""
  rows = []
  for size, devices, published, where in REDUCED:
    name = f'all-reduce of {size:,} B over {devices}'
    call = Call('', 'all-reduce', size, devices)
    model = 1e6 * call.seconds(machine(f'{devices}xh100'))
    rows.append(_row(name, 'us', model, published, where))
  name = 'rows to their experts and back'
  rows.append(_row(name, 'us', _exchanged(), 120.96, DEEPSEEK))
  name = 'queries of 128 heads gathered, 32 rows'
  rows.append(_row(name, 'us', _gathered(), 32.0, SIMULATED))
  for parts, published in ((2, 1.98), (4, 3.96), (8, 7.85)):
    name = f'capacity, slots over {parts} of 8'
    rows.append(_row(name, 'x', _capacity(parts), published, SIMULATED))
  name = 'llama-3-70b int8, 32 x 8,192, v5e-16, nothing communicated'
  rows.append(_row(name, 'ms', _alone(), 8.5, BOOK))
  columns = {
    '': 'name',
    'unit': 'unit',
    'model': lambda row: round(row['model'], 2),
    'published': 'published',
    'share': lambda row: round(row['model'] / row['published'], 2),
    'source': 'where',
  }
  return rows, Table.of('Communication, as published', columns, rows)


def crossings() -> tuple[list[Row], Table]:
  """Returns from how many rows slots of MLA over 8 devices are faster."""
  config = kvjax.load_config(MLA)
  rows = []
  for context, (low, high) in CROSSINGS.items():
    row = {'record': 'crossing', 'context': context, 'low': low, 'high': high}
    work = Workload(config, 1, context, weight_bytes=1)
    row['model'] = crossing(work, COPIES, SLOTS, machine('8xb200'))
    rows.append(row | {'where': SGLANG})
  columns = {
    'tokens a row': 'context',
    'model': lambda row: round(row['model'], 2),
    'published': lambda row: f'between {row["low"]} and {row["high"]}',
    'source': 'where',
  }
  return rows, Table.of(
    f'Rows from which splitting slots is faster: {MLA} on 8 B200',
    columns,
    rows,
    'Against a whole latent on every device.',
  )


def crossing(
  work: Workload, one: Layout, other: Layout, machine: Machine
) -> float:
  """Returns the batch at which the other layout becomes the faster one.

  Args:
    work: whose batch is not looked at.
    one: faster for few rows.
    other: faster for many.
    machine: of both.
  """

  def longer(batch: float) -> float:
    here = dataclasses.replace(work, batch=batch)
    costs = [step(here, layout, machine) for layout in (one, other)]
    return costs[1].seconds - costs[0].seconds

  return optimize.root_scalar(longer, bracket=(2**-10, 2**20)).root


def _row(
  name: str, unit: str, model: float, published: float, where: str
) -> Row:
  row = {'record': 'check', 'name': name, 'unit': unit, 'model': model}
  return row | {'published': published, 'where': where}


def _exchanged() -> float:
  """Returns microseconds of both ways: 32 rows a device, an expert each."""
  config = kvjax.load_config(MLA)
  layer = config.layers[-1]
  # Eight experts of each row and the shared one.
  mlp = dataclasses.replace(layer.mlp, top=9, groups=1, top_groups=1)
  layer = dataclasses.replace(layer, mlp=mlp)
  one = dataclasses.replace(config, layers=(layer,))
  link = INFINIBAND._replace(latency=0.0)
  alone = Machine(device('H200'), 256, 1, NVLINK_4, link)
  work = Workload(one, 32 * 256, 1)
  spread = Layout(data=256, experts='exchange')
  return 1e6 * sum(call.seconds(alone) for call in calls(work, spread))


def _gathered() -> float:
  """Returns microseconds of the queries of one layer."""
  work = Workload(kvjax.load_config(MLA), 32, 1)
  found = (x for x in calls(work, SLOTS) if x.name == 'queries')
  return 1e6 * next(found).seconds(machine('8xb200'))


def _capacity(parts: int) -> float:
  """Returns how many times more tokens fit than with whole copies."""
  work = Workload(kvjax.load_config(MLA), 1, 8192)
  split = Layout(model=8 // parts, context=parts, split='slots')
  return device_bytes(work, COPIES)[1] / device_bytes(work, split)[1]


def _alone() -> float:
  """Returns milliseconds of a step with everything split in 16."""
  work = Workload(kvjax.load_config('llama-3-70b'), 32, 8192, 1, 1)
  split = Layout(model=8, context=2, split='slots')
  return 1e3 * step(work, split, machine('v5e-16')).local.seconds
