"""Layers that read another's keys and values: its cache serves them all."""

import dataclasses

import pytest

import kvjax
from tests.facts import tiny

FULL = kvjax.Visibility()
NEAR = kvjax.Visibility(window=4)
WIDE = kvjax.Visibility(window=7)
CHUNK = kvjax.Visibility(chunk=5)
SINKS = kvjax.Visibility(window=4, sink_tokens=2)
KEPT = {
  'owner_alone': ((NEAR,), kvjax.Ring(window=4)),
  'full_reader': ((NEAR, FULL), kvjax.Dense()),
  'full_owner': ((FULL, NEAR), kvjax.Dense()),
  'wider_reader': ((NEAR, WIDE), kvjax.Ring(window=7)),
  'chunked_reader': ((NEAR, CHUNK), kvjax.Ring(window=5)),
  'sinks_reader': ((WIDE, SINKS), kvjax.Dense()),
  'sinks_alike': (
    (dataclasses.replace(SINKS, window=7), SINKS),
    kvjax.Sinks(sinks=2, window=7),
  ),
}


def model(rules):
  """Returns a model whose layers all read what the first leaves."""
  layers = [
    dataclasses.replace(
      tiny.GQA, visibility=rule, shared_from=0 if index else None
    )
    for index, rule in enumerate(rules)
  ]
  return tiny.decoder(*layers)


@pytest.mark.parametrize(('rules', 'kind'), KEPT.values(), ids=KEPT)
def test_the_default_kind_holds_what_any_reader_sees(rules, kind):
  config = model(rules)
  cache = kvjax.init_cache(config, 1, 16)
  assert cache.layout.stores[0].kind == kind.bind(16)
  assert cache.layout.stores[1:] == (None,) * (len(config.layers) - 1)


@pytest.mark.parametrize(
  'name', ['full_reader', 'wider_reader', 'sinks_reader', 'sinks_alike']
)
def test_cached_equals_uncached(name):
  config, ids = model(KEPT[name][0]), tiny.tokens(1, 12)
  want = kvjax.forward(config, tiny.params(config), ids)
  cache = kvjax.init_cache(config, 1, 16)
  got, _ = tiny.feed(config, cache, ids, (6, 6))
  tiny.close(got, want)


def test_a_reader_that_sees_what_comes_has_no_cache():
  config = model((NEAR, kvjax.Visibility(causal=False)))
  with pytest.raises(ValueError, match='causal=False has no exact cache'):
    kvjax.init_cache(config, 1, 16)
