"""Makes the checkpoints that tests/checkpoints reads.

    python tests/golden/make_checkpoints.py [name ...]

Needs torch and transformers (5.23 made the committed ones); the tests do not.
Each folder under tests/golden/checkpoints is one model as published: a
config.json, safetensors and `reference.npz`, inputs and float32 logits of one
pass without a cache.
"""

import pathlib
import shutil
import sys
from typing import Any, NamedTuple

from reference import write_checkpoint

HERE = pathlib.Path(__file__).parent / 'checkpoints'


class Case(NamedTuple):
  """One fixture: what its config.json says, and how it is written."""

  config: dict[str, Any]
  old: bool = False
  shard: str | None = None


def rope(kind: str = 'default', theta: float = 1e4, **values: Any) -> Any:
  return {'rope_type': kind, 'rope_theta': theta, **values}


BASE = {
  'vocab_size': 97,
  'hidden_size': 24,
  'intermediate_size': 28,
  'num_hidden_layers': 2,
  'num_attention_heads': 6,
  'num_key_value_heads': 3,
  'head_dim': 6,
  'max_position_embeddings': 64,
  'rms_norm_eps': 1e-5,
  'tie_word_embeddings': True,
  'pad_token_id': None,
  'bos_token_id': None,
  'eos_token_id': None,
}
NARROW = {key: value for key, value in BASE.items() if key != 'head_dim'}
SMALL = BASE | {'num_attention_heads': 3, 'num_key_value_heads': 1}
MLA = NARROW | {
  'num_attention_heads': 3,
  'num_key_value_heads': 3,
  'kv_lora_rank': 10,
  'q_lora_rank': 14,
  'qk_nope_head_dim': 6,
  'qk_rope_head_dim': 4,
  'v_head_dim': 5,
}
ROUTED = {
  'n_routed_experts': 6,
  'n_shared_experts': 1,
  'num_experts_per_tok': 2,
  'moe_intermediate_size': 11,
  'n_group': 3,
  'topk_group': 2,
  'norm_topk_prob': True,
  'routed_scaling_factor': 1.7,
  'first_k_dense_replace': 1,
  'num_nextn_predict_layers': 0,
}
YARN = rope(
  'yarn',
  factor=8.0,
  original_max_position_embeddings=12,
  mscale=0.7,
  mscale_all_dim=0.9,
)
GPT2 = {
  'vocab_size': 97,
  'n_embd': 30,
  'n_head': 5,
  'n_layer': 2,
  'n_positions': 32,
  'n_inner': 28,
}
FALCON = {
  'model_type': 'falcon',
  'vocab_size': 97,
  'hidden_size': 30,
  'num_hidden_layers': 2,
  'ffn_hidden_size': 28,
}
SHORT = [1.0, 1.1, 1.2]
LONG = [1.5, 2.5, 4.5]

