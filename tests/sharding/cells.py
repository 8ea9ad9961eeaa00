"""The cells of a mesh: models, layouts, kinds, codecs and types of axes.

Sizes are such that half of the smallest weight or stream of one device has more
bytes than any activation that devices exchange.
"""

import dataclasses
import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp

import kvjax
from kvjax.sharding import Rules

VOCAB, WIDTH, HIDDEN, HEADS, HEAD_WIDTH = 256, 256, 1024, 8, 64
BATCH, CAPACITY, WINDOW, PROMPT, NEW = 8, 2048, 1024, 16, 6
LATENT, ROTARY, LATENT_HEAD, EXPERT = 128, 64, 224, 128


@dataclasses.dataclass(frozen=True)
class Model:
  """A model of one layer, and what one query head exchanges.

  Attributes:
    config: the model.
    kv_heads: heads of keys and values.
    query: numbers of a query that are scored against the cache.
    output: numbers that attention returns for it.
    sums: halves whose results are summed over the devices that split weights.
  """

  config: kvjax.ModelConfig
  kv_heads: int
  query: int
  output: int
  sums: int = 2

  @property
  def has_experts(self) -> bool:
    return isinstance(self.config.layers[0].mlp, kvjax.Experts)


def _model(attention: Any, mlp: Any = None) -> kvjax.ModelConfig:
  layer = kvjax.Layer(attention, mlp or kvjax.MLP(HIDDEN))
  return kvjax.ModelConfig(VOCAB, WIDTH, (layer,))


def _grouped(kv_heads: int, mlp: Any = None) -> Model:
  rotary = kvjax.Rotary(HEAD_WIDTH)
  attention = kvjax.Grouped(HEADS, kv_heads, HEAD_WIDTH, rotary=rotary)
  sums = 3 if mlp else 2  # routed and shared experts
  return Model(
    _model(attention, mlp),
    kv_heads,
    HEAD_WIDTH,
    HEAD_WIDTH,
    sums,
  )


_SPARSE = kvjax.Experts(8, 2, EXPERT, shared=kvjax.MLP(HIDDEN))
_LATENT = kvjax.Latent(
  HEADS,
  LATENT,
  LATENT_HEAD,
  LATENT_HEAD,
  kvjax.Rotary(ROTARY),
  query_rank=128,
)
MODELS = {
  'mha': _grouped(8),
  'gqa': _grouped(2),
  'mqa': _grouped(1),
  # Queries of MLA are absorbed: they read latents.
  'mla': Model(_model(_LATENT), 1, LATENT + ROTARY, LATENT),
  'experts': _grouped(2, _SPARSE),
}


@dataclasses.dataclass(frozen=True)
class Layout:
  """A mesh, its rules, and into how many parts they split what.

  Attributes:
    mesh: sizes by mesh axis.
    rules: what the axes split.
    rows: parts of activations.
    weights: parts of query heads, hidden units and vocabulary.
    slots: of these, the parts of the slots of a row.
    copies: of these, the parts of a cache's rows.
    experts: parts of the experts.
  """

  mesh: dict[str, int]
  rules: Rules
  rows: int = 1
  weights: int = 1
  slots: int = 1
  copies: int = 1
  experts: int = 1


LAYOUTS = {
  'rows': Layout({'d': 8}, Rules(batch='d'), rows=8),
  'heads': Layout({'m': 2}, Rules(heads='m'), weights=2),
  'wide': Layout({'kv': 2, 'c': 4}, Rules(heads=('kv', 'c')), weights=8),
  'kv_slots': Layout(
    {'kv': 2, 'c': 4}, Rules(heads=('kv', 'c'), slots='c'), weights=8, slots=4
  ),
  'slots': Layout({'c': 8}, Rules(heads='c', slots='c'), weights=8, slots=8),
  'rows_slots': Layout(
    {'d': 2, 'c': 4},
    Rules(batch='d', heads='c', slots='c'),
    rows=2,
    weights=4,
    slots=4,
  ),
  'copies': Layout(
    {'kv': 2, 'c': 4},
    Rules(heads=('kv', 'c'), kv_heads='kv', batch='c'),
    weights=8,
    copies=4,
  ),
  'experts': Layout({'e': 8}, Rules(experts='e'), experts=8),
}
KINDS = {
  'dense': None,
  'ring': kvjax.Ring(window=WINDOW),
  'paged': kvjax.Paged(page=64),
}
CODECS = {'plain': None, 'int8': kvjax.Int8()}
AXES = ('auto', 'explicit')


