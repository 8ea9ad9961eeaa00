"""How does the least time of a decode step grow, and on which card?

  python -m experiments.scaling                             arithmetic, seconds
  python -m experiments.scaling --device=H100-80
  python -m experiments.scaling --measure      minutes; the same curves, timed
  python -m experiments.scaling --measure --axes=context,heads --repeats=9
  python -m experiments.scaling --model=llama-3-70b --machine=16xh200 \
    --batch=16 --context=131072

By arithmetic: operations a byte of each variant's cache, the rows and tokens
from which a step waits for arithmetic, least times of models on one card and
several, and the same bound next to step times that others have published. With
`--measure`, timed here: attention against context, rows and kv heads, a step
against layers, with the exponent of growth (the slope of log time over log
size) of all points and of the last doubling.

With `--model`: the layouts of that model on a machine of many devices, what
each holds, reads and communicates in a step, the best of them, and what others
have published of communication next to the same arithmetic.

Expected: exponents near 1 where bytes decide, less where the cost of a call
decides. Would be refuted by: a published time below its bound, or an exponent
well above 1; a published share of communication far from the model's.
"""

from collections.abc import Iterable

from absl import flags

from experiments import launch
from experiments.reporting.writer import Writer, follow, start
from experiments.scaling import checks, growth, layout_tables, tables
from experiments.scaling.communication import MACHINES, machine
from experiments.scaling.layouts import Workload, check
from kvjax import load_config
from kvjax.decoding.allocate import check_sizes
from kvjax.memory import device

_DEVICE = flags.DEFINE_string('device', 'H200', 'H200, L4, TPU v5e, ...')
_MEASURE = flags.DEFINE_bool('measure', False, 'Time the curves here as well.')
_AXES = flags.DEFINE_list('axes', list(growth.AXES), 'Axes that are timed.')
_REPEATS = flags.DEFINE_integer(
  'repeats', 5, 'Repeats of each time.', lower_bound=1
)
_MODEL = flags.DEFINE_string(
  'model', None, 'Compare layouts of llama-3-70b, deepseek-v3, ...'
)
_WORK = {
  'machine': flags.DEFINE_string(
    'machine', '16xh200', f'With --model: {", ".join(MACHINES)}.'
  ),
  'batch': flags.DEFINE_integer('batch', 16, 'With --model: rows.'),
  'context': flags.DEFINE_integer(
    'context', 131_072, 'With --model: tokens a row.'
  ),
  'weight_bytes': flags.DEFINE_float(
    'weight_bytes', 2, 'With --model: bytes of a weight.', lower_bound=0.5
  ),
  'cache_bytes': flags.DEFINE_float(
    'cache_bytes', 2, 'With --model: of a cached number.', lower_bound=0.5
  ),
}
_WORKDIR = flags.DEFINE_string('workdir', 'out/scaling', 'Where files go.')


def main(argv: list[str]) -> None:
  del argv
  with launch.door():
    card = device(_DEVICE.value)
    growth.check(_AXES.value)
    work = _workload()
  name = card.name if work is None else _WORK['machine'].value
  run = {'command': launch.command(), 'device': name}
  writer = start(_WORKDIR.value, 'scaling', 'How a step grows', run)
  if work is not None:
    writer = _show_layouts(writer, work)
  else:
    found = tables.intensities(card), tables.predictions(card)
    writer = _show(writer, (*found, tables.published()))
  if _MEASURE.value:
    rows = map(writer.record, growth.rows(_AXES.value, _REPEATS.value))
    records = list(follow('curves', rows, growth.count(_AXES.value)))
    writer = writer.show(*tables.curves(records))
  writer.save()


def _workload() -> Workload | None:
  """Returns the step whose layouts are wanted; raises ValueError."""
  values = {name: flag.value for name, flag in _WORK.items()}
  if _MODEL.value is None:
    for name, flag in _WORK.items():
      if flag.present:
        raise ValueError(f'{name} says where a model runs: add --model.')
    return None
  check_sizes(batch=values['batch'], context=values['context'])
  places = machine(values.pop('machine'))
  work = Workload(load_config(_MODEL.value), **values)
  check(work, places)
  return work


def _show_layouts(writer: Writer, work: Workload) -> Writer:
  """Returns the report with the layouts of a step, and the checks of them."""
  name, places = _WORK['machine'].value, machine(_WORK['machine'].value)
  of = {'model': _MODEL.value, 'machine': name}
  records = layout_tables.rows(work, places)
  records = [writer.record(row | of) for row in records]
  writer = _show(writer, (checks.checks(), checks.crossings()))
  title = f'{_MODEL.value} on {name}, {work.context:,} tokens a row'
  return writer.show(
    layout_tables.picture(title, work, places),
    layout_tables.table(f'{title}, {work.batch} rows', records),
    layout_tables.verdict(records),
  )


def _show(writer: Writer, parts: Iterable[tables.Part]) -> Writer:
  """Returns the report with tables whose records are written."""
  for rows, table in parts:
    for row in rows:
      writer.record(row)
    writer = writer.show(table)
  return writer


if __name__ == '__main__':
  launch.run(main)
