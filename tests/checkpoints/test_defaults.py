"""A key that config.json leaves out means its family's published default.

The defaults are those of the families' configuration classes in transformers
5.23; fuzzing compares with them, by config.json files that leave keys out.
"""

import json

import pytest

import kvjax
from kvjax.attention.rotary import Rotary
from kvjax.checkpoints import parse_config
from kvjax.checkpoints.hf_config import Settings
from tests.checkpoints.families import FACTS
from tests.checkpoints.writing import GOLDEN

# Sizes that every default of the table is compatible with.
ROOMY = {
  'num_attention_heads': 64,
  'num_key_value_heads': 4,
  'hidden_size': 2560,
  'n_routed_experts': 48,
  'n_group': 8,
  'num_experts': 16,
  'num_local_experts': 16,
}
DEFAULTS = {n: facts.defaults for n, facts in FACTS.items() if facts.defaults}


@pytest.mark.parametrize('name', sorted(DEFAULTS))
def test_a_key_left_out_means_the_published_default(name):
  whole = json.loads((GOLDEN / name / 'config.json').read_text())
  values = whole.get('text_config', whole) | ROOMY

  def parse(part):
    return parse_config(whole | {'text_config': part} if inner else part)

  inner = 'text_config' in whole
  for key, default in DEFAULTS[name].items():
    absent = {k: v for k, v in values.items() if k != key}
    assert parse(absent) == parse(values | {key: default}), key


def test_kv_heads_of_null_are_one_a_query_head():
  for name in ('llama', 'mistral', 'mixtral'):
    values = json.loads((GOLDEN / name / 'config.json').read_text()) | ROOMY
    config = parse_config(values | {'num_key_value_heads': None})
    assert config.layers[0].attention.num_kv_heads == 64, name


def test_a_null_head_dim_is_hidden_size_over_heads():
  values = {'hidden_size': 24, 'num_attention_heads': 6}
  for changes, width in (
    ({}, 128),
    ({'head_dim': 5}, 5),
    ({'head_dim': None}, 4),
  ):
    assert Settings(values | changes).head_width(128) == width, changes
  assert Settings(values).head_width() == 4


def test_a_null_share_rotates_the_whole_head():
  """As in published code, whose default is that of an absent key alone."""
  values = json.loads((GOLDEN / 'glm4_moe' / 'config.json').read_text())
  del values['rope_parameters']
  for changes, width in (
    ({}, 4),
    ({'partial_rotary_factor': 0.25}, 2),
    ({'partial_rotary_factor': None}, 8),
  ):
    config = parse_config(values | changes)
    assert config.layers[0].attention.rotary.width == width, changes


@pytest.mark.parametrize(
  ('name', 'key'),
  [
    ('gpt_neox', 'layer_norm_eps'),
    ('nemotron', 'norm_eps'),
    ('starcoder2', 'norm_epsilon'),
  ],
)
def test_an_epsilon_may_be_zero_and_not_less(name, key):
  values = json.loads((GOLDEN / name / 'config.json').read_text())
  assert parse_config(values | {key: 0}).norm.eps == 0
  with pytest.raises(ValueError, match=f'{key}=-1e-05.*0 or above'):
    parse_config(values | {key: -1e-5})


def test_gpt_neox_rotates_by_its_keys_alone():
  """Keys of other families do not count, outside the rope parameters."""
  values = json.loads((GOLDEN / 'gpt_neox' / 'config.json').read_text())
  others = {'rope_theta': 7.0, 'partial_rotary_factor': 1.0}
  rotary = parse_config(values | others).layers[0].attention.rotary
  assert (rotary.base, rotary.width) == (500.0, 8)
  inside = {'rope_type': 'default', **others}
  rotary = parse_config(values | {'rope_parameters': inside})
  assert rotary.layers[0].attention.rotary == Rotary(16, 7.0)


def test_a_head_is_as_wide_as_the_published_code_makes_it():
  for name in ('gpt_neox', 'stablelm'):
    values = json.loads((GOLDEN / name / 'config.json').read_text())
    width = parse_config(values).layers[0].attention.key_width
    assert parse_config(values | {'head_dim': width}) == parse_config(values)
    with pytest.raises(ValueError, match=f'head_dim=6 .*supported: {width}'):
      parse_config(values | {'head_dim': 6})


