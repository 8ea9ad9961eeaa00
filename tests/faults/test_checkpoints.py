"""Checkpoints that are broken, or made to break a reader, are refused by name.

Nothing here is loaded as far as a device: each fault is refused while headers
and config.json are read, or while its tensor is.
"""

import json
import math
import os
import tracemalloc

import ml_dtypes
import numpy as np
import pytest

from kvjax.attention.rotary import (
  Dynamic,
  Linear,
  Llama3,
  LongRope,
  Rotary,
  Yarn,
)
from kvjax.checkpoints import load_checkpoint, load_config, parse_config
from kvjax.checkpoints.dequantize import ENDINGS, dequantize_tensors
from kvjax.checkpoints.match import ParamSource
from kvjax.checkpoints.table import TableRow
from kvjax.checkpoints.tensors import INDEX, SINGLE, open_tensors
from tests.checkpoints.writing import GOLDEN, altered, write

DEEP = '{"a":' * 100_000
LONG_INTEGER = '{"a": ' + '1' * 5_000 + '}'
A = {'dtype': 'F32', 'shape': [2, 3], 'data_offsets': [0, 24]}
B = {'dtype': 'F32', 'shape': [2], 'data_offsets': [24, 32]}
BAD = 'describes tensor b badly'
NOT_TILED = 'without holes or shared bytes'


def write_raw(path, header, size=32):
  """Writes a safetensors file of a header, a text or a dict, and zeros."""
  text = header if isinstance(header, str) else json.dumps(header)
  data = text.encode()
  path.write_bytes(len(data).to_bytes(8, 'little') + data + bytes(size))


# Header, bytes of data, message. Offsets of the second tensor begin at 24.
HEADERS = {
  'nested': (DEEP, 32, 'safetensors has a header that is no JSON: nested'),
  'long_integer': (LONG_INTEGER, 32, 'header that is no JSON: Exceeds'),
  'two_equal_keys': (
    f'{{"a": {json.dumps(A)}, "b": {json.dumps(B)}, "b": {json.dumps(B)}}}',
    32,
    "the key 'b' is there twice",
  ),
  'bytes_after_the_last': ({'a': A, 'b': B}, 132, 'has 100 bytes after its'),
  'no_tensor_but_bytes': ({}, 32, 'has 32 bytes after its last tensor'),
  'shared_bytes': (
    {'a': A, 'b': B | {'data_offsets': [16, 24]}},
    24,
    NOT_TILED,
  ),
  'same_bytes': ({'a': A, 'b': A}, 24, NOT_TILED),
  'hole': ({'a': A, 'b': B | {'data_offsets': [28, 36]}}, 36, NOT_TILED),
  'hole_at_the_start': ({'b': B}, 32, NOT_TILED),
  'beyond_the_end': (
    {'a': A, 'b': B | {'shape': [2**40], 'data_offsets': [24, 2**42 + 24]}},
    32,
    r'is truncated: its tensors end at byte \d+ of',
  ),
  'offsets_floats': (
    {'a': A, 'b': B | {'data_offsets': [24.0, 32.0]}},
    32,
    BAD,
  ),
  'offsets_texts': ({'a': A, 'b': B | {'data_offsets': ['24', '32']}}, 32, BAD),
  'offsets_switches': ({'b': B | {'data_offsets': [False, True]}}, 1, BAD),
  'offsets_negative': ({'b': B | {'data_offsets': [-8, 0]}}, 8, BAD),
  'offsets_reversed': ({'b': B | {'data_offsets': [8, 0]}}, 8, BAD),
  'offsets_three': ({'b': B | {'data_offsets': [0, 4, 8]}}, 8, BAD),
  'shape_floats': ({'a': A, 'b': B | {'shape': [2.0]}}, 32, BAD),
  'shape_text': ({'a': A, 'b': B | {'shape': '2'}}, 32, BAD),
  'shape_texts': ({'a': A, 'b': B | {'shape': ['2']}}, 32, BAD),
  'shape_switches': ({'a': A, 'b': B | {'shape': [True, 2]}}, 32, BAD),
  'shape_negative': ({'a': A, 'b': B | {'shape': [-1, -2]}}, 32, BAD),
  'dtype_list': ({'a': A, 'b': B | {'dtype': ['F32']}}, 32, BAD),
  'codes_of_another_size': (
    {'a': A, 'b': B | {'dtype': 'U8'}},
    32,
    r'tensor b \[2\] of U8 takes 2 bytes; the header gives it 8',
  ),
}


