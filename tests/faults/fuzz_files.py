"""Question: can a damaged or hostile file do more than be refused?

    make fuzz-files ARGS='--tries=20000 --seed=1'

Changes one file of each format (checkpoint, index, config, saved cache,
tokenizer, chat, template, prompts, records, GGUF) again and again, and lets
another process parse it. Refuted by: a process that ends, a parser that takes
over 5 s, an error other than ValueError and OSError, one of these that does not
name the file, memory beyond four times the file and a constant, a change of a
saved cache that is read, or a file that means another thing to kvjax than to
the reference parser. A changed byte of a weight is a change of both.

Memory is the larger of what Python and NumPy allocate (tracemalloc) and, on
Linux, what the resident memory of the process grew by, which counts libraries
in Rust and C. The process that renders a template has a limit of its own and is
not counted. The constant is for what a parser needs whatever the file: 20
readings of each unchanged file took up to 2.2 MB (a model's shapes), 1.1 MB (a
saved cache's buffer). It hides what small files do within it; a file of 3 MB
is there for the factor.
"""

import collections
import contextlib
import ctypes
import dataclasses
import multiprocessing
import pathlib
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Iterator
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
from absl import app, flags

ROOT = pathlib.Path(__file__).parents[2]
if __name__ == '__main__':
  sys.path.insert(0, str(ROOT))

SECONDS = 5.0  # that a parser may take
TIMES, CONSTANT = 4, 3 << 20  # memory: times the file, and bytes beyond
CLEAR = pathlib.Path('/proc/self/clear_refs')
STATUS = pathlib.Path('/proc/self/status')
REFUSALS = (ValueError, FileNotFoundError, OSError)

TRIES = flags.DEFINE_integer('tries', 500, 'Changed files in all.')
SEED = flags.DEFINE_integer('seed', 0, 'Of the changes.')
ONLY = flags.DEFINE_list('formats', [], 'Names of formats; all by default.')


@dataclasses.dataclass(frozen=True)
class Try:
  """One changed file.

  Attributes:
    format: its name.
    number: of the try, from which all its changes are drawn.
    result: 'refused', 'read', or what is wrong.
    seconds: that parsing took.
    bytes: that parsing allocated at most, at one moment.
  """

  format: str
  number: int
  result: str
  seconds: float = 0.0
  bytes: int = 0

  @property
  def is_fault(self) -> bool:
    return self.result not in ('refused', 'read')


def run(tries: int, seed: int, names: list[str] | None = None) -> Iterator[Try]:
  """Yields the result of each changed file, of each format in turn."""
  # Parsers may print; what they parse is read in a process that can be ended.
  context = multiprocessing.get_context('spawn')
  worker = None
  for number in range(tries):
    if worker is None:
      worker = _Worker(context, seed)
      names = names or worker.names
    name = names[number % len(names)]
    outcome = worker.parse(name, number)
    if outcome.result in ('hangs', 'ends the process'):
      worker.stop()
      worker = None
    yield outcome
  if worker is not None:
    worker.stop()


class _Worker:
  """A process that parses, and the end of the pipe to it."""

  def __init__(self, context: Any, seed: int):
    self.pipe, other = context.Pipe()
    self.process = context.Process(target=serve, args=(other, seed))
    self.process.start()
    other.close()
    self.names: list[str] = self.pipe.recv()

  def parse(self, name: str, number: int) -> Try:
    self.pipe.send((name, number))
    # Beyond the parser's own time: the reference's, and the change itself.
    if not self.pipe.poll(4 * SECONDS):
      return Try(name, number, 'hangs')
    try:
      return self.pipe.recv()
    except EOFError:
      return Try(name, number, 'ends the process')

  def stop(self) -> None:
    self.process.kill()
    self.process.join()


def serve(pipe: Connection, seed: int) -> None:
  """Parses one changed file after the other; runs in the worker."""
  from tests.faults.formats import FORMATS

  tracemalloc.start()
  _keep_no_blocks()
  with tempfile.TemporaryDirectory() as name:
    root = pathlib.Path(name)
    for index, form in enumerate(FORMATS.values()):
      folder = root / str(index)
      folder.mkdir()
      form.write(folder)
      form.read(folder)  # fills caches that later files share
    whole = {
      format_name: (root / str(index) / form.name).read_bytes()
      for index, (format_name, form) in enumerate(FORMATS.items())
    }
    pipe.send(list(FORMATS))
    places = {name: root / str(i) for i, name in enumerate(FORMATS)}
    while True:
      name, number = pipe.recv()
      seeds = seed, number
      pipe.send(_try(FORMATS[name], places[name], whole[name], seeds, name))


