"""How does the least time of a decode step grow, and on which card?

  python -m experiments.scaling                             arithmetic, seconds
  python -m experiments.scaling --device=H100-80
  python -m experiments.scaling --measure      minutes; the same curves, timed
  python -m experiments.scaling --measure --axes=context,heads --repeats=9

By arithmetic: operations a byte of each variant's cache, the rows and tokens
from which a step waits for arithmetic, least times of models on one card and
several, and the same bound next to step times that others have published. With
`--measure`, timed here: attention against context, rows and kv heads, a step
against layers, with the exponent of growth (the slope of log time over log
size) of all points and of the last doubling.

Expected: exponents near 1 where bytes decide, less where the cost of a call
decides. Would be refuted by: a published time below its bound, or an exponent
well above 1.
"""

from absl import flags

from experiments import launch
from experiments.reporting.writer import follow, start
from experiments.scaling import growth, tables
from kvjax.memory import device

_DEVICE = flags.DEFINE_string('device', 'H200', 'H200, L4, TPU v5e, ...')
_MEASURE = flags.DEFINE_bool('measure', False, 'Time the curves here as well.')
_AXES = flags.DEFINE_list('axes', list(growth.AXES), 'Axes that are timed.')
_REPEATS = flags.DEFINE_integer(
  'repeats', 5, 'Repeats of each time.', lower_bound=1
)
_WORKDIR = flags.DEFINE_string('workdir', 'out/scaling', 'Where files go.')


def main(argv: list[str]) -> None:
  del argv
  with launch.door():
    card = device(_DEVICE.value)
    growth.check(_AXES.value)
  run = {'command': launch.command(), 'device': card.name}
  writer = start(_WORKDIR.value, 'scaling', 'How a step grows', run)
  for rows, table in (
    tables.intensities(card),
    tables.predictions(card),
    tables.published(),
  ):
    for row in rows:
      writer.record(row)
    writer = writer.show(table)
  if _MEASURE.value:
    rows = map(writer.record, growth.rows(_AXES.value, _REPEATS.value))
    records = list(follow('curves', rows, growth.count(_AXES.value)))
    writer = writer.show(*tables.curves(records))
  writer.save()


if __name__ == '__main__':
  launch.run(main)
