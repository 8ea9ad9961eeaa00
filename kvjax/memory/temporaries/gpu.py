"""What is alive at each moment of a layer on an accelerator.

Attention reads all slots at once there, a block of queries at a time, and
products come out in float32: what is made of one is made beside it. Read off
the buffers that XLA assigns for an H200 (`make aot-h200`), moment by moment;
TPUs were not asked.
"""

import dataclasses
from collections.abc import Iterator
from typing import Any

import jax

from kvjax.attention.bias import RelativeBias
from kvjax.memory.parts.lines import Dim, Term
from kvjax.memory.temporaries.attention_call import FLOAT, QUERY, Call, Reading
from kvjax.memory.temporaries.cpu import pieces
from kvjax.models.config import Layer

APART = 'mlp, taken apart into two products again (XLA:GPU)'
JOINED = 'weights of two products of the same rows, joined (XLA:GPU)'
# xla_gpu_dot_merger_threshold_mb, 64 in JAX 0.11.2; 0.10.2 joins alike.
MERGED = 64 << 20
FRAGMENT = 64  # rows of a weight that it can join without a copy
PRODUCT = 'product of a half of a layer, not yet added'


def layer_moments(
  layer: Layer, reading: Reading, source: Reading | None, width: int
) -> Iterator[tuple[str, list[Term]]]:
  """Yields the moments of one layer, given as to `moments.layer_moments`."""
  call = reading.call
  hidden = Term('hidden', (*call.lead, Dim('D', width)), call.size)
  # Added with the MLP's product, and with all that is added after.
  product = Term(PRODUCT, hidden.dims, FLOAT)
  query = Term(QUERY, (*call.lead, *reading.query), call.size)
  before = Term(
    'projected, before it is turned to be the query', query.dims, FLOAT
  )
  yield 'project', [hidden, query, before, *reading.new()]
  # A parallel layer's MLP reads what its attention read.
  kept = dataclasses.replace(hidden, times=2) if layer.parallel else hidden
  if call.kernel == 'mosaic_gpu':
    yield 'kernel', [kept, *reading.partials()]
  else:
    for old, slots in enumerate(reading.segments):
      for name, terms in _attend(reading, slots, stored=not old):
        yield name, [kept, *terms]
  if source is not None:
    asked = Term("source's query (one layer, then dead)", query.dims, call.size)
    for name, terms in _attend(source, source.segments[0], stored=True):
      yield f'cross {name}', [hidden, product, asked, *terms]
  run = _experts if hasattr(layer.mlp, 'num_experts') else _mlp
  for name, terms in run(layer.mlp, call, width):
    yield name, [hidden, product, *terms]


def unadded(layer: Layer, call: Call, width: int) -> list[Term]:
  """Returns what the next layer's attention finds made but not yet added."""
  if layer.norms == 'pre' and not hasattr(layer.mlp, 'num_experts'):
    return []
  return [Term(PRODUCT, (*call.lead, Dim('D', width)), FLOAT)]


def _attend(
  reading: Reading, slots: int, stored: bool
) -> Iterator[tuple[str, list[Term]]]:
  """Yields the moments of one pass over all slots."""
  call, seen = reading.call, Dim('block', slots)
  dims = *call.asked, reading.heads, seen
  scores = Term('scores of one block', dims, FLOAT)
  mask = Term('what is seen of one block', (*call.asked, seen), 1)
  waiting, asked = _queries(reading)
  biased = isinstance(reading.variant.bias, RelativeBias)
  bias = [dataclasses.replace(scores, name='bias of one block')] * biased
  beside = [*waiting, *bias]
  products = dataclasses.replace(scores, times=2 if reading.absorb else 1)
  values = [] if _one_row(reading) else [reading.values(slots)]
  # Pages of keys and of values are gathered together.
  early = values if _gathers(reading) and stored else []
  keys = _keys(reading, slots, stored)
  yield 'product', [*asked, *beside, mask, *keys, *early, products]
  size = reading.values(slots).itemsize
  weights = Term('weights of one block', dims, size)
  # As wide as scores, they lie where those lay.
  late = [] if _late(reading) else values
  made = [scores, weights, *late] if size < FLOAT else [scores]
  yield 'softmax', [*beside, mask, *made]
  count = pieces(reading, slots)
  out = Term('output of one block', (*call.asked, *reading.value), FLOAT, count)
  # Expanded ones twice: as a product, and in the order they are read.
  read = values * (1 + reading.expands)
  yield 'weigh', [*beside, weights, *read, out]


