"""The compiled decode step: in place, at any capacity, once."""

import dataclasses
import functools
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import kvjax
from kvjax import memory
from tests.compiler import as_users_do
from tests.contract.table import CODECS, draw

BLOCK, WIDTH, KEY, HIDDEN = 128, 192, 64, 768


def grouped(kv_heads: int) -> kvjax.Grouped:
  return kvjax.Grouped(6, kv_heads, KEY, rotary=kvjax.Rotary(KEY))


LATENT = kvjax.Latent(3, 96, 64, 64, rotary=kvjax.Rotary(32))
KINDS = {
  'dense': lambda size: kvjax.Dense(),
  'ring': lambda size: kvjax.Ring(window=size),
  'sinks': lambda size: kvjax.Sinks(sinks=4, window=size - 4),
  'sinks_renumbered': lambda size: kvjax.Sinks(
    sinks=4, window=size - 4, renumber=True
  ),
  'paged': lambda size: kvjax.Paged(page=64),
  'heavy_hitters': lambda size: kvjax.Bounded(
    budget=size, score=kvjax.HeavyHitters(), per_head=False
  ),
  'heavy_hitters_by_head': lambda size: kvjax.Bounded(
    budget=size, score=kvjax.HeavyHitters(recent=8)
  ),
  'last_query': lambda size: kvjax.Bounded(
    budget=size, score=kvjax.LastQuery()
  ),
  'recency': lambda size: kvjax.Bounded(
    budget=size, score=kvjax.Recency(), per_head=False
  ),
  'snapkv': lambda size: kvjax.Bounded(budget=size, score=kvjax.SnapKV()),
}
# Scores of what is stored; in order of position, that needs a sort of slots.
KEY_SCORES = {
  'key_norm': (kvjax.KeyNorm(), 1),
  'key_diff': (kvjax.KeyDiff(), 1),
  'cur': (kvjax.CUR(), 3),
  'lagkv': (kvjax.LagKV(), 3),
}


def kind_of(name: str, size: int) -> kvjax.Kind:
  if name in KINDS:
    return KINDS[name](size)
  return kvjax.Bounded(size, KEY_SCORES[name][0])


@dataclasses.dataclass(frozen=True)
class Step:
  """A decode step to compile."""

  name: str
  kind: str
  codec: kvjax.Codec | None
  batch: int
  attention: kvjax.Grouped | kvjax.Latent
  dtype: str = 'float32'

  @functools.cached_property
  def config(self) -> kvjax.ModelConfig:
    layer = kvjax.Layer(self.attention, kvjax.MLP(HIDDEN))
    return kvjax.ModelConfig(31, WIDTH, (layer,))

  def init(self, capacity: int) -> kvjax.Cache:
    return kvjax.init_cache(
      self.config,
      self.batch,
      capacity,
      kinds=kind_of(self.kind, capacity),
      codec=self.codec,
      dtype=self.dtype,
    )

  def compile(self, capacity: int) -> jax.stages.Compiled:
    def step(params, cache, token):
      return kvjax.decode_step(self.config, params, cache, token)

    cache = jax.eval_shape(lambda: self.init(capacity))
    params = jax.eval_shape(
      lambda: kvjax.init_params(self.config, jax.random.key(0))
    )
    token = jax.ShapeDtypeStruct((self.batch,), jnp.int32)
    jitted = jax.jit(step, donate_argnames='cache')
    return as_users_do(jitted.lower(params, cache, token))

  @property
  def bound(self) -> int:
    """Bytes of the largest weight matrix plus two decoded blocks."""
    streams = self.attention.streams().values()
    block = self.batch * BLOCK * 4 * sum(s.heads * s.width for s in streams)
    return 4 * WIDTH * HIDDEN + 2 * block

  @property
  def numbers(self) -> int:
    """Four-byte numbers that a step may hold for a slot of a row.

    A weight for each head that chooses for itself, or ranks: never a stream,
    and nothing for a score that looks at positions or at what it has kept.
    """
    kind: Any = kind_of(self.kind, 9)
    if not kind.book_per_layer or self.kind in ('recency', 'snapkv'):
      return 0
    heads = next(iter(self.attention.streams().values())).heads
    _, numbers = KEY_SCORES.get(self.kind, (None, 1))
    return numbers * (heads if kind.per_head else 1)


SHAPES = ((1, 1), (1, 3), (2, 1), (2, 3))
STEPS = [
  Step(f'{kind}{suffix}_B{b}_K{k}', kind, codec, b, grouped(k))
  for kind in KINDS
  for suffix, codec in CODECS
  for b, k in (SHAPES if codec is None else (SHAPES[0], SHAPES[3]))
] + [
  Step(f'mla_{kind}{suffix}_B2', kind, codec, 2, LATENT)
  for kind in ('dense', 'paged', 'heavy_hitters_by_head')
  for suffix, codec in CODECS
]
STEPS += [
  Step(f'{kind}_B2_K3', kind, None, 2, grouped(3)) for kind in KEY_SCORES
]
STEPS += [
  Step('key_diff_int8_B2_K3', 'key_diff', kvjax.Int8(), 2, grouped(3)),
]
NARROW = ['dense', 'sinks', 'paged']
if jax.__version_info__ >= (0, 11):  # older ones: docs/design.md, known limits
  NARROW += ['last_query']
