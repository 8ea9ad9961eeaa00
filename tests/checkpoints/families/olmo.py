"""What tests know of olmo."""

from tests.checkpoints.choices import Config, Draw, head_width
from tests.checkpoints.family_facts import NARROW, Case, Facts, Figures


def draw(d: Draw) -> Config:
  config = d.decoder() | d.pick({}, {'head_dim': 6}, {'head_dim': 10})
  config.pop('rms_norm_eps')  # its norms have an epsilon of 1e-5
  return config | {
    'attention_bias': d.flag(),
    'clip_qkv': d.pick(None, 0.4, 2.0, 8.0),
    'rope_parameters': d.rope(head_width(config)),
  }


FACTS = Facts(
  draw=draw,
  cases={
    'olmo': Case(
      {k: v for k, v in NARROW.items() if k != 'rms_norm_eps'}
      | {'model_type': 'olmo', 'clip_qkv': 0.5, 'tie_word_embeddings': False},
      bytes_per_token=192,  # 2 * (3*4 + 3*4) * 4
      seed=2201,
    ),
  },
  defaults={
    'num_key_value_heads': None,
    'attention_bias': False,
    'clip_qkv': None,
    'tie_word_embeddings': False,
  },
  published={
    'olmo-7b': Figures(
      '2*32*128',
      layers=32,
      bytes_per_token=524288,
      parameters=6888095744,
      source='the count that its config implies',
    ),
  },
)