@pytest.mark.parametrize(
  ('name', 'pattern', 'kinds'),
  [
    ('exaone4', 'LG', 'LGLG'),
    ('exaone4', 'GLL', 'GLLGLLG'),  # the last layer is global
    ('exaone4', 'L', 'LLG'),
    ('exaone4', 3, 'LLGLLGL'),
    ('cohere2', 3, 'LLGLLGL'),
    ('cohere2', 1, 'GG'),
  ],
)
def test_a_pattern_says_which_layers_have_a_window(name, pattern, kinds):
  """And in these families only layers that have one rotate."""
  values = json.loads((GOLDEN / name / 'config.json').read_text())
  values |= {
    'sliding_window_pattern': pattern,
    'layer_types': None,
    'num_hidden_layers': len(kinds),
  }
  for layer, kind in zip(parse_config(values).layers, kinds, strict=True):
    window = 7 if kind == 'L' else None
    assert layer.attention.visibility.window == window
    assert (layer.attention.rotary is not None) == (kind == 'L')


def test_all_layers_of_exaone_rotate_where_none_has_a_window():
  values = json.loads((GOLDEN / 'exaone4' / 'config.json').read_text())
  config = parse_config(values | {'sliding_window': None, 'layer_types': None})
  for layer in config.layers:
    assert layer.attention.visibility.window is None
    assert layer.attention.rotary is not None


def test_the_parts_of_feed_forward_proj_win_over_it():
  """As they do in T5's published configuration class."""
  values = json.loads((GOLDEN / 't5' / 'config.json').read_text())
  parts = {'feed_forward_proj': 'gated-gelu', 'is_gated_act': True}
  for changes, gated, act in (
    ({'dense_act_fn': 'gelu'}, True, 'gelu'),
    ({'dense_act_fn': None}, True, 'gelu_tanh'),
    ({'dense_act_fn': 'relu', 'is_gated_act': False}, False, 'relu'),
  ):
    mlp = parse_config(values | parts | changes).layers[0].mlp
    assert (mlp.gated, mlp.activation) == (gated, act)


@pytest.mark.parametrize(
  ('spelled', 'meant'),
  [('gelu', 'gelu_tanh'), ('gelu_python', 'gelu'), ('silu', 'silu')],
)
def test_gelu_of_gemma_alone_means_the_tanh_approximation(spelled, meant):
  values = json.loads((GOLDEN / 'gemma' / 'config.json').read_text())
  config = parse_config(values | {'hidden_act': spelled})
  assert config.layers[0].mlp.activation == meant


def test_windows_of_qwen2_moe_without_layer_types():
  """Every other one of the first layers, where Qwen2 has the last ones."""
  values = json.loads((GOLDEN / 'qwen2_moe' / 'config.json').read_text())
  for last, want in ((1, [7, None, None]), (3, [7, None, 7])):
    changes = {'layer_types': None, 'max_window_layers': last}
    layers = parse_config(values | changes).layers
    assert [x.attention.visibility.window for x in layers] == want


def test_layers_of_llama_4():
  """Which are in chunks, without positions and dense; Scout says 4 for true."""
  values = json.loads((GOLDEN / 'llama4' / 'config.json').read_text())
  values = {k: v for k, v in values.items() if k != 'layer_types'}
  for changes, chunks, sparse in (
    ({}, [5, None, 5], [1]),
    ({'no_rope_layers': [], 'moe_layers': []}, [5, None, 5], []),
    ({'no_rope_layers': [0, 1, 1], 'moe_layers': [0]}, [None, 5, 5], [0]),
    ({'attention_chunk_size': None, 'moe_layers': None}, [None] * 3, [1]),
  ):
    layers = parse_config(values | changes).layers
    assert [x.attention.visibility.chunk for x in layers] == chunks
    found = [
      i for i, x in enumerate(layers) if isinstance(x.mlp, kvjax.Experts)
    ]
    assert found == sparse
    for layer in layers:
      attention = layer.attention
      assert (attention.rotary is None) == (attention.qk_norm is None)
      assert (attention.rotary is None) == (attention.temperature is not None)
  tuned = parse_config(values | {'attn_temperature_tuning': 4})
  assert tuned == parse_config(values | {'attn_temperature_tuning': True})
