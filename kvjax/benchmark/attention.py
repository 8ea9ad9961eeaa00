"""Attention alone: one token a row against a filled cache."""

import dataclasses
import functools
import itertools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kvjax.benchmark import clock, peers
from kvjax.benchmark.clock import Runner
from kvjax.caches.codecs import Codec, Int8, Plain
from kvjax.caches.view import contiguous_view
from kvjax.kernels import Scoring, attend_view, available

TOLERANCE = {'float32': 1e-4, 'bfloat16': 3e-2, 'int8': 3e-2}


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


def measure(case: Case, repeats: int, rotate: int) -> dict[str, Any]:
  """Returns results by name; buffers rotate through `rotate` bytes."""
  copies = max(1, -(-rotate // case.bytes))
  drawn = [_draw(case, seed) for seed in range(copies)]
  runners = dict(_ours(case, drawn)) | dict(_theirs(case, drawn))
  return clock.race(runners, repeats * copies)


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


def _ours(case: Case, drawn: list[Any]) -> Iterator[tuple[str, Runner]]:
  narrow = case.dtype == 'int8'
  codec: Codec = Int8() if narrow else Plain()
  dtype = jnp.float32 if narrow else case.dtype
  encode = jax.jit(lambda x: codec.encode(x, dtype))
  stored = [{'key': encode(k), 'value': encode(v)} for _, k, v in drawn]
  slots = np.arange(case.slots)
  held = np.where(slots < case.filled, slots, -1).astype(np.int32)
  held = jnp.broadcast_to(jnp.asarray(held), (case.batch, 1, case.slots))
  last = jnp.full((case.batch, 1), case.filled - 1, jnp.int32)
  for kernel, reason in available().items():
    if reason:
      continue
    run = functools.partial(_attend, codec=codec, kernel=kernel)
    turn = itertools.cycle(stored)
    q = drawn[0][0]

    def call(run=run, turn=turn, q=q):
      return jax.block_until_ready(run(q, next(turn), last, held))

    yield f'kvjax {kernel}', _checked(case, drawn[0], call, kernel)


def _theirs(case: Case, drawn: list[Any]) -> Iterator[tuple[str, Runner]]:
  if case.dtype == 'int8':
    return
  made: dict[str, list[Any]] = {'jax.nn': []}
  if 'torch' not in peers.absent():
    made['torch sdpa'] = []
  for q, k, v in drawn:
    k, v = (x[:, :, : case.filled] for x in (k, v))
    for name, calls in made.items():
      if name == 'jax.nn':
        k, v = (x.astype(case.dtype) for x in (k, v))
        calls.append(peers.jax_nn_attention(q, k, v))
      else:
        calls.append(peers.torch_attention(q, k, v, case.dtype))
  for name, calls in made.items():
    turn = itertools.cycle(calls)
    yield name, _checked(case, drawn[0], lambda turn=turn: next(turn)(), '')


def _checked(case: Case, drawn: Any, call: clock.Call, kernel: str) -> Runner:
  found = np.asarray(call(), np.float32)[0]
  error = clock.difference(found, _reference(case, drawn))
  return Runner(call, case.bytes, kernel, error, TOLERANCE[case.dtype])


@functools.partial(jax.jit, static_argnames=('codec', 'kernel'))
def _attend(q, stored, last, held, *, codec, kernel):
  names = ('key', 'value')
  filled = jnp.max(held) + 1
  view = contiguous_view(stored, held, filled, ordered=True).map(
    lambda x: {n: codec.decode(x[n]) for n in names},
    lambda x: {n: codec.stored(x[n]) for n in names},
  )
  rule = Scoring(q.shape[-1] ** -0.5)
  return attend_view({'key': q}, last, view, rule, kernel=kernel)[0]
