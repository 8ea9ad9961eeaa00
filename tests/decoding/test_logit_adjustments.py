"""Adjusted logits against a loop in NumPy, in every way a generation runs."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import kvjax
from kvjax.decoding import generation
from kvjax.decoding.logit_adjustments import adjust_logits, as_pytrees
from tests.decoding import test_generation
from tests.facts import tiny

CONFIG = tiny.decoder()
VOCAB = CONFIG.vocab_size
NUM = test_generation.NUM
run = test_generation.run
FACTOR = 0.6  # of a model that repeats nothing: below 1, it does
PROMPT = np.asarray(tiny.tokens(2, 5))
PROMPT = np.where(np.arange(5) < np.asarray([[5], [3]]), PROMPT, -1)


def by_numpy(rule, num=NUM):
  """Returns greedy tokens and log-probs of an uncached loop under a rule.

  Args:
    rule: changes a row's logits `[V]` in place, given the list of its tokens.
    num: tokens of each row.
  """
  rows = [row[row >= 0].tolist() for row in PROMPT]
  sampled, scores = [[], []], [[], []]
  for _ in range(num):
    ids = np.zeros((2, 16), np.int32)
    lengths = np.asarray([len(row) for row in rows])
    for index, row in enumerate(rows):
      ids[index, : len(row)] = row
    logits = kvjax.forward(
      CONFIG, tiny.params(CONFIG), jnp.asarray(ids), lengths=lengths
    )
    for index, row in enumerate(rows):
      x = np.array(logits[index, len(row) - 1], np.float64)
      rule(x, sampled[index])
      token = int(x.argmax())
      scores[index].append(-np.log(np.exp(x - x[token]).sum()))
      row.append(token)
      sampled[index].append(token)
  return np.asarray(sampled), np.asarray(scores)


def penalize(x, ids, penalty):
  """Divides what is positive and multiplies what is not, an id at a time."""
  for token in set(ids):
    x[token] = x[token] * penalty if x[token] < 0 else x[token] / penalty


@pytest.mark.parametrize('block', [1, 3, 32])
def test_the_repetition_penalty_is_that_of_a_loop(block):
  want, logs = by_numpy(lambda x, ids: penalize(x, ids, FACTOR))
  tokens, cache, scores = run(
    adjust=kvjax.RepetitionPenalty(FACTOR), block=block, log_probs=True
  )
  np.testing.assert_array_equal(tokens, want)
  np.testing.assert_allclose(scores, logs, atol=1e-5)
  assert cache.length.tolist() == [5 + NUM - 1, 3 + NUM - 1]
  assert (want != test_generation.uncached()[0]).any()


def test_the_penalty_by_hand(maybe_jit):
  """Ids 0 and 2 are there, 2 twice; -1 is none; a prompt counts as well."""
  logits = jnp.asarray([[4.0, 4.0, -3.0, -3.0], [2.0, -jnp.inf, 1.0, 0.0]])
  tokens = jnp.asarray([[2, 0, 2, -1], [1, -1, -1, -1]])
  penalty = kvjax.RepetitionPenalty(2.0)
  want = [[2.0, 4.0, -6.0, -3.0], [2.0, -np.inf, 1.0, 0.0]]
  apply = maybe_jit(lambda penalty, *arrays: penalty(*arrays))
  np.testing.assert_array_equal(apply(penalty, logits, tokens), want)
  prompt = np.asarray([[-1, 3], [0, 0]])
  want = [[2.0, 4.0, -6.0, -6.0], [1.0, -np.inf, 1.0, 0.0]]
  penalty = penalty.replace(prompt=prompt)
  np.testing.assert_array_equal(apply(penalty, logits, tokens), want)


@pytest.mark.slow
def test_the_penalty_is_that_of_transformers():
  torch = pytest.importorskip('torch')
  transformers = pytest.importorskip('transformers')
  draw = np.random.default_rng(0)
  logits = draw.normal(size=(5, 31)).astype(np.float32)
  ids = draw.integers(0, 31, (5, 17))
  want = transformers.RepetitionPenaltyLogitsProcessor(1.3)(
    torch.asarray(ids), torch.asarray(logits)
  )
  got = kvjax.RepetitionPenalty(1.3, jnp.asarray(ids[:, :9]))(
    jnp.asarray(logits), jnp.asarray(ids[:, 9:])
  )
  np.testing.assert_allclose(got, want.numpy(), rtol=1e-6)


def test_another_prompt_compiles_nothing():
  once = lambda prompt: run(adjust=kvjax.RepetitionPenalty(1.1, prompt))
  once(jnp.asarray(PROMPT))
  before = programs()
  tokens, _ = once(jnp.asarray(PROMPT[::-1]))
  assert programs() == before
  want, _ = run(
    adjust=lambda x, ids: kvjax.RepetitionPenalty(1.1, PROMPT[::-1])(x, ids)
  )
  assert programs() > before
  np.testing.assert_array_equal(tokens, want)


def programs():
  """Returns how many programs of a first token and of a block there are."""
  sizes = 0
  for function in (generation._sample_first, generation._sample_block):
    closure = dict(
      zip(
        function.__code__.co_freevars,
        function.__closure__,
        strict=True,
      )
    )
    compiled = closure['compiled'].cell_contents
    sizes += sum(jitted._cache_size() for jitted in compiled.values())
  return sizes


@dataclasses.dataclass(frozen=True)
class Alternate:
  """A grammar of two states: even ids and odd ids in turn."""

  first: int = 0

  def __call__(self, logits, tokens):
    count = (tokens >= 0).sum(axis=1, keepdims=True)
    ids = jnp.arange(logits.shape[1])[None, :]
    return jnp.where((ids + count + self.first) % 2 == 0, logits, -jnp.inf)


def test_a_grammar():
  """It holds from the first token on, in a block and in a caller's jit."""

  def rule(x, ids):
    x[np.arange(VOCAB) % 2 != len(ids) % 2] = -np.inf

  want, _ = by_numpy(rule)
  assert (want % 2 == np.arange(NUM) % 2).all()
  shown = []
  tokens, _ = run(adjust=Alternate(), block=2, stream=shown.append)
  np.testing.assert_array_equal(tokens, want)
  np.testing.assert_array_equal(np.concatenate(shown, axis=1), want)
  inside, _ = jax.jit(lambda: run(adjust=Alternate()))()
  np.testing.assert_array_equal(inside, want)
  assert (np.asarray(run(adjust=Alternate(1))[0]) % 2 != want % 2).all()