@pytest.mark.parametrize('name', HEADERS)
def test_header(tmp_path, name):
  header, size, message = HEADERS[name]
  write_raw(tmp_path / SINGLE, header, size)
  with pytest.raises(ValueError, match=message):
    open_tensors(tmp_path)


def test_a_sound_header(tmp_path):
  """Order in the header is free, an empty tensor has no bytes."""
  empty = {'dtype': 'F32', 'shape': [0, 5], 'data_offsets': [24, 24]}
  header = {'b': B, 'e': empty, '__metadata__': {'format': 'pt'}, 'a': A}
  write_raw(tmp_path / SINGLE, header)
  tensors = open_tensors(tmp_path)
  assert {k: v.read().shape for k, v in tensors.items()} == {
    'a': (2, 3),
    'b': (2,),
    'e': (0, 5),
  }


# What is at a path instead of a file. A pipe would keep its reader waiting.
NO_FILES = {
  'pipe': os.mkfifo,
  'directory': os.mkdir,
  'device': lambda path: os.symlink('/dev/zero', path),
  'loop': lambda path: os.symlink(path, path),
}


@pytest.mark.parametrize('name', NO_FILES)
def test_no_regular_file(tmp_path, name):
  NO_FILES[name](tmp_path / SINGLE)
  with pytest.raises(ValueError, match=f'{SINGLE} is there and no reg'):
    open_tensors(tmp_path)


def test_an_index_or_a_shard_that_is_a_pipe(tmp_path):
  os.mkfifo(tmp_path / INDEX)
  with pytest.raises(ValueError, match=f'{INDEX} is there and no reg'):
    open_tensors(tmp_path)
  (tmp_path / INDEX).unlink()
  os.mkfifo(tmp_path / 'one.safetensors')
  (tmp_path / INDEX).write_text('{"weight_map": {"a": "one.safetensors"}}')
  with pytest.raises(FileNotFoundError, match="the shard 'one.safetensors'"):
    open_tensors(tmp_path)


UNTYPED = f'{INDEX} is no index of shards: weight_map must be an object'
SHARDS = {
  'number': ({'a': 1, 'b': 'one'}, UNTYPED),
  'list': ({'a': ['one']}, UNTYPED),
  'null': ({'a': None, 'b': 'one'}, UNTYPED),
  'map_list': (['one'], UNTYPED),
  'map_null': (None, UNTYPED),
  'map_number': (1, UNTYPED),
}


@pytest.mark.parametrize('name', SHARDS)
def test_index(tmp_path, name):
  where, message = SHARDS[name]
  (tmp_path / INDEX).write_text(json.dumps({'weight_map': where}))
  with pytest.raises(ValueError, match=message):
    open_tensors(tmp_path)


@pytest.mark.parametrize('shard', ['', '.', '..', '../x', '/x', 'a\0b'])
def test_shard_elsewhere(tmp_path, shard):
  (tmp_path / INDEX).write_text(json.dumps({'weight_map': {'a': shard}}))
  with pytest.raises(FileNotFoundError, match='names the shard .*no file of'):
    open_tensors(tmp_path)


