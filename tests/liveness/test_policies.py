"""What sparse reading and a policy that observes queries must remember."""

import math

import pytest

from kvjax import liveness
from tests.liveness import zoo_policies
from tests.liveness.zoo import D, weight

INF = math.inf
EXPECTED = {
  'indexed': (
    {'q': 0, 'qi': 0, 'wi': 0, 'k': INF, 'v': INF, 'ki': INF},
    {'k', 'v', 'ki'},
  ),
  'causal_pages': (
    {'q': 0, 'k': INF, 'v': INF, 'min': INF, 'max': INF},
    {'k', 'v', 'min', 'max'},
  ),
}


@pytest.mark.parametrize('program', EXPECTED)
def test_sparse_reading_keeps_every_token(program):
  """Fewer tokens are read, and none is forgotten; an indexer adds a stream."""
  report = analyze(getattr(zoo_policies, program))
  live_for, keep = EXPECTED[program]
  assert report.live_for == live_for
  assert set(report.keep) == keep
  assert report.causal


def test_bounds_of_a_whole_page_are_not_causal():
  """They hold keys that are not written yet, so old queries change."""
  report = analyze(zoo_policies.whole_pages)
  assert report.live_for['q'] == zoo_policies.PAGE - 1
  assert {report.live_for[n] for n in ('k', 'v', 'low', 'high')} == {INF}
  assert not report.causal


@pytest.mark.parametrize('window', [1, 2, 3])
def test_an_observation_window_keeps_queries_alive(window):
  """For w - 1 tokens: what the policy remembers, and not the model."""
  report = analyze(zoo_policies.observed(window))
  live_for = {name: report.live_for[name] for name in ('q', 'k', 'v')}
  assert live_for == {'q': window - 1, 'k': INF, 'v': INF}
  assert ('q' in report.keep) == (window > 1)
  assert report.causal


def analyze(program):
  return liveness.analyze(program, weight(12, D) * 3)
