"""Scores by value: those of kvpress 0.5.5, and what protects and decodes."""

import dataclasses
import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import kvjax
from kvjax.attention.rotary import rotary_table, rotate
from kvjax.kernels.blockwise import attend, received
from kvjax.streams.view import contiguous_view, fresh_view

GOLDEN = np.load(pathlib.Path(__file__).with_name('kvpress.npz'))
LENGTH, WIDTH, GROUPS, HEADS = 96, 16, 2, 2
ROTARY = kvjax.Rotary(WIDTH)
# The score; a constant factor that changes no order; tokens that it compares.
SCORES = {
  'snapkv': (kvjax.SnapKV(window=16), 16 * GROUPS, slice(0, 80)),
  'tova': (kvjax.TOVA(), HEADS * GROUPS / HEADS, slice(0, 95)),
  'observed': (kvjax.ObservedAttention(), GROUPS, slice(0, 96)),
  'key_norm': (kvjax.KeyNorm(), 1, slice(0, 96)),
  'key_diff': (kvjax.KeyDiff(), 1, slice(0, 96)),
  'expected': (kvjax.ExpectedAttention(), 1, slice(4, 96)),
  'lagkv': (kvjax.LagKV(lag=16), 1, slice(4, 96)),
  'cur': (kvjax.CUR(), 1, slice(4, 96)),
}


def evidence(layer: int, score: kvjax.Score, pad: int = 0) -> kvjax.Evidence:
  """Returns evidence of a stored prompt, with `pad` empty slots of NaN."""
  keys, values, queries, rotated = (
    jnp.asarray(GOLDEN[f'{layer}.{name}'])
    for name in ('keys', 'values', 'queries', 'rotated')
  )
  queries = queries.reshape(1, HEADS, GROUPS, LENGTH, WIDTH)
  rotated = {'key': rotated.reshape(queries.shape)}
  steps = jnp.arange(LENGTH, dtype=jnp.int32)[None]
  scoring = kvjax.Scoring(WIDTH**-0.5)
  view = fresh_view({'key': keys, 'value': values}, steps)
  _, lse = attend(rotated, steps, view, scoring)

  def read_weights():
    new = slice(-score.window if score.window else None, None)
    asked = {'key': rotated['key'][:, :, :, new]}
    found = received(asked, steps[:, new], lse[..., new], view, scoring)
    return jnp.pad(found, ((0, 0), (0, 0), (pad, 0)))

  def read_queries(future, start, size):
    at = LENGTH + jnp.arange(future, dtype=jnp.int32)[None]
    table = rotary_table(ROTARY, at, 1)
    table = jax.tree.map(lambda x: x.mean(axis=1, keepdims=True), table)
    turned = rotate(queries, table, False) * scoring.scale
    return (
      jax.lax.dynamic_slice_in_dim(turned, start, size, axis=3),
      jax.lax.dynamic_slice_in_dim(steps, start, size, axis=1),
    )

  def padded(x, fill):
    return jnp.pad(x, [(0, 0), (0, 0), (pad, 0), (0, 0)], constant_values=fill)

  length = jnp.asarray([LENGTH], jnp.int32)
  positions = jnp.pad(steps, ((0, 0), (pad, 0)), constant_values=-1)[:, None]
  positions = jnp.broadcast_to(positions, (1, HEADS, LENGTH + pad))
  streams = {'key': padded(keys, np.nan), 'value': padded(values, np.nan)}
  stored = contiguous_view(streams, positions, LENGTH + pad)
  return kvjax.Evidence(
    positions=positions,
    length=length,
    before=length * 0,
    is_prompt=length > 0,
    tokens=LENGTH,
    total=jnp.zeros((1, HEADS, LENGTH + pad)),
    parts=((stored, lambda x: (x['key'], x['value'])),),
    read_weights=read_weights,
    read_queries=read_queries,
  )


def rank(score: kvjax.Score, shown: kvjax.Evidence) -> np.ndarray:
  """Returns the priorities of a prompt, `[1, K, S]`."""
  if score.keeps_statistic:
    shown = dataclasses.replace(shown, total=score.statistic(shown))
  shape = (1, HEADS, shown.positions.shape[-1])
  return np.broadcast_to(np.asarray(score.priority(shown)), shape)


@pytest.mark.parametrize('layer', [0, 1])
@pytest.mark.parametrize('name', SCORES)
def test_scores_are_those_of_kvpress(name, layer, maybe_jit):
  score, factor, part = SCORES[name]
  found = maybe_jit(lambda: rank_of(score, layer))()
  found, want = (
    np.asarray(found)[..., part],
    GOLDEN[f'{layer}.{name}'][..., part],
  )
  if isinstance(score, kvjax.caches.scores.PromptScore):
    want = want / want.max(axis=-1, keepdims=True)
    factor = 1
  error = np.abs(found / factor - want).max() / np.abs(want).max()
  # One query's weights: its logits are near 20, and so is their rounding.
  assert error < (4e-6 if name == 'tova' else 2e-6)
  for kept in (12, 24, 48):
    compare_survivors(found, want, kept)


