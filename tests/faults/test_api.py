"""Bad arguments at the public doors: one clear error, before any work.

Each case was silent, unclear or accepted once. The message gives the value, the
rule and the fix.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import kvjax
from kvjax.models.encoder import Encoded
from tests.faults.one_layer import (
  CONFIG,
  ID,
  ONE,
  PARAMS,
  TWO,
  V,
  fed,
  feed,
  generate,
  make_config,
  new_cache,
  step,
)

SEES_ALL = kvjax.Grouped(4, 2, 8, visibility=kvjax.Visibility(causal=False))


def with_encoder(cross: kvjax.Grouped | None) -> kvjax.ModelConfig:
  return dataclasses.replace(
    CONFIG,
    layers=[dataclasses.replace(CONFIG.layers[0], cross=cross)],
    encoder=kvjax.Encoder((kvjax.Layer(SEES_ALL, kvjax.MLP(11)),)),
  )


ENCODER = with_encoder(SEES_ALL)
WIDER_CROSS = with_encoder(dataclasses.replace(SEES_ALL, key_width=16))
MORE_CROSS_HEADS = with_encoder(dataclasses.replace(SEES_ALL, num_kv_heads=4))


def seeds(*numbers: object) -> np.ndarray:
  return np.asarray(numbers)


WIDER = make_config(key_width=16)
MORE_HEADS = make_config(num_kv_heads=4)
DEEPER = make_config(layers=2)

ARRAYS = {
  'id_of_the_size': (
    lambda: feed(ONE.at[0, 1].set(V)),
    r'tokens has the id 29; the vocabulary has 29: ids 0 to 28',
  ),
  'id_of_a_billion': (lambda: feed(ONE + 10**9), 'the id 1000000003; the voc'),
  'id_in_prefill': (
    lambda: kvjax.prefill(CONFIG, PARAMS, new_cache(), ONE + V),
    'tokens has the id 32',
  ),
  'id_in_forward': (
    lambda: kvjax.forward(CONFIG, PARAMS, ONE + V),
    'tokens has the id 32',
  ),
  'id_in_a_step': (lambda: step(np.asarray([V])), 'token has the id 29; the v'),
  'id_that_an_int32_wraps': (
    lambda: feed(np.asarray([[2**32 + 5]])),
    'the id 4294967301',
  ),
  'id_that_wraps_to_none': (
    lambda: feed(np.asarray([[2**31]])),
    'the id 2147483648',
  ),
  'cast_of_minus_one': (
    lambda: feed(np.asarray([[2**32 - 1]], np.uint32)),
    'the id 4294967295',
  ),
  'a_step_of_floats': (
    lambda: step(jnp.ones(1)),
    r'token has dtype float32; it must be an array of integers \[1\]',
  ),
  'a_step_of_booleans': (lambda: step(jnp.ones(1, bool)), 'dtype bool'),
  'a_step_of_a_column': (
    lambda: step(jnp.asarray([[1]])),
    r'token has shape \[1, 1\]; it must be an array of integers \[1\]',
  ),
  'a_step_of_a_list': (lambda: step([1]), 'token is of type list'),
  'a_step_of_a_number': (lambda: step(1), 'token is of type int'),
  'ragged_lists': (
    lambda: feed([[1, 2], [3]], new_cache(2)),
    r'tokens is of type list; it must be an array of integers \[2, any\]',
  ),
  'tokens_of_one_axis': (lambda: feed(ONE[0]), r'tokens has shape \[3\]'),
  'tokens_of_three_axes': (lambda: feed(ONE[None]), r'shape \[1, 1, 3\]'),
  'tokens_of_two_rows': (
    lambda: feed(TWO),
    r'tokens has shape \[2, 3\]; it must be an array of integers \[1, any\]',
  ),
  'tokens_without_rows': (lambda: feed(ONE[:0]), r'tokens has shape \[0, 3\]'),
  'no_tokens_of_forward': (
    lambda: kvjax.forward(CONFIG, PARAMS, [1, 2]),
    'tokens is of type list',
  ),
  'float_lengths_in_a_trace': (
    lambda: jax.jit(lambda n: feed(ONE, lengths=n))(jnp.asarray([1.9])),
    'lengths has dtype float32',
  ),
  'active_of_three': (
    lambda: step(ID, active=jnp.ones(3, bool)),
    r'active has shape \[3\]; it must be an array of booleans \[1\]',
  ),
  'active_of_one_for_two': (
    lambda: step(TWO[:, 0], fed(2)[1], active=jnp.ones(1, bool)),
    r'active has shape \[1\]; it must be an array of booleans \[2\]',
  ),
  'active_scalar': (
    lambda: step(ID, active=jnp.asarray(False)),
    r'active has shape \[\]',
  ),
  'active_integers': (
    lambda: step(TWO[:, 0], fed(2)[1], active=jnp.asarray([2, 1])),
    'active has dtype int32; it must be an array of booleans',
  ),
  'active_floats': (lambda: step(ID, active=jnp.ones(1)), 'dtype float32'),
  'active_list': (lambda: step(ID, active=[True]), 'active is of type list'),
  'integer_logits': (
    lambda: generate(logits=jnp.zeros((1, V), jnp.int32)),
    'logits has dtype int32; it must be an array of floating numbers',
  ),
  'one_key_for_a_batch': (
    lambda: kvjax.sample(
      jnp.zeros((2, V)), jax.random.key(0), kvjax.Sampling(1.0)
    ),
    r'keys has shape \[\]; it must be an array of random keys \[2\]',
  ),
  'an_encoder_with_lengths_of_floats': (
    lambda: kvjax.encode(ENCODER, {}, TWO, [1.7, 2]),
    'lengths has dtype float64',
  ),
  'an_encoder_with_long_lengths': (
    lambda: kvjax.encode(ENCODER, {}, TWO, [99, -5]),
    r'lengths=\[99, -5\] must be between 0 and the 3 tokens',
  ),
  'an_encoder_with_one_length': (
    lambda: kvjax.encode(ENCODER, {}, TWO, [1]),
    r'lengths has shape \[1\]; it must be an array of integers \[2\]',
  ),
  'an_encoder_with_an_unknown_id': (
    lambda: kvjax.encode(ENCODER, {}, TWO + V),
    'source has the id 35; the vocabulary has 29',
  ),
  'a_source_of_one_row': (
    lambda: kvjax.forward(ENCODER, {}, TWO, encoded=source(1)),
    'encoded has 1 rows for 2 rows of tokens',
  ),
  'a_source_that_is_none': (
    lambda: kvjax.forward(ENCODER, {}, TWO, encoded=TWO),
    'encoded is of type ArrayImpl: give what encode returned',
  ),
  'rewind_to_a_float_in_a_trace': (
    lambda: jax.jit(lambda n: kvjax.rewind(fed()[1], n))(1.7),
    'lengths has dtype float32',
  ),
}
MODELS = {
  'cache_of_two_heads': (
    lambda: feed(ONE, config=MORE_HEADS, params=params_of(MORE_HEADS)),
    "another number of heads.*the config: 4 heads of width 8 for 'key'",
  ),
  'cache_of_width_eight': (
    lambda: feed(ONE, config=WIDER, params=params_of(WIDER)),
    "another width, than the config: 2 heads of width 16 for 'key'",
  ),
  'cache_of_one_layer': (
    lambda: feed(ONE, config=DEEPER, params=params_of(DEEPER)),
    'made for 1 layers; the config has 2. Allocate',
  ),
  'cache_of_two_layers': (
    lambda: feed(ONE, kvjax.init_cache(DEEPER, 1, 8)),
    'made for 2 layers; the config has 1. Allocate',
  ),
  'cache_of_latents': (
    lambda: feed(ONE, kvjax.init_cache(latent_config(), 1, 8)),
    r"Layer 0 of the cache stores \['latent', 'rotary'\]; the config stores",
  ),
  'source_of_another_width': (
    lambda: translate(cache_with_source(WIDER_CROSS)),
    'Cross-attention 0 of the cache has another number of heads, or another '
    "width, than the config: 2 heads of width 8 for 'key'. Allocate",
  ),
  'source_of_other_heads': (
    lambda: translate(cache_with_source(MORE_CROSS_HEADS), encoded=source(1)),
    "Cross-attention 0 of the cache .*: 2 heads of width 8 for 'key'",
  ),
  'source_that_no_layer_reads': (
    lambda: translate(cache_with_source(with_encoder(None))),
    r"Cross-attention 0 of the cache stores nothing; .* \['key', 'value'\]",
  ),
  'source_of_a_step': (
    lambda: step(ID, cache_with_source(WIDER_CROSS), ENCODER, CROSS_PARAMS),
    'Cross-attention 0 of the cache has another number of heads',
  ),
  'source_encoded_by_another_width': (
    lambda: translate(encoded=source(1, width=12)),
    r'encoded.hidden has shape \[1, 2, 12\]; .*floating numbers \[1, 2, 24\]',
  ),
  'params_of_another_source': (
    lambda: translate(params=params_of(WIDER_CROSS), encoded=source(1)),
    r'layers.0.cross.key \[32, 24\]; the config makes it \[16, 24\]',
  ),
  'params_of_four_heads': (
    lambda: feed(ONE, params=params_of(MORE_HEADS)),
    r'layers.0.attention.key \[32, 24\]; the config makes it \[16, 24\]',
  ),
  'params_of_another_vocabulary': (
    lambda: feed(ONE, params=params_of(make_config(vocab_size=31))),
    r'embedding \[31, 24\]; the config makes it \[29, 24\]',
  ),
  'params_in_forward': (
    lambda: kvjax.forward(CONFIG, params_of(WIDER), ONE),
    r'attention.key \[32, 24\]; the config makes it \[16, 24\]',
  ),
  'params_without_a_norm': (
    lambda: feed(ONE, params={k: PARAMS[k] for k in PARAMS if k != 'norm'}),
    'params are without norm.weight; the config asks for it',
  ),
  'params_of_two_layers': (
    lambda: feed(ONE, params=params_of(DEEPER)),
    r'have layers.1.*for which the config has no place',
  ),
  'params_none': (lambda: feed(ONE, params=None), 'params is of type NoneType'),
  'config_none': (lambda: feed(ONE, config=None), 'config is of type NoneType'),
  'config_of_init_cache': (
    lambda: kvjax.init_cache(PARAMS, 1, 8),
    'config is of type dict',
  ),
  'config_of_init_params': (
    lambda: kvjax.init_params(None, jax.random.key(0)),
    'config is of type NoneType',
  ),
  'config_of_encode': (
    lambda: kvjax.encode(PARAMS, ENCODER, TWO),
    'config is of type dict',
  ),
  'config_of_forward': (
    lambda: kvjax.forward(PARAMS, CONFIG, ONE),
    'config is of type dict: give a ModelConfig. Arguments come in the order',
  ),
  'cache_none': (
    lambda: kvjax.extend(CONFIG, PARAMS, None, ONE),
    'cache is of type NoneType: give the Cache that init_cache',
  ),
  'cache_and_params_swapped': (
    lambda: kvjax.extend(CONFIG, new_cache(), PARAMS, ONE),
    'cache is of type dict.*the order config, params, cache, tokens',
  ),
  'cache_and_logits_swapped': (
    lambda: kvjax.generate(CONFIG, PARAMS, *fed(), 3),
    'cache is of type ArrayImpl',
  ),
  'concat_of_other_heads': (
    lambda: kvjax.concat([new_cache(), kvjax.init_cache(MORE_HEADS, 1, 8)]),
    'must have the same kinds, codecs, capacity, heads, widths',
  ),
  'concat_of_another_width': (
    lambda: kvjax.concat([new_cache(), kvjax.init_cache(WIDER, 1, 8)]),
    'must have the same kinds, codecs, capacity, heads, widths',
  ),
  'concat_with_none': (
    lambda: kvjax.concat([new_cache(), None]),
    'cache is of type NoneType',
  ),
  'fork_of_none': (lambda: kvjax.fork(None), 'cache is of type NoneType'),
  'ring_under_sink_tokens': (
    lambda: kvjax.init_cache(
      config_of(visibility=kvjax.Visibility(window=4, sink_tokens=2)),
      1,
      8,
      kinds=kvjax.Ring(window=4, slack=2),
    ),
    r'forgets the first tokens.*sink_tokens=2.*Use Sinks\(sinks=2, window=4\)',
  ),
}
SIZES = {
  'capacity_true': (lambda: size(capacity=True), 'capacity=True must be a pos'),
  'capacity_2_63': (lambda: size(capacity=2**63), 'at most 2147483647'),
  'capacity_10_30': (lambda: size(capacity=10**30), 'at most 2147483647'),
  'slack': (lambda: new_cache(slack=-1), 'slack=-1 must be at least 0'),
  'ring_2_5': (lambda: kvjax.Ring(2.5), 'window=2.5 must be a whole number'),
  'ring_2_31': (
    lambda: kvjax.Ring(2**31),
    'whole number of at most 2147483647',
  ),
  'page_2_0': (lambda: kvjax.Paged(2.0), 'page=2.0 must be a whole number'),
  'slots': (lambda: kvjax.Dense(slots=-2), 'slots=-2 must be at least 1, or N'),
  'num_tokens_true': (lambda: generate(True), 'num_tokens=True must be a posi'),
  'num_tokens_2_31': (lambda: generate(2**31), 'at most 2147483647'),
  'num_tokens_10_20': (lambda: generate(10**20), 'at most 2147483647'),
  'block_0': (lambda: options(block=0), 'block=0 must be at least 1, or None'),
  'block_negative': (lambda: options(block=-4), 'block=-4 must be at least 1'),
  'block_2_5': (lambda: options(block=2.5), 'block=2.5 must be a whole number'),
  'repeat_true': (
    lambda: kvjax.repeat(new_cache(), True),
    'count=True must be',
  ),
  'layers_0': (
    lambda: feed(ONE, attention_layers=0),
    r'attention_layers=0 must be indices in \[0, 1\)',
  ),
  'layers_of_forward': (
    lambda: kvjax.forward(CONFIG, PARAMS, ONE, attention_layers=(-1,)),
    r'attention_layers=\(-1,\) must be indices in \[0, 1\)',
  ),
  'a_number_of_400_digits': (
    lambda: kvjax.Sampling(10**400),
    'must be a finite number',
  ),
  'num_heads_2_0': (
    lambda: kvjax.Grouped(2.0, 2, 8),
    'num_heads=2.0 must be a',
  ),
  'vocab_2_5': (
    lambda: kvjax.ModelConfig(2.5, 4, []),
    'vocab_size=2.5 must be',
  ),
  'dtype_int32': (
    lambda: dataclasses.replace(CONFIG, dtype='int32'),
    'dtype=int32 is no floating type',
  ),
  'scale_nan': (
    lambda: config_of(scale=float('nan')),
    'scale=nan must be a finite number, or None',
  ),
  'softcap_0': (lambda: config_of(softcap=0.0), 'softcap=0.0 must exceed 0'),
  'softcap_negative': (lambda: config_of(softcap=-1.0), 'must exceed 0'),
  'window_2_5': (
    lambda: kvjax.Visibility(window=2.5),
    'window=2.5 must be a whole number',
  ),
}
SAMPLING = {
  'temperature_inf': (
    lambda: generate(temperature=float('inf')),
    'temperature=inf must be a finite number',
  ),
  'temperature_text': (
    lambda: generate(temperature='0.7'),
    "temperature='0.7' must be a finite number",
  ),
  'temperature_none': (lambda: generate(temperature=None), 'temperature=None'),
  'temperature_true': (lambda: generate(temperature=True), 'temperature=True'),
  'top_k_2_5': (lambda: generate(top_k=2.5), 'top_k=2.5 must be a whole'),
  'top_k_text': (lambda: generate(top_k='3'), "top_k='3' must be a whole"),
  'top_k_true': (lambda: generate(top_k=True), 'top_k=True must be a whole'),
  'top_p_text': (lambda: generate(top_p='0.5'), "top_p='0.5' must be a finite"),
  'top_p_true': (lambda: generate(top_p=True), 'top_p=True must be a finite'),
  'seed_2_63': (
    lambda: generate(seed=2**63),
    r'must be an integer from -2\*\*3',
  ),
  'seed_2_64': (lambda: generate(seed=2**64), 'seed=18446744073709551616 must'),
  'seed_1_5': (lambda: generate(seed=1.5), 'seed=1.5 must be an integer'),
  'seed_text': (lambda: generate(seed='1'), "seed='1' must be an integer"),
  'seed_none': (lambda: generate(seed=None), 'seed=None must be an integer'),
  'seed_array': (lambda: generate(seed=seeds(1.5)), 'must be an integer'),
  'seed_2_40': (lambda: generate(seed=seeds(2**40)), 'must be an integer'),
  'stop_size': (
    lambda: generate(stop_tokens=[V]),
    r'stop_tokens=\[29\] must be a sequence of ids from 0 to 28',
  ),
  'stop_negative': (lambda: generate(stop_tokens=[-1]), 'ids from 0 to 28'),
  'stop_float': (lambda: generate(stop_tokens=[1.5]), 'ids from 0 to 28'),
  'stop_text': (lambda: generate(stop_tokens=['a']), 'ids from 0 to 28'),
  'stop_none': (lambda: generate(stop_tokens=[None]), 'ids from 0 to 28'),
  'stop_number': (
    lambda: generate(stop_tokens=5),
    'stop_tokens=5 must be a se',
  ),
  'stop_2_40': (lambda: generate(stop_tokens=[2**40]), 'ids from 0 to 28'),
  'stop_nested': (lambda: generate(stop_tokens=[[1]]), 'ids from 0 to 28'),
}
REFUSED = ARRAYS | MODELS | SIZES | SAMPLING


def params_of(config: kvjax.ModelConfig) -> dict[str, object]:
  shapes = jax.eval_shape(lambda: kvjax.init_params(config, jax.random.key(0)))
  return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)


CROSS_PARAMS = params_of(ENCODER)


def translate(cache=None, params=CROSS_PARAMS, **options):
  cache = kvjax.init_cache(ENCODER, 1, 8) if cache is None else cache
  return kvjax.extend(ENCODER, params, cache, ONE, **options)


def cache_with_source(config: kvjax.ModelConfig) -> kvjax.Cache:
  empty = kvjax.init_cache(config, 1, 8)
  params = params_of(config)
  return kvjax.prefill(config, params, empty, ONE, encoded=source(1))[1]


def source(rows: int, width: int = 24) -> Encoded:
  positions = jnp.zeros((rows, 2), jnp.int32)
  return Encoded(jnp.zeros((rows, 2, width)), positions)


def test_a_source_of_another_length_takes_its_place():
  longer = kvjax.init_cache(ENCODER, 1, 8, source_length=3)
  _, cache = translate(longer, encoded=source(1))
  assert cache.source.tolist() == [[0, 0]]


def config_of(**attention: object) -> kvjax.ModelConfig:
  grouped = kvjax.Grouped(4, 2, 8, **attention)
  return kvjax.ModelConfig(V, 24, [kvjax.Layer(grouped, kvjax.MLP(11))])


def latent_config() -> kvjax.ModelConfig:
  latent = kvjax.Latent(2, 5, 4, 3, kvjax.Rotary(2))
  return kvjax.ModelConfig(V, 24, [kvjax.Layer(latent, kvjax.MLP(11))])


def size(**changes: object) -> kvjax.Cache:
  sizes = {'batch_size': 1, 'capacity': 8} | changes
  return kvjax.init_cache(CONFIG, **sizes)


def options(**changes: object) -> object:
  return step(ID, options=kvjax.DecodeOptions(**changes))


@pytest.mark.parametrize('name', REFUSED)
def test_refused(name):
  call, message = REFUSED[name]
  with pytest.raises(ValueError, match=message):
    call()


def test_fields_of_other_types_are_left_alone():
  @dataclasses.dataclass(frozen=True)
  class Odd(kvjax.Dense):
    names: frozenset[int] = frozenset()
    number: type[float] = float
    pairs: tuple[int, ...] = (1, 2)

  assert Odd(pairs=(3,)).pairs == (3,)
  with pytest.raises(ValueError, match=r'pairs=\(3, 0.5\) must be a whole nu'):
    Odd(pairs=(3, 0.5))


def test_accepted_as_they_are():
  """Smaller integers are ids, a numpy count is a count, old keys are keys."""
  want, _ = feed(ONE)
  for dtype in (np.uint8, np.int8, np.int64):
    logits, _ = feed(np.asarray(ONE, dtype))
    np.testing.assert_array_equal(logits, want)
  assert kvjax.repeat(fed()[1], np.int64(2)).batch_size == 2
  assert kvjax.concat(new_cache() for _ in range(2)).batch_size == 2
  raw = jax.random.split(jax.random.PRNGKey(0), 2)
  logits = jnp.zeros((2, V))
  tokens, _ = kvjax.sample(logits, raw, kvjax.Sampling(1.0))
  keys = jax.random.wrap_key_data(raw)
  want, _ = kvjax.sample(logits, keys, kvjax.Sampling(1.0))
  np.testing.assert_array_equal(tokens, want)
