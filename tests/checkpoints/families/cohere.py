"""What tests know of cohere."""

from tests.checkpoints.choices import Config, Draw, head_width
from tests.checkpoints.family_facts import NARROW, Case, Facts


def draw(d: Draw) -> Config:
  config = d.decoder() | d.pick({}, {'head_dim': 6}, {'head_dim': 10})
  config['layer_norm_eps'] = config.pop('rms_norm_eps')
  return config | {
    'logit_scale': d.pick(0.0625, 0.8),
    'attention_bias': d.flag(),
    'use_qk_norm': d.flag(),
    'rope_parameters': d.rope(head_width(config), base=5e5),
  }


FACTS = Facts(
  draw=draw,
  cases={
    'cohere': Case(
      {k: v for k, v in NARROW.items() if k != 'rms_norm_eps'}
      | {'model_type': 'cohere', 'use_qk_norm': True, 'logit_scale': 0.5},
      bytes_per_token=192,  # 2 * (3*4 + 3*4) * 4
      seed=1029,
    ),
  },
  defaults={
    'logit_scale': 0.0625,
    'layer_norm_eps': 1e-5,
    'use_qk_norm': False,
    'num_key_value_heads': 64,
    'tie_word_embeddings': True,
  },
)
