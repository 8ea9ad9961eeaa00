"""The harness on a cache of NumPy arrays, whole and broken in every way.

The model is one attention layer without projections: a token's vector is its
query, key and value. The cache is a ring of `SLOTS` slots.
"""

import functools
import re
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import kvjax
from kvjax.testing import assert_cached_matches_uncached, poison
from kvjax.testing.subject import ARGUMENTS

# Most tests give a plain dict of arrays and no way to poison it.
pytestmark = pytest.mark.filterwarnings(
  'ignore::kvjax.testing.NotPoisonedWarning'
)
SLOTS, WINDOW, WIDTH, VOCAB = 11, 8, 5, 17
TABLE = np.random.default_rng(0).normal(size=(VOCAB, WIDTH))


def attend(query, position, vectors, positions):
  """One query; what it does not see weighs nothing."""
  seen = (positions >= 0) & (positions <= position)
  seen &= position - positions < WINDOW
  scores = np.where(seen, vectors @ query, -np.inf)
  weights = np.exp(scores - scores[seen].max())
  values = np.where(seen[:, None], vectors, 0.0)
  return weights @ values / weights.sum()


def forward(tokens):
  positions = np.arange(tokens.shape[1])
  x = TABLE[tokens]
  rows = [[attend(r[t], t, r, positions) for t in positions] for r in x]
  return np.array(rows)


def init(batch):
  return {
    'vectors': np.zeros((batch, SLOTS, WIDTH)),
    'positions': np.full((batch, SLOTS), -1),
    'length': np.zeros(batch, np.int32),
  }


def extend(cache, tokens, lengths, *, slots=SLOTS, skip=0, attend=attend):
  cache = {name: x.copy() for name, x in cache.items()}
  logits = np.full(tokens.shape + (WIDTH,), 7.0)
  for row, count in enumerate(lengths):
    for t in range(count):
      position = cache['length'][row]
      slot = position % slots
      if not skip or (t + 1) % skip:
        cache['vectors'][row, slot] = TABLE[tokens[row, t]]
        cache['positions'][row, slot] = position
      cache['length'][row] += 1
      logits[row, t] = attend(
        TABLE[tokens[row, t]],
        position,
        cache['vectors'][row],
        cache['positions'][row],
      )
  return logits, cache


def rewind(cache, lengths):
  kept = cache['positions'] < lengths[:, None]
  return cache | {
    'positions': np.where(kept, cache['positions'], -1),
    'length': lengths,
  }


def take(cache, rows):
  return {name: x[rows] for name, x in cache.items()}


def fork(cache):
  return {name: x.copy() for name, x in cache.items()}


def fill(cache):
  empty = cache['positions'] < 0
  return cache | {
    'vectors': np.where(empty[..., None], np.nan, cache['vectors'])
  }


check = functools.partial(
  assert_cached_matches_uncached, vocab_size=VOCAB, rtol=1e-12, length=9
)
GOOD = dict(rewind=rewind, take=take, fork=fork, poison=fill, wrap=29)


def test_a_sound_cache_passes_every_scenario():
  errors = check(forward, init, extend, rewind_by=3, **GOOD)
  plain = [
    'chunks of 1',
    'chunks of 3',
    'chunks of 7',
    'the whole text at once',
    'ragged rows',
    'wrap-around (29 tokens)',
    'after rewind',
    'after row gather',
    'after fork: the original',
    'after fork: the copy',
  ]
  assert list(errors) == plain + [f'poisoned, {name}' for name in plain]
  assert max(errors.values()) < 1e-12


def loses_every_third(cache, tokens, lengths):
  return extend(cache, tokens, lengths, skip=3)


def counts_padding(cache, tokens, lengths):
  logits, new = extend(cache, tokens, np.full_like(lengths, tokens.shape[1]))
  return logits, new


def wraps_early(cache, tokens, lengths):
  return extend(cache, tokens, lengths, slots=WINDOW - 1)


def reads_unwritten(cache, tokens, lengths):
  def leaky(query, position, vectors, positions):
    seen = (positions >= 0) & (position - positions < WINDOW)
    weights = np.where(seen, np.exp(vectors @ query), 0.0)
    return weights @ vectors / weights.sum()

  return extend(cache, tokens, lengths, attend=leaky)


def writes_into_its_argument(cache, tokens, lengths):
  cache['length'][0] += 0
  logits, new = extend(cache, tokens, lengths)
  cache['vectors'][1, 2, 3] = 9.0
  return logits, new


def keeps_rewound_tokens(cache, lengths):
  return cache | {'positions': cache['positions'] + 0 * lengths[:, None]}


def forgets_lengths(cache, rows):
  return take(cache, rows) | {'length': cache['length']}


def forks_another_row(cache):
  return {name: np.roll(x, 1, axis=0) for name, x in cache.items()}