def _queries(reading: Reading) -> tuple[list[Term], list[Term]]:
  """Returns what waits beside a pass, and the queries of the pass itself."""
  call = reading.call
  query = Term(QUERY, (*call.asked, *reading.query), call.size)
  if call.blocks > 1:
    dims = *call.padded, *reading.query
    return [Term('queries, by blocks', dims, call.size)], [query]
  if not reading.fresh:
    return [query], []
  out = Term('output of old slots', (*call.lead, *reading.value), FLOAT)
  return [query, out], []


def _late(reading: Reading) -> bool:
  """Whether values are made when scores are gone; the scheduler decides it."""
  old = jax.__version_info__ < (0, 11)
  loops = reading.call.blocks > 1 and reading.call.batch > 1
  return loops and not _gathers(reading) and (old or not reading.expands)


def _gathers(reading: Reading) -> bool:
  return reading.paged and not reading.expands


def _keys(reading: Reading, slots: int, stored: bool) -> list[Term]:
  """Returns keys that have to be made before the product."""
  if _one_row(reading) and not (reading.paged and stored):
    return []
  return list(reading.keys(slots, stored))


def _one_row(reading: Reading) -> bool:
  """Whether XLA:GPU decodes, selects and multiplies in one pass, not two."""
  heads = getattr(reading.variant, 'num_kv_heads', 1)
  return reading.heads.size * reading.call.tokens == heads


def _mlp(mlp: Any, call: Call, width: int) -> Iterator[tuple[str, list[Term]]]:
  """Yields gate and up of what is read; then these and what they make."""
  dims = *call.lead, Dim('F', mlp.hidden, 'hidden')
  gated = getattr(mlp, 'gated', True)
  wide = Term('mlp, as products', dims, FLOAT, 1 + gated)
  read = Term('hidden', (*call.lead, Dim('D', width)), call.size)
  joined = Term(JOINED, (Dim('F', mlp.hidden), Dim('D', width)), call.size, 2)
  merged = gated and _small(joined, read, wide)
  copied = [joined] if merged and mlp.hidden % FRAGMENT else []
  yield 'mlp in', [read, wide, *copied]
  if merged:
    yield 'mlp apart', [wide, dataclasses.replace(wide, name=APART)]
  # As wide as a product, what is made lies where that lay.
  if call.size < FLOAT:
    yield 'mlp', [wide, Term('mlp', dims, call.size)]


def _small(weights: Term, read: Term, products: Term) -> bool:
  """Whether two products of the same rows are made as one."""
  return (weights.bytes() + products.bytes()) // 2 + read.bytes() <= MERGED


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
  experts = Dim('experts', mlp.num_experts, 'experts')
  gates = [] if few else [Term('gates', (*call.lead, experts), FLOAT)]
  beside = [summed, Term('hidden', (*call.lead, wide), call.size), *gates]
  # Three matrices are sliced out at once, and each is read by one product.
  for moment, matrices, products in (('in', 3, 1), ('', 2, 2), ('made', 1, 2)):
    made = moment == 'made' and call.size < FLOAT
    yield (
      f'mlp experts {moment}'.strip(),
      [
        *beside,
        Term("an expert's weights", (hidden, wide), call.size, matrices),
        Term('mlp, as products', (*lead, hidden), FLOAT, products),
        *[Term('mlp', (*lead, hidden), call.size)] * made,
      ],
    )
  if mlp.shared is not None:
    for name, terms in _mlp(mlp.shared, call, width):
      yield name, [summed, *terms]
