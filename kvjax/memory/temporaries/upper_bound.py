"""An upper bound on what one call needs for intermediate results.

A call goes through its layers one after the other. Within a layer it projects,
attends block by block and runs the MLP; at the end it makes logits. XLA reuses
the memory of one moment for the next, so the bound is that of the fullest
moment. A moment has its own arrays and those that XLA makes for all layers
before the first: zeros that loops start from, and copies of stores.

The exact figure is `measure(compile_call(...))`, from a compiled call. The
moments were read off the buffers that XLA assigns for CPUs and for an H200
(`make aot-h200`); nobody has measured TPUs.
"""

import dataclasses
from collections.abc import Iterator
from typing import Any

import jax

from kvjax.attention.bias import RelativeBias
from kvjax.caches.dense import Dense
from kvjax.decoding.cache import Cache
from kvjax.decoding.layout import LayerStore
from kvjax.memory.parts.cache_bytes import leaf_term, leaves
from kvjax.memory.parts.call_shape import FLOAT, CallShape
from kvjax.memory.parts.lines import (
  Dim,
  Line,
  Term,
  fullest_lines,
  merge_terms,
  sum_bytes,
)
from kvjax.memory.parts.param_bytes import active_elements
from kvjax.memory.temporaries.attention_call import QUERY, AttentionCall
from kvjax.mesh.rules import WHOLE, Partition
from kvjax.models.config import Layer, ModelConfig
from kvjax.streams.codecs import Plain

LOGITS = 'logits, the result'
OLD = 'copy: old slots are read before they are overwritten (XLA:CPU)'
TWICE = 'copy: one row, in a store of one block (XLA:CPU)'
WIDE = 'copy: bfloat16 is written as float32 (XLA:CPU, JAX 0.10)'
FLOAT16 = 'weights as float32: no float16 is multiplied (XLA:CPU)'
REST = 'allowance: positions, masks, padding, what XLA fuses otherwise'
JOINED = 128 << 20  # twice xla_gpu_dot_merger_threshold_mb, for two products
# The allowance is one part in SHARE of the fullest moment, and LEAST more.
SHARE, LEAST = 24, 16 << 10


