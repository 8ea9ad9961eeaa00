"""The pages `write_a_*` of docs/howto, and more of what they claim."""

import functools
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import kvjax
from kvjax.testing import assert_cached_matches_uncached
from tests.contract.oracle import Evicts, NearTie
from tests.contract.table import VARIANTS, Cell, Row, draw, pieces, text
from tests.test_readme import run_blocks

HOW_TO = pathlib.Path(__file__).parents[1] / 'docs' / 'howto'
PAGES = [
  (HOW_TO / f'write_a_{name}.md').read_text()
  for name in ('kind', 'variant', 'score', 'codec')
]


@functools.cache
def names():
  """Runs the blocks of each page in order; returns the names they define."""
  kind, variant, score, codec = map(run_blocks, PAGES)
  return codec | score | variant | kind


def test_the_pages_run_and_their_proofs_hold():
  assert {
    'Chapters',
    'Strided',
    'Tied',
    'Fading',
    'Signs',
    'prove',
  } <= names().keys()


def test_each_extension_is_about_thirty_lines():
  for block in re.findall(r'```python\n(.*?)```', ''.join(PAGES), re.DOTALL):
    lines = [line for line in block.splitlines() if line.strip()]
    assert sum(not line.startswith('import') for line in lines) <= 38
    assert max(map(len, lines)) <= 80


def test_a_wrong_kind_is_caught_by_the_proof():
  """One slot short: the first token of a chapter is overwritten."""
  page = names()

  class Short(page['Chapters']):
    def slot_of(self, positions):
      slots = super().slot_of(positions)
      return jnp.where(slots == self.span - 1, 0, slots)

  rule = kvjax.Visibility(chunk=5)
  with pytest.raises(AssertionError, match='scenario .* row .* position'):
    page['prove'](page['grouped'], Short(span=5), rule)


def test_chapters_keep_what_they_say():
  page = names()
  config = kvjax.ModelConfig(
    17, 12, (kvjax.Layer(page['grouped'], kvjax.MLP(11)),)
  )
  params = kvjax.init_params(config, jax.random.key(0))
  cache = kvjax.init_cache(config, 1, 9, kinds=page['Chapters'](span=5))
  _, cache = kvjax.extend(config, params, cache, jnp.ones((1, 13), jnp.int32))
  positions = np.asarray(cache.books[0].positions)
  np.testing.assert_array_equal(positions, [[[10, 11, 12, -1, -1]]])
  assert 'chapters' in repr(cache)


def test_a_tied_vector_is_half_of_multi_query_attention():
  def stream_bytes(attention):
    config = kvjax.ModelConfig(17, 12, (kvjax.Layer(attention, kvjax.MLP(11)),))
    stores = kvjax.init_cache(config, 2, 16).stores
    return tree_bytes(stores)

  tied = names()['Tied'](num_heads=5, width=7)
  assert 2 * stream_bytes(tied) == stream_bytes(kvjax.Grouped(5, 1, 7))


def test_a_tied_vector_decodes_through_a_ring():
  page = names()
  tied = page['Tied'](num_heads=5, width=7)
  page['prove'](tied, kvjax.Ring(window=5), kvjax.Visibility(window=5))


@pytest.mark.parametrize(
  ('kind', 'capacity'),
  [(None, 8), (None, 300), (kvjax.Ring(window=5), 9), (kvjax.Paged(), 300)],
)
def test_a_variant_of_the_page_is_planned_and_fitted(kind, capacity):
  attention = names()['Tied'](num_heads=5, width=7)
  layers = [kvjax.Layer(attention, kvjax.MLP(11))] * 2
  config = kvjax.ModelConfig(vocab_size=17, width=12, layers=layers)
  params = kvjax.init_params(config, jax.random.key(0))
  assert attention.num_params(12) == (2 * 5 * 7 + 7) * 12
  options = {'batch_size': 3, 'capacity': capacity, 'kinds': kind}
  plan = kvjax.memory.plan(config, **options)
  assert plan.params_bytes == tree_bytes(params)
  cache = kvjax.init_cache(config, 3, capacity, kinds=kind)
  assert plan.cache_bytes == tree_bytes(cache)
  step = kvjax.memory.compile_call(config, **options)
  measured = kvjax.memory.measure(step)
  assert measured.temporaries <= plan.temporaries_bytes
  del options['batch_size']
  fit = kvjax.memory.fit(config, plan.peak_bytes, **options)
  assert fit.batch_size == 3
  cut = kvjax.memory.plan(config, batch_size=3, mesh={'heads': 5}, **options)
  assert cut.devices == 5 and cut.params_bytes < plan.params_bytes


def tree_bytes(tree):
  return sum(x.nbytes for x in jax.tree.leaves(tree))


@pytest.mark.parametrize('fade', [0.0, 0.7])
def test_a_fading_score_keeps_the_survivors_of_its_formula(fade):
  kind = pieces(5, names()['Fading'](fade=fade))
  rule = Evicts(5, 'mass', recent=1, fade=fade)
  cell = Cell(VARIANTS[2], Row('fading', kind, rule, 0, True), None, 'fading')
  for seed in range(20):
    params = draw(cell.config, seed)
    try:
      assert_cached_matches_uncached(
        cell.oracle(params),
        cell.init,
        functools.partial(cell.extend, params),
        take=kvjax.take,
        tokens=text(seed),
        widths=(1, 15),
        rtol=1e-6,
      )
      return
    except NearTie:
      continue
  raise AssertionError('no seed without near ties')
