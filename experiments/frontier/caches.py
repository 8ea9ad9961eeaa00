"""A row of a table: a cache by its name, and how a context gets into it.

One dense prefill in the model's own type serves every row that
`kvjax.compress` can make of it. A score that needs queries reads the prompt
again, into a bounded cache of that type. Codes are made last. So every row has
read its prompt exactly, and only what comes behind it sees the smaller cache.
Keys that are stored before their rotation are read anew as well.
"""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import kvjax
from experiments.frontier.contexts import NONE, Part
from experiments.training.variants import array_bytes
from kvjax.caches.scores import Score
from kvjax.decoding.allocate import cache_spec
from kvjax.decoding.parse import parse_cache
from kvjax.memory.planning import plan

Params = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Oracle(Score):
  """Keeps what the queries behind the context will look at most.

  No policy can know it: it bounds what a choice of tokens can save.
  """

  knows_future = True

  def priority(self, evidence):
    raise ValueError('The oracle is given attention first: see `Given`.')


@dataclasses.dataclass(frozen=True, eq=False)
class Given(Score):
  """Keeps the tokens whose number is highest.

  Attributes:
    numbers: float32 `[B, K, S]`, of each position.
  """

  numbers: np.ndarray

  def priority(self, evidence):
    at = jnp.maximum(evidence.positions, 0)
    return jnp.take_along_axis(jnp.asarray(self.numbers), at, axis=2)


@dataclasses.dataclass(frozen=True)
class CentredByRow(kvjax.Centred):
  """Keys less a constant of their own row: the mean of its early tokens.

  Needs no calibration, but the tokens up to `until` must stay exact.
  """

  codec: kvjax.Codec = kvjax.Hadamard(kvjax.Affine(bits=2))
  until: int = 68

  def of_row(self, dense: kvjax.Cache, row: int) -> 'CentredByRow':
    """Returns the codec with the constant of a row of a dense cache."""
    early = slice(self.whole, self.until)
    constant = [
      store and np.asarray(store['key'][row, :, early]).mean(axis=1)
      for store in dense.stores
    ]
    return dataclasses.replace(self, constant=constant)


@dataclasses.dataclass(frozen=True)
class Room:
  """Sizes of all caches of a table, so that they share programs.

  Attributes:
    capacity: tokens of the longest context and of what is fed behind it.
    following: tokens that are fed behind a context, at most.
  """

  capacity: int
  following: int


