"""What do the committed records say? Writes the pages of docs/results.

  python -m experiments.results_pages                 a second
  python -m experiments.results_pages --out=out/results_pages

Reads `results/*.jsonl` and writes one Markdown page a question. Every measured
number of a page is computed from a record, and each section names the command,
the machine, the date and the commit of its record. `docs/results/goals.md` is
written by hand and stays as it is.

Expected: no change to a committed page; `tests/test_results_pages.py` compares
them. Would be refuted by a page that differs from what this prints.
"""

import pathlib
from collections.abc import Callable

from absl import flags

from experiments import launch
from experiments.results_pages import (
  aot_h200,
  compare,
  cpu,
  h100,
  kernel_loop,
  scaling,
  transients,
)

RESULTS = launch.ROOT / 'results'
PAGES: dict[str, Callable[[pathlib.Path], str]] = {
  'aot_h200.md': aot_h200.page,
  'compare.md': compare.page,
  'cpu.md': cpu.page,
  'h100.md': h100.page,
  'kernel_loop.md': kernel_loop.page,
  'scaling.md': scaling.page,
  'transients.md': transients.page,
}
_OUT = flags.DEFINE_string('out', 'docs/results', 'Where pages go.')


def main(argv: list[str]) -> None:
  del argv
  folder = pathlib.Path(_OUT.value)
  with launch.door():
    folder.mkdir(parents=True, exist_ok=True)
    for name, page in PAGES.items():
      (folder / name).write_text(page(RESULTS), encoding='utf-8')
      print(folder / name)


if __name__ == '__main__':
  launch.run(main)
