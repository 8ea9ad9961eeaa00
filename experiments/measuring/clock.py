"""Cases, pace and races: seconds of interleaved repeats, bytes a second.

A question that is timed is a `Case`: it names its records and makes the runners
that take part. `measure` races them at a `Pace`.
"""

import abc
import ctypes
import dataclasses
import functools
import gc
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from kvjax.kernels import KERNELS, available

Call = Callable[[], Any]  # starts work; `wait` on its result ends it

# torch's OpenMP threads go on spinning after their work is done and would share
# a core with the next runner. The pause lets these threads fall asleep. An
# untimed turn then wakes the threads of the next runner; a turn longer than
# LONG needs no such turn, because waking is a small part of it.
PAUSE = 0.005  # seconds
LONG = 0.25  # seconds
# A runner that spent ENOUGH seconds on FEW turns takes no further turns.
FEW = 3
ENOUGH = 1.0


@dataclasses.dataclass(frozen=True)
class Pace:
  """How a race is run.

  Attributes:
    repeats: turns of every runner.
    rotate: bytes of buffers that attention alone reads before it reads any of
      them again. Choose more than the last cache of the machine.
    kernels: kernels of kvjax that take part where they are available.
    together: buffers that one call of attention alone reads, which hides the
      cost of the call. Compile time grows with the number.
    calls: calls that are queued before the host waits for one.
    room: slots beyond the context, for the tokens that are timed.
    forms: candidates of `mosaic_gpu` that take part, as in `forms`.
    alone: whether kvjax runs without peers and without int8 weights.
  """

  repeats: int
  rotate: int = 0
  kernels: Sequence[str] = KERNELS
  together: int = 1
  calls: int = 1
  room: int = 256
  forms: Sequence[str] = ()
  alone: bool = False

  @classmethod
  def of(cls, config: Any) -> 'Pace':
    """Returns the pace of an experiment's config."""
    names = [field.name for field in dataclasses.fields(cls)]
    return cls(**{name: config[name] for name in names if name in config})

  def usable(self) -> list[str]:
    """Returns the kernels that take part, of those available here."""
    reasons = available()
    return [x for x in reasons if not reasons[x] and x in self.kernels]


@dataclasses.dataclass(frozen=True)
class Runner:
  """A participant of a race.

  Attributes:
    call: does the work once and returns when the work is done.
    bytes: that the work must read from memory.
    kernel: the kernel of kvjax that ran; '' for a peer.
    error: largest difference from the reference, relative to its largest.
    tolerance: largest error that is accepted.
    times: how often one call does the work, back to back. An accelerator is
      quicker than its host, so a call of one short kernel would time the host.
    about: further fields of the runner's record.
  """

  call: Call
  bytes: int
  kernel: str = ''
  error: float = 0.0
  tolerance: float = 1e-4
  times: int = 1
  about: Mapping[str, Any] = dataclasses.field(default_factory=dict)


Entry = Callable[[], Runner]  # builds a runner, or raises why it cannot


@dataclasses.dataclass(frozen=True)
class Expected:
  """What every runner of a race must compute, and from how many bytes.

  Attributes:
    want: the reference result.
    bytes, tolerance, times, about: as in `Runner`.
  """

  want: Any
  bytes: int
  tolerance: float
  times: int = 1
  about: Mapping[str, Any] = dataclasses.field(default_factory=dict)

  def runner(self, call: Call, kernel: str = '', result: Any = None) -> Runner:
    """Returns the runner of a call whose result was compared.

    Args:
      call: does the work and waits for it.
      kernel: of kvjax; '' for a peer.
      result: what is compared with `want`; None for the result of `call`.
    """
    error = difference(call() if result is None else result, self.want)
    return Runner(
      call, self.bytes, kernel, error, self.tolerance, self.times, self.about
    )


class Case(abc.ABC):
  """A question that a race answers."""

  record: ClassVar[str]  # kind of its records
  fields: ClassVar[Sequence[str]]  # attributes that stand in every record
  decoded = 0  # tokens that a run decodes; 0 where their rate means nothing
  base = ''  # the runner with which others are compared; '' for every peer

  @property
  def about(self) -> dict[str, Any]:
    """Fields of every record of the case."""
    values = {name: getattr(self, name) for name in self.fields}
    return {'record': self.record, **values}

  @abc.abstractmethod
  def entries(self, pace: Pace) -> Mapping[str, Entry]:
    """Returns what builds each runner, by name."""

  def repeats(self, pace: Pace) -> int:
    """Returns the number of turns of the race."""
    return pace.repeats