@pytest.mark.parametrize(
  ('broken', 'scenario'),
  [
    (dict(extend=loses_every_third), 'chunks of 3'),
    (dict(extend=counts_padding), 'ragged rows'),
    (dict(extend=wraps_early), 'wrap-around'),
    (dict(rewind=keeps_rewound_tokens), 'after rewind'),
    (dict(take=forgets_lengths), 'after row gather'),
    (dict(fork=forks_another_row), 'after fork: the copy'),
    (dict(extend=reads_unwritten), 'poisoned, chunks of 1'),
  ],
  ids=lambda x: x if isinstance(x, str) else '',
)
def test_a_broken_cache_is_caught_and_its_scenario_named(broken, scenario):
  functions = dict(extend=extend) | GOOD | broken
  if scenario == 'wrap-around':
    functions['length'] = WINDOW - 1
    functions |= dict(rewind=None, take=None, fork=None)
  with pytest.raises(AssertionError) as caught:
    check(forward, init, **functions)
  message = str(caught.value)
  assert scenario in message
  for word in ('row ', 'position ', 'cached ', 'uncached ', 'tokens'):
    assert word in message
  if 'rewind' in broken or 'take' in broken or 'fork' in broken:
    assert 'chunks of' not in message and 'ragged' not in message


def alters(change):
  """Returns an `extend` whose logits of each token are changed.

  Args:
    change: of row, position and logits `[V]` -> logits `[V]`.
  """

  def altered(cache, tokens, lengths):
    logits, new = extend(cache, tokens, lengths)
    for row, before in enumerate(cache['length']):
      for t in range(lengths[row]):
        logits[row, t] = change(row, before + t, logits[row, t])
    return logits, new

  return altered


def fed():
  """Returns what the harness feeds, and its uncached logits."""
  rng = np.random.default_rng(0)
  tokens = rng.integers(0, VOCAB, (3, 9), np.int32)
  return tokens, forward(tokens)


def message_of(broken, **options):
  with pytest.raises(AssertionError) as caught:
    check(forward, init, broken, ragged=False, **options)
  return str(caught.value)


def test_the_first_wrong_position_is_named_and_not_the_worst():
  def off(row, position, logits):
    size = {(2, 5): 0.5, (1, 6): 100.0, (2, 6): 3.0}.get((row, position), 0)
    return logits + size * (np.arange(WIDTH) == 3)

  message = message_of(alters(off))
  want = fed()[1]
  assert re.search(
    r'"chunks of 1", calls of up to 1 tokens, first in row 2, position 5, '
    rf'element \(3,\): cached {want[2, 5, 3] + 0.5:.9g}, uncached '
    rf'{want[2, 5, 3]:.9g}\. The worst',
    message,
  )
  assert f'{100 / np.abs(want).max():.1e} of the largest' in message


@pytest.mark.parametrize(
  ('near', 'words'),
  [(-1, 'position 3 in this row'), (1, 'position 5 in this row')],
)
def test_a_position_off_by_one_is_recognised(near, words):
  want = fed()[1]

  def off(row, position, logits):
    wrong = row == 1 and 4 <= position < 8
    return want[row, position + near] if wrong else logits

  message = message_of(alters(off))
  assert 'row 1, position 4' in message and 'off by one' in message
  assert words in message


def test_another_row_is_recognised():
  want = fed()[1]

  def off(row, position, logits):
    return want[2, position] if row == 0 and position > 2 else logits

  message = message_of(alters(off))
  assert 'row 0, position 3' in message
  assert 'uncached logits of row 2 at this position: the wrong row' in message


def test_what_looks_like_nothing_known_is_not_guessed():
  message = message_of(alters(lambda row, position, logits: 1.1 * logits))
  for words in ('off by one', 'wrong row', 'no finite', 'no token was read'):
    assert words not in message


def test_a_read_of_an_empty_slot_is_recognised():
  message = message_of(reads_unwritten, poison=fill)
  assert 'position 0' in message and 'cached nan' in message
  assert 'or a slot that holds no token was read' in message
  assert 'Without NaN in empty slots every scenario is right' in message
  message = message_of(alters(lambda row, position, logits: logits * np.nan))
  assert 'the cache was full' in message and 'Without NaN' not in message


def test_a_cache_that_could_not_be_poisoned_is_named():
  with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter('always')
    check(forward, init, extend)
    check(forward, init, extend, poison=fill)
  (warning,) = caught
  assert warning.category is kvjax.testing.NotPoisonedWarning
  assert 'type dict was not poisoned' in str(warning.message)
  assert warning.filename == __file__


LAST = 'logits of the last token alone'


@pytest.mark.parametrize(
  ('function', 'words'),
  [
    (lambda c, x, n: extend(c, x, n)[::-1], r'return \(logits, cache\), in'),
    (lambda c, x, n: extend(c, x, n)[0], 'it returned a ndarray'),
    (lambda c, x, n: (*extend(c, x, n), 1), 'it returned a tuple of 3'),
    (lambda c, x, n: (None, extend(c, x, n)[1]), 'it returned a NoneType'),
    (lambda c, x, n: (extend(c, x, n)[0][:, -1], c), LAST),
    (lambda c, x, n: (extend(c, x, n)[0][:, -1:], c), LAST),
    (
      lambda c, x, n: (extend(c, x, n)[0][:2], c),
      r'it returned \(2, 1, 5\)\.\n',
    ),
  ],
  ids=['swapped', 'logits', 'three', 'none', 'last', 'last_kept', 'rows'],
)
def test_other_results_are_refused_in_words(function, words):
  with pytest.raises(ValueError, match=words):
    check(forward, init, function, ragged=False)


