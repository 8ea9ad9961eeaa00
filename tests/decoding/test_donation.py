"""Who may use a cache again: donated buffers, shared leaves, jit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import kvjax
from tests.facts import tiny

CONFIG = tiny.decoder()
KINDS = {
  'dense': kvjax.Dense(),
  'paged': kvjax.Paged(page=4),
  'bounded': kvjax.Bounded(budget=6, slack=3),
}


def fresh(kind=None):
  """Returns a cache with 4 tokens in each of 2 rows."""
  cache = kvjax.init_cache(CONFIG, 2, 13, kinds=kind)
  return tiny.feed(CONFIG, cache, tiny.tokens(2, 4), (4,))[1]


def logits():
  """Returns anything that can be sampled from."""
  return np.zeros((2, tiny.VOCAB), np.float32)


MODEL = CONFIG, tiny.params(CONFIG)
CALLS = {
  'prefill': lambda c, **d: kvjax.prefill(*MODEL, c, tiny.tokens(2, 3), **d),
  'extend': lambda c, **d: kvjax.extend(*MODEL, c, tiny.tokens(2, 3), **d),
  'decode_step': lambda c, **d: kvjax.decode_step(
    *MODEL, c, tiny.tokens(2, 1)[:, 0], **d
  ),
  'generate': lambda c, **d: kvjax.generate(*MODEL, c, logits(), 3, **d),
  'rewind': lambda c, **d: (None, kvjax.rewind(c, c.length, **d)),
  'fork': lambda c, **d: (None, kvjax.fork(c, **d)),
  'take': lambda c, **d: (None, kvjax.take(c, [0, 1], **d)),
  'repeat': lambda c, **d: (None, kvjax.repeat(c, 1, **d)),
}
DONATES = 'prefill', 'decode_step', 'generate'


def pointers(tree):
  """Returns the address of every buffer."""
  return {x.unsafe_buffer_pointer() for x in jax.tree.leaves(tree)}


@pytest.mark.parametrize('name', CALLS)
def test_default(name):
  """Three calls take their cache; the others leave it as it was."""
  cache = fresh()
  CALLS[name](cache)
  gone = [x.is_deleted() for x in jax.tree.leaves(cache.stores)]
  assert all(gone) == (name in DONATES)
  assert any(gone) == (name in DONATES)


@pytest.mark.parametrize('name', CALLS)
def test_a_donated_cache_says_so(name):
  cache = fresh()
  CALLS['decode_step'](cache)
  with pytest.raises(
    kvjax.DonatedCacheError, match='donated to an earlier prefill.*donate=False'
  ):
    CALLS[name](cache)


def test_the_rest_says_so_too():
  cache = fresh()
  CALLS['decode_step'](cache)
  assert issubclass(kvjax.DonatedCacheError, RuntimeError)
  for call in (
    kvjax.check,
    kvjax.inspect,
    lambda c: kvjax.concat([c, c]),
  ):
    with pytest.raises(kvjax.DonatedCacheError):
      call(cache)


@pytest.mark.parametrize('name', CALLS)
@pytest.mark.parametrize('kind', KINDS)
def test_undonated_results_share_no_leaf(name, kind):
  if kind == 'bounded' and name == 'rewind':
    pytest.skip('a bounded cache does not go back')
  cache = fresh(KINDS[kind])
  _, after = CALLS[name](cache, donate=False)
  assert not pointers(cache) & pointers(after)


def test_concat_shares_no_leaf():
  a, b = fresh(), fresh()
  both = kvjax.concat([a, b])
  one = kvjax.concat([a])
  assert not pointers((a, b)) & pointers((both, one))
  CALLS['decode_step'](one)
  kvjax.check(a)


def test_inside_a_jit_donation_is_ignored():
  cache = fresh()
  for name in ('prefill', 'decode_step', 'extend', 'take'):
    run = lambda c, name=name: CALLS[name](c, donate=True)[1]
    after = jax.jit(run)(cache)
    assert not any(x.is_deleted() for x in jax.tree.leaves(cache))
    assert after.batch_size == 2


@pytest.mark.parametrize(
  'name', ['prefill', 'extend', 'decode_step', 'generate']
)
def test_under_a_transform_of_params_alone_donation_is_ignored(name):
  """Its rows would all be given the one cache."""
  config, params = MODEL
  cache, ids = fresh(), tiny.tokens(2, 1)
  fed = {'decode_step': (ids[:, 0],), 'generate': (logits(), 2)}
  args = fed.get(name, (ids,))

  def run(p):
    return getattr(kvjax, name)(config, p, cache, *args, donate=True)[0]

  many = jax.tree.map(lambda x: jnp.stack([x, x]), params)
  got = jax.vmap(run)(many)
  assert not any(x.is_deleted() for x in jax.tree.leaves(cache))
  np.testing.assert_allclose(got[0], run(params), rtol=1e-4, atol=1e-5)


def test_generate_undonated_goes_on_from_its_own_copy():
  """Later blocks may take the loop's own cache; never the caller's."""
  cache = fresh()
  first, _ = kvjax.generate(*MODEL, cache, logits(), 7, block=2, donate=False)
  again, _ = kvjax.generate(*MODEL, cache, logits(), 7, block=3, donate=False)
  np.testing.assert_array_equal(first, again)