def test_an_equal_adjustment_compiles_nothing():
  run(adjust=(Alternate(), kvjax.LogitBias({1: 1.0, 2: 2})), num=5)
  before = programs()
  run(adjust=[Alternate(), kvjax.LogitBias({2: 2.0, 1: 1})], num=5)
  assert programs() == before
  run(adjust=(Alternate(1), kvjax.LogitBias({1: 1.0, 2: 2})), num=5)
  assert programs() > before


def test_arrays_of_a_partial_are_traced():
  only = lambda mask, logits, tokens: jnp.where(mask, logits, -jnp.inf)
  mask = jnp.zeros((2, VOCAB), bool).at[0, 7].set(True).at[1, 11].set(True)
  tokens, _ = run(adjust=jax.tree_util.Partial(only, mask))
  assert np.asarray(tokens).tolist() == [[7] * NUM, [11] * NUM]
  before = programs()
  tokens, _ = run(adjust=jax.tree_util.Partial(only, mask[::-1]))
  assert np.asarray(tokens).tolist() == [[11] * NUM, [7] * NUM]
  assert programs() == before


def test_the_order_of_a_tuple():
  """What is banned stays so only where the ban comes last."""
  lift = lambda logits, tokens: jnp.where(jnp.isinf(logits), 1e3, logits)
  ban = kvjax.LogitBias({token: -np.inf for token in range(1, VOCAB)})
  assert (np.asarray(run(adjust=(lift, ban))[0]) == 0).all()
  assert (np.asarray(run(adjust=(ban, lift))[0]) == 1).all()


def test_bias_and_allowed_tokens():
  want, logs = by_numpy(lambda x, ids: x.put(np.r_[3, 8:VOCAB], -np.inf))
  ids = [token for token in range(8) if token != 3]
  mask = np.isin(np.arange(VOCAB), ids)
  assert kvjax.AllowedTokens(mask) == kvjax.AllowedTokens(np.asarray(ids))
  for allowed in (mask, ids[::-1]):
    tokens, _, scores = run(adjust=kvjax.AllowedTokens(allowed), log_probs=True)
    np.testing.assert_array_equal(tokens, want)
    np.testing.assert_allclose(scores, logs, atol=1e-5)
  logits = jnp.asarray([[1.0, 2.0, 3.0]])
  bias = kvjax.LogitBias({2: -1.5, 0: -np.inf})
  assert bias(logits, None).tolist() == [[-np.inf, 2.0, 1.5]]


def test_stops_stay():
  stop = int(by_numpy(lambda x, ids: penalize(x, ids, FACTOR))[0][0, 2])
  want, _ = run(adjust=kvjax.RepetitionPenalty(FACTOR))
  tokens, cache = run(
    adjust=kvjax.RepetitionPenalty(FACTOR), stop_tokens=[stop]
  )
  end = want[0].tolist().index(stop) + 1
  assert tokens[0].tolist() == want[0, :end].tolist() + [-1] * (NUM - end)
  assert int(cache.length[0]) == 5 + end - 1


def test_a_row_without_a_token_left_ends():
  """Row 1 may sample two tokens and nothing after them."""

  def two(logits, tokens):
    ends = (tokens >= 0).sum(axis=1, keepdims=True) == 2
    return jnp.where(ends & (jnp.arange(2)[:, None] == 1), -jnp.inf, logits)

  tokens, cache, scores = run(adjust=two, log_probs=True)
  want, _ = test_generation.uncached()
  np.testing.assert_array_equal(tokens[0], want[0])
  assert tokens[1].tolist() == want[1, :2].tolist() + [-1] * (NUM - 2)
  assert np.isnan(np.asarray(scores)[1, 2:]).all()
  assert cache.length.tolist() == [5 + NUM - 1, 3 + 2]