def test_logits_of_the_last_token_are_refused_of_forward_too():
  with pytest.raises(ValueError, match=f'forward must return .* {LAST}'):
    check(lambda tokens: forward(tokens)[:, -1], init, extend)


@pytest.mark.parametrize('name', ARGUMENTS)
def test_a_function_of_other_arguments_is_refused_in_words(name):
  functions = dict(forward=forward, init=init, extend=extend) | GOOD
  del functions['wrap']
  functions[name] = lambda *, more: more
  words = rf'{name} is called as {name}\({", ".join(ARGUMENTS[name])}\), and'
  with pytest.raises(TypeError, match=rf'{words} .* takes \(\*, more\)'):
    check(**functions)


def test_a_call_that_changes_its_cache_is_named_with_the_leaf():
  with pytest.raises(AssertionError, match=r"extend .* leaf \['vectors'\]"):
    check(forward, init, writes_into_its_argument)


def test_a_donated_cache_is_named():
  config = tiny()
  params = kvjax.init_params(config, jax.random.key(0))
  with pytest.raises(AssertionError, match='donated its input cache'):
    assert_cached_matches_uncached(
      lambda tokens: kvjax.forward(config, params, jnp.asarray(tokens)),
      lambda batch: kvjax.init_cache(config, batch, 13),
      lambda cache, tokens, lengths: kvjax.extend(
        config, params, cache, jnp.asarray(tokens), lengths, donate=True
      ),
      chunkings=(7,),
      ragged=False,
      widths=(7,),
    )


def test_an_error_of_the_model_says_in_which_scenario_it_was_raised():
  def refuses(cache, tokens, lengths):
    if lengths.min() == 0:
      raise NotImplementedError('every row must advance')
    return extend(cache, tokens, lengths)

  with pytest.raises(NotImplementedError) as caught:
    check(forward, init, refuses)
  assert 'ragged rows' in ''.join(caught.value.__notes__)
  check(forward, init, refuses, ragged=False, **GOOD)


def test_tokens_may_be_activations_and_logits_may_have_more_axes():
  x = np.random.default_rng(1).normal(size=(2, 9, WIDTH))

  def running(tokens):
    return np.cumsum(tokens, axis=1)[..., None] + np.zeros(3)

  def step(cache, tokens, lengths):
    total = cache[:, None] + np.cumsum(tokens, axis=1)
    padded = np.concatenate([cache[:, None], total], axis=1)
    return total[..., None] + np.zeros(3), padded[np.arange(2), lengths]

  assert_cached_matches_uncached(
    running,
    lambda batch: np.zeros((batch, WIDTH)),
    step,
    tokens=x,
    take=lambda cache, rows: cache[rows],
    rtol=1e-12,
  )


def test_a_reference_of_nan_is_refused():
  with pytest.raises(ValueError, match='forward returns NaN in row 0'):
    check(lambda tokens: forward(tokens) * np.nan, init, extend)


def test_a_cache_that_is_no_pytree_is_refused():
  with pytest.raises(TypeError, match='pytree of arrays'):
    check(forward, lambda batch: [object()], extend)


def test_poison_of_an_unknown_cache_says_how_to_register_it():
  with pytest.raises(TypeError, match='poison.register'):
    poison({'keys': np.zeros(3)})


def tiny():
  attention = kvjax.Grouped(2, 1, 4)
  layer = kvjax.Layer(attention, kvjax.MLP(hidden=7))
  return kvjax.ModelConfig(17, 5, (layer,))


@pytest.mark.parametrize(
  ('kind', 'codec'),
  [
    (kvjax.Dense(), None),
    (kvjax.Paged(page=3), kvjax.Int8()),
    (kvjax.Bounded(budget=3), None),
  ],
  ids=['dense', 'paged_int8', 'bounded'],
)
def test_poison_fills_all_that_holds_no_token_and_nothing_else(kind, codec):
  config = tiny()
  params = kvjax.init_params(config, jax.random.key(0))
  cache = kvjax.init_cache(config, 2, 7, kinds=kind, codec=codec)
  tokens = jnp.asarray([[1, 2, 3, 4], [5, 6, 7, 8]])
  _, cache = kvjax.extend(config, params, cache, tokens, np.array([4, 1]))
  filled = poison(cache)
  empty = np.asarray(cache.books[0].positions) == -1
  assert empty.any() and not empty.all()
  for old, new in zip(leaves(cache.stores), leaves(filled.stores), strict=True):
    where = np.broadcast_to(empty, old.shape[:3])
    assert (old[~where] == new[~where]).all()
    assert (new[where] == 127).all() or np.isnan(new[where]).all()
  np.testing.assert_array_equal(filled.length, cache.length)


def leaves(tree):
  return [np.asarray(x) for x in jax.tree.leaves(tree)]