def _reset_resident() -> int:
  """Returns the resident bytes, from which the system's peak counts anew."""
  if CLEAR.exists():
    CLEAR.write_text('5')
  return _resident('VmRSS')


def _resident(name: str) -> int:
  """Returns bytes of this process by Linux' name; 0 on other systems."""
  if not CLEAR.exists():
    return 0
  text = STATUS.read_text()
  return int(text.split(f'{name}:')[1].split()[0]) << 10


def _keep_no_blocks() -> None:
  """Lets glibc return each freed block of 64 KiB or more at once.

  A block that is kept would be taken again without a change of the peak.
  """
  with contextlib.suppress(AttributeError, OSError, TypeError):
    ctypes.CDLL(None).mallopt(-3, 1 << 16)  # M_MMAP_THRESHOLD


def _try(
  form: Any, folder: pathlib.Path, data: bytes, seed: Any, name: str
) -> Try:
  draw = np.random.default_rng(seed)
  change = form.changes[int(draw.integers(len(form.changes)))]
  changed = change(data, draw)
  (folder / form.name).write_bytes(changed)
  tracemalloc.reset_peak()
  before, _ = tracemalloc.get_traced_memory()
  resident = _reset_resident()
  begun = time.perf_counter()
  value, error = None, None
  try:
    value = form.read(folder)
  except REFUSALS as refusal:
    error = refusal
  except Exception as other:
    error = other
  seconds = time.perf_counter() - begun
  size = tracemalloc.get_traced_memory()[1] - before
  size = max(size, _resident('VmHWM') - resident)
  result = _judge(form, folder, changed != data, value, error)
  if seconds > SECONDS:
    result = f'takes {seconds:.1f} s'
  if size > TIMES * len(changed) + CONSTANT:
    result = f'takes {size} bytes for a file of {len(changed)}'
  return Try(name, seed[1], result, seconds, size)


def _judge(form, folder, differs: bool, value: Any, error: Any) -> str:
  """Returns 'refused', 'read', or how kvjax and the reference differ."""
  if isinstance(error, REFUSALS):
    if form.name in str(error):
      return 'refused'
    return f'refuses without naming the file: {error}'
  if error is not None:
    return f'raises {type(error).__name__}: {error}'
  if form.reference is None:
    return 'reads a changed file' if differs else 'read'
  try:
    wanted = form.reference(folder)
  except Exception as refusal:
    return f'reads what the reference refuses: {refusal}'
  return 'read' if value == wanted else f'reads {value}, not {wanted}'


def main(argv: list[str]) -> None:
  del argv
  counts: collections.Counter[tuple[str, str]] = collections.Counter()
  faults, slowest, largest, begun = [], 0.0, 0, time.time()
  for outcome in run(TRIES.value, SEED.value, ONLY.value):
    kind = 'fault' if outcome.is_fault else outcome.result
    counts[outcome.format, kind] += 1
    slowest = max(slowest, outcome.seconds)
    largest = max(largest, outcome.bytes)
    if outcome.is_fault:
      faults.append(outcome)
      print(f'{outcome.format} {outcome.number}: {outcome.result[:500]}')
    if (done := outcome.number + 1) % 1000 == 0:
      print(f'{done} of {TRIES.value}, {len(faults)} faults', flush=True)
  for name in dict.fromkeys(name for name, _ in counts):
    row = {k: counts[name, k] for k in ('refused', 'read', 'fault')}
    print(f'{name}: ' + ', '.join(f'{n} {k}' for k, n in row.items()))
  print(
    f'{TRIES.value} tries, seed {SEED.value}: {len(faults)} faults, slowest '
    f'{slowest:.2f} s, largest {largest / 1e6:.1f} MB, '
    f'{time.time() - begun:.0f} s in all.'
  )
  sys.exit(bool(faults))


if __name__ == '__main__':
  app.run(main)