def test_a_row_of_nan_is_not_revived():
  logits = jnp.ones((2, 5)).at[0, 3].set(jnp.nan)
  adjusted = adjust_logits([lambda x, _: jnp.ones_like(x)], logits, None)
  assert np.isnan(adjusted[0]).all() and (np.asarray(adjusted[1]) == 1).all()


def test_without_an_adjustment_a_state_keeps_no_tokens():
  logits, _ = test_generation.prompt()
  options = generation.GenerateOptions(kvjax.Sampling(), ())
  keys = generation.row_keys(0, 2)
  limit = jnp.full(2, NUM)
  state, _ = generation._sample_first(logits, limit, keys, options)
  assert len(jax.tree.leaves(state)) == 5
  adjusts = as_pytrees(kvjax.RepetitionPenalty(2.0))
  state, _ = generation._sample_first(
    logits, limit, keys, options, adjusts, NUM
  )
  assert (np.asarray(state.tokens)[:, 0] == state.token).all()
  assert (np.asarray(state.tokens)[:, 1:] == -1).all()
  assert state.tokens.shape == (2, NUM)


@dataclasses.dataclass
class Mutable:
  """A dataclass that compares by value and cannot be hashed."""

  def __call__(self, logits, tokens):
    return logits


@pytest.mark.parametrize(
  ('adjust', 'message'),
  [
    pytest.param(3, 'adjust=3 must be a function of logits', id='number'),
    pytest.param([3], r'adjust=3 must be .* or a tuple', id='list'),
    pytest.param(Mutable(), 'cannot be hashed .*frozen dataclass', id='hash'),
    pytest.param(
      lambda x, _: x[:, 1:], r'result of adjust\[0\] has shape', id='shape'
    ),
    pytest.param(
      (lambda x, _: x, lambda x, _: x.astype(jnp.bfloat16)),
      r'result of adjust\[1\] has dtype bfloat16; it must be float32',
      id='dtype',
    ),
    pytest.param(
      lambda x, _: None, r'result of adjust\[0\] is of type None', id='none'
    ),
    pytest.param(
      kvjax.LogitBias({VOCAB: 1.0}),
      f'LogitBias has the id {VOCAB}; the vocabulary has {VOCAB}',
      id='bias',
    ),
    pytest.param(
      kvjax.AllowedTokens([1, VOCAB + 2]),
      f'AllowedTokens has the id {VOCAB + 2}',
      id='allowed',
    ),
    pytest.param(
      kvjax.RepetitionPenalty(2.0, np.zeros((3, 4), np.int32)),
      r'prompt has shape \[3, 4\]; it must be an array of integers \[2, any\]',
      id='rows',
    ),
    pytest.param(
      kvjax.RepetitionPenalty(2.0, np.zeros((2, 4), np.float32)),
      'prompt has dtype float32',
      id='floats',
    ),
  ],
)
def test_refusals(adjust, message):
  """Nothing is lost: the cache is not donated before the error."""
  logits, cache = test_generation.prompt()
  with pytest.raises(ValueError, match=message):
    kvjax.generate(
      CONFIG, tiny.params(CONFIG), cache, logits, NUM, adjust=adjust
    )
  assert not cache.length.is_deleted()


@pytest.mark.parametrize(
  ('make', 'message'),
  [
    pytest.param(
      lambda: kvjax.RepetitionPenalty(0.0), 'penalty=0.0 must exceed 0', id='0'
    ),
    pytest.param(
      lambda: kvjax.RepetitionPenalty(float('nan')), 'a finite number', id='nan'
    ),
    pytest.param(
      lambda: kvjax.LogitBias({-1: 2.0}), 'pair -1: 2.0; it must', id='minus'
    ),
    pytest.param(
      lambda: kvjax.LogitBias([1, 2]), r'biases=\[1, 2\] must be', id='list'
    ),
    pytest.param(
      lambda: kvjax.LogitBias({1: np.inf}), 'pair 1: inf; it must', id='inf'
    ),
    pytest.param(
      lambda: kvjax.AllowedTokens([]), 'at least one token', id='none'
    ),
    pytest.param(
      lambda: kvjax.AllowedTokens(np.zeros(5, bool)), 'at least one', id='mask'
    ),
    pytest.param(
      lambda: kvjax.AllowedTokens([-1, 2]), 'must be ids from 0', id='negative'
    ),
    pytest.param(
      lambda: kvjax.AllowedTokens([0.5]), 'must be ids from 0', id='fraction'
    ),
  ],
)
def test_refusals_of_choices(make, message):
  with pytest.raises(ValueError, match=message):
    make()
