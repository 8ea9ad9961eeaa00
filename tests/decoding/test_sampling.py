"""Filters against NumPy, draws against counts, seeds against batches."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

import kvjax
from kvjax.decoding.sampling import filter_logits, row_keys

VOCAB = 23


def logits(rows=5, seed=0):
  """Returns `[rows, V]`."""
  return 2 * jax.random.normal(jax.random.key(seed), (rows, VOCAB))


def kept_by_top_k(row, k):
  """Returns the k likeliest ids."""
  return set(np.argsort(-row, kind='stable')[:k].tolist())


def kept_by_top_p(row, p):
  """Returns the fewest likeliest ids whose probabilities reach p."""
  order = np.argsort(-row, kind='stable')
  probs = np.exp(row - row.max())
  probs = probs / probs.sum()
  kept, total = set(), 0.0
  for i in order:
    if total >= p:
      break
    kept.add(int(i))
    total += probs[i]
  return kept


def kept_by_min_p(row, p):
  """Returns ids at least p times as likely as the likeliest."""
  return set(np.flatnonzero(np.exp(row - row.max()) >= p).tolist())


VALUES = {
  'top_k': (1, 4, 99),
  'top_p': (0.01, 0.5, 0.9, 1.0),
  'min_p': (0.05, 0.4, 1.0),
}
RULES = {'top_k': kept_by_top_k, 'top_p': kept_by_top_p, 'min_p': kept_by_min_p}


class FilterTest(chex.TestCase):
  @chex.variants(with_jit=True, without_jit=True)
  @parameterized.named_parameters(
    (f'{name}_{value}', name, value)
    for name, values in VALUES.items()
    for value in values
  )
  def test_equals_numpy(self, name, value):
    x = logits()
    sampling = kvjax.Sampling(1.0, **{name: value})
    got = self.variant(lambda x: filter_logits(x, sampling))(x)
    for row, found in zip(np.asarray(x), np.asarray(got), strict=True):
      kept = sorted(np.flatnonzero(np.isfinite(found)).tolist())
      self.assertEqual(set(kept), RULES[name](row.astype(np.float64), value))
      np.testing.assert_array_equal(found[kept], row[kept])

  def test_golden_nucleus(self):
    """Of 0.5, 0.3, 0.2 the first two are the fewest that reach 0.6."""
    x = jnp.log(jnp.asarray([[0.2, 0.5, 0.3]]))
    for p, kept in ((0.6, [1, 2]), (0.5, [1]), (0.81, [0, 1, 2])):
      got = filter_logits(x, kvjax.Sampling(1.0, top_p=p - 1e-6))
      self.assertEqual(np.flatnonzero(np.isfinite(got[0])).tolist(), kept)

  def test_filters_apply_in_order(self):
    """top_p counts probabilities of what top_k left, not of everything."""
    x = jnp.log(jnp.asarray([[0.4, 0.3, 0.2, 0.1]]))
    got = filter_logits(x, kvjax.Sampling(1.0, top_k=2, top_p=0.55))
    self.assertEqual(np.flatnonzero(np.isfinite(got[0])).tolist(), [0])


class TiesTest(parameterized.TestCase):
  @parameterized.parameters(
    ({'top_k': 2}, 2), ({'top_p': 1e-9}, 1), ({'top_p': 0.3}, 3)
  )
  def test_no_more_than_asked_for(self, rule, count):
    kept = filter_logits(jnp.zeros((3, 8)), kvjax.Sampling(1.0, **rule))
    np.testing.assert_array_equal(np.isfinite(kept).sum(axis=1), [count] * 3)


class SampleTest(chex.TestCase):
  @chex.variants(with_jit=True, without_jit=True)
  def test_greedy_and_log_probs(self):
    x = logits()
    tokens, scores = self.variant(
      lambda x: kvjax.sample(x, row_keys(0, 5), kvjax.Sampling())
    )(x)
    np.testing.assert_array_equal(tokens, np.argmax(x, -1))
    want = np.asarray(x) - np.log(np.exp(np.asarray(x)).sum(-1, keepdims=True))
    np.testing.assert_allclose(scores, want.max(-1), rtol=1e-5)

  @parameterized.parameters(0.5, 2.0)
  def test_temperature_and_counts(self, temperature):
    """Frequencies of 4000 draws are softmax(logits / temperature)."""
    x = jnp.asarray([[0.0, 1.0, 2.0, -1.0]])
    many = jnp.broadcast_to(x, (4000, 4))
    sampling = kvjax.Sampling(temperature)
    tokens, scores = jax.jit(
      lambda x: kvjax.sample(x, row_keys(3, 4000), sampling)
    )(many)
    share = np.bincount(tokens, minlength=4) / 4000
    want = jax.nn.softmax(x[0] / temperature)
    np.testing.assert_allclose(share, want, atol=0.03)
    # Scores are of the model: temperature 1 and no filter.
    np.testing.assert_allclose(
      scores, jax.nn.log_softmax(x[0])[tokens], rtol=1e-5
    )

  def test_only_kept_tokens_are_drawn(self):
    x = jnp.broadcast_to(logits(1), (500, VOCAB))
    sampling = kvjax.Sampling(3.0, top_k=3)
    tokens, _ = kvjax.sample(x, row_keys(0, 500), sampling)
    kept = kept_by_top_k(np.asarray(x[0]), 3)
    self.assertEqual(set(np.asarray(tokens).tolist()), kept)

  @parameterized.parameters(1e-38, 1e-60)
  def test_the_smallest_temperature_takes_the_likeliest(self, temperature):
    x = jnp.asarray([[0.0, 1.0, 2.0, 3.0], [-3.0, -jnp.inf, -4.0, -5.0]])
    tokens, _ = kvjax.sample(x, row_keys(0, 2), kvjax.Sampling(temperature))
    self.assertEqual(tokens.tolist(), [3, 0])

  def test_a_row_of_nan_gives_no_token(self):
    for t in (0.0, 1.0):
      x = logits(3).at[1, 4].set(jnp.nan)
      tokens, _ = kvjax.sample(x, row_keys(0, 3), kvjax.Sampling(t))
      self.assertEqual((np.asarray(tokens) < 0).tolist(), [False, True, False])
      self.assertEqual(int(tokens[1]), -1)

  @parameterized.parameters(
    ({'temperature': -0.1}, 'temperature=-0.1 must not be negative; 0 is'),
    ({'temperature': float('nan')}, 'temperature=nan must not be negative'),
    ({'top_k': 0}, 'top_k=0 must be at least 1, or None'),
    ({'top_p': 0.0}, r'top_p=0.0 must be in \(0, 1\], or None'),
    ({'top_p': 1.5}, r'top_p=1.5 must be in \(0, 1\]'),
    ({'min_p': -1.0}, r'min_p=-1.0 must be in \(0, 1\]'),
  )
  def test_refusals(self, options, message):
    with self.assertRaisesRegex(ValueError, message):
      kvjax.Sampling(**options)


class SeedTest(chex.TestCase):
  def test_a_row_draws_by_its_own_seed(self):
    """Whatever the batch: same seed and logits, same token."""
    x, sampling = logits(4), kvjax.Sampling(2.0)
    seeds = jnp.asarray([5, 6, 7, 5])
    all_rows, _ = kvjax.sample(x, row_keys(seeds, 4), sampling)
    for row in range(4):
      alone, _ = kvjax.sample(
        x[row : row + 1], row_keys(seeds[row : row + 1], 1), sampling
      )
      self.assertEqual(int(alone[0]), int(all_rows[row]))

  def test_one_seed_gives_rows_their_own_keys(self):
    keys = jax.random.key_data(row_keys(3, 4))
    self.assertLen({tuple(k) for k in np.asarray(keys).tolist()}, 4)
    again = jax.random.key_data(row_keys(3, 2))
    np.testing.assert_array_equal(keys[:2], again)

  def test_any_integer_is_a_seed(self):
    data = lambda seed: jax.random.key_data(row_keys(seed, 2))
    for seed in (np.int64(3), jnp.int32(3)):
      np.testing.assert_array_equal(data(seed), data(3))
    np.testing.assert_array_equal(jax.jit(data)(jnp.int32(3)), data(3))

  def test_seeds_have_the_rows_shape(self):
    with self.assertRaises(AssertionError):
      row_keys(jnp.asarray([1, 2, 3]), 2)


if __name__ == '__main__':
  absltest.main()
