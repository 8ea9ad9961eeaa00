"""Every family's fixture against the logits of its published implementation.

The fixtures are in tests/golden/checkpoints; tests/golden/make_checkpoints.py
made them with transformers. One `extend` serves every way of feeding tokens,
and programs are compiled without most optimisations: a hundred of them run
once each. (`fuzz_parity.py` compiles as users do.)
"""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import kvjax
from kvjax.caches.dense import Dense
from kvjax.caches.paged import Paged
from kvjax.checkpoints import load_checkpoint, load_config
from kvjax.checkpoints.families import FAMILIES
from kvjax.streams.codecs import Int8
from tests.checkpoints.families import CASES as MADE
from tests.checkpoints.families import FACTS

GOLDEN = pathlib.Path(__file__).parents[1] / 'golden' / 'checkpoints'
CASES = sorted(path.name for path in GOLDEN.iterdir())
# Further configs of a family, whose caches are those of its first.
FURTHER = {name for facts in FACTS.values() for name in list(facts.cases)[1:]}
TOLERANCE = 1e-4  # of logits, absolute: what issue and docs promise
CODEC_TOLERANCE = 1e-5  # relative, of an int8 cache to its own uncached form
CHUNK = 4


@pytest.fixture(scope='module', autouse=True)
def quick_compilation():
  before = jax.config.values['jax_disable_most_optimizations']
  jax.config.update('jax_disable_most_optimizations', True)
  yield
  jax.config.update('jax_disable_most_optimizations', before)


def test_every_family_has_a_fixture():
  kinds = {load_settings(name)['model_type'] for name in CASES}
  assert set(FAMILIES) - kinds == {
    'gemma3',
    'kimi_k2',
    'llama4',
  }  # of another's tables


def load_settings(name):
  return json.loads((GOLDEN / name / 'config.json').read_text())


class Case:
  """One checkpoint and its reference."""

  def __init__(self, name):
    self.config, self.params = load_checkpoint(GOLDEN / name)
    with np.load(GOLDEN / name / 'reference.npz') as found:
      self.tokens, self.logits = found['tokens'], found['logits']
      self.greedy = found['greedy']
      self.encoded = None
      if 'source' in found:
        self.encoded = kvjax.encode(
          self.config,
          self.params,
          jnp.asarray(found['source']),
          found.get('lengths'),
        )
    self.source_length = self.encoded and self.encoded.hidden.shape[1]

  def uncached(self, **options):
    return np.asarray(
      kvjax.forward(
        self.config,
        self.params,
        jnp.asarray(self.tokens),
        encoded=self.encoded,
        **options,
      )
    )

  def cache(self, **options):
    batch, length = self.tokens.shape
    return kvjax.init_cache(
      self.config,
      batch,
      length,
      rotary_length=length,
      source_length=self.source_length,
      **options,
    )

  def chunks(self, counts, cache, prompt=None):
    """Feeds `counts [calls, B]` tokens a call, through calls of one shape.

    Tokens beyond `prompt`, one a call, are the likeliest instead.
    """
    batch, length = self.tokens.shape
    tokens = np.array(self.tokens)
    found = np.full(self.logits.shape, np.nan, np.float32)
    seen = np.zeros(batch, np.int64)
    for count in counts:
      count = np.minimum(count, length - seen)
      chunk = np.zeros((batch, CHUNK), np.int32)
      if prompt is not None and seen[0] >= prompt:
        tokens[:, seen[0]] = found[:, seen[0] - 1].argmax(-1)
      for row, (start, size) in enumerate(zip(seen, count, strict=True)):
        chunk[row, :size] = tokens[row, start : start + size]
      logits, cache = kvjax.extend(
        self.config,
        self.params,
        cache,
        jnp.asarray(chunk),
        count.astype(np.int32),
        encoded=self.encoded,
        donate=True,
      )
      for row, (start, size) in enumerate(zip(seen, count, strict=True)):
        found[row, start : start + size] = np.asarray(logits)[row, :size]
      seen = seen + count
    assert (seen == length).all()
    self.cache_bytes = sum(x.nbytes for x in jax.tree.leaves(cache))
    return found if prompt is None else tokens[:, prompt:]


@pytest.fixture(scope='module', params=CASES)
def case(request):
  return Case(request.param)


def name_of(request):
  return request.node.callspec.params['case']


def test_uncached(case):
  found = case.uncached()
  np.testing.assert_allclose(found, case.logits, atol=TOLERANCE, rtol=0)


def test_one_by_one_and_ragged_chunks(case):
  length = case.tokens.shape[1]
  ones = np.ones((length, 2), int)
  ragged = np.array([[4, 1], [0, 3]] * length)
  for counts in ones, ragged:
    found = case.chunks(counts, case.cache())
    np.testing.assert_allclose(found, case.logits, atol=TOLERANCE, rtol=0)


def test_greedy_continuation(case):
  """And the cache then holds the bytes that were planned, source and all."""
  prompt = case.tokens.shape[1] - case.greedy.shape[1]
  counts = np.array([[CHUNK] * 2] * (prompt // CHUNK) + [[1, 1]] * 9)
  found = case.chunks(counts, case.cache(), prompt)
  np.testing.assert_array_equal(found, case.greedy)
  batch, length = case.tokens.shape
  plan = kvjax.memory.plan(
    case.config,
    batch_size=batch,
    capacity=length,
    source_length=case.source_length,
  )
  assert case.cache_bytes == plan.cache_bytes


def test_pages_of_int8(case, request):
  """Paged and int8 at once: exactly the uncached form through the codec."""
  if name_of(request) in FURTHER:
    return
  kinds, codec = Paged(page=8), Int8()
  ragged = np.array([[4, 1], [1, 3], [0, 4]] * 5)
  found = case.chunks(ragged, case.cache(kinds=kinds, codec=codec))
  want = case.uncached(codec=codec)
  scale = np.abs(want).max()
  np.testing.assert_allclose(
    found, want, atol=CODEC_TOLERANCE * scale, rtol=CODEC_TOLERANCE
  )


def test_config_alone_is_the_same(case, request):
  name = name_of(request)
  if name != 't5_gated':  # whose config.json does not say that it has a head
    assert load_config(GOLDEN / name) == case.config


@pytest.mark.parametrize('name', CASES)
def test_bytes_per_token(name):
  config = load_config(GOLDEN / name)
  cache = kvjax.init_cache(config, 1, 16, kinds=Dense())
  leaves = jax.tree.leaves(cache.stores)
  assert (
    sum(x.nbytes // x.shape[2] for x in leaves) == MADE[name].bytes_per_token
  )
