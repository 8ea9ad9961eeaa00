"""The token loop against a loop in Python, in every way it can stop."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import kvjax
from tests.facts import tiny

CONFIG = tiny.decoder()
NUM = 7


@functools.cache
def prompt():
  """Returns logits and the cache after two prompts of 5 and 3 tokens."""
  cache = kvjax.init_cache(CONFIG, 2, 16)
  return kvjax.prefill(
    CONFIG, tiny.params(CONFIG), cache, tiny.tokens(2, 5), [5, 3]
  )


def run(num=NUM, cache=None, **more):
  """Generates from the prompt, which stays usable."""
  logits, after_prompt = prompt()
  return kvjax.generate(
    CONFIG,
    tiny.params(CONFIG),
    cache or after_prompt,
    logits,
    num,
    **({'donate': False} | more),
  )


@functools.cache
def uncached(num=NUM):
  """Returns greedy tokens and their log-probs by forward alone."""
  ids, lengths = np.zeros((2, 16), np.int32), np.asarray([5, 3])
  ids[:, :5] = tiny.tokens(2, 5)
  tokens, scores = [], []
  for _ in range(num):
    logits = kvjax.forward(
      CONFIG, tiny.params(CONFIG), jnp.asarray(ids), lengths=lengths
    )
    last = np.asarray(logits)[[0, 1], lengths - 1]
    tokens.append(last.argmax(-1))
    scores.append(np.asarray(jax.nn.log_softmax(last)).max(-1))
    ids[[0, 1], lengths] = tokens[-1]
    lengths = lengths + 1
  return np.stack(tokens, 1), np.stack(scores, 1)


@pytest.mark.parametrize('block', [1, 3, 32])
def test_equals_an_uncached_loop(block):
  """Whatever the block of tokens a device program makes."""
  tokens, cache, scores = run(block=block, log_probs=True)
  want, logs = uncached()
  np.testing.assert_array_equal(tokens, want)
  np.testing.assert_allclose(scores, logs, atol=1e-5)
  assert cache.length.tolist() == [5 + NUM - 1, 3 + NUM - 1]


def test_decode_step_on_the_last_token_continues():
  tokens, cache = run(num=NUM - 1)
  logits, _ = kvjax.decode_step(
    CONFIG, tiny.params(CONFIG), cache, tokens[:, -1]
  )
  np.testing.assert_array_equal(logits.argmax(-1), uncached()[0][:, -1])


def test_stream():
  parts = []
  tokens, _ = run(block=3, stream=lambda new: parts.append(new))
  assert [p.shape for p in parts] == [(2, 1), (2, 3), (2, 3)]
  np.testing.assert_array_equal(np.concatenate(parts, axis=1), tokens)


def test_stream_ends_early():
  """As if the rows had stopped; decode_step on the last token continues."""
  parts, calls = [], []

  def stream(new):
    parts.append(new)
    return len(parts) == 2

  progress = lambda done, total: calls.append((done, total))
  tokens, cache = run(block=3, stream=stream, progress=progress)
  want = uncached()[0]
  np.testing.assert_array_equal(tokens[:, :4], want[:, :4])
  assert (np.asarray(tokens)[:, 4:] == -1).all()
  assert cache.length.tolist() == [5 + 3, 3 + 3]
  assert calls == [(1, 7), (7, 7)]
  logits, _ = kvjax.decode_step(
    CONFIG, tiny.params(CONFIG), cache, tokens[:, 3]
  )
  np.testing.assert_array_equal(logits.argmax(-1), want[:, 4])
  with pytest.raises(ValueError, match='stream= .* outside jit'):
    jax.eval_shape(lambda: run(stream=stream))


def test_the_kernel_that_is_asked_for():
  tokens, _ = run(kernel='blockwise')
  np.testing.assert_array_equal(tokens, uncached()[0])
  with pytest.raises(ValueError, match="kernel='best' must be one of"):
    run(kernel='best')


def test_inside_a_jit():
  tokens, _ = jax.jit(lambda: run())()
  np.testing.assert_array_equal(tokens, uncached()[0])


def test_progress():
  calls = []
  run(block=3, progress=lambda done, total: calls.append((done, total)))
  assert calls == [(1, 7), (4, 7), (7, 7)]


def test_stop_tokens():
  """A row returns the id it stops at, then -1, and feeds nothing more."""
  want, _ = uncached()
  stop = int(want[0, 2])
  first = [row.tolist().index(stop) if stop in row else NUM for row in want]
  unseen = min(set(range(CONFIG.vocab_size)) - set(want.ravel().tolist()))
  tokens, cache, scores = run(
    stop_tokens=[stop, unseen], block=2, log_probs=True
  )
  for row in range(2):
    n = min(first[row] + 1, NUM)
    np.testing.assert_array_equal(tokens[row, :n], want[row, :n])
    assert (np.asarray(tokens)[row, n:] == -1).all()
    assert np.isnan(np.asarray(scores)[row, n:]).all()
    assert int(cache.length[row]) == (5, 3)[row] + n - 1


def test_stop_lengths():
  tokens, cache = run(stop_lengths=[2, 5], block=3)
  want = np.array(uncached()[0])
  want[0, 2:], want[1, 5:] = -1, -1
  np.testing.assert_array_equal(tokens, want)
  assert cache.length.tolist() == [5 + 1, 3 + 4]


def test_traced_stop_lengths():
  want, _ = run(num=3, stop_lengths=[2, 1])
  got = jax.jit(lambda x: run(num=3, stop_lengths=x)[0])(jnp.asarray([2, 1]))
  np.testing.assert_array_equal(got, want)


def test_a_row_that_stops_at_once():
  tokens, cache = run(stop_lengths=[0, 3])
  assert (np.asarray(tokens)[0] == -1).all()
  assert cache.length.tolist() == [5, 3 + 2]


def test_all_stopped_early_returns_early():
  calls = []
  tokens, _ = run(
    stop_lengths=[1, 2], block=1, progress=lambda *x: calls.append(x[0])
  )
  assert tokens.shape == (2, NUM)
  assert calls == [1, NUM]


def test_room_is_asked_for_first():
  """11 + 1 tokens fit behind 5 of 16: the last is never fed. 13 do not."""
  run(num=12)
  with pytest.raises(ValueError, match='Row 0: 12 tokens do not fit.*5'):
    run(num=13)
  run(num=13, stop_lengths=[4, 4])


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    pytest.param(
      {'num': 0}, 'num_tokens=0 must be a positive integer', id='num=0'
    ),
    pytest.param(
      {'block': 0}, 'block=0 must be a positive integer', id='block=0'
    ),
    pytest.param(
      {'temperature': -1.0},
      'temperature=-1.0 must be at least 0',
      id='temperature=-1.0',
    ),
    pytest.param({'top_p': 0.0}, 'top_p=0.0 must be in', id='top_p=0.0'),
    pytest.param(
      {'stop_lengths': [1]},
      r'stop_lengths=\[1\] must be 2 integers',
      id='stop_lengths=[1]',
    ),
    pytest.param(
      {'stop_lengths': [1, -2]}, 'none negative', id='stop_lengths=[1,-2]'
    ),
    pytest.param(
      {'stop_lengths': [1.9, 2.0]},
      'must be 2 integers',
      id='stop_lengths=[1.9,2.0]',
    ),
  ],
)
def test_refusals(options, message):
  with pytest.raises(ValueError, match=message):
    run(**options)


def test_rows_draw_by_their_own_seed():
  """A row of a batch draws what it draws alone, whatever the block."""
  options = {'temperature': 3.0, 'num': NUM}
  both, _ = run(seed=np.asarray([5, 9]), block=2, **options)
  logits, cache = prompt()
  for row, seed in enumerate((5, 9)):
    alone, _ = kvjax.generate(
      CONFIG,
      tiny.params(CONFIG),
      kvjax.take(cache, [row]),
      logits[row : row + 1],
      NUM,
      temperature=3.0,
      seed=np.asarray([seed]),
      block=4,
    )
    np.testing.assert_array_equal(alone[0], both[row])
  other, _ = run(seed=np.asarray([5, 10]), block=2, **options)
  np.testing.assert_array_equal(other[0], both[0])
  assert not (np.asarray(other)[1] == np.asarray(both)[1]).all()


def test_every_token_is_drawn_anew():
  """Nearly even odds of 31: one key for all would draw one token for all."""
  tokens, _ = run(temperature=1e4, num=12)
  for row in np.asarray(tokens).tolist():
    assert len(set(row)) > 4


def test_a_row_of_nan_draws_nothing():
  logits, cache = prompt()
  tokens, after = kvjax.generate(
    CONFIG,
    tiny.params(CONFIG),
    cache,
    logits.at[1].set(jnp.nan),
    NUM,
    donate=False,
  )
  np.testing.assert_array_equal(tokens[0], uncached()[0][0])
  assert (np.asarray(tokens)[1] == -1).all()
  assert after.length.tolist() == [5 + NUM - 1, 3]


@pytest.mark.parametrize(
  ('num', 'block', 'size'), [(7, 32, 6), (7, 4, 3), (8, 4, 4), (34, 32, 17)]
)
def test_one_program_makes_all_blocks(num, block, size):
  """What a last block has too much is not returned, not fed and not shown."""
  cache = kvjax.init_cache(CONFIG, 2, 48)
  logits, cache = kvjax.prefill(
    CONFIG, tiny.params(CONFIG), cache, tiny.tokens(2, 5)
  )
  shown, done = [], []
  tokens, cache = run(
    num,
    cache,
    block=block,
    stream=lambda new: shown.append(new),
    progress=lambda n, _: done.append(n),
  )
  chex.assert_shape(tokens, (2, num))
  assert cache.length.tolist() == [5 + num - 1] * 2
  np.testing.assert_array_equal(np.concatenate(shown, axis=1), tokens)
  sizes = [new.shape[1] for new in shown[1:]]
  assert set(sizes[:-1]) <= {size} and sizes[-1] <= size
  assert done[-1] == num
