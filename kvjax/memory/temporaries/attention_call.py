"""How one layer's attention reads in one call: the form, segments and blocks.

What `attend` decides from static facts, decided here from the same facts.
"""

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np

from kvjax.decoding.layout import LayerStore
from kvjax.kernels.blockwise import BLOCK, QUERY_BLOCK
from kvjax.kernels.hopper.tiling import BLOCK as TILE
from kvjax.kernels.hopper.tiling import ROWS, choose_splits
from kvjax.memory.parts.lines import Dim, Term
from kvjax.streams.codecs import Plain

FLOAT = 4  # bytes of what is accumulated in float32
QUERY = 'query (one layer, then dead)'


@dataclasses.dataclass(frozen=True)
class Call:
  """The sizes of one call."""

  batch: int
  tokens: int
  size: int  # bytes of an activation
  backend: str
  kernel: str | None = None  # that attends, where it is not the block loop

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

  @property
  def asked(self) -> tuple[Dim, Dim]:
    """Rows, and tokens that share a pass."""
    return self.rows, Dim('T', min(self.tokens, QUERY_BLOCK))

  @property
  def padded(self) -> tuple[Dim, Dim]:
    """Rows, and tokens filled up to whole blocks."""
    return self.rows, Dim('T', self.blocks * QUERY_BLOCK)


@dataclasses.dataclass(frozen=True)
class Reading:
  """One layer's attention through its cache, in a call."""

  variant: Any
  memory: LayerStore
  call: Call

  @property
  def absorb(self) -> bool:
    """Whether queries read latents as they are stored."""
    latent = 'latent' in self.variant.streams()
    return latent and not self.variant.form(self.call.tokens).expands

  @property
  def expands(self) -> bool:
    """Whether keys and values are made of latents."""
    return 'latent' in self.variant.streams() and not self.absorb

  @property
  def fresh(self) -> bool:
    """Whether the tokens are more than the kind may overwrite unread."""
    kind = self.memory.kind
    if kind.chunk is None or kind.book_per_layer:
      return False
    return self.call.tokens > kind.chunk

  @property
  def paged(self) -> bool:
    return 'pages' in [name for _, name in self.memory.kind.leaf_axes(1, 1)]

  @property
  def plain(self) -> bool:
    """Whether streams are stored as they are."""
    return all(isinstance(codec, Plain) for _, codec in self.memory.codecs)

  @property
  def segments(self) -> tuple[int, ...]:
    """Slots that are attended apart: old ones, and tokens not yet written."""
    slots = (self.memory.kind.row_slots,)
    return slots + ((self.call.tokens,) if self.fresh else ())

  def block(self, slots: int) -> int:
    """Slots that are read at once."""
    return min(BLOCK, slots) if self.call.backend == 'cpu' else slots

  def loops(self, slots: int) -> bool:
    return slots > self.block(slots)

  @property
  def heads(self) -> Dim:
    return Dim('N', self.variant.num_heads, 'heads')

  @property
  def query(self) -> tuple[Dim, Dim]:
    width = self.variant.query_width // self.variant.num_heads
    if self.absorb:
      width = self.variant.latent_width + self.variant.rotary.width
    return self.heads, Dim('H', width)

  @property
  def value(self) -> tuple[Dim, Dim]:
    width = self.variant.value_width or self.variant.key_width
    if self.absorb:
      width = self.variant.latent_width
    return self.heads, Dim('E', width)

  def new(self, value_size: int | None = None) -> Iterator[Term]:
    """Yields what the tokens leave behind.

    Args:
      value_size: bytes an element of values; None for that of activations.
    """
    sizes = {'value': value_size or self.call.size}
    for name, stream in self.variant.streams().items():
      of = Dim('K', stream.heads, 'kv_heads'), Dim('H', stream.width)
      size = sizes.get(name, self.call.size)
      yield Term(f'new {name}', (*self.call.lead, *of), size)

  def keys(self, slots: int, stored: bool = True) -> Iterator[Term]:
    """Yields keys of a block that cannot be read where they lie.

    A whole plain store can; a block of it is sliced out, pages are gathered,
    codes decoded and latents expanded first.
    """
    plain = {n: isinstance(c, Plain) for n, c in self.memory.codecs}
    moved = self.loops(slots) or (self.paged and stored)
    for name, kv, width in self._key_streams():
      if self.expands or moved or not plain.get(name, True):
        yield self._made(name, slots, kv, width)

  def values(self, slots: int) -> Term:
    """Returns the values of a block, those of empty slots as 0."""
    if self.absorb:
      width = self.variant.latent_width
      return self._made('latent, as a value', slots, Dim('K', 1), width)
    heads = self.heads if self.expands else self.stored_heads
    return self._made('value', slots, heads, self.value[1].size)

  @property
  def stored_heads(self) -> Dim:
    """Heads of what is stored; a latent has one."""
    return Dim('K', getattr(self.variant, 'num_kv_heads', 1), 'kv_heads')

  def _key_streams(self) -> Iterator[tuple[str, Dim, int]]:
    if self.absorb:
      yield 'latent', Dim('K', 1), self.variant.latent_width
      yield 'rotary', Dim('K', 1), self.variant.rotary.width
    elif self.expands:
      yield 'key', self.heads, self.query[1].size
    else:
      yield 'key', self.stored_heads, self.query[1].size

  def _made(self, name: str, slots: int, kv: Dim, width: int) -> Term:
    block = Dim('block', self.block(slots))
    dims = self.call.rows, block, kv, Dim('H', width)
    # A CPU widens what it multiplies; others read it as it is stored.
    wide = self.call.backend == 'cpu' or not self.plain
    size = FLOAT if wide else np.dtype(self.memory.dtype).itemsize
    return Term(f'{name} of one block', dims, size)

  def partials(self) -> tuple[Term, Term]:
    """Returns what `flash_decode` is given and gives: blocks stay inside."""
    call, heads = self.call, self.stored_heads.size
    rows = -(-self.heads.size // heads * call.tokens // 8) * 8
    blocks = self.memory.kind.row_slots // TILE
    splits = Dim('splits', choose_splits(call.batch * heads, blocks))
    lead = call.rows, self.stored_heads
    tile = *lead, Dim('tile', ROWS), self.query[1]
    outs = splits, *lead, Dim('rows', rows), self.value[1]
    return (
      Term(f'{QUERY}, in tiles', tile, call.size),
      Term('outputs of each split', outs, FLOAT),
    )
