"""Filters against NumPy, draws against counts, seeds against batches."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

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


@pytest.mark.parametrize(
  ('name', 'value'),
  [
    pytest.param(name, value, id=f'{name}_{value}')
    for name, values in VALUES.items()
    for value in values
  ],
)
def test_equals_numpy(name, value, maybe_jit):
  x = logits()
  sampling = kvjax.Sampling(1.0, **{name: value})
  got = maybe_jit(lambda x: filter_logits(x, sampling))(x)
  for row, found in zip(np.asarray(x), np.asarray(got), strict=True):
    kept = sorted(np.flatnonzero(np.isfinite(found)).tolist())
    assert set(kept) == RULES[name](row.astype(np.float64), value)
    np.testing.assert_array_equal(found[kept], row[kept])


def test_golden_nucleus():
  """Of 0.5, 0.3, 0.2 the first two are the fewest that reach 0.6."""
  x = jnp.log(jnp.asarray([[0.2, 0.5, 0.3]]))
  for p, kept in ((0.6, [1, 2]), (0.5, [1]), (0.81, [0, 1, 2])):
    got = filter_logits(x, kvjax.Sampling(1.0, top_p=p - 1e-6))
    assert np.flatnonzero(np.isfinite(got[0])).tolist() == kept


def test_filters_apply_in_order():
  """top_p counts probabilities of what top_k left, not of everything."""
  x = jnp.log(jnp.asarray([[0.4, 0.3, 0.2, 0.1]]))
  got = filter_logits(x, kvjax.Sampling(1.0, top_k=2, top_p=0.55))
  assert np.flatnonzero(np.isfinite(got[0])).tolist() == [0]


@pytest.mark.parametrize(
  ('rule', 'count'),
  [
    pytest.param({'top_k': 2}, 2, id='top_k=2'),
    pytest.param({'top_p': 1e-9}, 1, id='top_p=1e-09'),
    pytest.param({'top_p': 0.3}, 3, id='top_p=0.3'),
  ],
)
def test_no_more_than_asked_for(rule, count):
  kept = filter_logits(jnp.zeros((3, 8)), kvjax.Sampling(1.0, **rule))
  np.testing.assert_array_equal(np.isfinite(kept).sum(axis=1), [count] * 3)


def test_greedy_and_log_probs(maybe_jit):
  x = logits()
  tokens, scores = maybe_jit(
    lambda x: kvjax.sample(x, row_keys(0, 5), kvjax.Sampling())
  )(x)
  np.testing.assert_array_equal(tokens, np.argmax(x, -1))
  want = np.asarray(x) - np.log(np.exp(np.asarray(x)).sum(-1, keepdims=True))
  np.testing.assert_allclose(scores, want.max(-1), rtol=1e-5)


@pytest.mark.parametrize('temperature', [0.5, 2.0])
def test_temperature_and_counts(temperature):
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


def test_only_kept_tokens_are_drawn():
  x = jnp.broadcast_to(logits(1), (500, VOCAB))
  sampling = kvjax.Sampling(3.0, top_k=3)
  tokens, _ = kvjax.sample(x, row_keys(0, 500), sampling)
  kept = kept_by_top_k(np.asarray(x[0]), 3)
  assert set(np.asarray(tokens).tolist()) == kept


@pytest.mark.parametrize('temperature', [1e-38, 1e-60])
def test_the_smallest_temperature_takes_the_likeliest(temperature):
  x = jnp.asarray([[0.0, 1.0, 2.0, 3.0], [-3.0, -jnp.inf, -4.0, -5.0]])
  tokens, _ = kvjax.sample(x, row_keys(0, 2), kvjax.Sampling(temperature))
  assert tokens.tolist() == [3, 0]


def test_a_row_of_nan_gives_no_token():
  for t in (0.0, 1.0):
    x = logits(3).at[1, 4].set(jnp.nan)
    tokens, _ = kvjax.sample(x, row_keys(0, 3), kvjax.Sampling(t))
    assert (np.asarray(tokens) < 0).tolist() == [False, True, False]
    assert int(tokens[1]) == -1


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    pytest.param(
      {'temperature': -0.1},
      'temperature=-0.1 must be at least 0',
      id='temperature=-0.1',
    ),
    pytest.param(
      {'temperature': float('nan')},
      'temperature=nan must be a finite number',
      id='temperature=float(nan)',
    ),
    pytest.param(
      {'top_k': 0}, 'top_k=0 must be at least 1, or None', id='top_k=0'
    ),
    pytest.param(
      {'top_p': 0.0}, r'top_p=0.0 must be in \(0, 1\], or None', id='top_p=0.0'
    ),
    pytest.param(
      {'top_p': 1.5}, r'top_p=1.5 must be in \(0, 1\]', id='top_p=1.5'
    ),
    pytest.param(
      {'min_p': -1.0}, r'min_p=-1.0 must be in \(0, 1\]', id='min_p=-1.0'
    ),
  ],
)
def test_refusals(options, message):
  with pytest.raises(ValueError, match=message):
    kvjax.Sampling(**options)


def test_a_row_draws_by_its_own_seed():
  """Whatever the batch: same seed and logits, same token."""
  x, sampling = logits(4), kvjax.Sampling(2.0)
  seeds = jnp.asarray([5, 6, 7, 5])
  all_rows, _ = kvjax.sample(x, row_keys(seeds, 4), sampling)
  for row in range(4):
    alone, _ = kvjax.sample(
      x[row : row + 1], row_keys(seeds[row : row + 1], 1), sampling
    )
    assert int(alone[0]) == int(all_rows[row])


def test_one_seed_gives_rows_their_own_keys():
  keys = jax.random.key_data(row_keys(3, 4))
  assert len({tuple(k) for k in np.asarray(keys).tolist()}) == 4
  again = jax.random.key_data(row_keys(3, 2))
  np.testing.assert_array_equal(keys[:2], again)


def test_any_integer_is_a_seed():
  data = lambda seed: jax.random.key_data(row_keys(seed, 2))
  for seed in (np.int64(3), jnp.int32(3)):
    np.testing.assert_array_equal(data(seed), data(3))
  np.testing.assert_array_equal(jax.jit(data)(jnp.int32(3)), data(3))


def test_seeds_have_the_rows_shape():
  with pytest.raises(ValueError, match=r'seed has shape \[3\]'):
    row_keys(jnp.asarray([1, 2, 3]), 2)
