"""What tests know of granite."""

from tests.checkpoints.choices import Config, Draw, head_width
from tests.checkpoints.family_facts import BASE, Case, Facts, Figures


def draw(d: Draw) -> Config:
  config = d.decoder() | d.pick({}, {'head_dim': 6}, {'head_dim': 10})
  return config | {
    'attention_bias': d.flag(),
    'mlp_bias': d.flag(),
    'rope_parameters': d.rope(head_width(config)),
    **multipliers(d),
  }


def multipliers(d: Draw) -> Config:
  return {
    'embedding_multiplier': d.pick(1, 2.5, 12.0),
    'attention_multiplier': d.pick(1, 0.3, 0.015625),
    'residual_multiplier': d.pick(1, 0.22, 1.4),
    'logits_scaling': d.pick(1, 0.5, 8, 16.0),
  }


FACTS = Facts(
  draw=draw,
  cases={
    'granite': Case(
      BASE
      | {
        'model_type': 'granite',
        'attention_bias': True,
        'mlp_bias': True,
        'embedding_multiplier': 12.0,
        'attention_multiplier': 0.4,
        'residual_multiplier': 0.22,
        'logits_scaling': 1.7,
      },
      bytes_per_token=288,  # 2 * (3*6 + 3*6) * 4
      seed=2300,
      by_name=False,
    ),
  },
  defaults={
    'num_key_value_heads': 64,
    'rms_norm_eps': 1e-6,
    'attention_bias': False,
    'mlp_bias': False,
    'tie_word_embeddings': False,
    'embedding_multiplier': 1.0,
    'attention_multiplier': 1.0,
    'residual_multiplier': 1.0,
    'logits_scaling': 1.0,
  },
  published={
    'granite-3.3-8b': Figures(
      elements='2*8*128',
      layers=40,
      bytes_per_token=163840,
      parameters=8_170_864_640,
      source='a public table repeats this count from safetensors of the Hub',
    ),
  },
)
