"""Seconds and bytes: interleaved repeats, and what the machine can read."""

import ctypes
import dataclasses
import functools
import gc
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

Call = Callable[[], Any]  # starts work; `wait` on its result ends it

# Threads of OpenMP, torch's, go on spinning when their work is done, and
# whoever runs next would share a core with them: let them fall asleep, and
# wake one's own by a turn that is not timed, unless a turn takes so long that
# waking is nothing of it.
PAUSE = 0.005
LONG = 0.25  # seconds of such a turn
# Turns of which a median is enough where all of a runner's take long.
FEW, ENOUGH = 3, 1.0  # turns, seconds


@dataclasses.dataclass(frozen=True)
class Budget:
  """Seconds that all of a run may take; None for as many as it needs.

  Attributes:
    seconds: from `begun` on.
    begun: by `time.monotonic`.
  """

  seconds: float | None = None
  begun: float = dataclasses.field(default_factory=time.monotonic)

  @property
  def spent(self) -> bool:
    """Whether nothing more may begin."""
    passed = time.monotonic() - self.begun
    return self.seconds is not None and passed >= self.seconds


@dataclasses.dataclass(frozen=True)
class Runner:
  """Who takes part in a race.

  Attributes:
    call: does the work once and returns when it is done.
    bytes: that the work must read from memory.
    kernel: what of kvjax ran; '' for a peer.
    error: largest difference from the reference, relative to its largest.
    tolerance: most that it may be.
    times: how often one call does the work, back to back. An accelerator is
      quicker than its host, so a call of one short kernel would time the host.
  """

  call: Call
  bytes: int
  kernel: str = ''
  error: float = 0.0
  tolerance: float = 1e-4
  times: int = 1


def enter(
  entries: Mapping[str, Callable[[], Runner]],
) -> tuple[dict[str, Runner], dict[str, dict[str, Any]]]:
  """Returns who can take part, and of the others `{'skipped': why}`.

  Whoever cannot be built here, fails, or computes something else, is named and
  does not end the run: the others' rows are worth having.
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
  """Returns an error in a line."""
  lines = str(error).strip().splitlines() or ['']
  return f'{type(error).__name__}: {lines[0]}'[:300]


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
  """Returns seconds of each runner, measured in turns after a warm one each.

  Turns spread whatever else the machine does over all runners alike. Who is so
  slow that `FEW` turns took more than `ENOUGH` takes no more of them.

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
    }
    for name, runner in runners.items()
  }


def give_back() -> None:
  """Returns freed memory to the system, before gigabytes more are asked for.

  glibc keeps what was freed, for each thread apart, unless a buffer was huge.
  """
  gc.collect()
  trim = getattr(ctypes.CDLL(None), 'malloc_trim', None)
  if trim is not None:
    trim(0)


def queued(start: Call, calls: int, wait: Callable[[Any], Any]) -> Call:
  """Returns a call that starts work several times and waits for the last.

  A device works off its queue in order, so what its host needs to start a call
  hides behind the calls before, as it does where a program decodes.
  """

  def call():
    for _ in range(calls - 1):
      start()
    return wait(start())

  return call


def bandwidth(mebibytes: int, repeats: int, calls: int = 1) -> dict[str, float]:
  """Returns bytes a second of reading (a sum) and of copying (x + 1).

  The best of the repeats: it is a limit. Copied bytes count twice.

  Args:
    mebibytes: read at once.
    repeats: of which the best counts.
    calls: queued before one is waited for.
  """
  given = mebibytes, repeats, calls
  return {'read': reading(*given), 'copy': copying(*given)}


def reading(mebibytes: int, repeats: int, calls: int = 1) -> float:
  """Returns bytes a second of a sum; see `bandwidth`."""
  x, total = _ones(mebibytes), jax.jit(jnp.sum)
  return _most(lambda: total(x), x.nbytes, repeats, calls)


def copying(mebibytes: int, repeats: int, calls: int = 1) -> float:
  """Returns bytes a second of a copy; see `bandwidth`.

  It lies where that of the call before did: to be handed out fresh memory by
  the system takes longer than to copy.
  """
  x = _ones(mebibytes)
  held = [jnp.zeros_like(x)]

  def start():
    held[0] = _copy(x, held[0])
    return held[0]

  return _most(start, 2 * x.nbytes, repeats, calls)


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
  results: Mapping[str, Mapping[str, Any]], read: float
) -> list[dict[str, Any]]:
  """Returns rows: bandwidth, fraction of the floor, ratios to the peers.

  The floor of a row is its bytes over the read bandwidth; a ratio above 1
  says that kvjax needs less time than the peer. Rows of those who took no part
  say why and nothing else.
  """
  timed = {n: r for n, r in results.items() if 'seconds' in r}
  peers = {n: r for n, r in timed.items() if not r['kernel']}
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


def difference(found: Any, want: Any) -> float:
  """Returns the largest difference relative to the largest of `want`."""
  found, want = np.asarray(found, np.float64), np.asarray(want, np.float64)
  return float(np.max(np.abs(found - want)) / np.max(np.abs(want)))
