"""Executes the notebooks of `examples/`, and compares what they print.

  python -m tests.notebooks [--path=examples/1_first_cache.ipynb]

writes the outputs of each anew, in place. The kernel is a new process of this
Python that imports this checkout and sees one CPU device.
"""

import asyncio
import math
import os
import pathlib
import re
import tempfile
from collections.abc import Iterator

import nbformat
from absl import app, flags
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient
from nbformat import NotebookNode

ROOT = pathlib.Path(__file__).parents[1]
EXAMPLES = ROOT / 'examples'
SECONDS = 600  # of one cell, on a busy machine
KERNEL = {'display_name': 'Python 3', 'language': 'python', 'name': 'python3'}
# Decimals end in rounding, which differs between processors and versions of
# XLA; a whole number is the same everywhere.
NUMBER = re.compile(r'([-+]?\d[\d,]*(?:\.\d+)?(?:e[-+]?\d+)?)')
RTOL = 1e-3

_PATH = flags.DEFINE_string('path', '', 'Of one notebook; empty for all.')


def find_notebooks() -> list[pathlib.Path]:
  """Returns the paths of all notebooks, in the order of reading."""
  return sorted(EXAMPLES.glob('*.ipynb'))


def read(path: pathlib.Path) -> NotebookNode:
  return nbformat.read(path, as_version=4)


def write(path: pathlib.Path, notebook: NotebookNode) -> None:
  """Writes a notebook without what differs from run to run."""
  notebook.metadata = NotebookNode(kernelspec=KERNEL)
  for cell in notebook.cells:
    cell.metadata = NotebookNode()
  nbformat.write(notebook, path)


def execute(notebook: NotebookNode) -> NotebookNode:
  """Returns a copy of a notebook with the outputs of a new kernel.

  Raises:
    nbclient.exceptions.CellExecutionError: a cell raises.
  """
  copy = nbformat.from_dict(notebook)
  # Without a folder of kernels "python3" is the Python that runs this.
  manager = AsyncKernelManager(
    kernel_name=KERNEL['name'],
    kernel_spec_manager=KernelSpecManager(kernel_dirs=[]),
  )
  client = NotebookClient(
    copy,
    km=manager,
    timeout=SECONDS,
    record_timing=False,
    coalesce_streams=True,
    resources={'metadata': {'path': str(EXAMPLES)}},
  )
  with tempfile.TemporaryDirectory() as folder:
    asyncio.run(client.async_execute(env=_environment(folder), cleanup_kc=True))
  return copy


def _environment(folder: str) -> dict[str, str]:
  """Returns the kernel's variables; what a user's IPython loads is left out."""
  paths = [str(ROOT), *filter(None, [os.environ.get('PYTHONPATH')])]
  changed = {
    'IPYTHONDIR': folder,
    'JAX_PLATFORMS': 'cpu',
    'PYTHONPATH': os.pathsep.join(paths),
    'XLA_FLAGS': '',
  }
  return {**os.environ, **changed}


def find_difference(committed: NotebookNode, executed: NotebookNode) -> str:
  """Returns the first difference of what two runs show; '' for none.

  Text must be equal word for word. Numbers with decimals may differ by `RTOL`.
  Pictures must be there and are not compared.
  """
  pairs = zip(committed.cells, executed.cells, strict=True)
  for index, (before, after) in enumerate(pairs):
    old, new = list(shown(before)), list(shown(after))
    if len(old) != len(new):
      return f'cell {index}: {len(old)} outputs were committed, not {len(new)}'
    for (kind, was), (new_kind, text) in zip(old, new, strict=True):
      if kind != new_kind or not is_same_text(was, text):
        return (
          f'cell {index}: committed {kind} {was!r}, now {new_kind} {text!r}'
        )
  return ''


def shown(cell: NotebookNode) -> Iterator[tuple[str, str]]:
  """Yields kind and text of each output; streams are joined, stderr is not."""
  outputs = cell.get('outputs', ())
  streams = [x for x in outputs if x.output_type == 'stream']
  yield 'stdout', ''.join(x.text for x in streams if x.name == 'stdout')
  for output in outputs:
    if output.output_type == 'error':
      yield 'error', output.evalue
    for kind, text in sorted(output.get('data', {}).items()):
      yield kind, '' if kind.startswith('image/') else text


def is_same_text(before: str, after: str) -> bool:
  """Returns whether words are equal, and numbers up to their rounding."""
  old, new = NUMBER.split(before), NUMBER.split(after)
  return len(old) == len(new) and all(map(_is_same_part, old, new))


def _is_same_part(before: str, after: str) -> bool:
  if before == after:
    return True
  numbers = [before.replace(',', ''), after.replace(',', '')]
  if not all(NUMBER.fullmatch(x) and ('.' in x or 'e' in x) for x in numbers):
    return False
  return math.isclose(*map(float, numbers), rel_tol=RTOL)


def main(argv: list[str]) -> None:
  del argv
  given = [pathlib.Path(_PATH.value)] if _PATH.value else find_notebooks()
  for path in given:
    write(path, execute(read(path)))
    print(path)


if __name__ == '__main__':
  app.run(main)
