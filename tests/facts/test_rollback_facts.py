"""Facts about going back, and about what a call may do to its input."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import kvjax
from tests.facts import tiny

CONFIG = tiny.decoder()
RING = kvjax.Ring(window=5, slack=4)


def snapshot(tree):
  """Returns a copy on the host."""
  return jax.tree.map(lambda x: np.array(x), tree)


def test_trim_seven_then_four():
  """T-21: of 10 tokens 7 are taken back, then 3 are left: 4 is refused."""
  cache = kvjax.init_cache(CONFIG, 1, 11)
  _, cache = tiny.feed(CONFIG, cache, tiny.tokens(1, 10), (8, 2))
  cache = kvjax.rewind(cache, 10 - 7)
  assert cache.length.tolist() == [3]
  with pytest.raises(ValueError, match='cannot rewind to -1'):
    kvjax.rewind(cache, 3 - 4)
  assert kvjax.rewind(cache, 0).length.tolist() == [0]


@pytest.mark.parametrize(
  'kind',
  [
    pytest.param(kvjax.Ring(window=5), id='ring'),
    pytest.param(tiny.KINDS['bounded'], id='bounded'),
  ],
)
def test_what_is_forgotten_is_not_taken_back(kind):
  """T-22: past its capacity a window refuses; the peer answers 0, silently.

  A mixture refuses as a whole, too: no layer has been rewound.
  """
  config = tiny.decoder(tiny.GQA, tiny.GQA)
  cache = kvjax.init_cache(config, 1, 19, kinds=(None, kind))
  _, cache = tiny.feed(config, cache, tiny.tokens(1, 9), (8, 1))
  before = snapshot(cache)
  with pytest.raises(ValueError, match='forgotten'):
    kvjax.rewind(cache, 4)
  tiny.alike(before, cache)


def test_generate_trim_generate():
  """T-23: generate, take 3 back, generate again: the same tokens, logits."""
  ids, params = tiny.tokens(2, 6), tiny.params(CONFIG)
  cache = kvjax.init_cache(CONFIG, 2, 17)
  logits, cache = kvjax.prefill(CONFIG, params, cache, ids)
  first, cache = kvjax.generate(
    CONFIG, params, cache, logits, 5, block=4, donate=False
  )
  back = kvjax.rewind(cache, cache.length - 3)
  logits, back = kvjax.decode_step(CONFIG, params, back, first[:, 1])
  uncached = jnp.concatenate([ids, first[:, :2]], axis=1)
  want = kvjax.forward(CONFIG, params, uncached)[:, -1]
  tiny.close(logits, want)
  again, _ = kvjax.generate(CONFIG, params, back, logits, 3, block=2)
  np.testing.assert_array_equal(again, first[:, 2:])


@pytest.mark.parametrize('accepted', [0, 1, 3, 4])
def test_accept_some_drafts(accepted):
  """C-32: m of 4 drafts accepted across a wrap equals never drafted."""
  ids = tiny.tokens(2, 14)
  drafts = tiny.tokens(2, 4, seed=7)
  drafts = jnp.where(jnp.arange(4)[None] < accepted, ids[:, 8:12], drafts)
  cache = kvjax.init_cache(CONFIG, 2, 19, kinds=RING)
  _, cache = tiny.feed(CONFIG, cache, ids, (8,))
  _, drafted = tiny.feed(CONFIG, cache, drafts, (4,))
  back = kvjax.rewind(drafted, 8 + accepted)
  never = cache
  if accepted:
    _, never = tiny.feed(CONFIG, cache, ids[:, 8:], (accepted,))
  tiny.alike(tiny.counters(back)[:2], tiny.counters(never)[:2])
  got, _ = tiny.follow(CONFIG, back, ids[:, 8 + accepted : 13])
  want, _ = tiny.follow(CONFIG, never, ids[:, 8 + accepted : 13])
  tiny.alike(got, want)


def test_reset():
  """T-31: rewound to 0 no slot holds a token, and all counts are 0.

  The peer writes zeros; here what no position names is never read.
  """
  for kind in (kvjax.Dense(), kvjax.Paged(page=4)):
    empty = kvjax.init_cache(CONFIG, 2, 11, kinds=kind)
    _, cache = tiny.feed(CONFIG, empty, tiny.tokens(2, 9), (8, 1))
    cache = kvjax.rewind(cache, 0)
    tiny.alike(cache.length, empty.length)
    if kind.name == 'dense':
      tiny.alike(cache.books, empty.books)
    else:
      tiny.alike(cache.books[0].table, empty.books[0].table)
      tiny.alike(cache.books[0].references, empty.books[0].references)
    got, _ = tiny.feed(CONFIG, cache, tiny.tokens(2, 8, 3), (8,))
    want, _ = tiny.feed(CONFIG, empty, tiny.tokens(2, 8, 3), (8,))
    tiny.alike(got, want)


def test_prefill_copy_two_continuations():
  """T-12: one prompt, a copy of the cache, two continuations, both right."""
  prompt, params = tiny.tokens(2, 8), tiny.params(CONFIG)
  cache = kvjax.init_cache(CONFIG, 2, 13)
  _, cache = tiny.feed(CONFIG, cache, prompt, (8,))
  for branch, seed in ((kvjax.fork(cache), 3), (cache, 4)):
    more = tiny.tokens(2, 5, seed)
    got, _ = tiny.feed(CONFIG, branch, more, (5,))
    whole = jnp.concatenate([prompt, more], axis=1)
    tiny.close(got, kvjax.forward(CONFIG, params, whole)[:, 8:])


def test_input_is_bit_identical():
  """C-30: no undonated call, and no interrupted one, changes its input."""
  params, ids = tiny.params(CONFIG), tiny.tokens(2, 8)
  cache = kvjax.init_cache(CONFIG, 2, 19, kinds=RING)
  _, cache = tiny.feed(CONFIG, cache, ids, (8,))
  before = snapshot(cache)
  kvjax.prefill(CONFIG, params, cache, ids[:, :3], donate=False)
  kvjax.extend(CONFIG, params, cache, ids)
  logits, _ = kvjax.decode_step(CONFIG, params, cache, ids[:, 0], donate=False)
  kvjax.rewind(cache, 7)
  kvjax.take(cache, [1, 1])
  kvjax.concat([cache, cache])

  def interrupt(done, total):
    raise KeyboardInterrupt

  with pytest.raises(KeyboardInterrupt):
    kvjax.generate(
      CONFIG,
      params,
      cache,
      logits,
      9,
      block=2,
      donate=False,
      progress=interrupt,
    )
  tiny.alike(before, cache)


def test_source_is_written_once():
  """C-33: cross keys and values survive decode and rewind unchanged.

  A call that fails leaves its input as it was.
  """
  everywhere = kvjax.Visibility(causal=False)
  wide = kvjax.Grouped(2, 2, 5, visibility=everywhere)
  encoder = kvjax.Encoder((kvjax.Layer(wide, kvjax.MLP(11)),))
  layer = kvjax.Layer(tiny.GQA, kvjax.MLP(11), cross=wide)
  config = kvjax.ModelConfig(tiny.VOCAB, 13, (layer,), encoder=encoder)
  params, ids = tiny.params(config), tiny.tokens(2, 5)
  encoded = kvjax.encode(config, params, tiny.tokens(2, 7), [7, 4])
  cache = kvjax.init_cache(config, 2, 9)
  logits, cache = kvjax.prefill(config, params, cache, ids, encoded=encoded)
  written = snapshot((cache.cross, cache.source))
  with pytest.raises(ValueError):
    kvjax.extend(config, params, cache, tiny.tokens(2, 5))
  tiny.alike(written, (cache.cross, cache.source))
  _, after = tiny.follow(config, cache, tiny.tokens(2, 3))
  tiny.alike(written, (after.cross, after.source))
  back = kvjax.rewind(after, 5)
  tiny.alike(written, (back.cross, back.source))
  tiny.alike(tiny.counters(back), tiny.counters(cache))


def test_eight_steps_are_one_trace():
  """T-32, B-29: 8 tokens one at a time: one trace, at traced positions."""
  params, traces = tiny.params(CONFIG), []

  def step(cache, token):
    traces.append(token.shape)
    return kvjax.decode_step(CONFIG, params, cache, token)

  run, cache = jax.jit(step), kvjax.init_cache(CONFIG, 2, 9)
  for i in range(8):
    _, cache = run(cache, tiny.tokens(2, 9)[:, i])
  assert len(traces) == 1
  assert cache.length.tolist() == [8, 8]
