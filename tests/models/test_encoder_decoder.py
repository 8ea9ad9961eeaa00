"""Encoder-decoders: a source read once, and an encoder written out."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import kvjax
from tests.facts import tiny

EVERYWHERE = kvjax.Visibility(causal=False)
CROSS = kvjax.Grouped(4, 2, 5, visibility=EVERYWHERE)
BUCKETS = kvjax.RelativeBias(8, 11)


def model(features=None, bias=None):
  """Returns a model of one encoder layer and two decoder layers."""
  both = None if bias is None else kvjax.RelativeBias(8, 11, True)
  reader = kvjax.Grouped(2, 2, 5, visibility=EVERYWHERE, bias=both)
  encoder = kvjax.Encoder(
    (kvjax.Layer(reader, kvjax.MLP(11)),),
    features=features,
    positions=0 if features is None else 9,
  )
  writer = kvjax.Grouped(2, 2, 5, bias=bias)
  layer = kvjax.Layer(writer, kvjax.MLP(11), cross=CROSS)
  return kvjax.ModelConfig(tiny.VOCAB, 13, (layer, layer), encoder=encoder)


MODELS = {'ids': model(), 'relative': model(bias=BUCKETS)}


@pytest.mark.parametrize('config', MODELS.values(), ids=MODELS)
def test_cached_equals_uncached(config):
  """Ragged sources, prompt and then token by token."""
  params, ids = tiny.params(config), tiny.tokens(2, 7)
  source = tiny.tokens(2, 9, seed=4)
  encoded = kvjax.encode(config, params, source, [9, 5])
  want = kvjax.forward(config, params, ids, encoded=encoded)
  cache = kvjax.init_cache(config, 2, 11)
  logits, cache = kvjax.prefill(
    config, params, cache, ids[:, :4], encoded=encoded
  )
  tiny.close(logits, want[:, 3])
  got, _ = tiny.follow(config, cache, ids[:, 4:])
  tiny.close(got, want[:, 4:])
  alone = kvjax.encode(config, params, source[1:, :5])
  same = kvjax.forward(config, params, ids[1:], encoded=alone)
  tiny.close(want[1:], same)


def test_the_source_matters_and_is_written_once():
  config = MODELS['ids']
  params, ids = tiny.params(config), tiny.tokens(2, 4)
  encoded = kvjax.encode(config, params, tiny.tokens(2, 9, seed=4))
  empty = kvjax.init_cache(config, 2, 11, source_length=9)
  a, cache = kvjax.prefill(
    config, params, empty, ids, encoded=encoded, donate=False
  )
  for index, layer in enumerate(config.layers):
    q = params['layers'][index]['cross']
    for name, x in layer.cross.project_streams(q, encoded.hidden, None).items():
      tiny.close(cache.cross[index][name], x, 1e-6)
  other = kvjax.encode(config, params, tiny.tokens(2, 9, seed=5))
  b, _ = kvjax.prefill(config, params, empty, ids, encoded=other, donate=False)
  assert float(jnp.abs(a - b).max()) > 1e-2
  _, after = tiny.follow(config, cache, ids)
  tiny.alike(after.cross, cache.cross)
  where = lambda c: {x.unsafe_buffer_pointer() for x in jax.tree.leaves(c)}
  assert not where(after) & where(cache)
  tiny.alike(kvjax.take(after, [1]).cross[0]['key'], cache.cross[0]['key'][1:])


def test_frames_are_halved():
  """Two convolutions, the second of stride 2, then positions: in NumPy."""
  config = model(features=3)
  params = tiny.params(config)
  frames = jax.random.normal(jax.random.key(0), (2, 7, 3))
  encoded = kvjax.encode(config, params, frames, [4, 2])
  assert encoded.hidden.shape == (2, 4, 13)
  assert encoded.positions.tolist() == [[0, 1, 2, 3], [0, 1, -1, -1]]
  moved = kvjax.encode(config, params, frames.at[0, 6].add(5.0))
  assert not np.allclose(moved.hidden[0], encoded.hidden[0])


def test_refusals():
  config, ids = MODELS['ids'], tiny.tokens(2, 4)
  params = tiny.params(config)
  cache = kvjax.init_cache(config, 2, 11)
  with pytest.raises(ValueError, match='has an encoder: pass encoded='):
    kvjax.prefill(config, params, cache, ids)
  with pytest.raises(ValueError, match='has an encoder: pass encoded='):
    kvjax.forward(config, params, ids)
  with pytest.raises(
    ValueError, match=r'shape \[2, 4, 1\]; it must be .* integers'
  ):
    kvjax.encode(config, params, ids[..., None])
  with pytest.raises(
    ValueError, match=r'must be an array of floating numbers \[any, any, 3\]'
  ):
    kvjax.encode(model(features=3), params, jnp.zeros((2, 7, 5)))


def test_a_source_that_is_missing_or_of_other_rows():
  """Also where the cache has room for one that nobody wrote."""
  config, ids = MODELS['ids'], tiny.tokens(2, 4)
  params = tiny.params(config)
  bare = kvjax.init_cache(config, 2, 11)
  with pytest.raises(ValueError, match='holds no source yet'):
    kvjax.decode_step(config, params, bare, ids[:, 0])
  logits = jnp.zeros((2, tiny.VOCAB))
  room = kvjax.init_cache(config, 2, 11, source_length=7)
  for call in (
    lambda: kvjax.prefill(config, params, room, ids),
    lambda: kvjax.extend(config, params, room, ids),
    lambda: kvjax.generate(config, params, room, logits, 3),
  ):
    with pytest.raises(ValueError, match='holds no source yet'):
      call()
  # A step may not wait to see: its rows say so themselves.
  lost, after = kvjax.decode_step(config, params, room, ids[:, 0], donate=False)
  assert np.isnan(lost).all()
  with pytest.raises(ValueError, match=r'Rows \[0, 1\] hold no source'):
    kvjax.check(after)
  alone = kvjax.encode(config, params, ids[:1])
  with pytest.raises(
    ValueError, match='encoded has 1 rows for 2 rows of tokens'
  ):
    kvjax.prefill(config, params, room, ids, encoded=alone)
  other = kvjax.init_cache(config, 2, 11, source_length=5)
  with pytest.raises(ValueError, match='the same kinds, .*source'):
    kvjax.concat([room, other])
