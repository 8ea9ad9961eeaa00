"""Keys less a constant: what is measured, what it saves, what is refused."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import kvjax
from kvjax.attention.rotary import rotary_table
from kvjax.models.stored_streams import through_codec
from kvjax.streams.codecs import constants_of

WIDTH, VOCAB, TOKENS = 16, 31, 24
TURN = kvjax.Rotary(64)
LENGTHS = np.asarray([TOKENS, 17])
PLAIN = kvjax.Centred(kvjax.Plain(), whole=0)


def model(seed=0, pairs=(), size=0.0, **fields):
  """Returns a layer whose keys have a constant in some rotary pairs."""
  options = {'rotary': TURN, 'projection_bias': True} | fields
  attention = kvjax.Grouped(4, 2, 64, **options)
  layer = kvjax.Layer(attention, kvjax.MLP(8))
  config = kvjax.ModelConfig(VOCAB, WIDTH, (layer,))
  params = kvjax.init_params(config, jax.random.key(seed))
  own = params['layers'][0]['attention']
  for sign, pair in zip((1, -0.8, 0.7, 0.9), pairs, strict=False):
    at = np.asarray([pair, pair + 32])
    for head in (0, 64):
      own['key_bias'] = own['key_bias'].at[head + at].set(sign * size)
  return config, params


def words(seed=0):
  tokens = np.random.default_rng(seed).integers(0, VOCAB, (2, TOKENS))
  return jnp.asarray(tokens, jnp.int32)


def keys(config, params, tokens, rotated=True):
  variant, own = config.layers[0].attention, params['layers'][0]
  x = config.norm(own['attention_norm'], params['embedding'][tokens])
  positions = jnp.arange(TOKENS, dtype=jnp.int32)[None]
  table = rotary_table(TURN, positions, 0) if rotated else None
  return variant.project_streams(own['attention'], x, table)['key']


@pytest.mark.parametrize('rotated', [True, False])
def test_the_constant_is_the_mean_of_the_keys(rotated):
  config, params = model(pairs=(3, 28), size=9.0)
  codec = dataclasses.replace(PLAIN, rotated=rotated)
  found = kvjax.calibrate(config, params, words(), codec, LENGTHS)
  every = np.asarray(keys(config, params, words(), rotated))
  rows = [every[i, :, :n] for i, n in enumerate(LENGTHS)]
  want = np.concatenate(rows, axis=1).mean(axis=1)
  np.testing.assert_allclose(found.constant[0], want, rtol=1e-4, atol=1e-5)
  assert found == codec  # a codec is static, and its constant an array


def score_error(config, params, codec):
  """Returns the root mean square error of scores of keys through a codec."""
  variant, own = config.layers[0].attention, params['layers'][0]
  tokens = words(1)
  x = config.norm(own['attention_norm'], params['embedding'][tokens])
  positions = jnp.arange(TOKENS, dtype=jnp.int32)[None]
  table = rotary_table(TURN, positions, 0)
  (constant,) = constants_of(codec, [variant.streams()]) or (None,)
  constant = None if constant is None else jnp.asarray(constant)
  found = through_codec(
    variant,
    own['attention'],
    x,
    table,
    positions=positions,
    codec=codec,
    constant=constant,
  )['key']
  query = variant.project_queries(own['attention'], x, table)['key']
  wrong = found - keys(config, params, tokens)
  scores = jnp.einsum('BKGTH,BKSH->BKGTS', query, wrong)
  return float(jnp.sqrt(jnp.mean(scores**2)))


@pytest.mark.parametrize('pairs', [(28, 29, 30, 31), (1, 2, 3, 4)])
def test_a_constant_before_rotation_costs_no_accuracy(pairs):
  """A6: in slow and in fast rotary pairs; after rotation in slow ones alone."""
  config, params = model(pairs=pairs, size=20.0)
  errors = [score_error(config, params, kvjax.Affine())]
  for rotated in (True, False):
    codec = kvjax.Centred(kvjax.Affine(), whole=0, rotated=rotated)
    codec = kvjax.calibrate(config, params, words(), codec)
    errors.append(score_error(config, params, codec))
  plain, after, before = errors
  assert before < 0.25 * plain
  assert after < 0.25 * plain if pairs[0] == 28 else after > 0.5 * plain


def test_without_rotation_a_constant_changes_nothing():
  """A11b: codes of keys that have a constant, and of keys that have none."""
  make = functools.partial(model, bias=kvjax.Alibi(), rotary=None)
  logits = {}
  for size in (0.0, 20.0):
    config, params = make(pairs=(5, 17), size=size)
    centred = kvjax.Centred(kvjax.Affine(group=16))
    centred = kvjax.calibrate(config, params, words(), centred)
    for name, codec in {'coded': centred.codec, 'centred': centred}.items():
      logits[name, size] = kvjax.forward(config, params, words(), codec=codec)
    logits['exact', size] = kvjax.forward(config, params, words())
  error = {
    key: float(jnp.abs(found - logits['exact', 0.0]).max())
    for key, found in logits.items()
  }
  assert error['exact', 20.0] < 1e-4
  assert error['coded', 20.0] > 3 * error['coded', 0.0]
  assert error['centred', 20.0] < 1.5 * error['centred', 0.0]


def test_scores_of_keys_see_them_whole():
  """A bounded cache keeps what it would keep of keys with their constant."""
  config, params = model(pairs=(28, 31), size=9.0)
  codec = kvjax.calibrate(config, params, words(), PLAIN)
  kind = kvjax.Bounded(9, kvjax.KeyNorm(), slack=2)

  def read(tokens, cache):
    return kvjax.extend(config, params, cache, tokens, LENGTHS)[1]

  after_one, after_two = [], []
  for codecs in (None, codec):
    empty = kvjax.init_cache(config, 2, 48, kinds=kind, codec=codecs)
    cache = read(words(), empty)
    after_one.append(cache.books[0].positions)
    # Now keys that are stored compete with new ones.
    after_two.append(read(words(1), cache).books[0].positions)
  np.testing.assert_array_equal(*after_one)
  np.testing.assert_array_equal(*after_two)
  dense = read(words(), kvjax.init_cache(config, 2, 48, codec=codec))
  small = kvjax.compress(config, params, dense, kind)
  found = np.sort(small.books[0].positions, axis=-1)
  np.testing.assert_array_equal(found, np.sort(after_one[0], axis=-1))


def test_a_cache_is_stored_anew_less_a_constant():
  """And a turned one is turned back first."""
  config, params = model(pairs=(28, 31), size=9.0)
  codec = kvjax.calibrate(
    config, params, words(), kvjax.Centred(kvjax.Hadamard(kvjax.Affine()))
  )
  caches = []
  for first in (None, kvjax.Hadamard(kvjax.Plain()), codec):
    cache = kvjax.init_cache(config, 2, TOKENS, codec=first)
    _, cache = kvjax.prefill(config, params, cache, words(), LENGTHS)
    caches.append(cache)
  *exact, wanted = caches
  for cache in exact:
    found = kvjax.compress(config, params, cache, codec)
    assert jax.tree.structure(found) == jax.tree.structure(wanted)
    keys = [
      x.stores[0]['key'].coded['codes'][:, :, :13] for x in (found, wanted)
    ]
    same = np.equal(*keys)
    assert same.mean() > 0.99  # rounding decides about a few codes
  back = kvjax.compress(config, params, exact[1], kvjax.Plain())
  np.testing.assert_allclose(
    back.stores[0]['key'][:, :, :17],
    exact[0].stores[0]['key'][:, :, :17],
    rtol=0,
    atol=1e-5,
  )


BAD = {
  'no_constant': ({}, PLAIN, {}, 'no constant. Measure it'),
  'layers': (
    {},
    kvjax.Centred(kvjax.Plain(), [1, 2]),
    {},
    'for each of 1 layers',
  ),
  'shape': (
    {},
    kvjax.Centred(kvjax.Plain(), np.zeros((1, 2, 63))),
    {},
    r'layer 0 \(2, 64\)',
  ),
  'numbers': (
    {},
    kvjax.Centred(kvjax.Plain(), np.full((1, 2, 64), 1e5)),
    {},
    'float16 has not',
  ),
  'softcap': ({'softcap': 30.0}, PLAIN, {}, 'softcap=30.0 bends scores'),
  'sinks': ({'sinks': True}, PLAIN, {}, 'learned sinks'),
  'value': ({}, {'value': PLAIN}, {}, 'stores all streams'),
  'no_rotation': (
    {'rotary': None},
    dataclasses.replace(PLAIN, rotated=False),
    {},
    'no rotary positions',
  ),
  'renumbered': (
    {},
    PLAIN,
    {'kinds': kvjax.Sinks(sinks=2, window=4, renumber=True)},
    'rotated=False',
  ),
  'bounded': (
    {},
    dataclasses.replace(PLAIN, rotated=False),
    {'kinds': kvjax.Bounded(8)},
    'compares keys',
  ),
}


@pytest.mark.parametrize(
  ('fields', 'codec', 'options', 'match'), BAD.values(), ids=BAD
)
def test_refusals(fields, codec, options, match):
  config, params = model(**fields)
  alive = len(jax.live_arrays())
  with pytest.raises(ValueError, match=match):
    kvjax.init_cache(config, 2, 16, codec=codec, **options)
  if not options:
    with pytest.raises(ValueError, match=match):
      kvjax.forward(config, params, words(), codec=codec)
  assert len(jax.live_arrays()) == alive


def test_further_refusals():
  with pytest.raises(ValueError, match='takes no constant off'):
    kvjax.Centred(PLAIN)
  with pytest.raises(ValueError, match='list of arrays'):
    kvjax.Centred(kvjax.Int8(), 5)
  with pytest.raises(ValueError, match='a codec that turns nothing'):
    kvjax.Hadamard(PLAIN)
  config, params = model()
  with pytest.raises(ValueError, match='codec'):
    kvjax.calibrate(config, params, words(), kvjax.Int8())
  with pytest.raises(ValueError, match='tokens'):
    kvjax.calibrate(config, params, words()[0], PLAIN)
  latent = kvjax.Latent(3, 32, 5, 7, rotary=kvjax.Rotary(8))
  layer = kvjax.Layer(latent, kvjax.MLP(8))
  latents = kvjax.ModelConfig(VOCAB, WIDTH, (layer,))
  for codec in (PLAIN, {'latent': PLAIN}):
    with pytest.raises(ValueError, match="'latent' is a value too"):
      kvjax.init_cache(latents, 1, 8, codec=codec)
  cache = kvjax.init_cache(config, 2, 8)
  before = kvjax.Centred(kvjax.Int8(), np.zeros((1, 2, 64)), rotated=False)
  with pytest.raises(ValueError, match='before rotation. Read the prompt'):
    kvjax.compress(config, params, cache, before)