@dataclasses.dataclass(frozen=True)
class Cell:
  """One value of each list, by name."""

  model: str
  layout: str
  kind: str
  codec: str
  axes: str

  @property
  def name(self) -> str:
    return '-'.join(dataclasses.astuple(self))

  @property
  def options(self) -> dict[str, Any]:
    """Arguments of `init_cache` and of `plan`."""
    return {'kinds': KINDS[self.kind], 'codec': CODECS[self.codec]}


def meaningless(cell: Cell) -> str:
  """Returns why a cell says nothing that another does not; '' if it does."""
  model = MODELS[cell.model]
  if cell.layout == 'experts' and not model.has_experts:
    return 'the model has no experts to split'
  if cell.layout == 'wide' and model.kv_heads == HEADS:
    return 'a kv head for every device: the layout is that of heads'
  return ''


def all_cells() -> Iterator[Cell]:
  """Yields every combination, meaningless ones included."""
  for values in itertools.product(MODELS, LAYOUTS, KINDS, CODECS, AXES):
    yield Cell(*values)


def covering() -> list[Cell]:
  """Returns cells in which each pair of values occurs, if any cell has it.

  Greedily: always the first cell with the most pairs that none had before.
  """
  candidates = [cell for cell in all_cells() if not meaningless(cell)]
  missing = set().union(*map(pairs, candidates))
  chosen = []
  while missing:
    best = max(candidates, key=lambda cell: len(pairs(cell) & missing))
    missing -= pairs(best)
    chosen.append(best)
  return chosen


def pairs(cell: Cell) -> set[Any]:
  """Returns the pairs of values of a cell, each with its place."""
  values: Sequence[Any] = list(enumerate(dataclasses.astuple(cell)))
  return set(itertools.combinations(values, 2))


def exchanges(cell: Cell) -> list[tuple[str, int]]:
  """Returns kind and bytes of what one step of a cell exchanges, sorted.

  Bytes are those of the result on one device, in float32.
  """
  model, layout = MODELS[cell.model], LAYOUTS[cell.layout]
  rows, width = BATCH // layout.rows, WIDTH * 4
  # Devices that share slots or rows of a cache have each other's queries.
  heads = HEADS // (layout.weights // layout.slots // layout.copies)
  found = []
  if layout.weights > 1:
    found += [('all-reduce', rows * width)] * 2  # embedding, attention
    # Routed and shared experts are summed at once.
    found += [('all-reduce', (model.sums - 1) * rows * width)]
    found += [('all-gather', rows * VOCAB * 4)]
  if layout.slots > 1:
    found += [('all-gather', rows * heads * model.query * 4)]
    found += [('all-to-all', rows * heads * (model.output + 1) * 4)]
  if layout.copies > 1:
    for numbers in (model.query, model.output):
      found += [('all-to-all', rows // layout.copies * heads * numbers * 4)]
  if layout.experts > 1:
    found += [('all-reduce', rows * width)]
  if layout.rows > 1 and cell.kind == 'paged':
    # Rows share a pool, which every device has whole.
    codec = CODECS[cell.codec] or kvjax.Plain()
    for stream in model.config.layers[0].attention.streams().values():
      stored = codec if stream.quantize else kvjax.Plain()
      found += [
        ('all-gather', BATCH * stream.heads * leaf_bytes(leaf))
        for leaf in jax.tree.leaves(stored.leaves(stream.width, jnp.float32))
      ]
  return sorted(found)


def leaf_bytes(leaf: Any) -> int:
  """Returns the bytes of a stored leaf, a token and head."""
  return math.prod(leaf.shape) * jnp.dtype(leaf.dtype).itemsize


def exchanges_to_sample(cell: Cell) -> list[tuple[str, int, int]]:
  """Returns kind, bytes and loops of what `generate` exchanges in addition.

  Split rows are sampled where they are. Every device gets all ids, and knows
  whether any row goes on.
  """
  if LAYOUTS[cell.layout].rows == 1:
    return []
  ids = BATCH * 4
  steps = [('all-gather', BATCH, 1), ('all-gather', ids, 1)]
  return [*steps, ('all-gather', ids, 0), ('all-gather', (NEW - 1) * ids, 0)]
