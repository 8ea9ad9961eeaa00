"""What tests know of hunyuan_v1_dense."""

from tests.checkpoints.choices import Config, Draw
from tests.checkpoints.family_facts import BASE, Case, Facts, Figures, rope


def draw(d: Draw) -> Config:
  width = d.pick(4, 6, 10)
  fixed = {'factor': 1.0, 'alpha': d.pick(2.5, 1000.0)}
  scaled = d.rope(width, 'dynamic') | fixed | d.pick({}, {'beta_fast': 32.0})
  return d.decoder() | {
    'head_dim': width,
    'attention_bias': d.flag(),
    'rope_parameters': d.pick(d.rope(width), scaled),
  }


FACTS = Facts(
  draw=draw,
  cases={
    'hunyuan_v1_dense': Case(
      BASE
      | {
        'model_type': 'hunyuan_v1_dense',
        'attention_bias': True,
        'rope_parameters': rope('dynamic', factor=1.0, alpha=1000.0),
        'max_position_embeddings': 12,
      },
      bytes_per_token=288,  # 2 * (3*6 + 3*6) * 4
      seed=2501,
      old=True,
    ),
  },
  defaults={'num_key_value_heads': None, 'attention_bias': False},
  published={
    'hunyuan-mt-7b': Figures(
      elements='2*8*128',
      layers=32,
      bytes_per_token=131072,
      parameters=7504932864,
      source='the count that the config implies',
    ),
  },
)
