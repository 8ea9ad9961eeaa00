"""What one call needs beside parameters and cache: its moments, the fullest.

A call of T tokens goes through its layers one by one; within a layer it
projects, attends block by block and runs the MLP, and at the end it makes
logits. What one moment leaves, the next overwrites: the peak is that of the
fullest moment, not the sum of all. The logits have memory of their own from
the beginning, as results have, and one array of the fullest moment lies there
if it fits.

The moments are those of the block loop as XLA compiles it for a CPU. On
accelerators attention reads all slots at once, and no accelerator's compiler
has been asked yet.
"""

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np

from kvjax.caches.codecs import Plain
from kvjax.caches.spec import Leaf
from kvjax.decoding.cache import Cache
from kvjax.kernels.blockwise import BLOCK, QUERY_BLOCK
from kvjax.memory.cached import leaves
from kvjax.memory.lines import Dim, Line, Term
from kvjax.memory.shards import WHOLE, Shards
from kvjax.models.config import Layer, ModelConfig
from kvjax.target import target

FLOAT = 4  # bytes of what is accumulated in float32
LOGITS = 'logits, the result'
QUERY = 'query (one layer, then dead)'


def step_lines(
    config: ModelConfig,
    spec: Cache,
    batch: int,
    tokens: int,
    size: int,
    shards: Shards = WHOLE,
    backend: str | None = None,
) -> Iterator[Line]:
  """Yields the lines of the fullest moment, then what lives at another.

  Args:
    config: the model.
    spec: its cache, as specified.
    batch: B rows.
    tokens: T tokens a row.
    size: bytes of an activation.
    shards: of a mesh.
    backend: 'cpu', 'gpu' or 'tpu'; None for the default one.
  """
  result = _result(config, batch)
  yield dataclasses.replace(result, name=LOGITS).line('step', shards)
  found = moments(config, spec, batch, tokens, size, backend)
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
    size: int,
    backend: str | None = None,
) -> dict[str, list[Term]]:
  """Returns what is alive at each moment of a call, of its fullest layer."""
  call = _Call(batch, tokens, size, backend or target())
  hidden = Term('hidden', (*call.lead, Dim('D', config.width)), size, 2)
  found: dict[str, list[Term]] = {'logits': [_result(config, batch)]}
  copies = list(_copies(spec, call))
  for index, layer in enumerate(config.layers):
    memory = spec.layout.memories[config.owner(index)]
    assert memory is not None
    each = {
        'project': [hidden, *copies, *_project(layer, call)],
        'attend': [hidden, *copies, *_attend(layer, memory, call)],
        'mlp': [hidden, *copies, _mlp(layer, call)],
    }
    for moment, terms in each.items():
      if _size(terms) > _size(found.get(moment, [])):
        found[moment] = terms
  return found


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