def rank_of(score, layer):
  shown = evidence(layer, score)
  if score.keeps_statistic:
    shown = dataclasses.replace(shown, total=score.statistic(shown))
  priority = score.priority(shown)
  return jnp.broadcast_to(priority, (1, HEADS, LENGTH))


def compare_survivors(found, want, kept):
  for mine, golden in zip(found[0], want[0], strict=True):
    order = np.argsort(-golden)
    last, next_ = golden[order[kept - 1]], golden[order[kept]]
    if last - next_ > 1e-5 * np.abs(golden).max():
      assert set(np.argsort(-mine)[:kept]) == set(order[:kept])


@pytest.mark.parametrize('name', SCORES)
def test_empty_slots_change_no_score(name, monkeypatch):
  """Slots of NaN before the tokens: the same numbers, and finite.

  The same read in blocks, of which the last overlaps the one before.
  """
  score, _, _ = SCORES[name]
  alone = rank(score, evidence(1, score))
  monkeypatch.setattr(kvjax.caches.evidence, 'BLOCK', 20)
  padded = rank(score, evidence(1, score, pad=5))[..., 5:]
  np.testing.assert_allclose(padded, alone, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize('ratio', [0.5, 0.75, 0.875])
def test_pyramid_budgets_are_those_of_kvpress(ratio):
  kind = kvjax.Bounded(int(4096 * (1 - ratio)), kvjax.SnapKV())
  want = GOLDEN[f'pyramid.{ratio}'].tolist()
  assert [k.budget for k in kvjax.pyramid(kind, 32, 4096)] == want
  strict = functools.partial(kvjax.pyramid, kind, 32, 4096)
  if ratio == 0.5:
    assert len(set(want)) > 20
    assert [k.budget for k in strict(uniform_if_small=False)] == want
  else:  # the leaderboard's pyramid is none
    assert len(set(want)) == 1
    with pytest.raises(ValueError, match='51.2 to 1996|25.6 to 998'):
      strict(uniform_if_small=False)
  with pytest.raises(ValueError, match='layers=0 must be at least 1'):
    kvjax.pyramid(kind, 0, 4096)


def test_random_draws_differ_by_head_and_seed_and_are_even():
  shown = evidence(0, kvjax.Random())
  draws = [np.asarray(kvjax.Random(seed).priority(shown)) for seed in (0, 1)]
  assert len(np.unique(np.stack(draws))) > 4 * LENGTH - 3
  assert abs(np.mean(draws) / 2**24 - 0.5) < 0.06


def test_old_scores_are_refused_by_the_new_names():
  with pytest.raises(TypeError, match='accumulate has a new name: statistic'):

    class Old(kvjax.Score):
      def accumulate(self, total, weights):
        return total

  class Free:
    observes = True

    def priority(self, total, age):
      return total

  with pytest.raises(TypeError, match='Free.observes has a new name: window'):
    kvjax.Bounded(8, Free())


@pytest.mark.parametrize(
  ('make', 'message'),
  [
    (lambda: kvjax.Bounded(8, protect=(4, 5)), 'first 4 and the newest 5'),
    (lambda: kvjax.Bounded(8, protect=(8, 0)), 'first 8 and the newest 0'),
    (lambda: kvjax.Bounded(8, protect=(1, -1)), 'two whole numbers'),
    (lambda: kvjax.Bounded(8, protect=3), 'two whole numbers'),
    (lambda: kvjax.Bounded(8, prefill='all'), "must be 'whole' or 'chunks'"),
    (
      lambda: kvjax.Bounded(8, kvjax.SnapKV(), prefill='chunks'),
      'ranks a prompt that is read whole',
    ),
    (lambda: kvjax.Bounded(8, kvjax.Dense()), 'must be Score'),
    (lambda: kvjax.SnapKV(pool=4), 'pool=4 must be odd'),
    (lambda: kvjax.SnapKV(window=0), 'window=0 must be at least 1'),
    (lambda: kvjax.LagKV(lag=1), 'lag=1 must be at least 2'),
    (lambda: kvjax.CUR(window=0), 'window=0 must be at least 1'),
    (lambda: kvjax.ExpectedAttention(future=0), 'future=0 must be at least 1'),
    (lambda: kvjax.Random(seed=-1), 'seed=-1 must be at least 0'),
  ],
)
def test_refusals(make, message):
  with pytest.raises(ValueError, match=message):
    make()
