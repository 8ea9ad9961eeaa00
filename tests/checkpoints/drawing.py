"""Draws tiny configs of each family from its published configuration space.

Sequences of 21 tokens pass every window and most original lengths drawn here.
`draw(family, rng)` returns the keys of a config.json, newer style.
"""

from collections.abc import Callable

import numpy as np

from tests.checkpoints.choices import (
  PLAIN_ROPES,
  SPELLED,
  Config,
  Draw,
  head_width,
)

PUBLISHED_WINDOW = 4096


def llama(d: Draw) -> Config:
  config = d.decoder() | {'head_dim': d.pick(None, 6, 8, 12)}
  return config | {
    'attention_bias': d.flag(),
    'mlp_bias': d.flag(),
    'rope_parameters': d.rope(head_width(config)),
  }


def mistral(d: Draw) -> Config:
  config = d.decoder() | {'head_dim': d.pick(None, 6, 12)}
  return config | {
    'sliding_window': d.pick(None, 5, 9, PUBLISHED_WINDOW),
    'rope_parameters': d.rope(head_width(config)),
  }


def mixtral(d: Draw) -> Config:
  config = d.decoder() | {'head_dim': d.pick(None, 6, 12)}
  kinds = PLAIN_ROPES if config['head_dim'] is None else ()
  return config | {
    'num_local_experts': d.pick(3, 4, 8),
    'num_experts_per_tok': d.pick(1, 2, 3),
    'sliding_window': d.pick(None, 5),
    'rope_parameters': d.rope(head_width(config), *kinds, base=1e6),
  }


def qwen2(d: Draw) -> Config:
  config = d.decoder()
  return config | {
    'use_sliding_window': d.flag(),
    'sliding_window': d.pick(5, 9),
    'max_window_layers': d.pick(0, 1, 2),
    'rope_parameters': d.rope(head_width(config)),
  }


def qwen3(d: Draw) -> Config:
  config = qwen2(d) | {'head_dim': d.pick(6, 10), 'attention_bias': d.flag()}
  return config | {'rope_parameters': d.rope(config['head_dim'])}


def qwen3_moe(d: Draw) -> Config:
  config = d.decoder() | {'head_dim': d.pick(6, 10)}
  return config | {
    'attention_bias': d.flag(),
    'use_sliding_window': d.flag(),
    'sliding_window': 7,
    'num_experts': d.pick(3, 5),
    'num_experts_per_tok': 2,
    'moe_intermediate_size': d.pick(12, 20),
    'norm_topk_prob': d.flag(),
    'decoder_sparse_step': d.pick(1, 2),
    'mlp_only_layers': d.pick([], [1]),
    'rope_parameters': d.rope(config['head_dim']),
  }


def gemma(d: Draw) -> Config:
  config = d.decoder() | {'head_dim': d.pick(6, 10)}
  return config | {
    'attention_bias': d.flag(),
    'rope_parameters': d.rope(config['head_dim']),
  }


def gemma2(d: Draw) -> Config:
  config = d.decoder() | {'head_dim': d.pick(6, 10)}
  config['hidden_activation'] = config.pop('hidden_act')
  kinds = [d.pick('sliding_attention', 'full_attention') for _ in range(3)]
  return config | {
    'num_hidden_layers': 3,
    'layer_types': d.pick(None, kinds),
    'query_pre_attn_scalar': d.pick(8, 20, 256),
    'sliding_window': d.pick(5, 9, PUBLISHED_WINDOW),
    'attn_logit_softcapping': d.pick(None, 5.0, 50.0),
    'final_logit_softcapping': d.pick(None, 10.0, 30.0),
    'attention_bias': d.flag(),
    'rope_parameters': d.rope(config['head_dim']),
  }


def gemma3(d: Draw) -> Config:
  config = d.decoder() | {'head_dim': d.pick(6, 10)}
  config['hidden_activation'] = config.pop('hidden_act')
  kinds = [d.pick('sliding_attention', 'full_attention') for _ in range(3)]
  rope = {
    'full_attention': d.rope(config['head_dim'], base=1e6),
    'sliding_attention': d.rope(config['head_dim']),
  }
  for part in rope.values():
    part.pop('truncate', None)  # not read in nested rope parameters
  return config | {
    'num_hidden_layers': 3,
    'query_pre_attn_scalar': d.pick(8, 20, 256),
    'sliding_window': d.pick(5, 9, PUBLISHED_WINDOW),
    'final_logit_softcapping': d.pick(None, 10.0),
    'attention_bias': d.flag(),
    'rope_parameters': rope,
    **d.pick(
      {'layer_types': kinds},
      {'sliding_window_pattern': 2},
      {'sliding_window_pattern': 3},
    ),
  }


