"""A config.json of nonsense is refused by key, value and rule.

Nothing of the size that a number names is made before the number is refused.
"""

import json
import math
import tracemalloc

import pytest

from kvjax.checkpoints import parse_config
from tests.checkpoints.writing import GOLDEN


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
  'llama3_low_above_high': (
    'llama',
    rope('llama3', **LLAMA3 | {'low_freq_factor': 5.0}),
    r'low=5.0 \(low_freq_factor .* must not exceed high=4.0',
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
    {'model_type': 'gemma3n', 'sliding_window_pattern': 'LLG'},
    "Unknown model_type 'gemma3n'",
  ),
  'family_list': ('llama', {'model_type': ['llama']}, 'Unknown model_type'),
  'key_of_another_family': (
    'llama',
    {'attn_temperature_tuning': True},
    "attn_temperature_tuning=True is not supported for model_type='llama'",
  ),
  'temperature_text': (
    'llama4',
    {'attn_temperature_tuning': 'on'},
    "attn_temperature_tuning='on' .* true, false or a whole number",
  ),
  'temperature_of_no_length': ('llama4', {'floor_scale': 0}, 'length=0 must'),
  'no_chunk': (
    'llama4',
    {'attention_chunk_size': None},
    'has chunked_attention, but attention_chunk_size is null',
  ),
  'chunk_of_0': ('llama4', {'attention_chunk_size': 0}, '=0 .* 1 to'),
  'windows_of_llama4': (
    'llama4',
    {'layer_types': ['sliding_attention'] * 3},
    "Unknown layer type 'sliding_attention'.*'chunked_attention'",
  ),
  'expert_step_of_0': ('llama4', {'interleave_moe_layer_step': 0}, '1 to 1024'),
  'expert_layers': ('llama4', {'moe_layers': [-1]}, 'moe_layers=.* a list'),
  'lightning_layers': (
    'minimax_m2',
    {'attn_type_list': [1, 0]},
    r'attn_type_list=\[1, 0\] .* not supported',
  ),
  'windows_not_used': (
    'qwen2_moe',
    {'use_sliding_window': False},
    'layer_types=.* not supported',
  ),
}


@pytest.mark.parametrize('name', CONFIGS)
def test_config(name):
  base, changes, message = CONFIGS[name]
  with pytest.raises(ValueError, match=message):
    parse_config(golden(base) | {'rope_parameters': None} | changes)


# Strange values that change nothing, and why they may stay.
HARMLESS = {
  # Llama 4 alone scales queries by their position.
  'temperature_not_tuned': ('llama', {'attn_temperature_tuning': False}),
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
