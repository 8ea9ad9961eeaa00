"""A cache that was read, made smaller, against the prompt read that way."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import kvjax

VOCAB, LENGTH = 31, 29
LATENT = kvjax.Latent(3, 11, 5, 7, rotary=kvjax.Rotary(4, interleaved=True))
GROUPED = kvjax.Grouped(6, 3, 8, value_width=5, rotary=kvjax.Rotary(8))
SHARED = kvjax.Grouped(6, 3, 8, value_width=5, shared_from=0)
TOKENS = np.stack(
  [np.random.default_rng(i).permutation(VOCAB)[:LENGTH] for i in range(2)]
)
LENGTHS = np.asarray([LENGTH, 22])


@functools.cache
def model(name):
  attention = {'gqa': (GROUPED,) * 2, 'mla': (LATENT,) * 2}
  attention |= {'shared': (GROUPED, SHARED)}
  layers = tuple(kvjax.Layer(x, kvjax.MLP(11)) for x in attention[name])
  config = kvjax.ModelConfig(VOCAB, 12, layers)
  return config, kvjax.init_params(config, jax.random.key(0))


def read(name, **options):
  config, params = model(name)
  cache = kvjax.init_cache(config, 2, 40, **options)
  tokens = jnp.asarray(TOKENS, jnp.int32)
  return kvjax.prefill(config, params, cache, tokens, LENGTHS)[1]


def follow(name, cache, steps=4):
  config, params = model(name)
  tokens = jnp.asarray(TOKENS[:, :steps], jnp.int32)
  return np.asarray(kvjax.extend(config, params, cache, tokens)[0])


@pytest.mark.parametrize('name', ['gqa', 'mla', 'shared'])
@pytest.mark.parametrize(
  'score', [kvjax.KeyDiff(), kvjax.LagKV(lag=5), kvjax.CUR(window=3)]
)
def test_equals_the_prompt_read_into_that_kind(name, score):
  """Survivors of the first layer, which saw the same, and all that follows."""
  kind = kvjax.Bounded(9, score, slack=3)
  config, params = model(name)
  found = kvjax.compress(config, params, read(name), kind)
  wanted = read(name, kinds=kind)
  for a, b in zip(found.books, wanted.books, strict=True):
    np.testing.assert_array_equal(
      np.sort(a.positions, axis=-1), np.sort(b.positions, axis=-1)
    )
  want = follow(name, wanted)
  limit = 1e-6 * np.abs(want).max()
  np.testing.assert_allclose(follow(name, found), want, rtol=0, atol=limit)


def test_a_codec_stores_every_token_anew():
  config, params = model('gqa')
  found = kvjax.compress(config, params, read('gqa'), kvjax.Int8())
  wanted = read('gqa', codec=kvjax.Int8())
  jax.tree.map(np.testing.assert_array_equal, found.books, wanted.books)
  first = [jax.tree.leaves(cache.stores[0]) for cache in (found, wanted)]
  for a, b in zip(*first, strict=True):  # deeper layers read rounded streams
    np.testing.assert_array_equal(a[:, :, :22], b[:, :, :22])
  both = kvjax.compress(
    config, params, found, kvjax.Bounded(9, kvjax.KeyNorm())
  )
  assert both.stores[0]['key']['codes'].shape == (2, 3, 9, 8)


@pytest.mark.parametrize(
  'choice', [kvjax.Int8(), kvjax.Bounded(9, kvjax.KeyNorm()), kvjax.Dense()]
)
def test_a_turned_cache_is_turned_back(choice):
  config, params = model('gqa')
  results = []
  for codec in None, kvjax.Hadamard(kvjax.Affine(bits=8)):
    cache = kvjax.compress(config, params, read('gqa', codec=codec), choice)
    results.append(follow('gqa', cache, steps=1))
  want, found = results
  np.testing.assert_allclose(found, want, rtol=0, atol=0.02 * want.max())


def test_what_a_codec_leaves_as_it_is_may_have_fewer_bits():
  config, params = model('gqa')
  codec = kvjax.KIVI(group=5, window=10, bits=8)
  found = kvjax.compress(config, params, read('gqa'), codec, jnp.bfloat16)
  want = kvjax.init_cache(config, 2, 40, jnp.bfloat16, codec=codec)
  for a, b in zip(
    jax.tree.leaves(found.stores), jax.tree.leaves(want.stores), strict=True
  ):
    assert (a.shape, a.dtype) == (b.shape, b.dtype)
  assert jnp.bfloat16 in [x.dtype for x in jax.tree.leaves(found.stores)]


def test_a_dense_cache_becomes_a_ring_and_keeps_its_own_kind():
  config, params = model('gqa')
  dense = read('gqa')
  found = kvjax.compress(config, params, dense, [kvjax.Ring(7), None])
  assert [s.kind.name for s in found.layout.stores] == ['ring', 'dense']
  positions = np.sort(found.books[0].positions[:, 0], axis=-1)
  assert positions.tolist() == [list(range(22, 29)), list(range(15, 22))]
  np.testing.assert_array_equal(dense.length, LENGTHS)  # not donated
  for name, leaf in found.stores[1].items():
    np.testing.assert_array_equal(leaf, dense.stores[1][name])


@pytest.mark.parametrize(
  ('options', 'choice', 'message'),
  [
    ({}, kvjax.Bounded(9), 'HeavyHitters needs queries'),
    ({}, kvjax.Bounded(9, kvjax.SnapKV()), 'SnapKV needs queries'),
    ({}, kvjax.Bounded(9, kvjax.ExpectedAttention()), 'needs queries'),
    (
      {},
      kvjax.Bounded(9, kvjax.KeyNorm(), prefill='chunks'),
      "Use prefill='whole'",
    ),
    ({'kinds': kvjax.Ring(9)}, kvjax.Dense(), 'has forgotten some'),
    ({}, kvjax.Paged(page=4), 'shares pages between rows'),
    ({}, [kvjax.Ring(4)], 'one for each of the 2 layers'),
    ({}, 'int8', "kind_or_codec='int8' must be a kind"),
    ({}, (kvjax.Ring(7), jnp.bfloat16), 'Give Plain\\(\\) as a codec'),
    (
      {'kinds': kvjax.Bounded(12, kvjax.KeyNorm())},
      kvjax.Bounded(9, kvjax.KeyNorm(), per_head=False),
      'Use per_head=True',
    ),
  ],
)
def test_refusals(options, choice, message):
  config, params = model('gqa')
  choice, dtype = choice if isinstance(choice, tuple) else (choice, None)
  with pytest.raises(ValueError, match=message):
    kvjax.compress(config, params, read('gqa', **options), choice, dtype)
