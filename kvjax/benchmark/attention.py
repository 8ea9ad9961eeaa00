"""Attention alone: one token a row against a filled cache."""

import dataclasses
import functools
import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kvjax.benchmark import clock, peers
from kvjax.benchmark.clock import Runner
from kvjax.caches.codecs import Codec, Int8, Plain
from kvjax.caches.view import contiguous_view
from kvjax.kernels import KERNELS, Scoring, attend_view, available
from kvjax.kernels.mosaic_gpu import DTYPES

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
    one = {'float32': 4 * self.width, 'bfloat16': 2 * self.width}
    slot = one.get(self.dtype, self.width + 4)
    return 2 * self.batch * self.heads * self.filled * slot


def measure(
    case: Case,
    repeats: int,
    rotate: int,
    kernels: Sequence[str] = KERNELS,
    together: bool = False,
) -> dict[str, Any]:
  """Returns results by name; buffers rotate through `rotate` bytes.

  Args:
    case: what is asked.
    repeats: times that each buffer is read.
    rotate: bytes of all buffers, beyond the last cache of the machine.
    kernels: that take part, of those available.
    together: read all buffers in one call (accelerators).
  """
  copies = max(1, -(-rotate // case.bytes))
  drawn = [_draw(case, seed) for seed in range(copies)]
  runners = dict(_ours(case, drawn, kernels, together))
  runners |= dict(_theirs(case, drawn, together))
  return clock.race(runners, repeats * (1 if together else copies))


def _draw(case: Case, seed: int) -> tuple[jax.Array, jax.Array, jax.Array]:
  rng = np.random.default_rng(seed)
  lead = (case.batch, case.heads)
  shapes = (case.groups, 1), (case.slots,), (case.slots,)
  q, k, v = (
      jnp.asarray(
          rng.standard_normal(lead + shape + (case.width,), dtype=np.float32)
      )
      for shape in shapes
  )
  return q, k, v


def _reference(case: Case, drawn: Any) -> np.ndarray:
  """Returns the first row's output in float64."""
  q, k, v = (np.asarray(x[0], np.float64) for x in drawn)
  scores = np.einsum('kgth,ksh->kgts', q, k[:, : case.filled])
  scores = np.exp(scores * case.width**-0.5)
  weights = scores / scores.sum(-1, keepdims=True)
  return np.einsum('kgts,ksh->kgth', weights, v[:, : case.filled])


def _ours(
    case: Case, drawn: list[Any], kernels: Sequence[str], together: bool
) -> Iterator[tuple[str, Runner]]:
  narrow = case.dtype == 'int8'
  codec: Codec = Int8() if narrow else Plain()
  dtype = jnp.float32 if narrow else case.dtype
  encode = jax.jit(lambda x: codec.encode(x, dtype))
  stored = [{'key': encode(k), 'value': encode(v)} for _, k, v in drawn]
  slots = np.arange(case.slots)
  held = np.where(slots < case.filled, slots, -1).astype(np.int32)
  held = jnp.broadcast_to(jnp.asarray(held), (case.batch, 1, case.slots))
  last = jnp.full((case.batch, 1), case.filled - 1, jnp.int32)
  q = drawn[0][0]
  for kernel, reason in available().items():
    unserved = kernel == 'mosaic_gpu' and case.dtype not in DTYPES
    if reason or unserved or kernel not in kernels:
      continue
    run = functools.partial(
        _attend, last=last, held=held, codec=codec, kernel=kernel
    )
    calls = [functools.partial(run, q, (x,)) for x in stored]
    if together:
      calls = [functools.partial(run, q, tuple(stored))]
    ready = [lambda call=call: jax.block_until_ready(call()) for call in calls]
    yield f'kvjax {kernel}', _checked(case, drawn, ready, kernel, together)


def _theirs(
    case: Case, drawn: list[Any], together: bool
) -> Iterator[tuple[str, Runner]]:
  if case.dtype == 'int8':
    return
  given: list[Any] = [
      (q, *(x[:, :, : case.filled].astype(case.dtype) for x in (k, v)))
      for q, k, v in drawn
  ]
  parts = [given] if together else [[each] for each in given]
  calls = [peers.jax_nn_attention(part) for part in parts]
  ready = [lambda call=call: peers.finished(call()) for call in calls]
  yield 'jax.nn', _checked(case, drawn, ready, '', together)
  if 'torch' not in peers.absent():
    calls = [
        [peers.torch_attention(q, k, v, case.dtype) for q, k, v in part]
        for part in parts
    ]
    ready = [
        lambda part=part: peers.finished([call() for call in part])
        for part in calls
    ]
    yield 'torch sdpa', _checked(case, drawn, ready, '', together)


def _checked(
    case: Case, drawn: Any, calls: list[clock.Call], kernel: str, together: bool
) -> Runner:
  """Returns a runner that takes the calls in turn; the first is checked."""
  found = np.asarray(peers.host(calls[0]()[0]), np.float32)[0]
  error = clock.difference(found, _reference(case, drawn[0]))
  turn = itertools.cycle(calls)
  return Runner(
      lambda: next(turn)(),
      case.bytes,
      kernel,
      error,
      TOLERANCE[case.dtype],
      len(drawn) if together else 1,
  )


@functools.partial(jax.jit, static_argnames=('codec', 'kernel'))
def _attend(q, stored, *, last, held, codec, kernel):
  """Returns attention to each of several caches, one after the other."""
  names = ('key', 'value')
  filled = jnp.max(held) + 1
  rule = Scoring(q.shape[-1] ** -0.5)
  outs = []
  for streams in stored:
    view = contiguous_view(streams, held, filled, ordered=True).map(
        lambda x: {n: codec.decode(x[n]) for n in names},
        lambda x: {n: codec.stored(x[n]) for n in names},
    )
    outs.append(attend_view({'key': q}, last, view, rule, kernel=kernel)[0])
  return outs
