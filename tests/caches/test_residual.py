"""Two tiers: which tokens are codes, and that codes are written once."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import kvjax
from kvjax import memory
from tests.contract.codecs import NARROW, Stored
from tests.contract.table import VOCAB, Same, Zero, draw, text
from tests.facts.tiny import alike

GROUP, WINDOW = 4, 3
KIVI = kvjax.KIVI(group=GROUP, window=WINDOW)
CELL = Stored(KIVI, NARROW)


def codes_after(length):
  """The rule, token by token."""
  coded = 0
  while coded + GROUP <= length - WINDOW:
    coded += GROUP
  return coded


def test_codes_are_written_once():
  """A5: a thousand ragged steps, rewinds, forks and takes; then rows alone."""
  params, rng = draw(CELL.config, 0), np.random.default_rng(0)
  cache = CELL.init(2, capacity=900)
  feed = lambda cache, token: kvjax.decode_step(
    CELL.config, params, cache, jnp.asarray(token, jnp.int32)
  )
  texts, known = [[], []], [None, None]
  for step in range(1000):
    token = rng.integers(0, VOCAB, 2)
    token[rng.random(2) < 0.3] = -1
    for row in range(2):
      texts[row] += [token[row]] * int(token[row] >= 0)
    last, cache = feed(cache, token)
    if step % 50 == 13:
      known = compare(known, coded(cache, texts))
      cache = kvjax.fork(cache)
    if step % 50 == 26:
      least = np.asarray(kvjax.earliest(cache))
      texts = [t[:n] for t, n in zip(texts, least, strict=True)]
      cache = kvjax.rewind(cache, least)
    if step % 50 == 39:
      cache = kvjax.take(cache, [1, 0])
      texts, known = texts[::-1], known[::-1]
  assert min(map(len, texts)) > 500
  tokens = np.where(token >= 0, token, 0)  # both rows, once more
  texts = [[*t, n] for t, n in zip(texts, tokens, strict=True)]
  last, cache = feed(cache, tokens)
  found = coded(cache, texts)
  for row in range(2):
    alone = CELL.init(2, capacity=900)
    for token in texts[row]:
      logits, alone = feed(alone, np.asarray([token, -1]))
    compare([found[row]], coded(alone, [texts[row]]))
    np.testing.assert_allclose(logits[0], last[row], rtol=1e-5, atol=1e-6)


def coded(cache, texts):
  """Returns the codes of each row: as many as the rule says."""
  book, found = np.asarray(cache.books[0].coded.positions)[:, 0], []
  stores = jax.tree.map(np.asarray, codes_of(cache))
  for row, tokens in enumerate(texts):
    count = codes_after(len(tokens))
    assert book[row][book[row] >= 0].tolist() == list(range(count))
    share = lambda x, row=row, n=count: x[row, :, : n * x.shape[2] // 896]
    found.append(jax.tree.map(share, stores))
  return found


def codes_of(cache):
  return {name: stream.coded for name, stream in cache.stores[0].items()}


def compare(old, new):
  """Returns the new codes; the old ones are still among them."""
  for one, other in zip(old, new, strict=True):
    if one is not None:
      early = lambda x, y: y[:, : x.shape[1]]
      alike(one, jax.tree.map(early, one, other))
  return new


def test_a_row_goes_back_to_where_its_last_group_left():
  params, tokens = draw(CELL.config, 0), text(0, 2, 13)
  _, cache = CELL.extend(params, CELL.init(2), tokens, np.asarray([13, 6]))
  np.testing.assert_array_equal(kvjax.earliest(cache), [8 + WINDOW, 0])
  with pytest.raises(ValueError, match='Row 0: cannot rewind from 13 to 10'):
    kvjax.rewind(cache, np.asarray([10, 6]))
  back = kvjax.rewind(cache, np.asarray([11, 2]))
  _, short = CELL.extend(params, CELL.init(2), tokens, np.asarray([11, 2]))
  alike(back.books, short.books)
  step = lambda cache: CELL.extend(
    params, kvjax.testing.poison(cache), tokens[:, :1], np.asarray([1, 1])
  )
  np.testing.assert_allclose(step(back)[0], step(short)[0], rtol=1e-5)


RULES = {
  'ring': {'kinds': kvjax.Ring(window=6)},
  'first': {'kinds': kvjax.Residual(kvjax.Paged(page=8), 2, 5, 8)},
  'whole': {
    'kinds': kvjax.Residual(kvjax.Dense(), 4, 0, 1),
    'codec': kvjax.Int8(),
  },
}


@pytest.mark.parametrize('options', RULES.values(), ids=RULES)
def test_cuts_of_a_text_change_nothing(options, tmp_path):
  """Steps of one token, and calls; the plan counts it, and a file keeps it."""
  length = 16
  params, tokens = draw(CELL.config, 1), text(1, 2, length)
  logits, cache = CELL.extend(
    params, CELL.init(2, **options), tokens, np.asarray([length, length - 3])
  )
  assert np.isfinite(logits).all()
  found, other = [], CELL.init(2, **options)
  for start in range(length):
    lengths = np.asarray([1, int(start < length - 3)])
    part, other = CELL.extend(
      params,
      kvjax.testing.poison(other),
      tokens[:, start : start + 1],
      lengths,
    )
    found.append(part)
  found = np.concatenate(found, axis=1)
  np.testing.assert_allclose(found[0], logits[0], rtol=1e-4, atol=1e-5)
  short = np.s_[1, : length - 3]
  np.testing.assert_allclose(found[short], logits[short], rtol=1e-4, atol=1e-5)
  alike(cache.books, other.books)
  check_plan({'codec': CELL.codec} | options, cache)
  path = tmp_path / 'cache.safetensors'
  kvjax.save_cache(path, cache, CELL.config, params)
  loaded = kvjax.load_cache(path, CELL.config, params)
  assert jax.tree.structure(loaded) == jax.tree.structure(cache)
  alike(loaded, cache)


def check_plan(options, cache):
  layer = kvjax.Layer(NARROW, kvjax.MLP(11))
  config = kvjax.ModelConfig(VOCAB, 13, (layer,))
  plan = memory.plan(config, batch_size=2, capacity=16, **options)
  assert plan.cache_bytes == sum(x.nbytes for x in jax.tree.leaves(cache))
  lines = [x for x in plan.lines if x.part == 'cache']
  assert sum(line.bytes for line in lines) == plan.cache_bytes
  assert any('residual, tokens kept exact' in line.name for line in lines)


def test_blocks_are_of_whole_groups():
  params, tokens = draw(CELL.config, 0), jnp.asarray(text(0, 2, 30))
  found = [
    kvjax.extend(
      CELL.config,
      params,
      CELL.init(2, capacity=33),
      tokens,
      options=kvjax.DecodeOptions(block=block, kernel='blockwise'),
    )[0]
    for block in (None, 6)
  ]
  np.testing.assert_allclose(*found, rtol=1e-5, atol=1e-6)


def test_a_layer_that_reads_another_reads_both_tiers():
  shared = kvjax.Grouped(4, 2, 8, value_width=4, shared_from=0)
  alone = kvjax.Grouped(4, 2, 8, value_width=4)
  layers = kvjax.Layer(alone, Zero()), kvjax.Layer(shared, Zero())
  config = kvjax.ModelConfig(VOCAB, 13, layers, norm=Same())
  params, tokens = draw(config, 0), jnp.asarray(text(0, 2, 12))
  cache = kvjax.init_cache(config, 2, 12, codec=KIVI)
  found, _ = kvjax.extend(config, params, cache, tokens)
  want = kvjax.forward(config, params, tokens, codec=KIVI)
  np.testing.assert_allclose(found, want, rtol=1e-5, atol=1e-5)
  _, (one, _) = kvjax.forward(
    config, params, tokens, codec=KIVI, attention_layers=(0, 1)
  )
  assert one.shape == (2, 4, 12, 12)
  np.testing.assert_allclose(one.sum(axis=-1), 1, rtol=1e-5)


def test_a_read_cache_moves_into_two_tiers():
  params, tokens = draw(CELL.config, 0), text(0, 2, 13)
  lengths = np.asarray([13, 6])
  _, plain = CELL.extend(params, CELL.init(2, codec=None), tokens, lengths)
  _, want = CELL.extend(params, CELL.init(2), tokens, lengths)
  found = kvjax.compress(CELL.config, params, plain, KIVI)
  alike(found.books, want.books)
  step = lambda cache: CELL.extend(
    params, kvjax.testing.poison(cache), tokens[:, :1], np.asarray([1, 1])
  )
  np.testing.assert_allclose(step(found)[0], step(want)[0], rtol=1e-4)
  with pytest.raises(ValueError, match='codes beside exact tokens'):
    kvjax.compress(CELL.config, params, want, kvjax.Dense())


def test_bits_of_an_element():
  """A10: KIVI-2 at 2,048 tokens of Llama-3.1-8B has 3.81 bits, not 2."""
  config = kvjax.load_config('llama-3-8b')
  plan = memory.plan(
    config,
    batch_size=1,
    capacity=2048,
    codec=kvjax.KIVI(),
    cache_dtype='bfloat16',
  )
  codes, slots = plan.growing_bytes_per_token, 128 + 32
  exact = plan.cap_bytes // slots
  assert (codes, exact) == (24_576, 131_072)
  elements = 2048 * 32 * 2 * 8 * 128
  held = 8 * ((2048 - 128) * codes + 128 * exact) / elements
  assert round(held, 2) == 3.81
  streams = (2048 - 128) * codes + slots * exact
  books = plan.cache_bytes - streams
  assert 0 < books < 2048 * 8  # a position a slot
  assert round(8 * streams / elements, 2) == 4.06


REFUSED = {
  'bounded': ({'kinds': kvjax.Bounded(budget=8)}, 'Bounded.*cannot hold older'),
  'sinks': ({'kinds': kvjax.Sinks(window=8)}, 'Sinks.*cannot hold older'),
  'pages': ({'kinds': kvjax.Paged(page=6)}, '4 tokens do not fill pages of 6'),
  'mapping': ({'codec': {'key': KIVI}}, 'stores all streams of a layer'),
  'too few': (
    {'kinds': kvjax.Residual(kvjax.Dense(), 0, 2, 4)},
    'must keep at least first=0 and window=3',
  ),
}


@pytest.mark.parametrize(('options', 'match'), REFUSED.values(), ids=REFUSED)
def test_refusals(options, match):
  with pytest.raises(ValueError, match=match):
    CELL.init(2, **options)


def test_no_window_is_for_single_tokens():
  with pytest.raises(ValueError, match='window=0 needs group=1, not group=4'):
    kvjax.Residual(kvjax.Dense(), 0, 0, 4)
  kind = kvjax.Residual(kvjax.Dense()).bind(300)
  with pytest.raises(ValueError, match='no mesh can split its slots'):
    kind.split(2)