def phi3(d: Draw) -> Config:
  config = d.decoder()
  width = d.pick(8, 12)
  share = d.pick(1.0, 0.5)
  config['hidden_size'] = width * config['num_attention_heads']
  rope = d.rope(width, 'default', 'longrope', share=share)
  original = rope.pop('original_max_position_embeddings', 16)
  return config | {
    'max_position_embeddings': d.pick(original, 64),
    'original_max_position_embeddings': original,
    'sliding_window': d.pick(None, 7),
    'rope_parameters': rope | {'partial_rotary_factor': share},
  }


def gpt_oss(d: Draw) -> Config:
  config = d.decoder() | {'head_dim': d.pick(6, 10)}
  config.pop('hidden_act')  # fixed by the family
  kinds = [d.pick('sliding_attention', 'full_attention') for _ in range(2)]
  rope = d.rope(config['head_dim'], base=150000.0)
  return config | {
    'layer_types': d.pick(None, kinds),
    'sliding_window': d.pick(5, 9, 128),
    'num_local_experts': d.pick(3, 4),
    'num_experts_per_tok': d.pick(1, 2, 3),
    'intermediate_size': 20,
    'swiglu_limit': d.pick(1.0, 7.0),
    'swiglu_alpha': d.pick(1.0, 1.702),
    'attention_bias': d.flag(),
    'rope_parameters': d.pick(None, rope, rope),
  }


def gpt2(d: Draw) -> Config:
  heads = d.pick(1, 3, 5)
  return {
    'vocab_size': 97,
    'n_embd': heads * d.pick(6, 7, 8),
    'n_head': heads,
    'n_layer': 2,
    'n_positions': d.pick(21, 32),
    'n_inner': d.pick(None, 44),
    'activation_function': d.pick('gelu_new', *SPELLED),
    'layer_norm_epsilon': d.pick(1e-5, 1e-3),
    'scale_attn_weights': d.pick(True, True, False),
    'scale_attn_by_inverse_layer_idx': d.flag(),
    'reorder_and_upcast_attn': d.flag(),
    'tie_word_embeddings': d.flag(),
  }


def gpt_bigcode(d: Draw) -> Config:
  config = gpt2(d) | {
    'multi_query': d.flag(),
    'attention_softmax_in_fp32': d.flag(),
    'scale_attention_softmax_in_fp32': d.flag(),
  }
  for key in ('scale_attn_by_inverse_layer_idx', 'reorder_and_upcast_attn'):
    config.pop(key)
  return config


def falcon(d: Draw) -> Config:
  kv, groups = d.pick(1, 2, 3), d.pick(1, 2, 3)
  heads = kv * groups
  grouped = d.flag()
  config = {
    'vocab_size': 97,
    'hidden_size': heads * d.pick(6, 8),
    'num_attention_heads': heads,
    'num_hidden_layers': 2,
    # Falcon-7B's says `heads`, and has one: read in the newer layout only.
    'num_kv_heads': d.pick(None, kv if grouped else heads),
    'new_decoder_architecture': grouped,
    'num_ln_in_parallel_attn': d.pick(None, 1, 2) if grouped else None,
    'multi_query': d.flag(),
    'parallel_attn': True if grouped else d.flag(),
    'alibi': d.flag(),
    'bias': d.flag(),
    'activation': d.pick('gelu', *SPELLED),
    'layer_norm_epsilon': d.pick(1e-5, 1e-3),
    'ffn_hidden_size': d.pick(None, 28, 44),
    'max_position_embeddings': d.pick(16, 64),
    'tie_word_embeddings': d.flag(),
  }
  return config | {'rope_parameters': d.rope(head_width(config))}


def deepseek_v2(d: Draw) -> Config:
  routing = d.routing()
  grouped = d.flag()
  routing |= {
    'norm_topk_prob': False,
    'topk_method': 'group_limited_greedy' if grouped else 'greedy',
  }
  if not grouped:
    routing |= d.pick({}, {'n_group': None, 'topk_group': None})
  return d.latent() | routing | {'mlp_bias': d.flag()}


def deepseek_v3(d: Draw) -> Config:
  return (
    d.latent()
    | d.routing()
    | {
      'rope_interleave': d.flag(),
      'num_nextn_predict_layers': 0,
    }
  )


def minicpm3(d: Draw) -> Config:
  config = d.latent() | {'v_head_dim': d.pick(None, 6, 10)}
  return config | {
    'mlp_bias': d.flag(),
    'scale_emb': d.pick(1, 1.5, 12),
    'scale_depth': d.pick(None, 1.0, 1.4),
    'dim_model_base': d.pick(None, 16, 256),
  }


