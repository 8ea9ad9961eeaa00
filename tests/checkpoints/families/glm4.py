"""What tests know of glm4."""

from tests.checkpoints.choices import Config, Draw
from tests.checkpoints.family_facts import BASE, Case, Facts, Figures, rope


def draw(d: Draw) -> Config:
  # With two rotated features published code divides by 0 (dynamic scaling).
  width = d.pick(16, 24)
  share = d.pick(0.25, 0.5, 0.75, 1.0)
  return d.decoder() | {
    'head_dim': width,
    'attention_bias': d.flag(),
    'rms_norm_eps': d.pick(1.5625e-7, 1e-5, 1e-3),
    'rope_parameters': d.rope(width, share=share)
    | {'partial_rotary_factor': share},
  }


FACTS = Facts(
  draw=draw,
  cases={
    'glm4': Case(
      BASE
      | {
        'model_type': 'glm4',
        'head_dim': 12,
        'attention_bias': True,
        'rope_parameters': rope(partial_rotary_factor=0.5),
      },
      bytes_per_token=576,  # 2 * (3*12 + 3*12) * 4
      seed=2305,
      old=True,
      by_name=False,
    ),
  },
  defaults={
    'num_key_value_heads': 2,
    'head_dim': 128,
    'rms_norm_eps': 1.5625e-7,
    'attention_bias': True,
    'partial_rotary_factor': 0.5,
    'tie_word_embeddings': False,
  },
  published={
    'glm-4-9b-0414': Figures(
      elements='2*2*128',
      layers=40,
      bytes_per_token=40960,
      parameters=9_400_279_040,
      source='a public check of the tensors of the Hub expects this count',
    ),
  },
)