@pytest.mark.parametrize(
  ('text', 'message'),
  [
    (b'\xff{}', 'invalid start byte'),
    (DEEP.encode(), 'nested too deeply'),
    (LONG_INTEGER.encode(), 'Exceeds the limit'),
    (b'{"vocab_size": 7, "vocab_size": 9}', "key 'vocab_size' is there twice"),
  ],
  ids=['latin', 'nested', 'long_integer', 'two_equal_keys'],
)
def test_text_of_index_and_config(tmp_path, text, message):
  (tmp_path / INDEX).write_bytes(text)
  with pytest.raises(ValueError, match=f'{INDEX} is no JSON: .*{message}'):
    open_tensors(tmp_path)
  (tmp_path / 'config.json').write_bytes(text)
  with pytest.raises(ValueError, match=f'config.json is no JSON: .*{message}'):
    load_config(tmp_path)


@pytest.mark.parametrize(
  ('stored', 'dtype', 'target'),
  [
    ('F64', np.float64, np.float32),
    ('F64', np.float64, ml_dtypes.bfloat16),
    ('F32', np.float32, np.float16),
    ('BF16', ml_dtypes.bfloat16, np.float16),
  ],
)
def test_weight_beyond_its_dtype(tmp_path, stored, dtype, target):
  """A weight may be infinite as stored, and must not become infinite."""
  for large in (math.inf, float(ml_dtypes.finfo(dtype).max)):
    weights = np.array([1, large], dtype)
    entry = {'dtype': stored, 'shape': [2]}
    entry['data_offsets'] = [0, weights.nbytes]
    write_raw(tmp_path / SINGLE, {'norm.weight': entry}, 0)
    with (tmp_path / SINGLE).open('ab') as file:
      file.write(weights.tobytes())
    source = ParamSource(
      place='norm.weight',
      shape=(2,),
      dtype=np.dtype(target),
      row=TableRow('norm.weight', ('D',), 'norm.weight'),
      sizes={'D': 2},
      tensors=(open_tensors(tmp_path)['norm.weight'],),
    )
    if large == math.inf:
      assert np.isinf(source.read().astype(np.float32)[1])
      continue
    with pytest.raises(ValueError, match='Tensor norm.weight has weights that'):
      source.read()


def golden(name):
  return json.loads((GOLDEN / name / 'config.json').read_text())


def rope(kind, **keys):
  return {'rope_scaling': {'rope_type': kind, **keys}}


LLAMA3 = {
  'factor': 8.0,
  'low_freq_factor': 1.0,
  'high_freq_factor': 4.0,
  'original_max_position_embeddings': 16,
}
YARN = {'factor': 4.0, 'original_max_position_embeddings': 16}
LONGROPE = YARN | {'long_factor': [1.0, 2.0, 3.0], 'short_factor': [1.0] * 3}
NAN, INF = math.nan, math.inf
ORIGINAL = 'original_max_position_embeddings'

