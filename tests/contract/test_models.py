"""Whole models of two layers: cached equals uncached to 1e-5.

Rows of the product, each kind and each variant at least once, against the
oracle; and features that the oracle lacks, against `kvjax.forward`.
"""

import dataclasses
import functools
import itertools
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

import kvjax
from kvjax.testing import assert_cached_matches_uncached, poison
from tests.contract.oracle import Oracle, Sees
from tests.contract.table import (
  CAPACITY,
  KINDS,
  LENGTH,
  LONG,
  RECENT,
  VARIANTS,
  VOCAB,
  WIDTH,
  draw,
  text,
)
from tests.contract.test_product import on_clear_numbers
from tests.facts import tiny

ROWS = {row.name: row for row in KINDS}
OF = {variant.name: variant for variant in (*VARIANTS, RECENT)}


@dataclasses.dataclass(frozen=True)
class Model:
  """Two layers, each a variant in a kind."""

  name: str
  layers: tuple[str, str]
  kinds: tuple[str, str]
  codec: kvjax.Codec | None = None

  @functools.cached_property
  def config(self) -> kvjax.ModelConfig:
    layers = [
      kvjax.Layer(OF[name].attention, kvjax.MLP(11)) for name in self.layers
    ]
    return kvjax.ModelConfig(VOCAB, WIDTH, tuple(layers))

  @property
  def rows(self):
    return [ROWS[name] for name in self.kinds]

  @property
  def multiple(self) -> int:
    return max(row.multiple for row in self.rows)


MODELS = (
  Model('mha_dense', ('mha', 'mha'), ('dense', 'dense')),
  Model('mqa_ring_and_dense', ('mqa', 'mqa'), ('ring', 'dense')),
  Model('gqa_paged_int8', ('gqa', 'gqa'), ('paged', 'paged'), kvjax.Int8()),
  Model('gqa_sinks', ('gqa', 'gqa'), ('sinks', 'sinks_renumbered')),
  Model(
    'gqa_heavy_hitters',
    ('gqa', 'gqa'),
    ('heavy_hitters_by_head', 'heavy_hitters_by_head'),
  ),
  Model('mha_heavy_hitters_by_threes', ('mha', 'gqa'), ('heavy_hitters',) * 2),
  Model('mla_dense', ('mla_expanded', 'mla_query_rank'), ('dense',) * 2),
  Model('mla_ring_int8', ('mla_absorbed',) * 2, ('ring', 'ring'), kvjax.Int8()),
  Model('mla_last_query', ('mla_query_rank',) * 2, ('last_query', 'paged')),
  Model(
    'recent_heavy_hitters', ('recent',) * 2, ('heavy_hitters_by_head',) * 2
  ),
  Model(
    'recent_sinks_int8',
    ('recent',) * 2,
    ('sinks_renumbered', 'sinks'),
    kvjax.Int8(),
  ),
  Model('gqa_and_mla', ('gqa', 'mla_absorbed'), ('recency', 'dense')),
)


@pytest.mark.parametrize('model', MODELS, ids=lambda model: model.name)
def test_two_layers(model: Model):
  on_clear_numbers(lambda seed: check(model, seed))


def check(model: Model, seed: int) -> None:
  params = draw(model.config, seed)
  rules = tuple(row.rule for row in model.rows)
  wraps = all(row.wraps for row in model.rows)
  rewinds = min(row.rewinds for row in model.rows)
  assert_cached_matches_uncached(
    Oracle(model.config, params, rules, model.codec is not None),
    functools.partial(
      kvjax.init_cache,
      model.config,
      capacity=CAPACITY,
      kinds=[row.kind for row in model.rows],
      codec=model.codec,
    ),
    functools.partial(extend, model.config, params),
    rewind=kvjax.rewind if rewinds else None,
    take=kvjax.take,
    fork=kvjax.fork,
    poison=poison,
    tokens=text(seed),
    chunkings=tuple(model.multiple * c for c in (1, 2)) + (None,),
    multiple=model.multiple,
    rewind_by=rewinds,
    wrap=LONG if wraps else None,
    widths=(1, LENGTH),
    rtol=1e-5,
  )