CASES = {
  'llama': Case(BASE | {'model_type': 'llama', 'tie_word_embeddings': False}),
  'llama3_old': Case(
    BASE
    | {
      'model_type': 'llama',
      'attention_bias': True,
      'mlp_bias': True,
      'rope_parameters': rope(
        'llama3',
        500.0,
        factor=8.0,
        low_freq_factor=1.0,
        high_freq_factor=4.0,
        original_max_position_embeddings=16,
      ),
    },
    old=True,
  ),
  'llama_dynamic': Case(
    SMALL
    | {
      'model_type': 'llama',
      'max_position_embeddings': 12,
      'rope_parameters': rope('dynamic', factor=3.0),
    },
    old=True,
  ),
  'llama_linear_shards': Case(
    SMALL
    | {
      'model_type': 'llama',
      'rope_parameters': rope('linear', factor=2.5),
    },
    shard='20KB',
  ),
  'mistral': Case(BASE | {'model_type': 'mistral', 'sliding_window': 7}),
  'deepseek_v3': Case(
    MLA
    | ROUTED
    | {
      'model_type': 'deepseek_v3',
      'attention_bias': True,
      'rope_parameters': YARN,
    }
  ),
  'gpt_oss': Case(
    BASE
    | {
      'model_type': 'gpt_oss',
      'tie_word_embeddings': False,
      'sliding_window': 7,
      'num_local_experts': 4,
      'num_experts_per_tok': 2,
      'intermediate_size': 11,
      'swiglu_limit': 1.5,
      'layer_types': ['sliding_attention', 'full_attention'],
      'rope_parameters': rope(
        'yarn',
        150000.0,
        factor=32.0,
        truncate=False,
        original_max_position_embeddings=12,
      ),
    },
    old=True,
  ),
  'mixtral': Case(
    NARROW
    | {
      'model_type': 'mixtral',
      'num_local_experts': 4,
      'num_experts_per_tok': 2,
      'intermediate_size': 13,
    }
  ),
  'qwen2': Case(
    NARROW
    | {
      'model_type': 'qwen2',
      'use_sliding_window': True,
      'sliding_window': 5,
      'max_window_layers': 1,
    },
    old=True,
  ),
  'qwen3': Case(
    BASE
    | {
      'model_type': 'qwen3',
      'rope_parameters': rope(
        'yarn', 1e6, factor=4.0, original_max_position_embeddings=12
      ),
    }
  ),
  'qwen3_moe': Case(
    SMALL
    | {
      'model_type': 'qwen3_moe',
      'num_experts': 5,
      'num_experts_per_tok': 2,
      'moe_intermediate_size': 11,
      'norm_topk_prob': True,
      'mlp_only_layers': [1],
    }
  ),
  'gemma2': Case(
    BASE
    | {
      'model_type': 'gemma2',
      'sliding_window': 7,
      'query_pre_attn_scalar': 11,
      'attn_logit_softcapping': 5.0,
      'final_logit_softcapping': 9.0,
    },
    old=True,
  ),
  'gemma3': Case(
    BASE
    | {
      'model_type': 'gemma3_text',
      'sliding_window': 7,
      'query_pre_attn_scalar': 11,
      'layer_types': ['sliding_attention', 'full_attention'],
      'rope_parameters': {
        'full_attention': rope('linear', 1e6, factor=8.0),
        'sliding_attention': rope(),
      },
    }
  ),
  'phi3': Case(
    NARROW
    | {
      'model_type': 'phi3',
      'hidden_size': 36,
      'original_max_position_embeddings': 12,
      'rope_parameters': rope(
        'longrope',
        short_factor=SHORT,
        long_factor=LONG,
        original_max_position_embeddings=12,
        partial_rotary_factor=1.0,
      ),
    },
    old=True,
  ),
  'gpt2': Case(GPT2 | {'model_type': 'gpt2'}),
  'gpt_bigcode': Case(GPT2 | {'model_type': 'gpt_bigcode'}),
  'falcon': Case(FALCON | {'num_attention_heads': 5}),
  'falcon_grouped': Case(
    FALCON
    | {
      'hidden_size': 24,
      'num_attention_heads': 6,
      'num_kv_heads': 2,
      'new_decoder_architecture': True,
    }
  ),
  'falcon_alibi': Case(
    FALCON
    | {
      'num_attention_heads': 5,
      'multi_query': False,
      'parallel_attn': False,
      'alibi': True,
      'bias': True,
    }
  ),
  'deepseek_v2': Case(
    MLA
    | ROUTED
    | {
      'model_type': 'deepseek_v2',
      'q_lora_rank': None,
      'mlp_bias': True,
      'norm_topk_prob': False,
      'topk_method': 'group_limited_greedy',
      'rope_parameters': YARN,
    },
    old=True,
  ),
  'minicpm3': Case(
    MLA
    | {
      'model_type': 'minicpm3',
      'scale_emb': 12,
      'scale_depth': 1.4,
      'dim_model_base': 16,
    }
  ),
  'glm4_moe': Case(
    SMALL
    | ROUTED
    | {
      'model_type': 'glm4_moe',
      'head_dim': 8,
      'attention_bias': True,
      'use_qk_norm': True,
      'rope_parameters': rope(partial_rotary_factor=0.5),
    }
  ),
  'glm4_moe_lite': Case(MLA | ROUTED | {'model_type': 'glm4_moe_lite'}),
  't5': Case(
    {
      'model_type': 't5',
      'vocab_size': 97,
      'd_model': 20,
      'd_kv': 6,
      'd_ff': 22,
      'num_layers': 1,
      'num_decoder_layers': 2,
      'num_heads': 3,
      'relative_attention_num_buckets': 8,
      'relative_attention_max_distance': 12,
      'decoder_start_token_id': 0,
    }
  ),
  't5_gated': Case(
    {
      'model_type': 't5',
      'vocab_size': 97,
      'd_model': 20,
      'd_kv': 6,
      'd_ff': 22,
      'num_layers': 1,
      'num_heads': 3,
      'feed_forward_proj': 'gated-gelu',
      'tie_word_embeddings': False,
      'decoder_start_token_id': 0,
    },
    old=True,
  ),
  'whisper': Case(
    {
      'model_type': 'whisper',
      'vocab_size': 97,
      'd_model': 18,
      'encoder_attention_heads': 2,
      'decoder_attention_heads': 3,
      'encoder_layers': 1,
      'decoder_layers': 2,
      'encoder_ffn_dim': 14,
      'decoder_ffn_dim': 22,
      'num_mel_bins': 5,
      'max_source_positions': 9,
      'max_target_positions': 24,
      'scale_embedding': True,
      'decoder_start_token_id': 2,
      'pad_token_id': 0,
      'bos_token_id': 1,
      'eos_token_id': 1,
    }
  ),
  'gemma': Case(BASE | {'model_type': 'gemma', 'hidden_act': 'gelu'}),
  'smollm3': Case(
    NARROW | {'model_type': 'smollm3', 'no_rope_layer_interval': 2}
  ),
  'olmo2': Case(NARROW | {'model_type': 'olmo2'}),
  'cohere': Case(
    {k: v for k, v in NARROW.items() if k != 'rms_norm_eps'}
    | {'model_type': 'cohere', 'use_qk_norm': True, 'logit_scale': 0.5}
  ),
}


def main(names: list[str]) -> None:
  for seed, (name, case) in enumerate(CASES.items()):
    if names and name not in names:
      continue
    path = HERE / name
    shutil.rmtree(path, ignore_errors=True)
    write_checkpoint(
      path, case.config, seed=1000 + seed, old=case.old, shard=case.shard
    )
    size = sum(file.stat().st_size for file in path.iterdir())
    print(f'{name:20s} {size:7d} bytes')


if __name__ == '__main__':
  main(sys.argv[1:])
