"""Runs every cell of a mesh that has a meaning: make mesh [ARGS=MODEL ...].

Cells of a model share a process of eight devices; two processes run at a time.
"""

import collections
import concurrent.futures
import sys
import time
from collections.abc import Sequence

import jax

from tests.sharding import cells
from tests.sharding.eight_devices import run_lines


def run_model(model: str) -> list[str]:
  """Runs the cells of a model and prints their faults; returns their names."""
  names = [
    cell.name
    for cell in cells.all_cells()
    if cell.model == model and not cells.meaningless(cell)
  ]
  wrong = []
  for line in run_lines('tests.sharding.run_cells', *names):
    for fault in line['faults']:
      print(f'{line["name"]}: {fault}', flush=True)
    wrong += [line['name']] * bool(line['faults'])
  print(f'{model}: {len(names) - len(wrong)} of {len(names)} cells', flush=True)
  return wrong


def main(models: Sequence[str]) -> None:
  start = time.time()
  chosen = [cell for cell in cells.all_cells() if cell.model in models]
  reasons = collections.Counter(
    (cell.model, cell.layout, reason)
    for cell in chosen
    if (reason := cells.meaningless(cell))
  )
  for (model, layout, reason), count in reasons.items():
    print(f'left out: {count} cells of {model} by {layout}: {reason}')
  with concurrent.futures.ThreadPoolExecutor(2) as pool:
    wrong = [x for part in pool.map(run_model, models) for x in part]
  total = len(chosen) - sum(reasons.values())
  print(
    f'{total - len(wrong)} of {total} cells as they must be; JAX '
    f'{jax.__version__}, {time.strftime("%Y-%m-%d")}, '
    f'{time.time() - start:.0f} s.'
  )
  sys.exit(bool(wrong))


if __name__ == '__main__':
  main(sys.argv[1:] or list(cells.MODELS))
