"""What one call needs beside parameters and cache: its moments, the fullest.

A call of T tokens goes through its layers one by one; within a layer it
projects, attends block by block and runs the MLP, and at the end it makes
logits. What one moment leaves, the next overwrites: the peak is that of the
fullest moment, not the sum of all. The logits have memory of their own from
the beginning, as results have, and one array of the fullest moment lies there
if it fits.

The moments of a CPU (`moments`) are those of the block loop, those of an
accelerator (`accelerator`) of attention to all slots at once.
"""

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np

from kvjax.caches.dense import Dense
from kvjax.context import target
from kvjax.decoding.cache import Cache
from kvjax.decoding.layer import LayerStore
from kvjax.memory.parts.lines import Dim, Line, Term
from kvjax.memory.parts.sharding import WHOLE, Shards
from kvjax.memory.temporaries import cpu, gpu
from kvjax.memory.temporaries.attention_call import FLOAT, Call, Reading
from kvjax.memory.temporaries.cpu import carried, swept
from kvjax.memory.temporaries.hoisted import (
  TWICE,
  held,
  starting,
  unwritten,
  waiting,
  widened,
)
from kvjax.models.config import Layer, ModelConfig
from kvjax.streams.codecs import Plain

LOGITS = 'logits, the result'


def step_lines(
  config: ModelConfig,
  spec: Cache,
  batch: int,
  tokens: int,
  dtype: Any,
  shards: Shards = WHOLE,
  backend: str | None = None,
  kernel: str | None = None,
) -> Iterator[Line]:
  """Yields the lines of the fullest moment, then what lives at another.

  Args:
    config: the model.
    spec: its cache, as specified.
    batch: B rows.
    tokens: T tokens a row.
    dtype: of the parameters.
    shards: of a mesh.
    backend: 'cpu', 'gpu' or 'tpu'; None for the default one.
    kernel: that attends, as in `plan`.
  """
  result = _result(config, batch)
  yield dataclasses.replace(result, name=LOGITS).line('step', shards)
  found = moments(config, spec, batch, tokens, dtype, backend, kernel)
  parted = {name: _beside(found[name], result, shards) for name in found}
  fullest = max(parted, key=lambda name: _size(parted[name][0], shards))
  alive, lodged = parted[fullest]
  for term in alive:
    yield term.line('step', shards)
  for term in lodged:
    yield term.line('in logits', shards)
  names = {term.name for term in (*alive, *lodged)}
  for term in [term for terms in found.values() for term in terms]:
    if term.name not in names:
      names.add(term.name)
      yield term.line('another moment', shards)


def moments(
  config: ModelConfig,
  spec: Cache,
  batch: int,
  tokens: int,
  dtype: Any,
  backend: str | None = None,
  kernel: str | None = None,
) -> dict[str, list[Term]]:
  """Returns what is alive at each moment of a call, of its fullest layer."""
  # A kind that evicts takes a long call piece by piece.
  piece = min(tokens, spec.layout.chunk or tokens)
  size = activation_bytes(dtype)
  call = Call(batch, piece, size, backend or target(), kernel)
  readings = [
    Reading(layer.attention, _memory(config, spec, index), call)
    for index, layer in enumerate(config.layers)
  ]
  sources = [_source(x, spec, i, call) for i, x in enumerate(config.layers)]
  stores = list(zip(readings, spec.stores, strict=True))
  width = Dim('D', config.width)
  hidden = Term('hidden', (*call.lead, width), size)
  last = Term('hidden', (call.rows, width), size)
  ahead = [
    [*waiting(*pair), *_zeros(source)]
    for pair, source in zip(stores, sources, strict=True)
  ]
  sums = [list(swept(layer, call, config.width)) for layer in config.layers]
  late = [list(unwritten(reading)) for reading in readings]
  always = _throughout(config, dtype, call, tokens)
  first = starting([pair for pair in stores if pair[1]])
  run = gpu if _accelerated(call) else cpu
  found = {
    'logits': [_result(config, batch), last],
    'start': [hidden, *always, *_sum(ahead), *_made(call, sums), *first],
  }
  for index, layer in enumerate(config.layers):
    rest = [*always, *_sum([*ahead[index + 1 :], *late[: index + 1]])]
    own = list(held(*stores[index]))
    parts = readings[index], sources[index]
    for moment, terms in run.layer_moments(layer, *parts, config.width):
      more = _beside_moment(moment, own, parts[1])
      more += _made(call, sums, index, moment)
      if index and not moment.startswith('mlp'):
        more += run.unadded(config.layers[index - 1], call, config.width)
      terms = _merged([*terms, *more, *rest])
      if _size(terms) > _size(found.get(moment, [])):
        found[moment] = terms
  return {name: _merged(terms) for name, terms in found.items()}