@dataclasses.dataclass(frozen=True)
class _Call:
  """The sizes of one call."""

  batch: int
  tokens: int
  size: int
  backend: str

  @property
  def rows(self) -> Dim:
    return Dim('B', self.batch, 'batch')

  @property
  def lead(self) -> tuple[Dim, Dim]:
    return self.rows, Dim('T', self.tokens)

  @property
  def blocks(self) -> int:
    """Passes over the keys: tokens of a long prefill share one by blocks."""
    return -(-self.tokens // QUERY_BLOCK)

  def reads_before_writing(self, kind: Any) -> bool:
    """Whether the tokens are more than the kind may overwrite unread."""
    if kind.chunk is None or kind.book_per_layer:
      return False
    return self.tokens > kind.chunk


def _project(layer: Layer, call: _Call) -> Iterator[Term]:
  """Yields the query, and what the tokens leave behind."""
  variant: Any = layer.attention
  heads = Dim('N', variant.num_heads, 'heads')
  width = Dim('H', variant.query_width // variant.num_heads)
  yield Term(QUERY, (*call.lead, heads, width), call.size)
  yield from _new(variant, call)


def _new(variant: Any, call: _Call) -> Iterator[Term]:
  for name, stream in variant.streams().items():
    of = Dim('K', stream.heads, 'kv_heads'), Dim('H', stream.width)
    yield Term(f'new {name}', (*call.lead, *of), call.size)


def _attend(layer: Layer, memory: Any, call: _Call) -> Iterator[Term]:
  """Yields what reading one block of slots needs."""
  variant: Any = layer.attention
  fresh = call.reads_before_writing(memory.kind)
  slots = max(memory.kind.row_slots, call.tokens if fresh else 0)
  block = min(BLOCK, slots) if call.backend == 'cpu' else slots
  absorb = variant.absorbs(call.tokens)
  heads = Dim('N', variant.num_heads, 'heads')
  query = heads, Dim('H', _query_width(variant, absorb))
  out = heads, Dim('E', _value_width(variant, absorb))
  asked = call.rows, Dim('T', min(call.tokens, QUERY_BLOCK))
  if call.blocks > 1:
    padded = call.rows, Dim('T', call.blocks * QUERY_BLOCK)
    yield Term(QUERY, (*padded, *query), FLOAT)
    yield Term('outputs, by blocks', (*padded, *out), FLOAT, 2)
  if slots > block or call.tokens == 1:
    yield Term(QUERY, (*asked, *query), call.size)
    yield Term('output so far', (*asked, *out), FLOAT)
  if fresh:
    yield Term('output of old slots', (*call.lead, *out), FLOAT, 2)
    yield from _new(variant, call)
  scores = *asked, heads, Dim('block', block)
  yield Term('scores of one block', scores, FLOAT, 1 + (call.tokens > 1))
  yield from _blocks(variant, absorb, memory, slots > block, block, call)


def _blocks(
    variant: Any,
    absorb: bool,
    memory: Any,
    loops: bool,
    block: int,
    call: _Call,
) -> Iterator[Term]:
  """Yields what a block of slots is made into, stream by stream.

  A block that is the whole store is read where it lies; what is decoded, and
  values, whose empty slots count as 0, are always made. Pages are gathered
  for the keys, and again for the values.
  """
  plain = all(isinstance(codec, Plain) for _, codec in memory.codecs)
  paged = 'pages' in [name for _, name in memory.kind.lead(1, 1)]
  for name, kv, width, value in _read_streams(variant, absorb):
    if value or not plain or (loops and not paged):
      dims = call.rows, Dim('block', block), kv, Dim('H', width)
      yield Term(f'{name} of one block', dims, FLOAT)


def _mlp(layer: Layer, call: _Call) -> Term:
  """Returns the hidden units: gate, up, product; or up and activation."""
  times = 3 if getattr(layer.mlp, 'gated', True) else 2
  dims = *call.lead, Dim('F', layer.mlp.hidden, 'hidden')
  return Term('mlp', dims, call.size, times)


def _copies(spec: Cache, call: _Call) -> Iterator[Term]:
  """Yields copies of stores that XLA makes, with the reason in their names."""
  for memory, store in zip(spec.layout.memories, spec.stores, strict=True):
    if memory is None:
      continue
    reason = ''
    if call.reads_before_writing(memory.kind):
      reason = 'copy: old slots are read before they are overwritten'
    elif (
        call.backend == 'cpu'
        and call.batch == 1
        and memory.kind.row_slots <= BLOCK
    ):
      # Written by rows and read by one dot, both without the unit axis: XLA
      # turns the same update into two.
      reason = 'copy: one row, in a store of one block (XLA:CPU)'
    if reason:
      yield from (_copy(leaf, reason) for leaf in leaves(store))


def _copy(leaf: Leaf, reason: str) -> Term:
  dims = tuple(
      Dim(axis, size, axis)
      for size, axis in zip(leaf.shape, leaf.axes, strict=True)
  )
  return Term(reason, dims, np.dtype(leaf.dtype).itemsize)


def _query_width(variant: Any, absorb: bool) -> int:
  if not absorb:
    return variant.query_width // variant.num_heads
  return variant.latent_width + variant.rotary.width


def _value_width(variant: Any, absorb: bool) -> int:
  if absorb:
    return variant.latent_width
  return variant.value_width or variant.key_width


def _read_streams(
    variant: Any, absorb: bool
) -> Iterator[tuple[str, Dim, int, bool]]:
  """Yields name, heads and width of what is read, and whether as values."""
  if 'latent' not in variant.streams():
    width = variant.key_width
    kv = Dim('K', variant.num_kv_heads, 'kv_heads')
    yield 'key', kv, width, False
    yield 'value', kv, variant.value_width or width, True
  elif absorb:
    one = Dim('K', 1, 'kv_heads')
    yield 'latent', one, variant.latent_width, False
    yield 'latent, as a value', one, variant.latent_width, True
    yield 'rotary', one, variant.rotary.width, False
  else:
    heads = Dim('N', variant.num_heads, 'heads')
    yield 'key', heads, variant.key_width + variant.rotary.width, False
    yield 'value', heads, variant.value_width, True