# Golden config, changes, and how the message begins after the key.
NUMBERS = {
  'a_million_layers': ('llama', {'num_hidden_layers': 10**6}, '1 to 1024'),
  'many_layers': ('llama', {'num_hidden_layers': 10**8}, '1 to 1024'),
  'most_layers': ('llama', {'num_hidden_layers': 10**12}, '1 to 1024'),
  'layers_gpt2': ('gpt2', {'n_layer': 10**9}, '1 to 1024'),
  'layers_t5': ('t5', {'num_decoder_layers': 10**9}, '1 to 1024'),
  'layers_whisper': ('whisper', {'encoder_layers': 10**9}, '1 to 1024'),
  'heads_of_2_31': ('llama', {'head_dim': 2**31}, '1 to 16777216'),
  'heads_of_2_63': ('llama', {'head_dim': 2**63}, '1 to 16777216'),
  'experts': ('mixtral', {'num_local_experts': 10**12}, '0 to 2147483647'),
  'vocabulary': ('llama', {'vocab_size': 2**31}, '1 to 16777216'),
  'window_of_2_40': ('mistral', {'sliding_window': 2**40}, '1 to 2147483647'),
  'no_window': ('mistral', {'sliding_window': 0}, '1 to 2147483647'),
  'no_window_phi3': ('phi3', {'sliding_window': 0}, '1 to 2147483647'),
  'dense_layers': (
    'deepseek_v3',
    {'first_k_dense_replace': 2**31},
    '0 to 2147483647',
  ),
  'no_heads': ('gpt2', {'n_head': 0}, '1 to'),
  'no_heads_of_hidden_size': (
    'qwen2',
    {'num_attention_heads': 0, 'head_dim': None},
    '1 to',
  ),
  'no_heads_whisper': ('whisper', {'encoder_attention_heads': 0}, '1 to'),
  'no_group': ('deepseek_v3', {'n_group': 0}, '1 to'),
  'no_top_group': ('deepseek_v3', {'topk_group': 0}, '1 to'),
  'no_pattern': ('gemma3', {'sliding_window_pattern': 0}, '1 to 1024'),
  'no_interval': ('smollm3', {'no_rope_layer_interval': 0}, '1 to 1024'),
  'no_sparse_step': ('qwen3_moe', {'decoder_sparse_step': 0}, '1 to 1024'),
  'eps_negative': ('llama', {'rms_norm_eps': -1}, 'a number, 0 or above'),
  'eps_nan': ('llama', {'rms_norm_eps': NAN}, 'a number, 0 or above'),
  'eps_infinite': ('llama', {'rms_norm_eps': INF}, 'a number, 0 or above'),
  'eps_huge': ('llama', {'rms_norm_eps': 10**400}, 'a number, 0 or above'),
  'layer_eps_nan': ('gpt2', {'layer_norm_epsilon': NAN}, 'a number, 0 or'),
  'cap_negative': ('gemma2', {'final_logit_softcapping': -1}, 'above 0'),
  'cap_nan': ('gemma2', {'final_logit_softcapping': NAN}, 'above 0'),
  'cap_zero': ('gemma2', {'final_logit_softcapping': 0}, 'above 0'),
  'score_cap': ('gemma2', {'attn_logit_softcapping': -5}, 'above 0'),
  'score_cap_zero': ('gemma2', {'attn_logit_softcapping': 0}, 'above 0'),
  'scalar_zero': ('gemma2', {'query_pre_attn_scalar': 0}, 'above 0'),
  'scalar_negative': ('gemma2', {'query_pre_attn_scalar': -4}, 'above 0'),
  'routed_nan': ('deepseek_v3', {'routed_scaling_factor': NAN}, 'above 0'),
  'logits_nan': ('cohere', {'logit_scale': NAN}, 'above 0'),
  'logits_zero': ('cohere', {'logit_scale': 0}, 'above 0'),
  'limit': ('gpt_oss', {'swiglu_limit': -1}, 'above 0'),
  'theta_nan': ('llama', {'rope_theta': NAN}, 'above 0'),
  'theta_infinite': ('llama', {'rope_theta': INF}, 'above 0'),
  'theta_1e300': ('llama', {'rope_theta': 1e300}, 'above 0'),
}


@pytest.mark.parametrize('name', NUMBERS)
def test_number_of_config(name):
  """Refused before anything of that size is made."""
  base, changes, rule = NUMBERS[name]
  key = next(iter(changes))
  values = golden(base) | {'rope_parameters': None} | changes
  # The nested config of a model with a vision tower has the same keys.
  if 'text_config' in values:
    values = values['text_config'] | changes
  tracemalloc.start()
  with pytest.raises(ValueError, match=f'{key}=.* of config.json.*{rule}'):
    parse_config(values)
  peak = tracemalloc.get_traced_memory()[1]
  tracemalloc.stop()
  assert peak < 2**20


