"""The table of the contract: one row a variant, a kind, a score, a codec.

Sizes are tiny and, where they can be, different primes, so that no swapped
axis passes.
"""

import dataclasses
import functools
import itertools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import kvjax
from tests.contract.oracle import Evicts, Oracle, Rule, Sees

VOCAB, WIDTH, BATCH, LENGTH, CAPACITY, LONG = 19, 13, 3, 15, 23, 31


@dataclasses.dataclass(frozen=True)
class Nothing:
  """Stands for a norm or an MLP: a layer of attention alone."""

  def init(self, *_: Any) -> dict[str, Any]:
    return {}


class Same(Nothing):
  def __call__(self, params: Any, x: jax.Array) -> jax.Array:
    return x


class Zero(Nothing):
  def __call__(self, params: Any, x: jax.Array) -> jax.Array:
    return jnp.zeros_like(x)


@dataclasses.dataclass(frozen=True)
class Variant:
  """One row: an attention variant and the form it is read in."""

  name: str
  attention: Any
  form: str | None = None


def _rotary(width: int, interleaved: bool = False) -> kvjax.Rotary:
  return kvjax.Rotary(width, base=100.0, interleaved=interleaved)


_latent = functools.partial(
  kvjax.Latent, 3, 11, 5, 7, rotary=_rotary(4, interleaved=True)
)

VARIANTS = (
  Variant('mha', kvjax.Grouped(3, 3, 6, rotary=_rotary(6))),
  Variant('mqa', kvjax.Grouped(5, 1, 7, rotary=_rotary(4, True))),
  Variant('gqa', kvjax.Grouped(6, 3, 8, value_width=5, rotary=_rotary(8))),
  Variant('mla_expanded', _latent(), form='expanded'),
  Variant('mla_absorbed', _latent(), form='absorbed'),
  Variant('mla_query_rank', _latent(query_rank=2)),
)


# Not in the product of all cells: whole models have it, in some kinds.
RECENT = Variant(
  'recent',
  kvjax.Grouped(
    6,
    3,
    8,
    value_width=5,
    rotary=_rotary(8),
    qk_norm=kvjax.Norm(1e-5, weighted=False),
    qk_norm_after=True,
    clip=0.5,
    temperature=kvjax.Temperature(0.7, length=4, shift=1),
  ),
)


@dataclasses.dataclass(frozen=True)
class Row:
  """One row: a cache kind and what it lets a query see.

  Attributes:
    kind: under test.
    rule: of the oracle.
    rewinds: tokens that can be taken back; 0 where going back raises.
    wraps: goes on beyond its capacity; otherwise that raises.
    widths: of calls; one token, perhaps what is written in place, and all.
  """

  name: str
  kind: kvjax.Kind
  rule: Rule
  rewinds: int
  wraps: bool
  widths: tuple[int, ...] = (1, LENGTH)

  @property
  def multiple(self) -> int:
    """Cuts elsewhere change the survivors, by the definition of the kind."""
    return getattr(self.rule, 'piece', 1)


IN_PLACE = (1, 3, LENGTH)
# Survivors by the oracle's rule: pieces of calls, and nothing protected.
pieces = functools.partial(kvjax.Bounded, protect=(0, 0), prefill='chunks')

KINDS = (
  Row('dense', kvjax.Dense(), Sees(), 4, False),
  Row('ring', kvjax.Ring(window=5, slack=2), Sees(5), 3, True, IN_PLACE),
  Row(
    'sinks',
    kvjax.Sinks(sinks=2, window=5, slack=2),
    Sees(5, 2),
    3,
    True,
    IN_PLACE,
  ),
  Row(
    'sinks_renumbered',
    kvjax.Sinks(sinks=2, window=5, slack=2, renumber=True),
    Sees(5, 2, renumber=True),
    3,
    True,
    IN_PLACE,
  ),
  Row('paged', kvjax.Paged(page=4), Sees(), 4, False),
  Row(
    'heavy_hitters_by_head',
    pieces(5, kvjax.HeavyHitters(recent=2)),
    Evicts(5, 'mass', recent=2),
    0,
    True,
  ),
  Row(
    'heavy_hitters',
    pieces(6, kvjax.HeavyHitters(recent=0), slack=2, per_head=False),
    Evicts(6, 'mass', piece=3, apart=False),
    0,
    True,
  ),
  Row(
    'last_query',
    pieces(5, kvjax.LastQuery()),
    Evicts(5, 'last'),
    0,
    True,
  ),
  Row(
    'recency',
    pieces(5, kvjax.Recency(), per_head=False),
    Sees(5),
    0,
    True,
  ),
)

