"""A query leaf in a cache is written and read by nobody."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import kvjax
from experiments.why_no_q_cache import derived, query_leaf
from experiments.why_no_q_cache.readers import readers
from tests.compiler import as_users_do


def model(attention):
  layer = kvjax.Layer(attention, kvjax.MLP(11))
  return kvjax.ModelConfig(vocab_size=17, width=12, layers=(layer,))


GQA = kvjax.Grouped(4, 2, 6)


@pytest.mark.usefixtures('as_users_do')
def test_the_three_forms():
  forms = query_leaf.forms(model(GQA), batch_size=2, capacity=128)
  leaf = 2 * 4 * 128 * 6 * 4
  assert [holds for _, holds in derived.claims(forms, leaf)] == [True] * 5
  both, pruned, carried = forms
  assert both.arguments == both.aliased == leaf
  assert both.query_readers == ()
  assert both.key_readers
  for form in (pruned, carried):
    assert (form.arguments, form.aliased) == (0, 0)
    assert form.query_readers is None


def test_claims_fail_where_the_leaf_is_read():
  form = query_leaf.Form('', 8, 8, 0, ('dot x',), ('dot y',))
  holds = [x for _, x in derived.claims((form, form, form), 8)]
  assert holds == [True, False, True, False, False]


def test_noise_in_past_queries_changes_no_logit():
  config = query_leaf.recording(model(GQA))
  params = kvjax.init_params(config, jax.random.key(0))
  cache = kvjax.init_cache(config, 1, 8)
  step = lambda c, token: kvjax.decode_step(
    config, params, c, jnp.array([token]), donate=False
  )
  for token in (3, 5, 7):
    _, cache = step(cache, token)
  spoiled = lambda name: cache.replace(
    stores=tuple({**s, name: s[name] + 1} for s in cache.stores)
  )
  logits, _ = step(cache, 2)
  np.testing.assert_array_equal(step(spoiled('query'), 2)[0], logits)
  assert np.any(np.asarray(step(spoiled('key'), 2)[0] != logits))


def test_a_model_without_grouped_attention_is_refused():
  latent = kvjax.Latent(4, 10, 6, 5, rotary=kvjax.Rotary(4))
  with pytest.raises(ValueError, match='layer 0 has Latent attention'):
    query_leaf.recording(model(latent))


def compiled(function):
  # Donated, so that no copy of the leaf is made first.
  leaf, row = jnp.zeros((64, 8)), jnp.zeros((1, 8))
  return as_users_do(jax.jit(function, donate_argnums=0).lower(leaf, row))


def test_a_write_is_no_read_but_a_sum_is():
  write = compiled(lambda leaf, row: leaf.at[3:4].set(row))
  assert readers(write, 'leaf') == ()
  assert readers(write, 'row')
  both = compiled(lambda leaf, row: (leaf.at[3:4].set(row), leaf.sum()))
  assert readers(both, 'leaf')


def test_a_loop_that_reads_is_found():
  def loop(leaf, row):
    body = lambda i, c: (c[0].at[i].set(row[0]), c[1] + c[0][i, 0])
    return jax.lax.fori_loop(0, 9, body, (leaf, row[0, 0]))

  assert readers(compiled(loop), 'leaf')

  update = jax.lax.dynamic_update_index_in_dim

  def writes(leaf, row):
    body = lambda i, c: (update(c[0], row[0] + c[1], i, 0), c[1] + 1)
    return jax.lax.fori_loop(0, 9, body, (leaf, row[0, 0]))

  assert readers(compiled(writes), 'leaf') == ()