def _throughout(
  config: ModelConfig, dtype: Any, call: Call, tokens: int
) -> list[Term]:
  """Returns what is alive at every moment."""
  found = list(widened(config, dtype, call.backend))
  if call.tokens < tokens:
    whole = Dim('T', -(-tokens // call.tokens) * call.tokens)
    dims = call.rows, whole, Dim('D', config.width)
    found.insert(0, Term('hidden of every piece', dims, call.size))
  return found


def _accelerated(call: Call) -> bool:
  return call.backend != 'cpu' or call.kernel == 'mosaic_gpu'


def activation_bytes(dtype: Any) -> int:
  """Returns bytes of an activation beside parameters of a dtype."""
  # Eight bits are how parameters may be stored, not computed with.
  return max(np.dtype(dtype).itemsize, 2)


def _memory(config: ModelConfig, spec: Cache, index: int) -> LayerStore:
  memory = spec.layout.stores[config.owner(index)]
  assert memory is not None
  return memory


def _source(
  layer: Layer, spec: Cache, index: int, call: Call
) -> Reading | None:
  """Returns how a layer reads its source, if there is one."""
  if layer.cross is None or spec.cross is None:
    return None
  kept = spec.cross[index]
  leaf: Any = kept['key']
  codecs = tuple((name, Plain()) for name in kept)
  memory = LayerStore(Dense(slots=leaf.shape[2]), codecs, leaf.dtype)
  return Reading(layer.cross, memory, call)


def _beside_moment(
  moment: str, own: list[Term], source: Reading | None
) -> list[Term]:
  """Returns what waits in a layer beside the arrays of one of its moments."""
  if moment.startswith('cross'):
    return _zeros(source)
  if moment.startswith('mlp'):
    return []
  # What only a product reads is gone after it.
  read = TWICE if moment in ('softmax', 'weigh') else None
  return [term for term in own if term.name != read]


def _made(
  call: Call, sums: list[list[Term]], index: int = -1, moment: str = ''
) -> list[Term]:
  """Returns what later loops over experts start from, if it has been made."""
  if call.backend == 'cpu':
    return _sum(sums[index + 1 :])
  # XLA:GPU makes all of them just before the first such loop.
  first = next((i for i, terms in enumerate(sums) if terms), len(sums))
  inside = moment.startswith('mlp')
  if index < first or (index == first and not inside):
    return []
  return _sum(sums[index + inside :])


def _zeros(source: Reading | None) -> list[Term]:
  return [] if source is None else list(carried(source))


def _sum(lists: list[list[Term]]) -> list[Term]:
  return [term for terms in lists for term in terms]


def _merged(terms: list[Term]) -> list[Term]:
  """Returns terms alike as one, so many times."""
  found: dict[Term, int] = {}
  for term in terms:
    one = dataclasses.replace(term, times=1)
    found[one] = found.get(one, 0) + term.times
  return [dataclasses.replace(one, times=n) for one, n in found.items()]


def _result(config: ModelConfig, batch: int) -> Term:
  dims = Dim('B', batch, 'batch'), Dim('V', config.vocab_size, 'vocab')
  return Term('logits before they are turned', dims, FLOAT)


def _beside(
  terms: list[Term], result: Term, shards: Shards
) -> tuple[list[Term], list[Term]]:
  """Parts what needs memory of its own from what lies where logits will."""
  room = result.bytes(shards)
  ones = [dataclasses.replace(term, times=1) for term in terms]
  fit = [i for i, one in enumerate(ones) if 0 < one.bytes(shards) <= room]
  if not fit or terms[0] == result:
    return terms, []
  chosen = max(fit, key=lambda i: ones[i].bytes(shards))
  left = dataclasses.replace(terms[chosen], times=terms[chosen].times - 1)
  kept = [left if i == chosen else term for i, term in enumerate(terms)]
  return [term for term in kept if term.times], [ones[chosen]]


def _size(terms: list[Term], shards: Shards = WHOLE) -> int:
  return sum(term.bytes(shards) for term in terms)