CONFIGS = {
  'linear_nan': ('llama', rope('linear', factor=NAN), 'factor=nan of config'),
  'linear_inf': ('llama', rope('linear', factor=INF), 'factor=inf of config'),
  'type_list': ('llama', rope(['linear']), r"rope_type=\['linear'\].*a text"),
  'older_type_number': (
    'llama',
    {'rope_scaling': {'type': 3, 'factor': 2.0}},
    'type=3 of config.json must be a text',
  ),
  'llama3_low_is_high': (
    'llama',
    rope('llama3', **LLAMA3 | {'low_freq_factor': 4.0}),
    r'low=4.0 \(low_freq_factor .* must be less than high=4.0',
  ),
  'llama3_low_above_high': (
    'llama',
    rope('llama3', **LLAMA3 | {'low_freq_factor': 5.0}),
    r'low=5.0 \(low_freq_factor .* must be less than high=4.0',
  ),
  'llama3_original': (
    'llama',
    rope('llama3', **LLAMA3 | {ORIGINAL: 0}),
    f'{ORIGINAL}=0 of config.json',
  ),
  'yarn_original': (
    'llama',
    rope('yarn', **YARN | {ORIGINAL: -5}),
    f'{ORIGINAL}=-5 of config.json',
  ),
  'yarn_original_zero': (
    'llama',
    rope('yarn', **YARN | {ORIGINAL: 0}),
    f'{ORIGINAL}=0 of config.json',
  ),
  'yarn_longest_zero': (
    'llama',
    rope('yarn', factor=4.0) | {'max_position_embeddings': 0},
    'where that key is absent. is 0.*at least 2',
  ),
  'yarn_beta_negative': (
    'llama',
    rope('yarn', **YARN, beta_fast=-1),
    'beta_fast=-1 of config.json',
  ),
  'yarn_beta_nan': (
    'llama',
    rope('yarn', **YARN, beta_slow=NAN),
    'beta_slow=nan of config.json',
  ),
  'yarn_attention_nan': (
    'llama',
    rope('yarn', **YARN, attention_factor=NAN),
    'attention_factor=nan of config.json',
  ),
  'longrope_texts': (
    'llama',
    rope('longrope', **LONGROPE | {'short_factor': ['a', 'b', 'c']}),
    r"short_factor=\['a', 'b', 'c'\] of config.json must be a list, each",
  ),
  'longrope_zeros': (
    'llama',
    rope('longrope', **LONGROPE | {'long_factor': [0, 0, 0]}),
    r'long_factor=\[0, 0, 0\] of config.json must be .* above 0',
  ),
  'longrope_original_1': (
    'llama',
    rope('longrope', **LONGROPE | {ORIGINAL: 1}),
    f'{ORIGINAL} .* is 1; .* needs at least 2',
  ),
  'dynamic_1e30': (
    'llama',
    rope('dynamic', factor=1e30),
    'Dynamic.factor=1e.30.*frequencies that float32 cannot hold',
  ),
  'wide_head': (
    'llama',
    {'head_dim': 2**24},
    'Rotary width=16777216 is not .*at most 16384',
  ),
  'block_number': (
    'llama',
    {'quantization_config': {'quant_method': 'fp8', 'weight_block_size': 5}},
    'weight_block_size=5 of config.json must be a list',
  ),
  'block_of_zeros': (
    'llama',
    {
      'quantization_config': {
        'quant_method': 'fp8',
        'weight_block_size': [0, -1],
      }
    },
    r'weight_block_size=\[0, -1\] of config.json must be a list',
  ),
  'more_groups_than_there_are': (
    'deepseek_v3',
    {'topk_group': 99},
    'topk_group=99 of config.json exceeds n_group=3',
  ),
  'groups_not_dividing': (
    'deepseek_v3',
    {'n_group': 4},
    'num_experts=6 is not a multiple of groups=4',
  ),
  'distance_zero': (
    't5',
    {'relative_attention_max_distance': 0},
    'relative_attention_max_distance=0 must exceed half of',
  ),
  'distance_one': (
    't5',
    {'relative_attention_max_distance': 1},
    'relative_attention_max_distance=1 must exceed half of',
  ),
  'buckets': (
    't5',
    {'relative_attention_num_buckets': 2},
    'relative_attention_num_buckets=2, which must be at least 4',
  ),
  'family_and_odd_value': (
    'llama',
    {'model_type': 'exaone4', 'sliding_window_pattern': 'LLG'},
    "Unknown model_type 'exaone4'",
  ),
  'family_list': ('llama', {'model_type': ['llama']}, 'Unknown model_type'),
}