STEPS += [
  Step(f'{kind}_bfloat16_B2', kind, None, 2, grouped(3), 'bfloat16')
  for kind in NARROW
]


def nbytes(tree) -> int:
  return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))


@pytest.mark.parametrize('step', STEPS, ids=lambda step: step.name)
def test_a_step_is_in_place_and_reads_no_more_at_a_larger_capacity(step):
  temporaries = {}
  for capacity in (1024, 8192):
    compiled = step.compile(capacity)
    if step.kind not in ('cur', 'lagkv'):  # a sort begins with a copy
      memory.assert_in_place(compiled, 'cache')
    measured = memory.measure(compiled)
    cache = jax.eval_shape(functools.partial(step.init, capacity))
    assert measured.alias == nbytes(cache)
    more = 4 * step.numbers * step.batch * capacity
    assert measured.temporaries <= step.bound + more
    temporaries[capacity] = measured.temporaries
  assert temporaries[8192] <= 1.01 * temporaries[1024] + more


def test_a_scan_with_the_cache_as_xs_and_ys_is_caught():
  """The negative control: every byte aliases, and every byte is copied."""

  def step(cache, token):
    def layer(x, leaf):
      leaf = leaf.at[:, :, 7].set(x)
      return leaf.sum(axis=2), leaf

    return jax.lax.scan(layer, token, cache)

  cache = jax.ShapeDtypeStruct((4, 2, 3, 1024, 64), jnp.float32)
  token = jax.ShapeDtypeStruct((2, 3, 64), jnp.float32)
  lowered = jax.jit(step, donate_argnames='cache').lower(cache, token)
  compiled = as_users_do(lowered)
  assert memory.measure(compiled).alias == nbytes(cache)
  with pytest.raises(memory.InPlaceError):
    memory.assert_in_place(compiled, 'cache')


@pytest.mark.parametrize('kind', KINDS)
def test_eight_steps_are_one_trace_and_the_old_cache_is_gone(kind):
  step = Step(kind, kind, None, 2, grouped(3))
  params = draw(step.config, 0)
  chex.clear_trace_counter()

  @functools.partial(jax.jit, donate_argnums=1)
  @chex.assert_max_traces(n=1)
  def traced(params, cache, token):
    return kvjax.decode_step(step.config, params, cache, token)

  cache = step.init(64)
  for position in range(8):
    token = jnp.full(2, position, jnp.int32)
    logits, new = traced(params, cache, token)
    assert all(x.is_deleted() for x in jax.tree.leaves(cache))
    with pytest.raises(kvjax.DonatedCacheError, match='donate=False'):
      kvjax.decode_step(step.config, params, cache, token)
    cache = new
  assert np.isfinite(logits).all()
  assert (np.asarray(cache.length) == 8).all()


def test_the_public_step_traces_once_for_eight_positions():
  count = []

  class Counted(kvjax.MLP):
    def __call__(self, params, x):
      count.append(x.shape)
      return super().__call__(params, x)

  layer = kvjax.Layer(grouped(1), Counted(7))
  config = kvjax.ModelConfig(31, 13, (layer,))
  params = draw(config, 0)
  cache = kvjax.init_cache(config, 2, 64)
  for position in range(8):
    token = jnp.full(2, position, jnp.int32)
    active = jnp.asarray([True, position % 2 == 0])
    old = cache
    _, cache = kvjax.decode_step(config, params, cache, token, active)
    assert all(x.is_deleted() for x in jax.tree.leaves(old))
  assert count == [(2, 1, 13)]
  np.testing.assert_array_equal(cache.length, [8, 4])


def test_the_public_step_never_waits_for_the_device():
  """It returns before the token it is given has been computed."""
  step = Step('dense', 'dense', None, 2, grouped(1))
  params, token = draw(step.config, 0), jnp.zeros(2, jnp.int32)
  _, cache = kvjax.decode_step(step.config, params, step.init(64), token)

  @jax.jit
  def slow(token):  # far longer than a step takes to dispatch
    x = jnp.eye(300) + token[0].astype(jnp.float32)
    x = jax.lax.fori_loop(0, 300, lambda _, x: jnp.tanh(x @ x), x)
    return token + (x[0, 0] > 9).astype(jnp.int32)

  late = slow.lower(token).compile()(token)
  logits, cache = kvjax.decode_step(step.config, params, cache, late)
  assert not late.is_ready()
  assert not logits.is_ready()
  assert np.isfinite(logits).all()
  np.testing.assert_array_equal(cache.length, [2, 2])
