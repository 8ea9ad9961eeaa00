"""What is not supported, missing, strange or broken is refused by its name."""

import json
import re
from unittest import mock

import jax
import numpy as np
import pytest

from kvjax.checkpoints import load_checkpoint, load_config, parse_config
from tests.checkpoints.writing import GOLDEN, altered

LLAMA = {
  'model_type': 'llama',
  'vocab_size': 97,
  'hidden_size': 24,
  'intermediate_size': 28,
  'num_hidden_layers': 2,
  'num_attention_heads': 6,
}


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'model_type': 'mamba'}, "model_type 'mamba'.*supported: .*llama"),
    ({'model_type': None}, 'model_type None'),
    ({'rope_scaling': {'rope_type': 'mrope'}}, "rope type 'mrope'.*yarn"),
    ({'rope_scaling': {'type': 'yarm'}}, "rope type 'yarm'"),
    (
      {'rope_scaling': {'type': 'linear', 'factors': 2}},
      "key 'factors' of rope type 'linear'",
    ),
    ({'rope_scaling': {'type': 'linear'}}, "'linear' needs 'factor'"),
    ({'hidden_act': 'quick_gelu'}, "hidden_act='quick_gelu'.*silu"),
    (
      {'quantization_config': {'quant_method': 'awq'}},
      "method 'awq' is not supported; supported: fp8, mxfp4",
    ),
    ({'partial_rotary_factor': 0.5}, 'partial_rotary_factor=0.5'),
    ({'torch_dtype': 'float8_e4m3fn'}, "dtype='float8_e4m3fn'"),
    ({'vocab_size': None}, "no 'vocab_size'"),
    ({'hidden_size': '24'}, "hidden_size='24'.*must be a whole number"),
    ({'num_hidden_layers': True}, 'layers=True.*must be a whole number'),
    ({'rms_norm_eps': '1e-5'}, "rms_norm_eps='1e-5'.*must be a number"),
    ({'attention_bias': 'no'}, "attention_bias='no'.*true or false"),
    ({'rope_scaling': 'linear'}, "rope_scaling='linear'.*an object"),
    (
      {'model_type': 'exaone9', 'sliding_window_pattern': 'LLLG'},
      "model_type 'exaone9'.*supported: .*exaone4",
    ),
    *(
      (
        {'model_type': 'exaone4', 'sliding_window_pattern': pattern},
        f'sliding_window_pattern={pattern!r}.*a text of L and G',
      )
      for pattern in ('LLX', '', 0, None)
    ),
    (
      {'model_type': 'olmoe', 'sliding_window': 8},
      "sliding_window=8 is not supported for model_type='olmoe'",
    ),
    (
      {'model_type': 'cohere2', 'use_qk_norm': True},
      "use_qk_norm=True is not supported for model_type='cohere2'",
    ),
    (
      {'model_type': 'olmo3', 'rope_parameters': {'rope_theta': 1e6}},
      'rope_theta next to or inside the rope_parameters.*set each',
    ),
    (
      {'model_type': 'olmo', 'clip_qkv': 0},
      'clip_qkv=0 of config.json must be a number above 0',
    ),
    (
      {'rope_scaling': {'type': 'linear', 'factor': 0}},
      'factor=0 of config.json must be a number above 0',
    ),
    (
      {
        'rope_scaling': {
          'type': 'longrope',
          'short_factor': [1],
          'long_factor': [1],
          'original_max_position_embeddings': 8,
          'factor': 2,
        }
      },
      'longrope has 1 divisors for rotary width=4.*: 2',
    ),
    ({'hidden_size': 25}, 'hidden_size=25 is not a multiple of the 6'),
    ({'num_key_value_heads': 4}, 'num_heads=6 is not a multiple'),
    (
      {'model_type': 'gemma2', 'use_bidirectional_attention': True},
      'use_bidirectional_attention=True',
    ),
    (
      {
        'model_type': 'gemma3_text',
        'rope_parameters': {'rope_type': 'linear', 'factor': 8.0},
      },
      'rope_type next to or inside the rope_parameters.*set each',
    ),
    (
      {
        'model_type': 'gemma3_text',
        'rope_scaling': {'full_attention': {'rope_type': 'default'}},
      },
      'rope_scaling next to or inside the rope_parameters.*set each',
    ),
    (
      {
        'model_type': 'gemma3_text',
        'layer_types': ['full_attention'] * 2,
        'rope_scaling': {'type': 'yarn', 'factor': 2.0, 'truncate': False},
      },
      'truncate=False in the rope parameters of a layer type',
    ),
    (
      {'model_type': 'gpt_oss', 'layer_types': ['chunked_attention'] * 2},
      "layer type 'chunked_attention'",
    ),
    (
      {'model_type': 'gpt_oss', 'layer_types': ['full_attention']},
      'layer_types names 1 layers; num_hidden_layers=2',
    ),
    (
      {'model_type': 'deepseek_v3', 'scoring_func': 'softmax'},
      "scoring_func='softmax'.*supported: 'sigmoid'",
    ),
    (
      {'model_type': 'deepseek_v2', 'norm_topk_prob': True},
      'norm_topk_prob=True',
    ),
    (
      {
        'model_type': 'falcon',
        'new_decoder_architecture': True,
        'parallel_attn': False,
      },
      'parallel_attn=False',
    ),
    (
      {'model_type': 'ministral3', 'rope_parameters': {'rope_theta': 1e4}},
      "model_type='ministral3' has no 'llama_4_scaling_beta'",
    ),
    (
      {'model_type': 'hunyuan_v1_dense', 'use_qk_norm': False},
      'use_qk_norm=False',
    ),
    (
      {
        'model_type': 'hunyuan_v1_dense',
        'head_dim': 2,
        'rope_scaling': {'type': 'dynamic', 'alpha': 3.0, 'factor': 1.0},
      },
      'head_dim=2 is too narrow for alpha=3.0',
    ),
    ({'model_type': 'apertus', 'mlp_bias': True}, 'mlp_bias=True'),
  ],
)
def test_config_is_refused_by_name(changes, message):
  with pytest.raises(ValueError, match=message):
    parse_config(LLAMA | changes)


