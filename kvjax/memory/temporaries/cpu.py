"""What is alive at each moment of a layer on a CPU, as the call is compiled.

Each moment is a list of terms that are alive together; what one leaves, the
next overwrites. They were read off the buffers that XLA:CPU assigns
(`kvjax.memory.buffers`), moment by moment; accelerators have a file of their
own.
"""

import dataclasses
from collections.abc import Iterator
from typing import Any

from kvjax.attention.bias import RelativeBias
from kvjax.kernels.blockwise import SPLIT
from kvjax.memory.parts.lines import Dim, Term
from kvjax.memory.temporaries.attention_call import FLOAT, QUERY, Call, Reading
from kvjax.models.config import Layer

FEW = 8  # rows of queries a kv head up to which values are read in pieces


def layer_moments(
  layer: Layer, reading: Reading, source: Reading | None, width: int
) -> Iterator[tuple[str, list[Term]]]:
  """Yields the moments of one layer: projections, attention, MLP.

  Args:
    layer: of the model.
    reading: its attention.
    source: its attention to a source; None for none.
    width: D of the model.
  """
  call = reading.call
  hidden = Term('hidden', (*call.lead, Dim('D', width)), call.size)
  both = Term('hidden', hidden.dims, call.size, 2)
  query = Term(QUERY, (*call.lead, *reading.query), call.size)
  before = Term(
    'projected, before it is turned to be the query', query.dims, call.size
  )
  yield 'project', [hidden, query, before, *reading.new()]
  # A parallel layer's MLP reads what its attention read.
  kept = both if layer.parallel else hidden
  for old, slots in enumerate(reading.segments):
    for name, terms in _attend(reading, slots, stored=not old):
      yield name, [kept, *terms]
  if source is not None:
    asked = Term("source's query (one layer, then dead)", query.dims, call.size)
    for name, terms in _attend(source, source.segments[0], stored=True):
      yield f'cross {name}', [both, asked, *terms]
  run = _experts if hasattr(layer.mlp, 'num_experts') else _mlp
  for name, terms in run(layer.mlp, call, width):
    yield name, [hidden if name == 'mlp' else both, *terms]


def unadded(layer: Layer, call: Call, width: int) -> list[Term]:
  """Returns nothing: here halves of a layer are added as they are made."""
  del layer, call, width
  return []


def carried(reading: Reading) -> Iterator[Term]:
  """Yields what the loops of a layer's attention carry from block to block."""
  call, out = reading.call, reading.value
  if call.blocks > 1:
    times = len(reading.segments)
    yield Term('outputs, by blocks', (*call.padded, *out), FLOAT, times)
  else:
    times = sum(map(reading.loops, reading.segments))
    if times:
      yield Term('output so far', (*call.asked, *out), FLOAT, times)
  if reading.memory.kind.observes:
    heads = reading.heads if reading.expands else reading.stored_heads
    slots = Dim('S', reading.segments[0], 'slots')
    yield Term('weights received', (call.rows, heads, slots), FLOAT)


def _attend(
  reading: Reading, slots: int, stored: bool
) -> Iterator[tuple[str, list[Term]]]:
  """Yields the moments of one pass over one block of slots."""
  call, loops = reading.call, reading.loops(slots)
  scored = *call.asked, reading.heads, Dim('block', reading.block(slots))
  scores = Term('scores of one block', scored, FLOAT)
  out = Term('output of one block', (*call.asked, *reading.value), FLOAT)
  query = Term(QUERY, (*call.asked, *reading.query), call.size)
  asked, beside = ([], [])
  if call.blocks > 1:
    asked.append(_stacked(reading))
    if loops:
      beside.append(Term('output so far', out.dims, FLOAT))
  if reading.fresh:
    beside += reading.new()
    if call.blocks == 1 and not all(map(reading.loops, reading.segments)):
      dims = *call.lead, *reading.value
      beside.append(Term('output of old slots', dims, FLOAT))
  keys, values = list(reading.keys(slots, stored)), reading.values(slots)
  if isinstance(reading.variant.bias, RelativeBias):
    beside.append(dataclasses.replace(scores, name='bias of one block'))
  products = 2 if reading.absorb else 1
  # Pages are gathered for the keys, and in a loop only then for the values,
  # unless both are decoded of the same.
  late = loops and reading.paged and reading.plain and not reading.absorb
  early = [] if late else [values]
  # New streams lie there as they will be written, and as they are read until
  # their own product is made.
  read = list(reading.new()) if reading.fresh else []
  first = [*read, *keys, *early, _times(scores, products)]
  asked.append(query)
  yield 'product', [*asked, *beside, *first]
  if not loops:
    asked.pop()
  if stored or loops:
    beside += read
  yield 'softmax', [*asked, *beside, values, _times(scores, products + 1)]
  count = pieces(reading, slots)
  weights = _times(scores, 3 if count > 1 else 1)
  yield 'weigh', [*asked, *beside, values, weights, _times(out, count)]


def pieces(reading: Reading, slots: int) -> int:
  """Returns in how many products the values of a block are weighed."""
  heads = reading.heads if reading.expands else reading.stored_heads
  rows = reading.call.tokens * reading.heads.size // heads.size
  block = reading.block(slots)
  split = rows <= FEW and block % SPLIT == 0 and block > SPLIT
  return block // SPLIT if split else 1


def _stacked(reading: Reading) -> Term:
  dims = *reading.call.padded, *reading.query
  return Term('queries, by blocks', dims, FLOAT)


def swept(layer: Layer, call: Call, width: int) -> Iterator[Term]:
  """Yields what a loop over experts adds up in."""
  if hasattr(layer.mlp, 'num_experts'):
    yield Term('output of experts', (*call.lead, Dim('D', width)), FLOAT)


def _mlp(mlp: Any, call: Call, width: int) -> Iterator[tuple[str, list[Term]]]:
  """Yields gate and up; then these and their product, or up and activation."""
  del width
  gated = getattr(mlp, 'gated', True)
  dims = *call.lead, Dim('F', mlp.hidden, 'hidden')
  for name, times in (('mlp in', 1 + gated), ('mlp', 2 + gated)):
    yield name, [Term('mlp', dims, call.size, times)]


def _experts(
  mlp: Any, call: Call, width: int
) -> Iterator[tuple[str, list[Term]]]:
  """Yields a turn of the loop: an expert's weights, sliced out, and its units.

  Few tokens visit their own experts one by one; many are swept by all.
  """
  hidden, wide = Dim('F', mlp.hidden, 'hidden'), Dim('D', width)
  few = call.batch * call.tokens * mlp.top <= mlp.num_experts
  lead = (Dim('row', 1),) if few else call.lead
  summed = Term('output of experts', (*call.lead, wide), FLOAT)
  gates = Dim('experts', mlp.num_experts, 'experts')
  yield (
    'mlp experts',
    [
      summed,
      Term("an expert's weights", (hidden, wide), call.size, 3),
      Term('mlp', (*lead, hidden), call.size),
      Term('output of one expert', (*lead, wide), FLOAT),
      *([] if few else [Term('gates', (*call.lead, gates), FLOAT)]),
    ],
  )
  if mlp.shared is not None:
    for name, terms in _mlp(mlp.shared, call, width):
      yield name, [summed, *terms]


def _times(term: Term, times: int) -> Term:
  return Term(term.name, term.dims, term.itemsize, times)
