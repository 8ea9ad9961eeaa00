"""What tests know of gemma2."""

from tests.checkpoints.choices import Config, Draw
from tests.checkpoints.family_facts import BASE, PUBLISHED_WINDOW, Case, Facts


def draw(d: Draw) -> Config:
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


FACTS = Facts(
  draw=draw,
  cases={
    'gemma2': Case(
      BASE
      | {
        'model_type': 'gemma2',
        'sliding_window': 7,
        'query_pre_attn_scalar': 11,
        'attn_logit_softcapping': 5.0,
        'final_logit_softcapping': 9.0,
      },
      bytes_per_token=288,  # 2 * (3*6 + 3*6) * 4
      seed=1011,
      old=True,
    ),
  },
  defaults={
    'num_key_value_heads': 4,
    'sliding_window': 4096,
    'attn_logit_softcapping': 50.0,
    'final_logit_softcapping': 30.0,
    'query_pre_attn_scalar': 256,
  },
)