def test_feed_forward_of_t5_is_refused_by_name():
  with pytest.raises(ValueError, match="feed_forward_proj='glu-relu'"):
    parse_config(
      {
        'model_type': 't5',
        'vocab_size': 9,
        'd_model': 8,
        'd_kv': 4,
        'num_heads': 2,
        'num_layers': 1,
        'd_ff': 8,
        'feed_forward_proj': 'glu-relu',
      }
    )


def test_an_unknown_activation_is_refused_by_the_key_that_names_it():
  config = json.loads((GOLDEN / 't5' / 'config.json').read_text())
  with pytest.raises(ValueError, match="dense_act_fn='mish'.*relu"):
    parse_config(config | {'dense_act_fn': 'mish'})
  config.pop('dense_act_fn')
  with pytest.raises(ValueError, match="feed_forward_proj='mish'"):
    parse_config(config | {'feed_forward_proj': 'gated-mish'})


def refuses(path, message):
  """Loading fails with that message, before anything is on a device."""
  with mock.patch.object(jax, 'device_put', side_effect=AssertionError):
    with pytest.raises(ValueError, match=message):
      load_checkpoint(path)


KEY = 'model.layers.1.self_attn.k_proj.weight'


def test_missing_tensor(tmp_path):
  path = altered(
    tmp_path,
    'llama',
    tensors=lambda x: {k: v for k, v in x.items() if k != KEY},
  )
  refuses(path, re.escape(f'{KEY} [18, 24] is missing'))


def test_unexpected_tensor(tmp_path):
  bias = {'model.layers.0.self_attn.q_proj.bias': np.zeros(36, np.float32)}
  path = altered(tmp_path, 'llama', tensors=lambda x: x | bias)
  refuses(path, r'Unexpected tensor model\.layers\.0\.self_attn\.q_proj\.bias')


