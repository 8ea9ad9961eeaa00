"""Configs by name: found, refused with the nearest; a file before a name."""

import json

import pytest

import kvjax
from kvjax.checkpoints import parse_config

SMALL = {
  'model_type': 'described',
  'vocab_size': 31,
  'hidden_size': 12,
  'intermediate_size': 17,
  'num_hidden_layers': 3,
  'num_attention_heads': 4,
  'num_key_value_heads': 2,
  'head_dim': 6,
  'hidden_act': 'silu',
  'keys_and_values_of': [None, 0, None],
}


def test_names_and_ids_are_one_config():
  config = kvjax.load_config('llama-3-8b')
  assert config == kvjax.load_config('Meta-Llama/meta-llama-3-8B')
  assert len(config.layers) == 32 and config.dtype == 'bfloat16'


def test_an_unknown_name_lists_the_nearest():
  with pytest.raises(ValueError, match="'llama-3-9b'.*llama-3-8b.*config.json"):
    kvjax.load_config('llama-3-9b')
  with pytest.raises(ValueError, match='nearest known: .*gpt-2'):
    kvjax.load_config('?')
  with pytest.raises(ValueError, match='None is no name and no path'):
    kvjax.load_config(None)
  with pytest.raises(FileNotFoundError, match='nobody/nothing'):
    kvjax.load_config('nobody/nothing')


def test_a_file_of_that_name_wins(tmp_path, monkeypatch):
  (tmp_path / 'gpt-2').write_text(json.dumps(SMALL))
  monkeypatch.chdir(tmp_path)
  assert kvjax.load_config('gpt-2').width == 12


def test_a_described_model_shares_keys_and_values():
  config = parse_config(SMALL)
  assert [layer.attention.shared_from for layer in config.layers] == [
    None,
    0,
    None,
  ]
  with pytest.raises(ValueError, match='names 2 layers; num_hidden_layers=3'):
    parse_config(SMALL | {'keys_and_values_of': [None, 0]})
  with pytest.raises(ValueError, match="no 'intermediate_size'"):
    parse_config({k: v for k, v in SMALL.items() if k != 'intermediate_size'})
  with pytest.raises(ValueError, match="norm='batch'"):
    parse_config(SMALL | {'norm': 'batch'})


def test_described_parts():
  config = parse_config(
    SMALL
    | {
      'norm': 'layer',
      'gated': False,
      'bias': True,
      'learned_positions': 9,
      'parallel': True,
      'num_experts': 4,
      'num_experts_per_tok': 2,
      'moe_intermediate_size': 5,
      'shared_expert_size': 3,
      'dense_layers': [1],
    }
  )
  assert config.positions == 9 and config.norm.centered and config.norm.bias
  first, second, _ = config.layers
  assert first.attention.rotary is None and first.attention.output_bias
  assert first.mlp.shared.hidden == 3 and first.parallel == 'shared'
  assert not second.mlp.gated and second.mlp.hidden == 17
