"""What one layer's attention reads in one call, from static facts alone."""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from kvjax.decoding.layout import LayerStore
from kvjax.kernels.blockwise import BLOCK, DECODED, QUERIES_FIRST
from kvjax.kernels.hopper.tiling import BLOCK as TILE
from kvjax.kernels.hopper.tiling import ROWS, choose_splits
from kvjax.memory.parts.call_shape import FLOAT, CallShape
from kvjax.memory.parts.lines import Dim, Term
from kvjax.streams.codecs import Plain
from kvjax.streams.stream import Stream

QUERY = 'query (one layer, then dead)'


@dataclasses.dataclass(frozen=True)
class AttentionCall:
  """One layer's attention through its cache, in a call."""

  variant: Any
  store: LayerStore
  call: CallShape

  @property
  def absorbs(self) -> bool:
    """Whether queries read latents as they are stored."""
    latent = 'latent' in self.streams
    return latent and (not self.variant.form(self.call.tokens).expands)

  @property
  def expands(self) -> bool:
    """Whether keys and values are made of latents."""
    return 'latent' in self.streams and not self.absorbs

  @property
  def reads_before_write(self) -> bool:
    """Whether the call has more tokens than its kind may overwrite unread."""
    chunk = self.store.kind.chunk
    return chunk is not None and self.call.tokens > chunk

  @property
  def is_paged(self) -> bool:
    return 'pages' in [name for _, name in self.store.kind.leaf_axes(1, 1)]

  @property
  def stores_plain(self) -> bool:
    return all(isinstance(codec, Plain) for _, codec in self.store.codecs)

  @property
  def segments(self) -> tuple[int, ...]:
    """Slots that are attended apart: old ones, and tokens not yet written."""
    new = (self.call.tokens,) if self.reads_before_write else ()
    return self.store.kind.row_slots, *new

  def block(self, slots: int) -> int:
    """Slots that are read at once: on an accelerator all, unless of codes."""
    if self.call.backend == 'cpu':
      return min(BLOCK, slots)
    return slots if self.stores_plain else min(DECODED, slots)

  def block_dim(self, slots: int, stored: bool) -> Dim:
    """Returns the slots of a block: of all stored ones, a device's own."""
    block = self.block(slots)
    return Dim('block', block, 'slots' if stored and block == slots else '')

  def loops(self, slots: int) -> bool:
    return slots > self.block(slots)

  @property
  def heads(self) -> Dim:
    return Dim('N', self.variant.num_heads, 'heads')

  @property
  def read_heads(self) -> Dim:
    """Heads of keys and values as a product reads them; a latent has one."""
    if self.expands:
      return self._at_slots(self.heads)
    stated = getattr(self.variant, 'num_kv_heads', None)
    most = max((stream.heads for stream in self.streams.values()), default=1)
    return Dim('K', stated or most, 'kv_heads')

  @property
  def query(self) -> tuple[Dim, Dim]:
    width = self.variant.query_width // self.variant.num_heads
    if self.absorbs:
      width = self.variant.latent_width + self.variant.rotary.width
    return self.heads, Dim('H', width)

  @property
  def read_query(self) -> tuple[Dim, Dim]:
    """The query where it meets the slots, which devices may share."""
    heads, width = self.query
    return self._at_slots(heads), width

  @property
  def value(self) -> tuple[Dim, Dim]:
    heads = self._at_slots(self.heads)
    if self.absorbs:
      return heads, Dim('E', self.variant.latent_width)
    # A variant from outside need not name the width of its values. No stream
    # that is read as it is stored is wider than the widest.
    names = 'value_width', 'key_width'
    stated = (getattr(self.variant, name, None) for name in names)
    widest = max((x.width for x in self.streams.values()), default=0)
    return heads, Dim('E', next(filter(None, stated), widest))

  @staticmethod
  def _at_slots(heads: Dim) -> Dim:
    return dataclasses.replace(heads, axis='query_heads')

  @property
  def streams(self) -> Mapping[str, Stream]:
    return self.variant.streams()

  @property
  def query_rows(self) -> int:
    """Rows of queries that read one kv head in one pass."""
    tokens = self.call.pass_lead[1].size
    return tokens * self.heads.size // self.read_heads.size

  @property
  def reads_in_one_pass(self) -> bool:
    """Whether XLA:GPU decodes, selects and multiplies in one pass."""
    return self.query_rows == 1 and not self.call.on_cpu

  @property
  def copies_scores(self) -> bool:
    """Whether the softmax needs scores in two arrays.

    XLA:CPU computes in place from `blockwise.QUERIES_FIRST` query rows on, in
    several rows and kv heads, if a kv head has several heads of queries.
    """
    grouped = 1 < self.read_heads.size < self.heads.size
    many = self.call.batch > 1 and self.query_rows >= QUERIES_FIRST
    return not (self.call.on_cpu and grouped and many)

  def new_streams(self) -> Iterator[Term]:
    """Yields what the tokens leave behind."""
    for name, stream in self.streams.items():
      dims = Dim('K', stream.heads, 'kv_heads'), Dim('H', stream.width)
      yield Term(f'new {name}', (*self.call.lead, *dims), self.call.size)

  def keys(self, slots: int, stored: bool = True) -> Iterator[Term]:
    """Yields keys of a block that no product reads where they are stored.

    A whole plain store is read in place; a block of it is sliced out, pages
    are gathered, codes decoded and latents expanded first.
    """
    plain = {name: isinstance(x, Plain) for name, x in self.store.codecs}
    gathers = self.is_paged and stored
    widths = {'key': self.query[1].size}
    if self.absorbs:
      latent = self.value[1].size
      widths = {'latent': latent, 'rotary': self.query[1].size - latent}
    for name, width in widths.items():
      moves = self.expands or self.loops(slots) or not plain.get(name, True)
      if gathers or (moves and not self.reads_in_one_pass):
        yield self._block_term(name, self.block_dim(slots, stored), width)

  def values(self, slots: int, stored: bool = True) -> list[Term]:
    """Returns the values of a block, those of empty slots as 0."""
    block = self.block_dim(slots, stored)
    values = self._block_term('value', block, self.value[1].size)
    return [] if self.reads_in_one_pass else [values]

  def _block_term(self, name: str, block: Dim, width: int) -> Term:
    dims = self.call.read_rows, block, self.read_heads, Dim('H', width)
    return Term(f'{name} of one block', dims, self.read_size)

  @property
  def read_size(self) -> int:
    """Bytes of an element of keys and values as a product reads them."""
    # A CPU widens what it multiplies; an accelerator widens codes alone.
    narrow = self.stores_plain and self.call.backend != 'cpu'
    return np.dtype(self.store.dtype).itemsize if narrow else FLOAT

  def kernel_arrays(self) -> Iterator[Term]:
    """Yields what `flash_decode` takes and returns: blocks stay inside."""
    work = self.call.batch * self.read_heads.size
    splits = choose_splits(work, self.store.kind.row_slots // TILE)
    rows = Dim('rows', -(-self.query_rows // 8) * 8)
    lead = self.call.read_rows, self.read_heads
    tiles = *lead, Dim('tile', ROWS), self.query[1]
    outs = Dim('splits', splits), *lead, rows, self.value[1]
    yield Term(f'{QUERY}, in tiles', tiles, self.call.size)
    yield Term('outputs of each split', outs, FLOAT)