def test_wrong_shape(tmp_path):
  path = altered(tmp_path, 'llama', tensors=lambda x: x | {KEY: x[KEY].T})
  refuses(path, re.escape(f'{KEY} has shape [24, 18]') + r'.*\[18, 24\]')


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'num_hidden_layers': 1}, 'Unexpected tensor model.layers.1.'),
    ({'num_hidden_layers': 3}, 'model.layers.2.* is missing'),
    ({'num_key_value_heads': 2}, r'k_proj.weight has shape \[18, 24\]'),
    ({'vocab_size': 96}, r'embed_tokens.weight has shape \[97, 24\]'),
    ({'tie_word_embeddings': True}, 'lm_head.weight differs from model'),
    ({'attention_bias': True}, 'k_proj.bias .*is missing'),
  ],
)
def test_config_that_contradicts_the_tensors(tmp_path, changes, message):
  refuses(altered(tmp_path, 'llama', lambda c: c | changes), message)


def test_quantized_tensor(tmp_path):
  codes = lambda x: x | {KEY: x[KEY].astype(np.uint8)}
  refuses(altered(tmp_path, 'llama', tensors=codes), f'{KEY} is stored as U8')


@pytest.mark.parametrize('keep', [-1, 0.7, 0.02, 4])
def test_truncated_file(tmp_path, keep):
  path = altered(tmp_path, 'llama')
  file = path / 'model.safetensors'
  data = file.read_bytes()
  size = int(keep * len(data)) if isinstance(keep, float) else keep
  file.write_bytes(data[:size])
  refuses(path, 'model.safetensors: it is truncated')


def test_broken_header(tmp_path):
  path = altered(tmp_path, 'llama')
  file = path / 'model.safetensors'
  data = bytearray(file.read_bytes())
  data[8] = ord('?')
  file.write_bytes(data)
  refuses(path, 'has a header that is no JSON: ')


def test_missing_shard(tmp_path):
  path = altered(tmp_path, 'llama_linear_shards')
  shard = sorted(path.glob('model-*.safetensors'))[1]
  shard.unlink()
  with pytest.raises(FileNotFoundError, match=shard.name):
    load_checkpoint(path)


def test_index_and_shards_that_disagree(tmp_path):
  path = altered(tmp_path, 'llama_linear_shards')
  index = path / 'model.safetensors.index.json'
  text = index.read_text()
  index.write_text(text.replace('"model.norm.weight"', '"model.norm.scale"'))
  refuses(path, r'model\.norm\.(weight|scale)')


def test_nothing_to_load(tmp_path):
  with pytest.raises(FileNotFoundError, match='neither a directory'):
    load_config(tmp_path / 'nowhere')
  path = altered(tmp_path, 'llama')
  (path / 'model.safetensors').rename(path / 'pytorch_model.bin')
  with pytest.raises(FileNotFoundError, match='safetensors only'):
    load_checkpoint(path)
  (path / 'config.json').write_text('{')
  with pytest.raises(ValueError, match='no JSON'):
    load_config(path)


def test_fixtures_are_small():
  size = sum(file.stat().st_size for file in GOLDEN.rglob('*'))
  assert size <= 100 * 2**10 * len(list(GOLDEN.iterdir()))


@pytest.mark.parametrize('read', [load_config, load_checkpoint])
def test_a_refused_config_names_its_file(tmp_path, read):
  """Also where the rule that it breaks is one of kvjax's own choices."""
  values = json.loads((GOLDEN / 'qwen2' / 'config.json').read_text())
  values['num_key_value_heads'] = 4
  file = tmp_path / 'config.json'
  file.write_text(json.dumps(values))
  with pytest.raises(ValueError) as refusal:
    read(tmp_path)
  assert str(refusal.value).startswith(f'{file}: num_heads=6 is not')