def extend(config, params, cache, tokens, lengths) -> Any:
  return kvjax.extend(config, params, cache, jnp.asarray(tokens), lengths)


def grouped(**more: Any) -> kvjax.Layer:
  attention = kvjax.Grouped(6, 3, 8, value_width=5, **more)
  return kvjax.Layer(attention, kvjax.MLP(11))


TURN = kvjax.Rotary(8, base=100.0)
WINDOW = kvjax.Visibility(window=5)
FEATURES = {
  'window_gets_a_ring': (grouped(rotary=TURN, visibility=WINDOW),) * 2,
  'chunked_local': (
    grouped(rotary=TURN, visibility=kvjax.Visibility(chunk=4)),
    grouped(rotary=TURN),
  ),
  'sink_logits_and_softcap': (
    grouped(rotary=TURN, sinks=True, softcap=3.0, visibility=WINDOW),
    grouped(sinks=True, scale=0.5),
  ),
  'alibi': (grouped(bias=kvjax.Alibi()),) * 2,
  'recent': tiny.recent_layers(6, 3),
  'shared_keys_and_values': (
    grouped(rotary=TURN),
    grouped(rotary=TURN, shared_from=0),
  ),
}


@pytest.mark.parametrize('name', FEATURES)
def test_features_in_their_default_kinds(name):
  config = kvjax.ModelConfig(VOCAB, WIDTH, FEATURES[name])
  params = draw(config, 0)
  assert_cached_matches_uncached(
    lambda tokens: kvjax.forward(config, params, jnp.asarray(tokens)),
    lambda batch: kvjax.init_cache(config, batch, CAPACITY, slack=2),
    functools.partial(extend, config, params),
    rewind=kvjax.rewind,
    take=kvjax.take,
    fork=kvjax.fork,
    tokens=text(),
    rewind_by=3,
    widths=(1, LENGTH),
  )


@pytest.mark.parametrize(
  'model', [MODELS[1], MODELS[2], MODELS[4]], ids=lambda model: model.name
)
def test_a_row_of_a_ragged_batch_equals_the_row_alone(model):
  params, tokens = draw(model.config, 0), text()
  kinds = [row.kind for row in model.rows]

  def run(rows):
    cache = kvjax.init_cache(
      model.config, len(rows), CAPACITY, kinds=kinds, codec=model.codec
    )
    logits = []
    for counts in ([4, 15, 0], [7, 0, 1], [0, 0, 2]):
      new, cache = extend(
        model.config, params, cache, tokens[rows], np.array(counts)[rows]
      )
      logits.append(np.asarray(new))
    return [
      [x[i, :count] for x, count in zip(logits, column, strict=True)]
      for i, column in enumerate(
        np.array([[4, 7, 0], [15, 0, 0], [0, 1, 2]])[rows]
      )
    ]

  together = run([0, 1, 2])
  for row in range(3):
    (alone,) = run([row])
    for a, b in zip(alone, together[row], strict=True):
      np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


def test_the_oracle_is_kvjax_forward_where_both_apply():
  """Two formulas, written apart: the oracle itself is under test."""
  rules = itertools.cycle((Sees(), Sees(5), Sees(5, 2)))
  for name, rule in zip(OF, rules, strict=False):
    model = Model(name, (name, name), ('dense', 'dense'))
    params, tokens = draw(model.config, 3), text(3)
    config = dataclasses.replace(
      model.config,
      layers=tuple(
        dataclasses.replace(
          layer,
          attention=dataclasses.replace(
            layer.attention,
            visibility=kvjax.Visibility(
              window=rule.window, sink_tokens=rule.sinks
            ),
          ),
        )
        for layer in model.config.layers
      ),
    )
    want = Oracle(config, params, (rule, rule))(tokens)
    got = kvjax.forward(config, params, jnp.asarray(tokens))
    limit = 2e-6 * np.abs(want).max()
    np.testing.assert_allclose(got, want, rtol=0, atol=limit)
