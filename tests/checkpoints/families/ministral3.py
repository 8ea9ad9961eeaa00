"""What tests know of ministral3."""

from tests.checkpoints.choices import Config, Draw
from tests.checkpoints.family_facts import BASE, Case, Facts, Figures, rope


def draw(d: Draw) -> Config:
  config = d.decoder() | {'head_dim': d.pick(6, 10)}
  parameters = {'original_max_position_embeddings': d.pick(3, 8)}
  parameters |= d.rope(config['head_dim'])
  return config | {
    'sliding_window': d.pick(None, 5, 9),
    'rope_parameters': parameters
    | {'llama_4_scaling_beta': d.pick(0.0, 0.1, 0.7)},
  }


FACTS = Facts(
  draw=draw,
  cases={
    'ministral3': Case(
      BASE
      | {
        'model_type': 'ministral3',
        'sliding_window': 7,
        'rope_parameters': rope(
          'yarn',
          1e6,
          factor=16.0,
          original_max_position_embeddings=5,
          mscale=1.0,
          mscale_all_dim=1.0,
          llama_4_scaling_beta=0.3,
        ),
      },
      bytes_per_token=288,  # 2 * (3*6 + 3*6) * 4
      seed=2500,
      by_name=False,
    ),
  },
  defaults={'num_key_value_heads': 8, 'head_dim': 128, 'sliding_window': None},
  published={
    'ministral-3-8b': Figures(
      elements='2*8*128',
      layers=34,
      bytes_per_token=139264,
      parameters=8489553920,
      source='the count that the config implies',
    ),
  },
)