def step_lines(
  config: ModelConfig,
  spec: Cache,
  call: CallShape,
  partition: Partition = WHOLE,
) -> Iterator[Line]:
  """Yields the lines of the fullest moment, then what lives at another."""
  yield _logits(config, call, LOGITS).line('step', partition)
  found = list(moments(config, spec, call).values())
  yield from fullest_lines(found, 'step', partition)
  size = max(sum_bytes(terms, partition) for terms in found)
  rest = f'{size} / {SHARE} + {LEAST}'
  yield Line('step', REST, size // SHARE + LEAST, 'moment / 24 + 16 KiB', rest)


def moments(
  config: ModelConfig, spec: Cache, call: CallShape
) -> dict[str, list[Term]]:
  """Returns what is alive at each moment of a call, of its fullest layer."""
  always = []
  if call.backend == 'cpu' and call.dtype == 'float16':
    elements = Dim('elements', active_elements(config))
    always.append(Term(FLOAT16, (elements,), FLOAT))
  # A kind may take a long call piece by piece.
  piece = spec.layout.piece or call.tokens
  if piece < call.tokens:
    tokens, width = -(-call.tokens // piece) * piece, Dim('D', config.width)
    dims = call.rows, Dim('T', tokens), width
    always.append(Term('hidden of every piece', dims, call.size))
    call = dataclasses.replace(call, tokens=piece)
  count = len(config.layers)
  layers = [_LayerCall(config, spec, call, index) for index in range(count)]
  ahead = [list(layer.ahead()) for layer in layers]
  late = [list(layer.late()) for layer in layers]
  found = {'logits': [_logits(config, call, 'logits, transposed later')]}
  rules = spec.layout.rules
  if rules is not None and rules['vocab']:
    dims = call.rows, Dim('V', config.vocab_size, 'vocab')
    found['logits'].append(Term("logits of a device's words", dims, FLOAT))
  for index, layer in enumerate(layers):
    waiting = [*ahead[index + 1 :], *late[: index + 1]]
    rest = [*always, *(term for terms in waiting for term in terms)]
    for moment, terms in layer.moments():
      if sum_bytes([*terms, *rest]) > sum_bytes(found.get(moment, [])):
        found[moment] = merge_terms([*terms, *rest])
  return found


@dataclasses.dataclass(frozen=True)
class _LayerCall:
  """A call in one of its layers."""

  config: ModelConfig
  spec: Cache
  call: CallShape
  index: int

  @property
  def layer(self) -> Layer:
    return self.config.layers[self.index]

  @property
  def attention(self) -> AttentionCall:
    store = self.spec.layout.stores[self.config.stream_layer(self.index)]
    assert store is not None
    return AttentionCall(self.layer.attention, store, self.call)

  @property
  def shares_slots(self) -> bool:
    """Whether devices share the slots of a row, and merge what they read."""
    rules = self.spec.layout.rules
    return rules is not None and bool(rules['slots'])

  @property
  def cross(self) -> AttentionCall | None:
    """How the layer reads its source, if there is one."""
    if self.layer.cross is None or self.spec.cross is None:
      return None
    streams = self.spec.cross[self.index]
    leaf: Any = streams['key']
    codecs = tuple((name, Plain()) for name in streams)
    store = LayerStore(Dense(slots=leaf.shape[2]), codecs, leaf.dtype)
    return AttentionCall(self.layer.cross, store, self.call)

  @property
  def hidden(self) -> list[Term]:
    """The activation, and the product that is to be added to it."""
    dims = *self.call.lead, Dim('D', self.config.width)
    product = Term('product of half a layer', dims, self.call.product_size)
    return [Term('hidden', dims, self.call.size), product]

  @property
  def kept(self) -> list[Term]:
    """What of these is alive while the layer attends."""
    # XLA:CPU adds at once. XLA:GPU adds the products of two halves together,
    # and a parallel layer's MLP reads what its attention read.
    both = self.layer.parallel or not self.call.on_cpu
    return self.hidden if both else self.hidden[:1]

  def moments(self) -> Iterator[tuple[str, list[Term]]]:
    """Yields what is alive in projections, attention and MLP of the layer."""
    call, attention = self.call, self.attention
    reserved = [*self.reserved(), *self.expert_sums()]
    dims = *call.lead, *attention.query
    product = Term('product for the query', dims, call.product_size)
    made = Term(QUERY, dims, call.size), product, *attention.new_streams()
    # XLA copies the first store before it has freed what copies are made of.
    first = () if self.index else self.copies()
    yield 'project', [*self.ahead(), *first, *self.kept, *made]
    if call.kernel == 'mosaic_gpu':
      yield 'kernel', [*self.kept, *attention.kernel_arrays()]
    else:
      for old, slots in enumerate(attention.segments):
        for name, terms in _attend(attention, slots, stored=not old):
          yield name, [*reserved, *self.kept, *terms]
      if self.shares_slots:
        yield 'exchange', [*reserved, *self.kept, *_exchange(attention)]
    if self.cross is not None:
      slots = self.cross.segments[0]  # which no mesh splits
      for name, terms in _attend(self.cross, slots, stored=False):
        yield f'cross {name}', [*self.hidden, *_carried(self.cross), *terms]
    mlp: Any = self.layer.mlp
    if hasattr(mlp, 'num_experts'):
      yield 'experts', [*self.hidden, *self.expert_sums(), *self.experts(mlp)]
      mlp = mlp.shared
    if mlp is not None:
      units = *call.lead, Dim('F', mlp.hidden, 'hidden')
      gated = getattr(mlp, 'gated', True)
      made = Term('mlp, as products', units, call.product_size, 1 + gated)
      rest = [*self.hidden, *self.expert_sums()]
      yield 'mlp', [*rest, made, Term('mlp', units, call.size)]
      if gated and not call.on_cpu and made.bytes() <= JOINED:
        # XLA:GPU makes gate and up as one product and takes it apart again.
        yield 'mlp apart', [*rest, dataclasses.replace(made, times=4)]

  def ahead(self) -> Iterator[Term]:
    """Yields what XLA makes before any layer, as it needs arguments alone."""
    yield from self.reserved()
    yield from self.expert_sums()
    attention, slots = self.attention, self.attention.segments[0]
    apart = attention.reads_before_write and bool(self.spec.stores[self.index])
    if apart and not attention.loops(slots):
      for term in (*attention.keys(slots), *attention.values(slots)):
        name = f'old {term.name}, for every layer'
        yield dataclasses.replace(term, name=name)

  def reserved(self) -> Iterator[Term]:
    """Yields what is made early and alive until the attention is over."""
    attention, store = self.attention, self.spec.stores[self.index]
    yield from _carried(attention)
    if self.cross is not None:
      yield from _carried(self.cross)
    yield from self.copies()
    bfloat16 = attention.store.dtype == 'bfloat16' and attention.stores_plain
    if bfloat16 and self.call.on_cpu and jax.__version_info__ < (0, 11):
      # XLA:CPU scattered no bfloat16: it converts, writes and converts back.
      yield from (leaf_term(x, WIDE, itemsize=FLOAT) for x in leaves(store))

  def copies(self) -> Iterator[Term]:
    """Yields the copies that XLA:CPU makes of leaves of the store."""
    attention, store = self.attention, self.spec.stores[self.index]
    if not store or not self.call.on_cpu:  # or it reads another layer's
      return
    loops = attention.loops(attention.segments[0])
    names = ('latent', 'rotary') if attention.absorbs else ('key',)
    plain = [
      x for x, codec in attention.store.codecs if isinstance(codec, Plain)
    ]
    read = [store[x] for x in plain if x in names and not attention.expands]
    in_place = leaves(read)
    if attention.reads_before_write:
      # Of a store read in one block only what a product reads in place is
      # still needed when the new tokens come.
      copied = leaves(store) if loops else in_place
      yield from (leaf_term(leaf, OLD) for leaf in copied)
    elif self.call.batch == self.call.tokens == 1 and not loops:
      # The write of one row and the product that reads it drop the unit axis
      # in different ways: XLA makes two updates of one, with a copy each.
      for leaf in () if attention.is_paged else in_place:
        yield leaf_term(leaf, TWICE, times=2)

  def late(self) -> Iterator[Term]:
    """Yields new streams that XLA:GPU writes when all layers have read."""
    if self.attention.reads_before_write and not self.call.on_cpu:
      for term in self.attention.new_streams():
        name = f'{term.name}, a product that is written last'
        yield dataclasses.replace(term, name=name, itemsize=FLOAT)

  def expert_sums(self) -> Iterator[Term]:
    """Yields what a loop over experts adds up in."""
    if hasattr(self.layer.mlp, 'num_experts'):
      dims = *self.call.lead, Dim('D', self.config.width)
      yield Term('output of experts', dims, FLOAT)

  def experts(self, mlp: Any) -> Iterator[Term]:
    """Yields the arrays of one iteration of the loop over experts."""
    call, width = self.call, Dim('D', self.config.width)
    units = Dim('F', mlp.hidden, 'expert_hidden')
    yield Term("an expert's weights", (units, width), call.size, 3)
    yield Term('mlp, as products', (*call.lead, units), call.product_size, 2)
    yield Term('output of one expert', (*call.lead, width), FLOAT)


def _attend(
  attention: AttentionCall, slots: int, stored: bool
) -> Iterator[tuple[str, list[Term]]]:
  """Yields the moments of one pass over one block of slots."""
  call, block = attention.call, attention.block_dim(slots, stored)
  dims = *call.pass_lead, attention.read_query[0], block
  scores = Term('scores of one block', dims, FLOAT)
  size = FLOAT if call.on_cpu else attention.read_size
  weights = Term('weights of one block', dims, size)
  out = Term('output of one block', (*call.pass_lead, *attention.value), FLOAT)
  both = [Term(QUERY, (*call.pass_lead, *attention.read_query), call.size)]
  if call.passes > 1:
    dims = *call.padded_lead, *attention.read_query
    both.append(Term('queries, by passes', dims, FLOAT))
    if attention.loops(slots):
      both.append(dataclasses.replace(out, name='output so far'))
  if attention.reads_before_write:
    # New streams are alive as they are read and as they are written later;
    # latents only as the second, since they are expanded to be read.
    times = (2 - attention.expands) * call.on_cpu
    new = attention.new_streams()
    both += [dataclasses.replace(term, times=times) for term in new]
    if call.passes == 1 or call.on_cpu:
      both.append(dataclasses.replace(out, name='output of old slots'))
  if isinstance(attention.variant.bias, RelativeBias):
    both.append(dataclasses.replace(scores, name='bias of one block'))
  keys = attention.keys(slots, stored)
  values = attention.values(slots, stored)
  products = dataclasses.replace(scores, times=2 if attention.absorbs else 1)
  yield 'product', [*both, *keys, *values, products]
  copy = [weights] if attention.copies_scores else []
  yield 'softmax', [*both, *values, products, *copy]
  yield 'weigh', [*both, *values, weights, out]


def _exchange(attention: AttentionCall) -> Iterator[Term]:
  """Yields the arrays by which devices merge what they read of a row."""
  call, (heads, width) = attention.call, attention.value
  # Outputs and their log-sum-exps in one array, as it goes and as it comes.
  packed = *call.padded_lead, heads, Dim('E + 1', width.size + 1)
  if call.passes == 1:
    packed = *call.pass_lead, heads, Dim('E + 1', width.size + 1)
  yield Term('outputs to exchange', packed, FLOAT, 3)


def _carried(attention: AttentionCall) -> Iterator[Term]:
  """Yields what the loops of attention carry from block to block."""
  call, segments = attention.call, attention.segments
  looped = [x for x in segments if call.passes > 1 or attention.loops(x)]
  if looped:
    lead = call.padded_lead if call.passes > 1 else call.pass_lead
    dims = *lead, *attention.value
    yield Term('outputs so far', dims, FLOAT, len(looped))
  if attention.store.kind.observes:
    dims = call.read_rows, attention.read_heads, Dim('S', segments[0], 'slots')
    yield Term('weights received', dims, FLOAT)


def _logits(config: ModelConfig, call: CallShape, name: str) -> Term:
  # A mesh that splits the vocabulary gathers logits: every device samples.
  return Term(name, (call.rows, Dim('V', config.vocab_size)), FLOAT)
