"""What tests know of gemma3."""

from tests.checkpoints.choices import Config, Draw
from tests.checkpoints.family_facts import (
  BASE,
  PUBLISHED_WINDOW,
  Case,
  Facts,
  rope,
)


def draw(d: Draw) -> Config:
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


FACTS = Facts(
  draw=draw,
  cases={
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
      },
      bytes_per_token=288,  # 2 * (3*6 + 3*6) * 4
      seed=1012,
    ),
  },
  defaults={
    'num_key_value_heads': 4,
    'sliding_window': 4096,
    'query_pre_attn_scalar': 256,
    'final_logit_softcapping': None,
  },
  model_type='gemma3_text',
)
