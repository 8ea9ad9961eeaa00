"""Causality by gradients: which positions move which logits, exactly.

A learned position table gives every position another input, so that a
Jacobian shows the reach of every row.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import kvjax
from tests.facts import tiny

T = 7
VARIANTS = {'gqa': tiny.GQA, 'mla': tiny.MLA}
RULES = {
  'causal': (kvjax.Visibility(), lambda t, s: s <= t),
  'window': (kvjax.Visibility(window=3), lambda t, s: t - 3 < s <= t),
  'chunk': (kvjax.Visibility(chunk=4), lambda t, s: t - t % 4 <= s <= t),
  'sinks': (
    kvjax.Visibility(window=2, sink_tokens=1),
    lambda t, s: s <= t and (s > t - 2 or s == 0),
  ),
}


def reach(f, config):
  """Returns bool `[T, T]`: whether the input at s moves the logits at t."""
  params = tiny.params(config)
  mix = jax.random.normal(jax.random.key(4), (tiny.VOCAB,))
  table = params['positions']
  jacobian = jax.jacfwd(lambda x: f(params | {'positions': x})[0] @ mix)(table)
  return np.abs(np.asarray(jacobian)).sum(-1) > 0


def model(variant, rule):
  """Returns a one-layer model with learned positions."""
  return tiny.decoder(
    dataclasses.replace(variant, visibility=rule), positions=T
  )


@pytest.mark.parametrize('variant', VARIANTS)
@pytest.mark.parametrize('rule', RULES)
def test_uncached(variant, rule):
  rule, sentence = RULES[rule]
  config, ids = model(VARIANTS[variant], rule), tiny.tokens(1, T)
  got = reach(lambda p: kvjax.forward(config, p, ids), config)
  want = [[sentence(t, s) for s in range(T)] for t in range(T)]
  np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize('rule', RULES)
def test_cached(rule):
  rule, sentence = RULES[rule]
  config, ids = model(tiny.GQA, rule), tiny.tokens(1, T)
  cache = kvjax.init_cache(config, 1, T)
  options = kvjax.DecodeOptions(block=3)
  got = reach(
    lambda p: kvjax.extend(config, p, cache, ids, options=options)[0], config
  )
  want = [[sentence(t, s) for s in range(T)] for t in range(T)]
  np.testing.assert_array_equal(got, want)


def test_a_stack_reaches_as_far_as_its_layers():
  """Two windows of 3 see 5 back; the bidirectional control sees it all."""
  narrow = dataclasses.replace(tiny.GQA, visibility=kvjax.Visibility(window=3))
  config, ids = tiny.decoder(narrow, narrow, positions=T), tiny.tokens(1, T)
  got = reach(lambda p: kvjax.forward(config, p, ids), config)
  want = [[t - 5 < s <= t for s in range(T)] for t in range(T)]
  np.testing.assert_array_equal(got, want)
  config = model(tiny.GQA, kvjax.Visibility(causal=False))
  got = reach(lambda p: kvjax.forward(config, p, ids), config)
  assert got.all()


def test_training_gradients_are_finite_with_padding():
  config, ids = tiny.decoder(), tiny.tokens(2, T)
  loss = lambda p: kvjax.forward(config, p, ids, lengths=[T, 3]).mean()
  for leaf in jax.tree.leaves(jax.grad(loss)(tiny.params(config))):
    assert bool(jnp.isfinite(leaf).all())
