"""Which keys a query sees: rules against one sentence each."""

import jax.numpy as jnp
import numpy as np
import pytest

from kvjax.streams.visibility import Visibility

RULES = {
  'causal': (Visibility(), lambda p, s: s <= p),
  'all': (Visibility(causal=False), lambda p, s: True),
  'window': (Visibility(window=3), lambda p, s: s in (p - 2, p - 1, p)),
  'window_one': (Visibility(window=1), lambda p, s: s == p),
  'chunk': (Visibility(chunk=4), lambda p, s: s <= p and s >= p - p % 4),
  'sinks': (
    Visibility(window=3, sink_tokens=2),
    lambda p, s: s <= p and (s >= p - 2 or s in (0, 1)),
  ),
  'sinks_alone': (Visibility(sink_tokens=2), lambda p, s: s <= p),
  'window_in_chunk': (
    Visibility(window=3, chunk=4),
    lambda p, s: p - 2 <= s <= p and s >= p - p % 4,
  ),
}


@pytest.mark.parametrize(('rule', 'sentence'), RULES.values(), ids=RULES)
def test_rule(rule, sentence, maybe_jit):
  queries = jnp.arange(11, dtype=jnp.int32)[:, None]
  keys = jnp.asarray([[-1, *range(11), -1]], jnp.int32)
  got = maybe_jit(rule.sees)(queries, keys)
  want = [
    [s >= 0 and sentence(p, s) for s in keys[0].tolist()] for p in range(11)
  ]
  np.testing.assert_array_equal(np.broadcast_to(got, (11, 13)), want)


@pytest.mark.parametrize('window', [4, 5, 6, 7])
def test_sinks_are_seen_beyond_a_window_of_the_layer(window):
  rule = Visibility(window=6).narrow(window, 2)
  assert rule == Visibility(window=min(window, 6), sink_tokens=2)


def test_narrow_takes_the_smaller_window():
  assert Visibility().narrow(5) == Visibility(window=5)
  assert Visibility(window=9).narrow(5) == Visibility(window=5)
  assert Visibility(window=3).narrow(5) == Visibility(window=3)
  assert Visibility(chunk=7).narrow(5, 2) == Visibility(
    window=5, chunk=7, sink_tokens=2
  )


def test_the_span_is_the_most_that_a_query_sees():
  assert Visibility(sink_tokens=2).span is None
  assert Visibility(window=9).span == Visibility(chunk=9).span == 9
  assert Visibility(window=3, chunk=7).span == 3
  assert Visibility(window=7, chunk=3).span == 3


@pytest.mark.parametrize(
  ('rule', 'message'),
  [
    pytest.param(
      {'window': 0}, 'window=0 must be at least 1, or None', id='window=0'
    ),
    pytest.param(
      {'chunk': -3}, 'chunk=-3 must be at least 1, or None', id='chunk=-3'
    ),
    pytest.param(
      {'sink_tokens': -1},
      'sink_tokens=-1 must be at least 0',
      id='sink_tokens=-1',
    ),
  ],
)
def test_refusals(rule, message):
  with pytest.raises(ValueError, match=message):
    Visibility(**rule)
