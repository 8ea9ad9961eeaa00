"""What tests know of qwen2_moe."""

from tests.checkpoints.choices import Config, Draw, head_width
from tests.checkpoints.family_facts import NARROW, Case, Facts, Figures


def draw(d: Draw) -> Config:
  config = d.decoder() | {'num_hidden_layers': 3}
  has_windows = d.flag()
  kinds = [d.pick('sliding_attention', 'full_attention') for _ in range(3)]
  return config | {
    'qkv_bias': d.flag(),
    'use_sliding_window': has_windows,
    'sliding_window': d.pick(7, 9),
    'max_window_layers': d.pick(1, 2, 28),
    # Without windows, published code lets a window layer see nothing.
    'layer_types': d.pick(None, kinds) if has_windows else None,
    'num_experts': d.pick(3, 5),
    'num_experts_per_tok': d.pick(1, 2, 3),
    'moe_intermediate_size': d.pick(12, 20),
    'shared_expert_intermediate_size': d.pick(10, 36),
    'norm_topk_prob': d.flag(),
    'decoder_sparse_step': d.pick(1, 2),
    'mlp_only_layers': d.pick(None, [], [1]),
    'rope_parameters': d.rope(head_width(config)),
  }


FACTS = Facts(
  draw=draw,
  cases={
    'qwen2_moe': Case(
      NARROW
      | {
        'model_type': 'qwen2_moe',
        'num_hidden_layers': 3,
        'use_sliding_window': True,
        'sliding_window': 7,
        'max_window_layers': 2,
        'num_experts': 5,
        'num_experts_per_tok': 2,
        'moe_intermediate_size': 11,
        'shared_expert_intermediate_size': 19,
        'mlp_only_layers': [1],
      },
      bytes_per_token=288,  # 3 * (3*4 + 3*4) * 4
      seed=2401,
      by_name=False,
    ),
  },
  defaults={
    'num_key_value_heads': 16,
    'qkv_bias': True,
    'num_experts': 60,
    'num_experts_per_tok': 4,
    'moe_intermediate_size': 1408,
    'shared_expert_intermediate_size': 5632,
    'norm_topk_prob': False,
    'rms_norm_eps': 1e-6,
    'tie_word_embeddings': False,
  },
  published={
    'qwen1.5-moe-a2.7b': Figures(
      elements='2*16*128',
      layers=24,
      bytes_per_token=196608,
      parameters=14315784192,
      source='keras-team/keras-hub keras_hub/src/models/qwen_moe/'
      'qwen_moe_presets.py (params)',
    ),
  },
)
