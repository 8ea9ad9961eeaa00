"""Configs: hashed once, compared by value, refused with a reason."""

import dataclasses

import pytest

import kvjax
from tests.facts import tiny

GQA, MLA = tiny.GQA, tiny.MLA


def reader(source, **more):
  """Returns an attention that reads the keys and values of a layer."""
  return dataclasses.replace(GQA, shared_from=source, **more)


REFUSED = {
  'vocab': (lambda: kvjax.ModelConfig(0, 3, ()), 'vocab_size=0 must be at'),
  'width': (lambda: kvjax.ModelConfig(3, -1, ()), 'width=-1 must be at'),
  'layers': (lambda: kvjax.ModelConfig(3, 3, ()), r'layers=\(\) is empty'),
  'later': (lambda: tiny.decoder(reader(1), GQA), 'shared_from=1.*earlier'),
  'itself': (lambda: tiny.decoder(reader(0)), 'shared_from=0.*earlier'),
  'chain': (
    lambda: tiny.decoder(GQA, reader(0), reader(1)),
    'owns none itself: name its owner, 0',
  ),
  'kind': (lambda: tiny.decoder(MLA, reader(0)), 'of another kind'),
  'heads': (
    lambda: tiny.decoder(GQA, reader(0, num_kv_heads=2)),
    'Layer 1 shares .* of layer 0, but its key has 2 heads of width 10, not 3',
  ),
  'key_width': (
    lambda: tiny.decoder(GQA, reader(0, key_width=8)),
    'its key has 3 heads of width 8, not 3 of width 10',
  ),
  'value_width': (
    lambda: tiny.decoder(GQA, reader(0, value_width=None)),
    'its value has 3 heads of width 10, not 3 of width 7',
  ),
  'norms': (
    lambda: kvjax.Layer(GQA, kvjax.MLP(3), norms='mid'),
    "norms='mid' must be one of 'pre', 'post', 'both'",
  ),
  'parallel': (
    lambda: kvjax.Layer(GQA, kvjax.MLP(3), parallel='yes'),
    "parallel='yes' must be None, 'shared' or 'separate'",
  ),
  'hidden': (lambda: kvjax.MLP(0), 'hidden=0 must be at least 1'),
  'act': (lambda: kvjax.MLP(3, 'sin'), "activation='sin'; known: gelu, "),
}


@pytest.mark.parametrize(('make', 'message'), REFUSED.values(), ids=REFUSED)
def test_refusals(make, message):
  with pytest.raises(ValueError, match=message):
    make()


def test_a_dtype_of_four_bits_is_refused():
  config = tiny.decoder(GQA)
  with pytest.raises(ValueError, match='float4_e2m1fn has 4 bits.*Int8'):
    kvjax.init_cache(config, 1, 8, dtype='float4_e2m1fn')


def test_equal_configs_are_one_key():
  one, two = tiny.decoder(GQA, MLA), tiny.decoder(GQA, MLA)
  assert (one, hash(one)) == (two, hash(two))
  assert one != tiny.decoder(MLA, GQA)
  assert one == dataclasses.replace(one, layers=list(one.layers))


def test_owner():
  config = tiny.decoder(GQA, GQA, reader(0))
  assert [config.stream_layer(i) for i in range(3)] == [0, 1, 0]


def test_learned_positions_bound_a_model():
  config = tiny.decoder(positions=5)
  with pytest.raises(ValueError, match='6 tokens exceed the 5 learned'):
    kvjax.forward(config, tiny.params(config), tiny.tokens(1, 6))
