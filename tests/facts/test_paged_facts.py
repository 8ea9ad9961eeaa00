"""Facts about pages: neither their place nor sharing changes a result."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import kvjax
from tests.facts import tiny

PAGE = 4
KIND = kvjax.Paged(page=PAGE)
CONFIG = tiny.decoder()


def filled(config, length, kinds=KIND, seed=1):
  """Returns a cache of two rows of those lengths, and their tokens."""
  cache = kvjax.init_cache(config, 2, 16, kinds=kinds)
  ids = tiny.tokens(2, max(length, 1), seed)
  if length:
    _, cache = tiny.feed(config, cache, ids, (length,))
  return cache, ids[:, :length]


@pytest.mark.parametrize(
  ('variant', 'codec'),
  [
    pytest.param(tiny.GQA, None, id='gqa'),
    pytest.param(tiny.MLA, None, id='mla'),
    pytest.param(tiny.GQA, kvjax.Int8(), id='gqa_int8'),
  ],
)
def test_scrambled_pages(variant, codec):
  """T-47, C-43: pages moved about, table with them: a difference of 0.0."""
  config = tiny.decoder(variant)
  cache = kvjax.init_cache(config, 2, 16, kinds=KIND, codec=codec)
  _, cache = tiny.feed(config, cache, tiny.tokens(2, 8), (7,))
  book = cache.books[0]
  order = np.random.default_rng(0).permutation(len(book.references))
  inverse = jnp.asarray(np.argsort(order), jnp.int32)
  table = jnp.where(book.table >= 0, inverse[jnp.maximum(book.table, 0)], -1)
  moved = cache.replace(
    books=(
      book.replace(
        positions=book.positions[:, order],
        references=book.references[order],
        table=table,
      ),
    ),
    stores=jax.tree.map(lambda x: x[:, order], cache.stores),
  )
  more = tiny.tokens(2, 3, seed=2)
  got, _ = tiny.follow(config, moved, more)
  want, _ = tiny.follow(config, cache, more)
  tiny.alike(got, want)


@pytest.mark.parametrize('prefix', [0, 1, PAGE - 1, PAGE, PAGE + 1])
def test_shared_prefix(prefix):
  """C-39: prefixes of 0, 1, one page less 1, one page, one page and 1.

  Copies share full pages; what one writes the other never sees, and a page
  is free again only when both have let it go.
  """
  cache, ids = filled(CONFIG, prefix)
  both = kvjax.repeat(cache, 2)
  shared = prefix // PAGE
  references = np.asarray(both.books[0].references)
  assert (references == 2).sum() == 2 * shared
  more = tiny.tokens(4, 5, seed=3)
  got, after = tiny.feed(CONFIG, both, more, (5,))
  whole = jnp.concatenate([jnp.repeat(ids, 2, axis=0), more], axis=1)
  want = kvjax.forward(CONFIG, tiny.params(CONFIG), whole)[:, prefix:]
  tiny.close(got, want)
  left = kvjax.rewind(after, [0, 5, 0, 5])
  references = np.asarray(left.books[0].references)
  assert references.sum() == 2 * -(-5 // PAGE)


@pytest.mark.parametrize(
  'rule',
  [
    pytest.param(None, id='full'),
    pytest.param(kvjax.Visibility(window=3), id='window'),
  ],
)
def test_hit_equals_miss(rule):
  """C-40: a prefix from the cache gives what the prompt fed whole gives.

  In a model with a window, too, greedy and to the last digits of float32.
  """
  variant = kvjax.Grouped(
    6, 3, 10, 7, rotary=kvjax.Rotary(6), visibility=rule or kvjax.Visibility()
  )
  config = tiny.decoder(variant)
  prefix, _ = filled(config, 6)
  ids = tiny.tokens(2, 6)
  suffix = tiny.tokens(2, 2, seed=5)
  hit, a = tiny.feed(config, kvjax.fork(prefix), suffix, (2,))
  cold = kvjax.init_cache(config, 2, 16, kinds=KIND)
  miss, b = tiny.feed(
    config, cold, jnp.concatenate([ids, suffix], axis=1), (8,)
  )
  tiny.close(hit[:, -1], miss[:, -1], 1e-6)
  tokens = [
    kvjax.generate(config, tiny.params(config), c, x[:, -1], 5)[0]
    for c, x in ((a, hit), (b, miss))
  ]
  np.testing.assert_array_equal(*tokens)
