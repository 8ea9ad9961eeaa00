"""What is under test: a model, how its layers are stored, and its oracle."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

import kvjax
from kvjax.models.uncached import with_visibility
from tests.contract.oracle import Evicts, NearTie, Oracle, Rule, Sees
from tests.contract.table import VARIANTS, VOCAB, WIDTH, draw, pieces
from tests.stateful.pages import Pages
from tests.stateful.rows import Keeps, Rows

CAPACITY, PAGE, POOL = 9, 4, 4
LONGEST = 64  # tokens a row; forward has one shape, [FORWARD_ROWS, LONGEST]
FORWARD_ROWS = 4
CLEAR = 1e-5  # of the largest logit, as in tests/contract
UNCLEAR = 0.05  # where a code of eight bits may be its neighbour
ATTENTION = {variant.name: variant.attention for variant in VARIANTS}


@dataclasses.dataclass(frozen=True)
class Store:
  """A kind, and what it should do.

  Attributes:
    kind: None for each layer's default.
    keeps: how long it keeps tokens; one a layer where layers differ.
    rule: of the NumPy oracle, for what `kvjax.forward` cannot express.
    full: it refuses tokens beyond the capacity.
    pool: pages of its pool.
  """

  kind: kvjax.Kind | None
  keeps: tuple[Keeps, ...] = (Keeps(),)
  rule: Rule | None = None
  full: bool = False
  pool: int | None = None


FORGETFUL = (Keeps(0, 0),)
STORES = {
  'dense': Store(kvjax.Dense(), full=True),
  'ring': Store(kvjax.Ring(window=5, slack=1), (Keeps(6, 2),)),
  'wide_ring': Store(kvjax.Ring(window=5, slack=3), (Keeps(8, 4),)),
  'sinks': Store(kvjax.Sinks(sinks=2, window=5, slack=1), (Keeps(8, 2),)),
  'renumbered_sinks': Store(
    kvjax.Sinks(sinks=2, window=5, slack=1, renumber=True),
    (Keeps(8, 2),),
    Sees(5, 2, renumber=True),
  ),
  'paged': Store(kvjax.Paged(page=PAGE, pages=POOL), full=True, pool=POOL),
  'heavy_hitters': Store(
    pieces(5, kvjax.HeavyHitters(recent=2)),
    FORGETFUL,
    Evicts(5, 'mass', recent=2),
  ),
  'last_query': Store(
    pieces(5, kvjax.LastQuery()),
    FORGETFUL,
    Evicts(5, 'last'),
  ),
  'default': Store(None, (Keeps(6, 2), Keeps()), full=True),
}
# What the NumPy oracle of eight bits sees; `forward` needs no rule.
SIGHT: dict[str, Rule] = {
  'dense': Sees(),
  'paged': Sees(),
  'ring': Sees(5),
  'wide_ring': Sees(5),
  'sinks': Sees(5, 2),
}
NARROW = kvjax.Visibility(window=5)
WINDOWED = dataclasses.replace(ATTENTION['gqa'], visibility=NARROW)
MODELS = {
  'gqa': (ATTENTION['gqa'],),
  'mla': (ATTENTION['mla_query_rank'],),
  'window_and_full': (WINDOWED, ATTENTION['gqa']),
  'shared': (
    WINDOWED,
    ATTENTION['gqa'],
    dataclasses.replace(WINDOWED, shared_from=0),
  ),
}


@dataclasses.dataclass(frozen=True)
class Subject:
  """A model in a store."""

  model: str
  store: str
  int8: bool = False

  @property
  def name(self) -> str:
    return f'{self.model}-{self.store}' + '-int8' * self.int8

  @property
  def pooled(self) -> bool:
    return STORES[self.store].pool is not None

  @functools.cached_property
  def config(self) -> kvjax.ModelConfig:
    layers = tuple(kvjax.Layer(x, kvjax.MLP(11)) for x in MODELS[self.model])
    return kvjax.ModelConfig(VOCAB, WIDTH, layers)

  @functools.cached_property
  def params(self) -> Any:
    return draw(self.config, 0)

  def init(self, batch: int) -> tuple[kvjax.Cache, Rows]:
    """Returns an empty cache and its rows."""
    store = STORES[self.store]
    cache = kvjax.init_cache(
      self.config,
      batch,
      CAPACITY,
      kinds=store.kind,
      codec=kvjax.Int8() if self.int8 else None,
      slack=1 if store.kind is None else 0,
    )
    pages = None
    if store.pool is not None:
      pages = Pages(PAGE, store.pool, ((),) * batch)
    rows = Rows(
      limit=CAPACITY if store.full else None,
      keeps=store.keeps,
      tokens=((),) * batch,
      low=(0,) * batch,
      lost=(False,) * batch,
      pages=pages,
    )
    return cache, rows

  @functools.cached_property
  def oracle(self) -> 'Uncached | Numpy':
    store = STORES[self.store]
    rule = SIGHT[self.store] if self.int8 else store.rule
    if rule is not None:
      return Numpy(self.config, self.params, rule, self.int8)
    config = self.config
    if store.kind is not None:
      config = with_visibility(config, store.kind.visible_through)
    return Uncached(config, self.params)


@dataclasses.dataclass(frozen=True)
class Wanted:
  """Logits `[T, V]` of a row, and the part of the largest that may be wrong.

  Without logits where float32 may choose other tokens to forget.
  """

  logits: np.ndarray
  tolerance: float = CLEAR

  @property
  def limit(self) -> float:
    """The largest difference that rounding explains."""
    return self.tolerance * float(np.abs(self.logits).max(initial=0))


NOTHING = Wanted(np.zeros((0, VOCAB)))


class Uncached:
  """`kvjax.forward`; each row is computed once."""

  def __init__(self, config: kvjax.ModelConfig, params: Any):
    self._config, self._params = config, params
    self._rows: dict[tuple[int, ...], Wanted] = {}

  def __call__(self, rows: Sequence[tuple[int, ...]]) -> list[Wanted]:
    new = [row for row in dict.fromkeys(rows) if row not in self._rows]
    for start in range(0, len(new), FORWARD_ROWS):
      piece = new[start : start + FORWARD_ROWS]
      tokens = np.full((FORWARD_ROWS, LONGEST), -1, np.int32)
      for line, row in zip(tokens, piece, strict=False):
        line[: len(row)] = row
      logits = kvjax.forward(self._config, self._params, jnp.asarray(tokens))
      for line, row in zip(np.asarray(logits), piece, strict=False):
        self._rows[row] = Wanted(line[: len(row)])
    return [self._rows[row] for row in rows]


class Numpy:
  """The oracle of the contract, in float64; each row is computed once."""

  def __init__(self, config, params, rule: Rule, int8: bool):
    rules = (rule,) * len(config.layers)
    self._oracle = Oracle(config, params, rules, int8)
    self._rows: dict[tuple[int, ...], Wanted] = {}

  def __call__(self, rows: Sequence[tuple[int, ...]]) -> list[Wanted]:
    for row in rows:
      if row not in self._rows:
        self._rows[row] = self._row(row)
    return [self._rows[row] for row in rows]

  def _row(self, row: tuple[int, ...]) -> Wanted:
    tokens = np.array(row, np.int32)
    if not row:
      return NOTHING
    try:
      return Wanted(self._oracle.row(tokens)[0])
    except NearTie:
      pass
    try:
      unclear = dataclasses.replace(self._oracle, clear=False)
      return Wanted(unclear.row(tokens)[0], UNCLEAR)
    except NearTie:  # of two scores
      return NOTHING


SUBJECTS = (
  Subject('gqa', 'dense'),
  Subject('gqa', 'dense', int8=True),
  Subject('gqa', 'ring'),
  Subject('gqa', 'wide_ring'),
  Subject('gqa', 'ring', int8=True),
  Subject('gqa', 'sinks'),
  Subject('gqa', 'renumbered_sinks'),
  Subject('gqa', 'paged'),
  Subject('gqa', 'heavy_hitters'),
  Subject('mla', 'dense'),
  Subject('mla', 'wide_ring', int8=True),
  Subject('mla', 'renumbered_sinks'),
  Subject('mla', 'paged', int8=True),
  Subject('mla', 'last_query'),
  Subject('window_and_full', 'default'),
  Subject('window_and_full', 'paged'),
  Subject('shared', 'default'),
)