@pytest.mark.parametrize('name', CONFIGS)
def test_config(name):
  base, changes, message = CONFIGS[name]
  with pytest.raises(ValueError, match=message):
    parse_config(golden(base) | {'rope_parameters': None} | changes)


# Strange values that change nothing, and why they may stay.
HARMLESS = {
  # No published Llama has this key, and the published class of `model_type`
  # does not read it. Keys of no meaning are in nearly every config.json.
  'key_of_another_family': ('llama', {'attn_temperature_tuning': True}),
  # Groups are not used by the greedy method.
  'groups_of_no_use': (
    'deepseek_v2',
    {'topk_method': 'greedy', 'n_group': 4, 'topk_group': 99},
  ),
  'experts_of_a_dense_model': (
    'mistral',
    {'num_local_experts': 0, 'num_experts_per_tok': 0},
  ),
  # Without a scaling that reads it, the longest text is the caller's choice.
  'longest_text': ('llama', {'max_position_embeddings': 0}),
  'longest_text_of_all': ('llama', {'max_position_embeddings': 2**31 - 1}),
  # Keys that the family does not read, of no kind that another would accept.
  'layers_with_a_window': ('llama', {'max_window_layers': -1}),
  'window_of_another_family': ('llama', {'sliding_window': 'LLG'}),
  'window_not_used': (
    'qwen2',
    {
      'use_sliding_window': False,
      'layer_types': None,
      'sliding_window': 0,
      'max_window_layers': -1,
    },
  ),
}


@pytest.mark.parametrize('name', HARMLESS)
def test_harmless(name):
  base, changes = HARMLESS[name]
  switches = {'topk_method', 'use_sliding_window', 'layer_types'}
  values = golden(base) | {k: changes[k] for k in switches & changes.keys()}
  assert parse_config(values | changes) == parse_config(values)


def test_quantization_without_codes_is_harmless(tmp_path):
  """Each tensor says how it is stored, so plain weights have one meaning."""
  write_raw(tmp_path / SINGLE, {'a': A, 'b': B})
  tensors = open_tensors(tmp_path)
  fp8 = {'quant_method': 'fp8', 'weight_block_size': [128, 128]}
  assert dequantize_tensors({'quantization_config': fp8}, tensors) == tensors


# Method, dtype and shape of codes and of scales, message.
PARTS = {
  'fp8_of_a_vector': ('fp8', 'F8_E4M3', [8], 'F32', [1], 'parts of a matrix'),
  'fp8_of_floats': ('fp8', 'F32', [2, 4], 'F32', [1, 1], 'is stored as F32'),
  'fp8_by_bytes': ('fp8', 'U8', [2, 4], 'U8', [1, 1], 'is stored as U8'),
  'mxfp4_by_floats': (
    'mxfp4',
    'U8',
    [1, 2, 1, 16],
    'F32',
    [1, 2, 1],
    'x_scales is stored as F32; as a part of x it must be U8',
  ),
}


@pytest.mark.parametrize('name', PARTS)
def test_parts_of_a_quantized_tensor(tmp_path, name):
  method, code, shape, scale, blocks, message = PARTS[name]
  scales_name, codes_name, plain = (f'x{end}' for end in ENDINGS[method])
  header, end = {}, 0
  for key, dtype, sizes in (
    (codes_name, code, shape),
    (scales_name, scale, blocks),
  ):
    start = end
    end += math.prod(sizes) * (4 if dtype == 'F32' else 1)
    header[key] = {'dtype': dtype, 'shape': sizes, 'data_offsets': [start, end]}
  write_raw(tmp_path / SINGLE, header, end)
  values = {
    'quantization_config': {
      'quant_method': method,
      'weight_block_size': [128, 128],
    }
  }
  with pytest.raises(ValueError, match=message):
    dequantize_tensors(values, open_tensors(tmp_path))[plain].check_dtype()