@dataclasses.dataclass(frozen=True)
class Row:
  """One cache of a table.

  Attributes:
    name: as the config spells it.
    kind: of every layer, without room for what is fed behind the context; None
      for a cache that keeps every token.
    codec: of the streams. What it leaves as it is has 16 bits, whatever the
      type of the model, but for the row `plain`: float32 would be no fair
      price of a policy.
  """

  name: str
  kind: Any
  codec: Any

  @classmethod
  def of(cls, name: str) -> 'Row':
    """Returns the row of a spelled cache.

    Raises:
      ValueError: the name makes no sense.
    """
    kind, codec = parse_cache(name)
    return cls(name, kind, codec or kvjax.Plain())

  @property
  def label(self) -> str:
    """A short name: 'snapkv 256, int8'."""
    kind, _, codec = self.name.partition('+')
    if kind.startswith('residual'):
      codec = codec.rpartition(':')[2].replace('()', '').lower()
      protected = ',first=4,' in kind.replace(':', ',')
      return codec if protected else f'{codec}, first {self.kind.first} exact'
    found = re.match(r'bounded:budget=(\d+),score=(.*),protect=(.*)', kind)
    if found:
      budget, score, kept = found.groups()
      kind = f'{score.rpartition(":")[2].replace("()", "").lower()} {budget}'
      kind += ' unprotected' if kept.replace(' ', '') == '(0,0)' else ''
    kind = {'default': 'bfloat16', 'plain': 'float32'}.get(kind, kind)
    return f'{kind}, {codec}' if codec else kind

  @property
  def family(self) -> str:
    """What the row chooses: a codec, a score, both, a window; or an oracle."""
    if self.kind is None or self.kind.keeps_exact:
      return 'codec'
    if self.knows_future:
      return 'oracle'
    if self._score is None:
      return 'window'
    has_codec = self.codec != kvjax.Plain()
    return 'score and codec' if has_codec else 'score'

  def calibrated(
    self, config: kvjax.ModelConfig, params: Params, tokens: np.ndarray
  ) -> 'Row':
    """Returns the row whose codec knows what it must of the model's keys.

    Args:
      config, params: the model.
      tokens: `[1, T]`, of no context.
    """
    if not isinstance(self.codec, kvjax.Centred):
      return self
    codec = kvjax.calibrate(config, params, jnp.asarray(tokens), self.codec)
    return dataclasses.replace(self, codec=codec)

  @property
  def dtype(self) -> Any:
    """Of what the codec leaves as it is; None for the model's."""
    return None if self.name == 'plain' else jnp.bfloat16

  @property
  def names(self) -> dict[str, str]:
    """How records name the row."""
    return {'cache': self.name, 'label': self.label, 'family': self.family}

  @property
  def knows_future(self) -> bool:
    return getattr(self._score, 'knows_future', False)

  @property
  def reads_queries(self) -> bool:
    return self._score is not None and self._score.reads_queries

  @property
  def _score(self) -> Any:
    return getattr(self.kind, 'score', None)

  def kinds(self, layers: int, room: int = 0) -> list[Any] | None:
    """Returns the kind of each layer, with slots for `room` more tokens.

    A score that draws lots draws them anew in each layer.
    """
    if self.kind is None:
      return None
    kind = self.kind
    if self._score is None:
      return [kind] * layers
    kind = dataclasses.replace(kind, slack=kind.slack + room)
    kinds = [kind] * layers
    if hasattr(self._score, 'seed'):
      kinds = [
        dataclasses.replace(
          kind,
          score=dataclasses.replace(
            self._score, seed=self._score.seed * layers + layer
          ),
        )
        for layer in range(layers)
      ]
    return kinds

  def check_choice(self, tokens: int, room: Room) -> None:
    """Raises ValueError where a budget would choose nothing.

    Nothing leaves a bounded cache before its slots are full, and it has slots
    for what is fed behind the context as well.
    """
    budget = getattr(self.kind, 'budget', tokens)
    slots = budget + room.following
    if budget < tokens <= slots:
      raise ValueError(
        f'{self.name} has {slots} slots, {room.following} of them for what '
        f'follows, and keeps all of {tokens} tokens. Use a smaller budget, or '
        f'{tokens} and more.'
      )

  def sizes(
    self, config: kvjax.ModelConfig, contexts: np.ndarray, room: Room
  ) -> dict[str, Any]:
    """Returns bytes from the plan.

    `bytes_per_token` counts all that lives of one context: codes, scales,
    books, statistics. `prefill_bytes` is that cache and the most that is alive
    while it reads the context in one call. `planned_bytes` is of all contexts,
    with room for what is fed behind them.
    """
    rows, tokens = contexts.shape
    layers = len(config.layers)
    one = plan(
      config,
      batch_size=1,
      capacity=tokens,
      kinds=self.kinds(layers),
      codec=self.codec,
      cache_dtype=self.dtype,
      new_tokens_per_step=tokens,
    )
    whole = plan(
      config,
      batch_size=rows,
      capacity=room.capacity,
      kinds=self.kinds(layers, room.following),
      codec=self.codec,
      cache_dtype=self.dtype,
    )
    return {
      'bytes_per_token': one.cache_bytes / tokens,
      'prefill_bytes': one.cache_bytes + one.step_bytes,
      'planned_bytes': whole.cache_bytes,
    }