def glm4_moe(d: Draw) -> Config:
  config = d.decoder() | {'head_dim': d.pick(8, 12)}
  share = d.pick(0.5, 1.0)
  return (
    config
    | d.routing()
    | {
      'attention_bias': d.flag(),
      'use_qk_norm': d.flag(),
      'num_nextn_predict_layers': 0,
      'rope_parameters': d.rope(config['head_dim'], share=share)
      | {'partial_rotary_factor': share},
    }
  )


def glm4_moe_lite(d: Draw) -> Config:
  routing = d.routing()
  routing.pop('first_k_dense_replace')
  return (
    d.latent()
    | routing
    | {
      'mlp_layer_types': d.pick(None, ['sparse', 'dense'], ['sparse'] * 2),
      'rope_interleave': d.flag(),
      'num_nextn_predict_layers': 0,
    }
  )


def t5(d: Draw) -> Config:
  gated, act = d.flag(), d.pick('relu', 'gelu', *SPELLED)
  return {
    'vocab_size': 97,
    'd_model': d.pick(20, 28),
    'd_kv': d.pick(6, 10),
    'd_ff': d.pick(22, 44),
    'num_layers': d.pick(1, 2, 3),
    'num_decoder_layers': d.pick(None, 1, 3),
    'num_heads': d.pick(1, 3, 4),
    'relative_attention_num_buckets': d.pick(6, 8, 32),
    'relative_attention_max_distance': d.pick(18, 128),
    'layer_norm_epsilon': d.pick(1e-6, 1e-5, 1e-3),
    'feed_forward_proj': f'gated-{act}' if gated else act,
    # A head of its own and no scale; or no scale alone; or as the paper.
    **d.pick(
      {'tie_word_embeddings': False},
      {'scale_decoder_outputs': False},
      {'tie_word_embeddings': True},
    ),
    **d.pick(
      {}, {}, {'dense_act_fn': d.pick(*SPELLED)}, {'is_gated_act': d.flag()}
    ),
    'decoder_start_token_id': 0,
  }


def whisper(d: Draw) -> Config:
  return {
    'vocab_size': 97,
    'd_model': d.pick(24, 36),
    'encoder_attention_heads': d.pick(1, 2, 3, 4),
    'decoder_attention_heads': d.pick(1, 2, 3, 4),
    'encoder_layers': d.pick(1, 2, 3),
    'decoder_layers': d.pick(1, 2, 3),
    'encoder_ffn_dim': d.pick(20, 44),
    'decoder_ffn_dim': d.pick(28, 44),
    'num_mel_bins': d.pick(5, 6),
    'max_source_positions': d.pick(9, 13),
    'max_target_positions': d.pick(21, 24),
    'scale_embedding': d.flag(),
    'activation_function': d.pick('gelu', *SPELLED),
    **d.pick({}, {'tie_word_embeddings': False}),
    'decoder_start_token_id': 2,
    'pad_token_id': 0,
    'bos_token_id': 1,
    'eos_token_id': 1,
  }


def smollm3(d: Draw) -> Config:
  config = d.decoder()
  return config | {
    'num_hidden_layers': 3,
    'no_rope_layer_interval': d.pick(2, 3),
    'use_sliding_window': d.flag(),
    'sliding_window': 7,
    'attention_bias': d.flag(),
    'mlp_bias': d.flag(),
    'rope_parameters': d.rope(head_width(config), base=2e6),
  }


def olmo2(d: Draw) -> Config:
  config = d.decoder()
  return config | {
    'attention_bias': d.flag(),
    'rope_parameters': d.rope(head_width(config)),
  }


def cohere(d: Draw) -> Config:
  config = d.decoder() | d.pick({}, {'head_dim': 6}, {'head_dim': 10})
  config['layer_norm_eps'] = config.pop('rms_norm_eps')
  return config | {
    'logit_scale': d.pick(0.0625, 0.8),
    'attention_bias': d.flag(),
    'use_qk_norm': d.flag(),
    'rope_parameters': d.rope(head_width(config), base=5e5),
  }


FAMILIES: dict[str, Callable[[Draw], Config]] = {
  f.__name__: f
  for f in (
    cohere,
    deepseek_v2,
    deepseek_v3,
    falcon,
    gemma,
    gemma2,
    gemma3,
    glm4_moe,
    glm4_moe_lite,
    gpt2,
    gpt_bigcode,
    gpt_oss,
    llama,
    minicpm3,
    mistral,
    mixtral,
    olmo2,
    phi3,
    qwen2,
    qwen3,
    qwen3_moe,
    smollm3,
    t5,
    whisper,
  )
}


def draw(family: str, rng: np.random.Generator) -> Config:
  """Returns one config of a family, with its `model_type`."""
  kind = {'gemma3': 'gemma3_text'}.get(family, family)
  return {'model_type': kind} | FAMILIES[family](Draw(rng))
