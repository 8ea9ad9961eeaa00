"""What tests know of gpt_oss."""

from tests.checkpoints.choices import Config, Draw
from tests.checkpoints.family_facts import BASE, Case, Facts, rope


def draw(d: Draw) -> Config:
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


FACTS = Facts(
  draw=draw,
  cases={
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
      bytes_per_token=288,  # 2 * (3*6 + 3*6) * 4
      seed=1006,
      old=True,
    ),
  },
  defaults={
    'num_key_value_heads': 8,
    'sliding_window': 128,
    'num_experts_per_tok': 4,
    'swiglu_limit': 7.0,
    'swiglu_alpha': 1.702,
    'attention_bias': True,
  },
)