# Of bounded caches that read calls whole: test_chosen.py, and over devices.
SCORES = {
  'heavy_hitters': kvjax.HeavyHitters(),
  'last_query': kvjax.LastQuery(),
  'tova': kvjax.TOVA(),
  'observed_attention': kvjax.ObservedAttention(),
  'recency': kvjax.Recency(),
  'snapkv': kvjax.SnapKV(window=3, pool=3),
  'expected_attention': kvjax.ExpectedAttention(future=8, sinks=1),
  'key_norm': kvjax.KeyNorm(),
  'key_diff': kvjax.KeyDiff(),
  'cur': kvjax.CUR(sinks=1, window=3),
  'lagkv': kvjax.LagKV(sinks=1, lag=3),
  'random': kvjax.Random(3),
}

CODECS = (('', None), ('_int8', kvjax.Int8()))


@dataclasses.dataclass(frozen=True)
class Cell:
  """A variant, a kind and a codec, as a model of one layer of attention."""

  variant: Variant
  row: Row
  codec: kvjax.Codec | None
  name: str
  dtype: str = 'float32'

  @functools.cached_property
  def config(self) -> kvjax.ModelConfig:
    layer = kvjax.Layer(self.variant.attention, Zero())
    return kvjax.ModelConfig(
      VOCAB, WIDTH, (layer,), norm=Same(), dtype=self.dtype
    )

  def oracle(self, params: Any, rule: Rule | None = None, **more) -> Oracle:
    absorb = self.variant.form != 'expanded'
    rules = (rule or self.row.rule,)
    int8 = self.codec is not None
    return Oracle(self.config, params, rules, int8, absorb, **more)

  def init(self, batch: int, capacity: int = CAPACITY) -> kvjax.Cache:
    return kvjax.init_cache(
      self.config, batch, capacity, kinds=self.row.kind, codec=self.codec
    )

  def extend(
    self, params: Any, cache: Any, tokens: Any, lengths: Any
  ) -> tuple[jax.Array, kvjax.Cache]:
    return kvjax.extend(
      self.config,
      params,
      cache,
      jnp.asarray(tokens),
      lengths,
      options=kvjax.DecodeOptions(form=self.variant.form),
    )


def cells(**more: Any) -> Iterator[Cell]:
  """Yields the product, named as in `gqa_ring_int8`."""
  for variant, row, (suffix, codec) in itertools.product(
    VARIANTS, KINDS, CODECS
  ):
    name = f'{variant.name}_{row.name}{suffix}'
    yield Cell(variant, row, codec, name, **more)


def draw(config: kvjax.ModelConfig, seed: int, sharp: float = 2.0) -> Any:
  """Returns random parameters; `sharp` makes attention choose."""
  rng = np.random.default_rng(seed)
  shapes = jax.eval_shape(lambda: kvjax.init_params(config, jax.random.key(0)))

  def leaf(path, shape):
    name = jax.tree_util.keystr(path)
    x = rng.normal(size=shape.shape)
    if name.endswith("_norm']['weight']"):
      x = 1 + 0.1 * x
    elif 'embedding' not in name:
      x *= shape.shape[-1] ** -0.5 * (sharp if 'query' in name else 1.0)
    return jnp.asarray(x, shape.dtype)

  return jax.tree_util.tree_map_with_path(leaf, shapes)


def text(seed: int = 0, batch: int = BATCH, length: int = LENGTH) -> np.ndarray:
  rng = np.random.default_rng(seed)
  return rng.integers(0, VOCAB, (batch, length), np.int32)
