"""A key that config.json leaves out means its family's published default.

The defaults are those of the families' configuration classes in transformers
5.23; fuzzing compares with them, by config.json files that leave keys out.
"""

import json

import pytest

from kvjax.checkpoints import parse_config
from tests.checkpoints.families import FACTS
from tests.checkpoints.writing import GOLDEN

# Sizes that every default of the table is compatible with.
ROOMY = {
  'num_attention_heads': 64,
  'num_key_value_heads': 4,
  'hidden_size': 256,
  'n_routed_experts': 48,
  'n_group': 8,
  'num_experts': 16,
  'num_local_experts': 16,
}
DEFAULTS = {n: facts.defaults for n, facts in FACTS.items() if facts.defaults}


@pytest.mark.parametrize('name', sorted(DEFAULTS))
def test_a_key_left_out_means_the_published_default(name):
  values = json.loads((GOLDEN / name / 'config.json').read_text()) | ROOMY
  for key, default in DEFAULTS[name].items():
    absent = {k: v for k, v in values.items() if k != key}
    assert parse_config(absent) == parse_config(values | {key: default}), key


def test_kv_heads_of_null_are_one_a_query_head():
  for name in ('llama', 'mistral', 'mixtral'):
    values = json.loads((GOLDEN / name / 'config.json').read_text()) | ROOMY
    config = parse_config(values | {'num_key_value_heads': None})
    assert config.layers[0].attention.num_kv_heads == 64, name


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
