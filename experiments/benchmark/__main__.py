"""How close to the speed of memory does kvjax decode, and how do others?

The read bandwidth is measured first, then the parts that the config's
`sections` name: attention alone, whole steps, prefill and the generation of N
tokens, each checked before it is timed. On a GPU the run also writes the
device's description, checks what the kernel computes there, and sweeps its
tiles for the kernel's table. See configs/benchmark_cpu.py and
configs/benchmark_gpu.py.
"""

import math
import pathlib
import time

from absl import flags

from experiments import launch
from experiments.benchmark import check_config, tables
from experiments.benchmark.sections import SECTIONS, measure
from experiments.measuring import attention_peers, llama_cpp, peers
from experiments.reporting import records
from experiments.reporting.writer import start
from kvjax.kernels import available

_CONFIG = launch.define_config()
_WORKDIR = flags.DEFINE_string('workdir', 'out/benchmark', 'Where files go.')
_COMPARE = flags.DEFINE_list(
  'compare', None, 'Two .jsonl files of earlier runs; nothing is measured.'
)
_BUDGET = flags.DEFINE_float(
  'budget', math.inf, 'Seconds after which no row is begun.', lower_bound=0.0
)
_SECTIONS = flags.DEFINE_list(
  'sections', None, "Parts to measure, in order, in place of the config's."
)
_APPEND = flags.DEFINE_bool(
  'append', False, 'Add to the records of an earlier run.'
)


def _compare(files: list[str]) -> None:
  with launch.door():
    if len(files) != 2:
      raise ValueError(
        'compare takes two files: --compare=old.jsonl,new.jsonl.'
      )
    shown = tables.compare(*(records.read([pathlib.Path(x)]) for x in files))
  run = {'command': launch.command()}
  writer = start(_WORKDIR.value, 'comparison', 'Two runs', run).show(shown)
  writer.save()


def main(argv: list[str]) -> None:
  del argv
  if _COMPARE.value is not None:
    _compare(_COMPARE.value)
    return
  config = _CONFIG.value
  deadline = time.monotonic() + _BUDGET.value
  if _SECTIONS.value is not None:
    config.sections = tuple(_SECTIONS.value)
  with launch.door():
    if lacking := peers.missing('rich', 'matplotlib'):
      raise ValueError(
        f'{", ".join(lacking)} not installed, reports need them: '
        f'pip install {" ".join(lacking)}'
      )
    check_config.check(config, SECTIONS)
  absences = {
    'transformers': peers.transformers_absence(),
    'llama.cpp': llama_cpp.absence(),
    **{peer.name: peer.absence for peer in attention_peers.PEERS},
  }
  run = {
    'config': config.to_dict(),
    'command': launch.command(),
    'kernels': available(),
    'peers': peers.versions(),
    'absent': {name: why for name, why in absences.items() if why},
  }
  writer = start(
    _WORKDIR.value, 'benchmark', 'Decoding speed', run, append=_APPEND.value
  )
  writer, wrong = measure(config, writer, deadline)
  writer.save()
  if wrong:
    raise SystemExit(f'Wrong: {"; ".join(wrong)}.')


if __name__ == '__main__':
  launch.run(main, 'benchmark_cpu.py')