class Compressor:
  """Makes the caches of rows from one batch of contexts."""

  def __init__(
    self,
    config: kvjax.ModelConfig,
    params: Params,
    contexts: np.ndarray,
    room: Room,
  ):
    """Reads the contexts into a dense cache.

    Args:
      config, params: the model.
      contexts: int32 `[R, T]`, padded by -1 on the right.
      room: of the caches.
    """
    self.config, self.params, self.contexts = config, params, contexts
    self.room = room
    self.dense = self._read_into(None)
    self._last: Any = None, None  # the kind that read the prompt, its cache

  def _read_into(self, kinds: list[Any] | None, codec: Any = None):
    cache = kvjax.init_cache(
      self.config,
      len(self.contexts),
      self.room.capacity,
      kinds=kinds,
      codec=codec,
    )
    tokens = jnp.asarray(self.contexts)
    _, cache = kvjax.prefill(self.config, self.params, cache, tokens)
    return cache

  def compress(self, row: Row, part: Part) -> tuple[kvjax.Cache, int]:
    """Returns the contexts in the cache of a row, and its bytes.

    Args:
      row: says which tokens stay and how they are stored.
      part: what will be fed; an oracle alone looks at it.
    """
    cache, dropped = self.dense, 0
    kinds = row.kinds(len(self.config.layers), self.room.following)
    if kinds is not None:
      cache, dropped = settle(self._choose(row, kinds, part))
    cache = self._encode(cache, row)
    return cache, dropped + array_bytes(cache)

  def _encode(self, cache: kvjax.Cache, row: Row) -> kvjax.Cache:
    def encode(cache, codec):
      return kvjax.compress(self.config, self.params, cache, codec, row.dtype)

    if not isinstance(row.codec, CentredByRow):
      return encode(cache, row.codec)
    rows = range(cache.batch_size)
    codecs = (row.codec.of_row(self.dense, index) for index in rows)
    alone = (kvjax.take(cache, [index]) for index in rows)
    return kvjax.concat(list(map(encode, alone, codecs)))

  def _choose(self, row: Row, kinds: list[Any], part: Part) -> kvjax.Cache:
    if row.reads_queries:
      if self._last[0] != row.kind:
        self._last = None, None  # gives its memory back first
        self._last = row.kind, self._read_into(kinds)
      return self._last[1]
    cache = self.dense
    if not getattr(row.codec, 'rotated', True):
      exact = dataclasses.replace(row.codec, codec=kvjax.Plain())
      cache = self._read_into(None, exact)
    if row.knows_future:
      numbers = future_attention(self.config, self.params, self.dense, part)
      kinds = [
        dataclasses.replace(kind, score=Given(number))
        for kind, number in zip(kinds, numbers, strict=True)
      ]
    return kvjax.compress(self.config, self.params, cache, kinds)


def settle(cache: kvjax.Cache) -> tuple[kvjax.Cache, int]:
  """Returns the same tokens in bounded caches that will not choose again.

  Behind a context nothing leaves, so the statistics that would rank tokens
  there are dropped, and rows of one budget share the programs that follow.
  Also returns the bytes of what was dropped.
  """
  layout, books, dropped = cache.layout, list(cache.books), 0
  stores = []
  for index, store in enumerate(layout.stores):
    if store is not None and store.kind.book_per_layer:
      kind: Any = store.kind
      kind = dataclasses.replace(kind, score=kvjax.Recency())
      store = dataclasses.replace(store, kind=kind)
      book = books[layout.books[index]]
      dropped += array_bytes(book.total)
      books[layout.books[index]] = book.replace(total=None)
    stores.append(store)
  layout = dataclasses.replace(layout, stores=tuple(stores))
  cache = dataclasses.replace(cache, layout=layout, books=tuple(books))
  return cache, dropped


def future_attention(
  config: kvjax.ModelConfig, params: Params, cache: kvjax.Cache, part: Part
) -> list[np.ndarray]:
  """Returns what each position of the contexts will receive, `[R, K, S]`.

  An array a layer: weights summed over all queries of the part and over the
  query heads of a kv head.
  """
  layers = range(len(config.layers))
  sums: list[np.ndarray] | None = None
  for tokens in part.tokens:
    _, _, weights = kvjax.extend(
      config,
      params,
      cache,
      jnp.asarray(tokens),
      attention_layers=tuple(layers),
    )
    received = [
      np.asarray(_received(weight, jnp.asarray(tokens) != NONE, heads))
      for (weight, _), heads in zip(
        weights, map(_kv_heads, config.layers), strict=True
      )
    ]
    if sums is None:
      sums = received
    else:
      sums = [a + b for a, b in zip(sums, received, strict=True)]
  assert sums is not None
  return sums


@jax.jit(static_argnames='heads')
def _received(weights, is_token, heads):
  weights = jnp.where(is_token[:, None, :, None], weights, 0.0)
  rows, _, _, slots = weights.shape
  return weights.reshape(rows, heads, -1, slots).sum(axis=2)


def _kv_heads(layer: kvjax.Layer) -> int:
  return next(iter(layer.attention.streams().values())).heads


def check_rows(
  config: kvjax.ModelConfig, rows: Sequence[Row], tokens: int
) -> None:
  """Raises ValueError for a cache that the model cannot have."""
  for row in rows:
    kinds = row.kinds(len(config.layers))
    cache_spec(config, 1, tokens, kinds=kinds, codec=row.codec)
