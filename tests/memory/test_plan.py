"""The plan of a config against its allocation and published figures."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import kvjax
from experiments.measuring.variants import with_attention
from kvjax.checkpoints import published_names
from kvjax.decoding import generation
from kvjax.decoding.sampling import row_keys
from kvjax.memory import plan
from tests.facts import tiny

ROTARY = kvjax.Rotary(4)


def _model(attention, mlp=None, **more):
  layer = kvjax.Layer(attention, mlp or kvjax.MLP(17))
  return kvjax.ModelConfig(31, 12, (layer, layer), **more)


MODELS = {
  'mha': _model(kvjax.Grouped(3, 3, 4, rotary=ROTARY)),
  'gqa_biases': _model(
    kvjax.Grouped(
      6, 2, 4, 5, projection_bias=True, output_bias=True, sinks=True
    ),
    kvjax.MLP(17, gated=False, bias=True),
    tied=True,
    head_bias=True,
    positions=64,
  ),
  'qk_norm': _model(kvjax.Grouped(4, 2, 4, qk_norm=kvjax.Norm())),
  'mla': _model(kvjax.Latent(3, 8, 4, 5, rotary=ROTARY, query_rank=7)),
  'experts': _model(
    kvjax.Grouped(4, 1, 4),
    kvjax.Experts(5, 2, 7, shared=kvjax.MLP(6), correction=True),
  ),
  'shared': kvjax.ModelConfig(
    31,
    12,
    (
      kvjax.Layer(kvjax.Grouped(4, 2, 4), kvjax.MLP(17)),
      kvjax.Layer(kvjax.Grouped(4, 2, 4, shared_from=0), kvjax.MLP(17)),
    ),
  ),
}
MODELS['recent'] = tiny.RECENT
KINDS = {
  'default': None,
  'ring': kvjax.Ring(window=7, slack=2),
  'sinks': kvjax.Sinks(sinks=2, window=7),
  'paged': kvjax.Paged(page=8),
  'bounded': kvjax.Bounded(budget=6),
}


def _nbytes(tree):
  return sum(x.nbytes for x in jax.tree.leaves(tree))


def _planned_and_allocated(config, kinds, codec):
  """Returns what the plan says twice, and what three witnesses say."""
  sizes = dict(batch_size=3, capacity=20)
  found = plan(config, **sizes, kinds=kinds, codec=codec).cache_bytes

  def init():
    return kvjax.init_cache(config, **sizes, kinds=kinds, codec=codec)

  before = jax.live_arrays()
  cache = init()
  known = set(map(id, before))
  grown = [x for x in jax.live_arrays() if id(x) not in known]
  shapes = jax.tree.leaves(jax.eval_shape(init))
  abstract = sum(x.size * x.dtype.itemsize for x in shapes)
  on_device = sum(x.on_device_size_in_bytes() for x in grown)
  return [found] * 4, [
    abstract,
    _nbytes(cache),
    sum(x.nbytes for x in grown),
    on_device,
  ]


@pytest.mark.parametrize('config', MODELS.values(), ids=MODELS)
def test_parameters_are_those_of_init_params(config):
  params = kvjax.init_params(config, jax.random.key(0))
  sizes = dict(batch_size=1, capacity=8)
  found = plan(config, **sizes)
  assert found.params_bytes == _nbytes(params)
  coded = plan(config, **sizes, param_dtype='int8')
  assert coded.params_bytes == _nbytes(kvjax.quantize(params))


@pytest.mark.parametrize('model', tuple(MODELS))
@pytest.mark.parametrize('kind', tuple(KINDS))
@pytest.mark.parametrize('codec', (None, kvjax.Int8()))
def test_cache_is_what_init_cache_allocates(model, kind, codec):
  config, kinds = MODELS[model], KINDS[kind]
  first, second = _planned_and_allocated(config, kinds, codec)
  assert first == second


@pytest.mark.parametrize('kinds', KINDS.values(), ids=KINDS)
def test_cache_of_every_published_family(kinds):
  families = {}
  for name in published_names():
    config = kvjax.load_config(name)
    own = [layer.attention for layer in config.layers]
    if any(variant.shared_from is not None for variant in own):
      continue  # in MODELS: layers that share cannot be left out
    layers = tuple(dict.fromkeys(config.layers))
    found = dataclasses.replace(config, layers=layers)
    families.setdefault(
      (str(found.layers[-1].attention.streams()), len(layers)), found
    )
  assert len(families) > 20
  for index, config in enumerate(families.values()):
    codec = kvjax.Int8() if index % 2 else None
    first, second = _planned_and_allocated(config, kinds, codec)
    assert first == second


def test_llama_3_8b():
  attention = kvjax.Grouped(32, 8, 128, rotary=kvjax.Rotary(128))
  layer = kvjax.Layer(attention, kvjax.MLP(14336))
  config = kvjax.ModelConfig(128256, 4096, (layer,) * 32, dtype='bfloat16')
  found = plan(config, batch_size=1, capacity=8192)
  assert found.params_bytes == 2 * 8_030_261_248
  assert found.bytes_per_token == 131_072
  assert found.query_cache_bytes == 8192 * 32 * 32 * 128 * 2


def test_deepseek_v3_keeps_latents():
  attention = kvjax.Latent(
    128, 512, 128, 128, rotary=kvjax.Rotary(64), query_rank=1536
  )
  layer = kvjax.Layer(attention, kvjax.MLP(18432))
  config = kvjax.ModelConfig(129280, 7168, (layer,) * 61, dtype='bfloat16')
  found = plan(config, batch_size=1, capacity=4096)
  assert found.bytes_per_token == 70_272


def test_window_layers_stop_growing():
  def layer(window):
    rule = kvjax.Visibility(window=window)
    attention = kvjax.Grouped(64, 8, 64, visibility=rule)
    return kvjax.Layer(attention, kvjax.MLP(2880))

  layers = (layer(128), layer(None)) * 12  # gpt-oss-20b
  config = kvjax.ModelConfig(201088, 2880, layers, dtype='bfloat16')
  found = plan(config, batch_size=1, capacity=131072)
  assert found.bytes_per_token == 49_152
  assert found.growing_bytes_per_token == 24_576
  assert found.cap_bytes == 3 * 2**20


def test_lines_tell_streams_scales_positions_and_tables_apart():
  config = MODELS['gqa_biases']
  paged = plan(
    config,
    batch_size=3,
    capacity=20,
    kinds=kvjax.Paged(page=8),
    codec=kvjax.Int8(),
  )
  lines = {x.name: x for x in paged.lines_of('cache')}
  # Two layers, 2 kv heads, 9 pages of 8; keys of 4 and values of 5.
  assert lines['paged int8, 2 layers'].bytes == 2 * 2 * 72 * (4 + 5)
  scales = lines['paged int8, 2 layers: scales']
  assert scales.bytes == 2 * 2 * 72 * (4 + 4)
  assert scales.numbers == '2 x (2 x 9 x 8 x 4 + 2 x 9 x 8 x 4)'
  assert lines['positions'].bytes == 9 * 8 * 4
  assert lines['page tables'].bytes == 3 * 3 * 4
  assert lines['reference counts of pages'].bytes == 9 * 4
  (padding,) = paged.lines_of('in cache')
  assert 'padding' in padding.name
  assert padding.bytes == 2 * 2 * 9 * (8 - 20 % 8) // 3 * 17


def test_slack_is_a_share_of_the_streams():
  config = MODELS['mha']
  ring = kvjax.Ring(window=7, slack=2)
  found = plan(config, batch_size=3, capacity=20, kinds=ring)
  (slack,) = found.lines_of('in cache')
  # Two layers, 3 heads, 2 slots of keys and values of 4, float32.
  assert slack.bytes == 3 * 2 * 3 * 2 * (4 + 4) * 4
  assert 'slack' in slack.name


def test_a_variant_that_a_model_has_is_the_model():
  for name, variant in (('mha', 'mha'), ('qk_norm', 'gqa'), ('mla', 'mla')):
    assert with_attention(MODELS[name], variant) == MODELS[name]
  mqa = with_attention(MODELS['qk_norm'], 'mqa')
  assert {x.attention.num_kv_heads for x in mqa.layers} == {1}


def test_absurd_sizes_do_not_overflow():
  config = MODELS['mha']
  found = plan(config, batch_size=10**9, capacity=10**9)
  assert found.cache_bytes > 10**18
  same = plan(config, batch_size=np.int64(10**9), capacity=np.int32(10**9))
  assert same == found
  past = 10**18 * 2 * 12 * 4  # more than 2^63
  assert same.query_cache_bytes == past


def test_int8_counts_codes_and_scales():
  config = MODELS['mha']
  found = plan(config, batch_size=1, capacity=9, codec=kvjax.Int8())
  assert found.bytes_per_token == 2 * 2 * 3 * (4 + 4)


def test_the_query_has_a_line_that_knows_no_context():
  config = MODELS['mha']
  lines = []
  for capacity in (64, 64_000):
    found = plan(config, batch_size=2, capacity=capacity)
    (line,) = [x for x in found.lines if x.name.startswith('query')]
    lines.append(line)
    (never,) = found.lines_of('never')
    # B S, layers of 3 heads of 4, float32.
    assert never.bytes == 2 * capacity * 2 * 12 * 4
    assert never.bytes == found.query_cache_bytes
  assert lines[0].numbers == lines[1].numbers
  assert lines[0].bytes == lines[1].bytes
  assert lines[0].bytes == 2 * 12 * 4
  assert lines[0].numbers == '2 x 1 x 3 x 4 x 4'


def test_a_cache_that_is_not_donated_is_there_twice():
  config = MODELS['mha']
  one = plan(config, batch_size=2, capacity=64)
  two = plan(config, batch_size=2, capacity=64, donate=False)
  assert two.step_bytes == one.step_bytes + one.cache_bytes
  assert two.temporaries_bytes == one.temporaries_bytes


@pytest.mark.parametrize('name', ['mha', 'shared'])
def test_a_prefill_on_a_gpu_holds_outputs_of_later_layers(name):
  # And of layers that read another's cache; 300 tokens take two turns.
  config = MODELS[name]
  sizes = {'batch_size': 3, 'capacity': 512, 'new_tokens_per_step': 300}
  one, two = (
    plan(
      dataclasses.replace(config, layers=config.layers[:n]),
      backend='gpu',
      **sizes,
    )
    for n in (1, 2)
  )
  heads = config.layers[0].attention.num_heads
  grown = two.temporaries_bytes - one.temporaries_bytes
  # And their share of the allowance.
  assert grown == 3 * 512 * heads * 4 * 4 * 25 // 24


def test_sampling_state_is_what_generate_carries():
  logits, keys = jnp.zeros((5, 17)), row_keys(0, 5)
  options = generation.GenerateOptions(kvjax.Sampling(), ())
  run, _ = generation._sample_first(logits, jnp.full(5, 7), keys, options)
  found = plan(MODELS['mha'], batch_size=5, capacity=8)
  assert found.sampling_bytes == _nbytes(run)


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_corrections_of_routing_stay_float32(dtype):
  experts = kvjax.Experts(5, 2, 7, correction=True)
  config = _model(kvjax.Grouped(4, 1, 4), experts, dtype=dtype)
  shapes = jax.eval_shape(lambda: kvjax.init_params(config, jax.random.key(0)))
  found = plan(config, batch_size=1, capacity=8)
  size = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(shapes))
  assert found.params_bytes == size


def test_parts_add_up():
  found = plan(MODELS['qk_norm'], batch_size=3, capacity=40)
  for part in ('params', 'cache', 'step'):
    total = sum(line.bytes for line in found.lines_of(part))
    assert total == getattr(found, f'{part}_bytes')
  assert f'{found.total_bytes:,}' in found.line_table()


def test_bad_sizes_are_named():
  config = MODELS['mha']
  with pytest.raises(ValueError, match='batch_size=0'):
    plan(config, batch_size=0, capacity=8)
  with pytest.raises(ValueError, match='prompt_length=9'):
    plan(config, batch_size=1, capacity=8, prompt_length=9)
  with pytest.raises(ValueError, match="backend='cuda'.*cpu, gpu, tpu"):
    plan(config, batch_size=1, capacity=8, backend='cuda')
  with pytest.raises(ValueError, match='new_tokens_per_step=9 do not fit'):
    plan(config, batch_size=1, capacity=8, new_tokens_per_step=9)


@pytest.mark.parametrize(
  'change, message',
  [
    ({'batch_size': -1}, 'batch_size=-1 must be a positive integer'),
    ({'prompt_length': 0}, 'prompt_length=0 must be a positive integer'),
    ({'prompt_length': 'x'}, "prompt_length='x' must be a positive integer"),
    ({'param_dtype': 'float33'}, "param_dtype='float33' is no dtype"),
    ({'param_dtype': 'int16'}, 'param_dtype=int16 is no floating type'),
    ({'cache_dtype': 'float33'}, "dtype='float33' is no dtype"),
    ({'cache_dtype': 'float64'}, 'float64 would be float32: set jax_enable'),
    ({'kinds': 'int8'}, r"'int8' is a name.*Give codec=Int8\(\)"),
    ({'kinds': 'ring:window=7'}, r'Give the kind Ring\(.*window=7'),
    ({'kinds': 'int9'}, "'int9' is no name of one kind and one codec"),
    ({'kinds': kvjax.Int8()}, r'Int8\(\) is no cache kind. Give codec='),
    ({'codec': 'int8'}, r"'int8' is a name.*Give codec=Int8\(\)"),
    ({'codec': kvjax.Dense()}, r'codec=Dense\(.*is no codec'),
    ({'kernel': 'potato'}, "kernel='potato' is unknown; known: ffi"),
    ({'mesh': 5}, 'mesh=5 is no mesh'),
    ({'source_length': 5}, 'source_length=5, but the model has no encoder'),
    ({'config': 'llama-3-8b'}, 'is no ModelConfig.*load_config'),
  ],
)
def test_nonsense_is_named(change, message):
  sizes = {'config': MODELS['mha'], 'batch_size': 1, 'capacity': 8}
  with pytest.raises(ValueError, match=message):
    plan(**{**sizes, **change})


def test_a_cache_of_four_bit_floats_is_refused():
  with pytest.raises(ValueError, match='float4_e2m1fn has 4 bits'):
    plan(MODELS['mha'], batch_size=3, capacity=20, cache_dtype='float4_e2m1fn')


@pytest.mark.parametrize('kernel', ['blockwise', 'mosaic_gpu'])
def test_one_of_eight_gpus_has_its_own_slots_and_words(kernel):
  llama = kvjax.load_config('llama-3-8b')
  axes = 'model', 'context'
  planned = plan(
    dataclasses.replace(llama, layers=llama.layers[:1]),
    batch_size=8,
    capacity=32_768,
    mesh={'model': 2, 'context': 4},
    rules=kvjax.sharding.Rules(heads=axes, slots='context'),
    backend='gpu',
    kernel=kernel,
  )
  # Logits as they are gathered, and those of a device's share of the words.
  fullest = 8 * 128_256 * 4 + 8 * 16_032 * 4
  if kernel == 'blockwise':  # 4 of 8 kv heads, 4 of 32 query heads of each
    values, scores = 8 * 4 * 8192 * 128 * 2, 8 * 16 * 8192 * 4
    hidden, query = 8 * 4096 * (2 + 4), 8 * 16 * 128 * 2
    fullest = values + scores + scores // 2 + hidden + query
  assert planned.temporaries_bytes == fullest + fullest // 24 + (16 << 10)