def test_a_block_larger_than_its_matrix(tmp_path):
  """It takes no more memory than the matrix."""
  codes = np.arange(6).reshape(2, 3).astype(ml_dtypes.float8_e4m3fn)
  scales = np.array([[0.5]], np.float32)
  tensors = {'x.weight': codes, 'x.weight_scale_inv': scales}
  write(tmp_path / SINGLE, tensors)
  fp8 = {'quant_method': 'fp8', 'weight_block_size': [2**24, 2**24]}
  stored = open_tensors(tmp_path)
  plain = dequantize_tensors({'quantization_config': fp8}, stored)['x.weight']
  tracemalloc.start()
  np.testing.assert_array_equal(plain.read(), np.arange(6).reshape(2, 3) / 2)
  peak = tracemalloc.get_traced_memory()[1]
  tracemalloc.stop()
  assert peak < 2**20


def test_layers_and_experts_that_only_config_json_has(tmp_path):
  """They are missed before they are traced, or their names are made."""
  more = lambda config: config | {'num_hidden_layers': 1000}
  with pytest.raises(ValueError, match='asks for 1000 layers.*has 21 tensors'):
    load_checkpoint(altered(tmp_path, 'llama', more))
  more = lambda config: config | {'num_local_experts': 2**24}
  with pytest.raises(ValueError, match='experts.4.w2.weight .*is missing'):
    load_checkpoint(altered(tmp_path, 'mixtral', more))


# Class, arguments, message.
RECORDS = {
  'width_text': (Rotary, ('8',), "width='8' must be a whole number"),
  'width_float': (Rotary, (8.0,), 'width=8.0 must be a whole number'),
  'width_of_2_31': (
    Rotary,
    (2**31,),
    'width=2147483648 must be a whole number',
  ),
  'base_nan': (Rotary, (8, NAN), 'Rotary base=nan must be a finite'),
  'base_text': (Rotary, (8, '9'), "Rotary base='9' must be a finite"),
  'linear': (Linear, (NAN,), 'Linear factor=nan must be a finite'),
  'linear_switch': (Linear, (True,), 'Linear factor=True must be'),
  'dynamic': (Dynamic, (INF, 8), 'Dynamic factor=inf must be'),
  'dynamic_original': (Dynamic, (2.0, 0), 'original=0 must exceed 0'),
  'dynamic_fraction': (Dynamic, (2.0, 8.5), 'original=8.5.* whole number'),
  'dynamic_width': (
    Rotary,
    (2, 1e4, False, Dynamic(2.0, 8)),
    'Dynamic scaling needs a rotary width of 4',
  ),
  'llama3': (Llama3, (8.0, 1.0, INF, 8), 'Llama3 high=inf must be'),
  'llama3_order': (Llama3, (8.0, 4.0, 4.0, 8), 'low=4.0 .*must be less than'),
  'yarn': (Yarn, (4.0, -5), 'Yarn original=-5 must exceed 0'),
  'yarn_beta': (Yarn, (4.0, 8, 0.0), 'beta_fast=0.0 must exceed 0'),
  'yarn_magnitude': (Yarn, (4.0, 8, 32.0, 1.0, NAN), 'magnitude=nan must be'),
  'longrope': (
    LongRope,
    ((1.0, 0.0), (1.0, 2.0), 8, 1.0),
    r'LongRope short=\(1.0, 0.0\) must exceed 0',
  ),
  'longrope_divisors': (
    Rotary,
    (4, 1e4, False, LongRope((1.0, 1.0), (1.0,), 8, 1.0)),
    'longrope has 1 divisors for rotary width=4',
  ),
}


@pytest.mark.parametrize('name', RECORDS)
def test_rotary_record(name):
  record, arguments, message = RECORDS[name]
  with pytest.raises(ValueError, match=message):
    record(*arguments)