def measure(case: Case, pace: Pace) -> dict[str, dict[str, Any]]:
  """Returns results by name; a runner that could not take part says why."""
  give_back()
  runners, skipped = enter(case.entries(pace))
  return race(runners, case.repeats(pace)) | skipped


def enter(
  entries: Mapping[str, Entry],
) -> tuple[dict[str, Runner], dict[str, dict[str, Any]]]:
  """Returns the runners that can take part, and `{'skipped': why}` of others.

  A runner that cannot be built, fails, or computes something else is named and
  does not end the run, because the rows of the other runners are still useful.
  """
  runners: dict[str, Runner] = {}
  skipped: dict[str, dict[str, Any]] = {}
  for name, entry in entries.items():
    try:
      runner = entry()
      _check(name, runner)
    except Exception as error:
      skipped[name] = {'skipped': reason(error)}
    else:
      runners[name] = runner
  return runners, skipped


def reason(error: Exception) -> str:
  """Returns an error in a line, without a full stop at its end."""
  lines = str(error).strip().splitlines() or ['']
  return f'{type(error).__name__}: {lines[0]}'[:300].rstrip('. :')


def _check(name: str, runner: Runner) -> None:
  if not runner.error <= runner.tolerance:
    raise ValueError(
      f'{name} differs from the reference by {runner.error:.1e}, more than '
      f'{runner.tolerance:.0e}: it computes something else, so its time '
      'would mean nothing.'
    )


def race(
  runners: Mapping[str, Runner], repeats: int
) -> dict[str, dict[str, Any]]:
  """Returns seconds of each runner, measured in turns after an untimed one.

  Turns spread the other work of the machine evenly over all runners. A runner
  whose `FEW` turns took more than `ENOUGH` seconds takes no further turns.

  Raises:
    ValueError: a runner's error exceeds its tolerance: nothing was timed.
  """
  for name, runner in runners.items():
    _check(name, runner)
  times: dict[str, list[float]] = {name: [] for name in runners}
  for turn in range(repeats):
    for name, runner in runners.items():
      if turn >= FEW and sum(times[name]) > ENOUGH:
        continue
      time.sleep(PAUSE)
      if not turn or times[name][-1] < LONG:
        runner.call()
      start = time.perf_counter()
      runner.call()
      times[name].append(time.perf_counter() - start)
  return {
    name: {
      'seconds': float(np.median(times[name])) / runner.times,
      'fastest': min(times[name]) / runner.times,
      'turns': len(times[name]),
      'bytes': runner.bytes,
      'kernel': runner.kernel,
      'error': runner.error,
      **runner.about,
    }
    for name, runner in runners.items()
  }


def give_back() -> None:
  """Returns freed memory to the system before gigabytes are allocated.

  glibc keeps freed memory in each thread's arena unless a buffer was huge.
  """
  gc.collect()
  trim = getattr(ctypes.CDLL(None), 'malloc_trim', None)
  if trim is not None:
    trim(0)


def queued(start: Call, calls: int, wait: Callable[[Any], Any]) -> Call:
  """Returns a call that starts work several times and waits for the last.

  A device works through its queue in order, so the host's time to start a call
  hides behind the calls before, as it does where a program decodes.
  """

  def call():
    for _ in range(calls - 1):
      start()
    return wait(start())

  return call


def carry_state(step: Callable[[Any], tuple[Any, Any]], state: Any) -> Call:
  """Returns a call of a step that replaces its state, which it may donate.

  Args:
    step: takes the state; returns a result and the next state.
    state: the first state.
  """
  current = [state]

  def call():
    result, current[0] = step(current[0])
    return result

  return call


