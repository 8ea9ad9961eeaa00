"""A key that config.json leaves out means its family's published default.

The defaults are those of the families' configuration classes in transformers
5.23; fuzzing compares with them, by config.json files that leave keys out.
"""

import json

import pytest

from kvjax.checkpoints import parse_config
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
MLA = {'rms_norm_eps': 1e-6, 'attention_bias': False}
ROUTED = {'n_shared_experts': 1, 'norm_topk_prob': True}
DEFAULTS = {
  'cohere': {
    'logit_scale': 0.0625,
    'layer_norm_eps': 1e-5,
    'use_qk_norm': False,
    'num_key_value_heads': 64,
    'tie_word_embeddings': True,
  },
  'deepseek_v2': MLA
  | {
    'n_shared_experts': 2,
    'routed_scaling_factor': 1.0,
    'topk_method': 'greedy',
    'first_k_dense_replace': 0,
    'mlp_bias': False,
    'q_lora_rank': 1536,
  },
  'deepseek_v3': MLA
  | ROUTED
  | {
    'n_group': 8,
    'topk_group': 4,
    'routed_scaling_factor': 2.5,
    'first_k_dense_replace': 3,
    'q_lora_rank': 1536,
    'rope_interleave': True,
  },
  'falcon': {'bias': False, 'alibi': False, 'activation': 'gelu'},
  'gemma': {'num_key_value_heads': 16, 'hidden_act': 'gelu_pytorch_tanh'},
  'gemma2': {
    'num_key_value_heads': 4,
    'sliding_window': 4096,
    'attn_logit_softcapping': 50.0,
    'final_logit_softcapping': 30.0,
    'query_pre_attn_scalar': 256,
  },
  'gemma3': {
    'num_key_value_heads': 4,
    'sliding_window': 4096,
    'query_pre_attn_scalar': 256,
    'final_logit_softcapping': None,
  },
  'glm4_moe': ROUTED
  | {
    'num_key_value_heads': 8,
    'n_group': 1,
    'topk_group': 1,
    'routed_scaling_factor': 1.0,
    'first_k_dense_replace': 1,
    'use_qk_norm': False,
    'rms_norm_eps': 1e-5,
  },
  'glm4_moe_lite': ROUTED
  | {
    'n_group': 1,
    'topk_group': 1,
    'routed_scaling_factor': 1.8,
    'q_lora_rank': 768,
    'rms_norm_eps': 1e-5,
  },
  'gpt_oss': {
    'num_key_value_heads': 8,
    'sliding_window': 128,
    'num_experts_per_tok': 4,
    'swiglu_limit': 7.0,
    'swiglu_alpha': 1.702,
    'attention_bias': True,
  },
  'llama': {'num_key_value_heads': 64, 'rms_norm_eps': 1e-6},
  'minicpm3': {
    'scale_emb': 12,
    'scale_depth': 1.4,
    'dim_model_base': 256,
    'q_lora_rank': 768,
    'mlp_bias': False,
    'tie_word_embeddings': True,
  },
  'mistral': {'num_key_value_heads': 8, 'sliding_window': 4096},
  'mixtral': {
    'num_key_value_heads': 8,
    'num_local_experts': 8,
    'num_experts_per_tok': 2,
    'sliding_window': None,
  },
  'qwen2': {'num_key_value_heads': 32, 'use_sliding_window': False},
  'qwen3': {'num_key_value_heads': 32, 'head_dim': 128},
  'qwen3_moe': {'num_key_value_heads': 4, 'norm_topk_prob': False},
  'smollm3': {'num_key_value_heads': 4, 'tie_word_embeddings': True},
}


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
