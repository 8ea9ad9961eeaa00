"""Attention alone: one token a row against a filled cache."""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.measuring import attention_peers, clock, forms, peers
from experiments.measuring.clock import Runner
from kvjax.kernels import KERNELS, Scoring, attend_view, available
from kvjax.kernels.hopper.launch import DTYPES
from kvjax.streams.codecs import Codec, Int8, Plain
from kvjax.streams.view import contiguous_view

TOLERANCE = {
  'float32': 1e-4, 'bfloat16': 3e-2, 'float16': 3e-3, 'int8': 3e-2,
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Case:
  """A cache of `slots` of which `filled` hold tokens; see the legend."""

  batch: int
  heads: int
  groups: int
  width: int
  slots: int
  filled: int
  dtype: str

  @property
  def bytes(self) -> int:
    """Of the filled keys and values, scales included."""
    scale = 4 if self.dtype == 'int8' else 0
    slot = self.width * jnp.dtype(self.dtype).itemsize + scale
    return 2 * self.batch * self.heads * self.filled * slot


Entry = Callable[[], Runner]

MOST = 3_600_000_000  # bytes of memory that the caches of a race occupy


@dataclasses.dataclass(frozen=True)
class Pace:
  """How a race is run.

  Attributes:
    repeats: turns, times the calls that it takes to read all, up to three.
    rotate: bytes that are read before any is read again, beyond the last cache
      of the machine, as far as the caches that they lie in fit `MOST`.
    kernels: of kvjax that take part, of those available.
    together: buffers that one call reads, so that attention is timed and not
      what a call costs; a program is as long.
    calls: of those, queued before one is waited for.
    both: `mosaic_gpu` takes part in every form, too.
  """

  repeats: int
  rotate: int
  kernels: Sequence[str] = KERNELS
  together: int = 1
  calls: int = 1
  both: bool = False

  @classmethod
  def of(cls, config: Any) -> 'Pace':
    """Returns that of an experiment's config."""
    names = [field.name for field in dataclasses.fields(cls)]
    return cls(**{name: config[name] for name in names if name in config})


def measure(case: Case, pace: Pace, *, alone: bool = False) -> dict[str, Any]:
  """Returns results by name; who could not take part says why.

  Beside each time stands how many bytes it `rotated` over.

  Args:
    case: what is asked.
    pace: how it is timed.
    alone: without peers.
  """
  copies = max(1, -(-pace.rotate // case.bytes))
  whole = dataclasses.replace(case, filled=case.slots)
  copies = min(copies, max(2, MOST // whole.bytes))
  turns = -(-copies // pace.together)
  copies = -(-copies // turns) * turns  # calls of as many buffers each
  clock.give_back()
  drawn = draw(case, 0)
  given = case, drawn, copies, reference(case, drawn), pace
  entries = dict(_ours(*given)) | ({} if alone else dict(_theirs(*given)))
  del drawn, given
  runners, skipped = clock.enter(entries)
  timed = clock.race(runners, pace.repeats * min(turns, 3))
  rotated = {'rotated': copies * case.bytes}
  return {name: row | rotated for name, row in timed.items()} | skipped


def copied(tree: Any, count: int) -> list[Any]:
  """Returns pytrees of the same numbers, each in memory of its own.

  What a read costs depends on where numbers lie, not on what they are, and
  gigabytes of them take longer to draw than to read.
  """
  apart = functools.partial(jax.tree.map, lambda x: jnp.array(x, copy=True))
  return [tree, *(apart(tree) for _ in range(count - 1))]


def draw(case: Case, seed: int) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Returns normal queries `[B, K, G, 1, H]`, keys and values, float32."""
  lead = (case.batch, case.heads)
  shapes = (case.groups, 1), (case.slots,), (case.slots,)
  q, k, v = _last(seed, *(lead + shape + (case.width,) for shape in shapes))
  return q, k, v


# Cases that follow each other ask for the same: other lengths, other dtypes.
@functools.lru_cache(maxsize=1)
def _last(seed: int, *shapes: tuple[int, ...]) -> list[jax.Array]:
  return normal(seed, *shapes)


def normal(seed: int, *shapes: tuple[int, ...]) -> list[jax.Array]:
  """Returns normal float32 arrays; gigabytes are drawn where they will lie."""
  if jax.default_backend() == 'cpu':
    rng = np.random.default_rng(seed)
    return [
      jnp.asarray(rng.standard_normal(shape, dtype=np.float32))
      for shape in shapes
    ]
  keys = jax.random.split(jax.random.key(seed), len(shapes))
  return list(map(jax.random.normal, keys, shapes))


def reference(case: Case, drawn: Any) -> np.ndarray:
  """Returns the first row's output in float64."""
  q, k, v = (np.asarray(x[0], np.float64) for x in drawn)
  scores = np.einsum('kgth,ksh->kgts', q, k[:, : case.filled])
  scores = np.exp(scores * case.width**-0.5)
  weights = scores / scores.sum(-1, keepdims=True)
  return np.einsum('kgts,ksh->kgth', weights, v[:, : case.filled])


def stores(
  case: Case, drawn: Sequence[Any]
) -> tuple[Codec, list[dict[str, Any]]]:
  """Returns the codec of a case, and its keys and values as it stores them."""
  narrow = case.dtype == 'int8'
  codec: Codec = Int8() if narrow else Plain()
  dtype = jnp.float32 if narrow else case.dtype
  encode = jax.jit(lambda x: codec.encode(x, dtype))
  return codec, [{'key': encode(k), 'value': encode(v)} for _, k, v in drawn]


def positions(case: Case) -> tuple[jax.Array, jax.Array]:
  """Returns int32 `[B, 1]` of the queries and `[B, 1, S]` of the slots."""
  slots = np.arange(case.slots)
  held = np.where(slots < case.filled, slots, -1).astype(np.int32)
  held = jnp.broadcast_to(jnp.asarray(held), (case.batch, 1, case.slots))
  return jnp.full((case.batch, 1), case.filled - 1, jnp.int32), held


def _ours(
  case: Case, drawn: Any, copies: int, want: np.ndarray, pace: Pace
) -> Iterator[tuple[str, Entry]]:
  codec, (encoded,) = stores(case, [drawn])
  parts = _parts(copied(encoded, copies), pace)
  last, held = positions(case)
  for kernel, reason in available().items():
    unserved = kernel == 'mosaic_gpu' and case.dtype not in DTYPES
    if reason or unserved or kernel not in pace.kernels:
      continue
    for form in _forms(kernel, pace):
      run = functools.partial(
        _attend,
        last=last,
        held=held,
        codec=codec,
        kernel=forms.kernel_of(kernel, form),
      )
      calls = [steady(run, drawn[0], tuple(part)) for part in parts]
      yield (
        forms.named(kernel, form),
        functools.partial(
          _runner, case, want, calls, kernel, pace, len(parts[0])
        ),
      )


def _forms(kernel: str, pace: Pace) -> tuple[str, ...]:
  """Returns forms of a kernel that take part; '' for the library's own."""
  if kernel != 'mosaic_gpu' or not pace.both:
    return ('',)
  return '', *forms.FORMS


def _theirs(
  case: Case, drawn: Any, copies: int, want: np.ndarray, pace: Pace
) -> Iterator[tuple[str, Entry]]:
  if case.dtype == 'int8':
    return

  def narrow(x):
    return x[:, :, : case.filled].astype(case.dtype)

  query, key, value = drawn
  given = query.astype(case.dtype), narrow(key), narrow(value)
  parts = _parts(copied(given, copies), pace)
  for peer in attention_peers.here():

    def entry(peer=peer):
      calls = [peer.make(part) for part in parts]
      return _runner(case, want, calls, '', pace, len(parts[0]))

    yield peer.name, entry


def _parts(each: Sequence[Any], pace: Pace) -> list[list[Any]]:
  """Returns what each call reads."""
  count = -(-len(each) // -(-len(each) // pace.together))
  starts = range(0, len(each), count)
  return [list(each[start : start + count]) for start in starts]


def _runner(
  case: Case,
  want: np.ndarray,
  calls: list[clock.Call],
  kernel: str,
  pace: Pace,
  each: int,
) -> Runner:
  """Returns a runner that takes the calls in turn; the first is checked.

  Args:
    case: what is asked.
    want: the first row's output.
    calls: that attend to other caches each.
    kernel: of kvjax that attends; '' for a peer.
    pace: how it is timed.
    each: caches of a call.
  """
  found = np.asarray(peers.host(calls[0]()[0][:1]), np.float32)[0]
  error = clock.difference(found, want)
  ready = [clock.queued(call, pace.calls, peers.finished) for call in calls]
  turn = itertools.cycle(ready)
  return Runner(
    lambda: next(turn)(),
    case.bytes,
    kernel,
    error,
    TOLERANCE[case.dtype],
    pace.calls * each,
  )


def steady(
  run: Callable[..., list[jax.Array]], query: jax.Array, part: Sequence[Any]
) -> clock.Call:
  """Returns a call whose results lie where those of the call before did.

  XLA records what a program launches on a GPU as a graph, and records it anew
  when an address has changed: a loop that decodes donates what it replaces,
  and peers are replayed as graphs.

  Args:
    run: takes queries, `part` and the results of the last call, which are
      donated; returns arrays like the queries, one for each of `part`.
    query: of the first of them.
    part: what is read.
  """
  held = [[jnp.zeros_like(query) for _ in part]]

  def call():
    held[0] = run(query, part, held[0])
    return held[0]

  return call


@functools.partial(
  jax.jit,
  static_argnames=('codec', 'kernel'),
  donate_argnames='old',
  keep_unused=True,
)
def _attend(q, stored, old, *, last, held, codec, kernel):
  """Returns attention to each of several caches, one after the other.

  Each asks with the last one's answer, so that none begins before.
  """
  del old
  outs = []
  for streams in stored:
    q = _attend_one(q, streams, last, held, codec=codec, kernel=kernel)
    outs.append(q)
  return outs


# Of its own, so that a program of many lowers it once.
@functools.partial(jax.jit, static_argnames=('codec', 'kernel'))
def _attend_one(q, streams, last, held, *, codec, kernel):
  names = ('key', 'value')
  view = contiguous_view(streams, held, jnp.max(held) + 1, ordered=True).map(
    lambda x: {n: codec.decode(x[n]) for n in names},
    lambda x: {n: codec.stored(x[n]) for n in names},
  )
  rule = Scoring(q.shape[-1] ** -0.5)
  return attend_view({'key': q}, last, view, rule, kernel=kernel)[0]
