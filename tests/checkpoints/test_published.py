"""Published config.json files give models of the published size.

Parameter counts are those that the hub shows for the safetensors.
"""

import math

import jax
import pytest

from kvjax.checkpoints import parse_config
from kvjax.models.initialize import param_shapes

COMMON = {'torch_dtype': 'bfloat16', 'hidden_act': 'silu'}
YARN = {
  'beta_fast': 32,
  'beta_slow': 1,
  'factor': 40,
  'mscale': 0.707,
  'mscale_all_dim': 0.707,
  'original_max_position_embeddings': 4096,
  'type': 'yarn',
}

PUBLISHED = {
  'Llama-3.1-8B': (
    8_030_261_248,
    65536,
    {
      'model_type': 'llama',
      'hidden_size': 4096,
      'intermediate_size': 14336,
      'num_attention_heads': 32,
      'num_hidden_layers': 32,
      'num_key_value_heads': 8,
      'max_position_embeddings': 131072,
      'vocab_size': 128256,
      'rms_norm_eps': 1e-5,
      'rope_theta': 500000.0,
      'rope_scaling': {
        'factor': 8.0,
        'low_freq_factor': 1.0,
        'high_freq_factor': 4.0,
        'original_max_position_embeddings': 8192,
        'rope_type': 'llama3',
      },
    },
  ),
  'DeepSeek-V2-Lite': (
    15_706_484_224,
    15552,
    {
      'model_type': 'deepseek_v2',
      'hidden_size': 2048,
      'intermediate_size': 10944,
      'num_attention_heads': 16,
      'num_hidden_layers': 27,
      'num_key_value_heads': 16,
      'first_k_dense_replace': 1,
      'kv_lora_rank': 512,
      'q_lora_rank': None,
      'qk_nope_head_dim': 128,
      'qk_rope_head_dim': 64,
      'v_head_dim': 128,
      'moe_intermediate_size': 1408,
      'n_routed_experts': 64,
      'n_shared_experts': 2,
      'num_experts_per_tok': 6,
      'n_group': 1,
      'topk_group': 1,
      'topk_method': 'greedy',
      'norm_topk_prob': False,
      'scoring_func': 'softmax',
      'moe_layer_freq': 1,
      'seq_aux': True,
      'max_position_embeddings': 163840,
      'rope_theta': 10000,
      'rope_scaling': YARN,
      'vocab_size': 102400,
    },
  ),
  'falcon-7b': (
    6_921_720_704,
    4096,
    {
      'model_type': 'falcon',
      'hidden_size': 4544,
      'alibi': False,
      'bias': False,
      'multi_query': True,
      'parallel_attn': True,
      'new_decoder_architecture': False,
      'num_attention_heads': 71,
      'num_hidden_layers': 32,
      'vocab_size': 65024,
    },
  ),
  'gpt2': (
    124_439_808,
    18432,
    {
      'model_type': 'gpt2',
      'activation_function': 'gelu_new',
      'n_ctx': 1024,
      'n_embd': 768,
      'n_head': 12,
      'n_layer': 12,
      'n_positions': 1024,
      'vocab_size': 50257,
    },
  ),
  'c4ai-command-r-plus': (
    103_810_674_688,
    131072,
    {
      'model_type': 'cohere',
      'hidden_size': 12288,
      'intermediate_size': 33792,
      'num_attention_heads': 96,
      'num_hidden_layers': 64,
      'num_key_value_heads': 8,
      'logit_scale': 0.8333333333333334,
      'rope_theta': 75000000.0,
      'use_qk_norm': True,
      'vocab_size': 256000,
    },
  ),
}


@pytest.mark.parametrize('name', sorted(PUBLISHED))
def test_parameters_and_elements_a_token(name):
  count, elements, values = PUBLISHED[name]
  config = parse_config(COMMON | values)
  assert config.dtype == 'bfloat16'
  shapes = jax.tree.leaves(param_shapes(config))
  assert sum(math.prod(x.shape) for x in shapes) == count
  streams = [s for l in config.layers for s in l.attention.streams().values()]
  assert sum(s.heads * s.width for s in streams) == elements