def chained(
  attend: Callable[[jax.Array, Any], jax.Array],
) -> Callable[[jax.Array, Sequence[Any]], Call]:
  """Returns what makes a call that attends to several parts, one by one.

  Each part is queried with the answer of the part before, so that the device
  cannot begin it earlier. A call writes its results over those of the call
  before: on a GPU XLA records what a program launches as a graph and records
  the graph again when an address has changed. A loop that decodes donates what
  it replaces, and peers are replayed as graphs, so a fair call reuses
  addresses.

  Args:
    attend: takes queries and one part; returns an array like the queries.

  Returns:
    A function of the queries of the first part, and of all parts.
  """

  @functools.partial(jax.jit, donate_argnames='old', keep_unused=True)
  def run(query, parts, old):
    del old
    outputs = []
    for part in parts:
      query = attend(query, part)
      outputs.append(query)
    return outputs

  def make(query: jax.Array, parts: Sequence[Any]) -> Call:
    def step(old):
      new = run(query, tuple(parts), old)
      return new, new

    return carry_state(step, [jnp.zeros_like(query) for _ in parts])

  return make


def stepped(
  step: Callable[[Any], tuple[Any, Any]], state: Any, calls: int = 1
) -> Call:
  """Returns a call of several steps that waits for the last result.

  Args:
    step, state: as in `carry_state`.
    calls: steps of one call.
  """
  return queued(carry_state(step, state), calls, np.asarray)


def bandwidth(mebibytes: int, repeats: int, calls: int = 1) -> dict[str, float]:
  """Returns bytes a second of reading (a sum) and of copying (x + 1).

  The best of the repeats counts, because it is a limit. Copied bytes count
  twice.

  Args:
    mebibytes: size of the array.
    repeats: turns of each.
    calls: queued before one is waited for.
  """
  read = reading(mebibytes, repeats, calls)
  x = _ones(mebibytes)

  # The copy overwrites the copy of the call before. The system would take
  # longer to hand out fresh memory than the copy takes.
  def step(old):
    new = _copy(x, old)
    return new, new

  copy = carry_state(step, jnp.zeros_like(x))
  return {'read': read, 'copy': _most(copy, 2 * x.nbytes, repeats, calls)}


def reading(mebibytes: int, repeats: int, calls: int = 1) -> float:
  """Returns bytes a second of a sum; see `bandwidth`."""
  x = _ones(mebibytes)
  total = jax.jit(jnp.sum)
  return _most(lambda: total(x), x.nbytes, repeats, calls)


@functools.partial(jax.jit, donate_argnames='old', keep_unused=True)
def _copy(x: jax.Array, old: jax.Array) -> jax.Array:
  del old
  return x + 1


def _ones(mebibytes: int) -> jax.Array:
  return jnp.ones((mebibytes * 2**18,), jnp.float32)


def _most(start: Call, size: int, repeats: int, calls: int) -> float:
  call = queued(start, calls, jax.block_until_ready)
  runner = Runner(call, size, times=calls)
  return size / race({'': runner}, repeats)['']['fastest']


def rate(
  results: Mapping[str, Mapping[str, Any]], read: float, base: str = ''
) -> list[dict[str, Any]]:
  """Returns rows: bandwidth, fraction of the floor, ratios to the peers.

  The floor of a row is its bytes over the read bandwidth; a ratio above 1
  says that kvjax needs less time than the peer. A row of a runner that took no
  part has its name and the reason only. Ratios to a `base`, a runner of kvjax,
  take the place of those to the peers, the base's row included.
  """
  timed = {n: r for n, r in results.items() if 'seconds' in r}
  peers = {n: r for n, r in timed.items() if not r['kernel']}
  if base:
    peers = {base.removeprefix('kvjax '): timed[base]} if base in timed else {}
  rest = [{'name': n, **r} for n, r in results.items() if n not in timed]
  return rest + [
    {
      'name': name,
      **result,
      'read': read,
      'bandwidth': result['bytes'] / result['seconds'],
      'of_floor': result['bytes'] / result['seconds'] / read,
      'ratios': {
        peer: other['seconds'] / result['seconds']
        for peer, other in peers.items()
        if peer != name
      },
    }
    for name, result in timed.items()
  ]


def difference(result: Any, want: Any) -> float:
  """Returns the largest difference relative to the largest of `want`."""
  result = np.asarray(result, np.float64)
  want = np.asarray(want, np.float64)
  return float(np.max(np.abs(result - want)) / np.max(np.abs(want)))
