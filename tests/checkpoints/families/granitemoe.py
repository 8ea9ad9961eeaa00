"""What tests know of granitemoe."""

from tests.checkpoints.choices import Config, Draw, head_width
from tests.checkpoints.families.granite import multipliers
from tests.checkpoints.family_facts import NARROW, Case, Facts, Figures


def draw(d: Draw) -> Config:
  config = d.decoder() | d.pick({}, {'head_dim': 6}, {'head_dim': 10})
  experts = d.pick(3, 4, 8)
  return config | {
    'attention_bias': d.flag(),
    'num_local_experts': experts,
    'num_experts_per_tok': d.pick(1, 2, 3, experts),
    'rope_parameters': d.rope(head_width(config)),
    **multipliers(d),
  }


FACTS = Facts(
  draw=draw,
  cases={
    'granitemoe': Case(
      NARROW
      | {
        'model_type': 'granitemoe',
        'attention_bias': True,
        'intermediate_size': 13,
        'num_local_experts': 5,
        'num_experts_per_tok': 2,
        'embedding_multiplier': 12.0,
        'attention_multiplier': 0.4,
        'residual_multiplier': 0.22,
        'logits_scaling': 1.7,
      },
      bytes_per_token=192,  # 2 * (3*4 + 3*4) * 4
      seed=2301,
      by_name=False,
    ),
  },
  defaults={
    'num_local_experts': 8,
    'num_experts_per_tok': 2,
    'rms_norm_eps': 1e-6,
    'attention_bias': False,
    'tie_word_embeddings': False,
  },
  published={
    'granite-3.1-1b-a400m': Figures(
      elements='2*8*64',
      layers=24,
      bytes_per_token=49152,
      parameters=1_334_628_352,
      source='a public test that loads a GraniteMoe of the Hub asserts this '
      'count of its parameters',
    ),
  },
)
