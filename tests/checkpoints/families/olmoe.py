"""What tests know of olmoe."""

from tests.checkpoints.choices import Config, Draw, head_width
from tests.checkpoints.family_facts import NARROW, Case, Facts, Figures


def draw(d: Draw) -> Config:
  config = d.decoder()
  return config | {
    'attention_bias': d.flag(),
    'clip_qkv': d.pick(None, 0.4, 2.0),
    'num_experts': d.pick(3, 5),
    'num_experts_per_tok': d.pick(1, 2, 3),
    'intermediate_size': d.pick(12, 20),
    'norm_topk_prob': d.flag(),
    'rope_parameters': d.rope(head_width(config)),
  }


FACTS = Facts(
  draw=draw,
  cases={
    'olmoe': Case(
      NARROW
      | {
        'model_type': 'olmoe',
        'clip_qkv': 0.5,
        'num_experts': 5,
        'num_experts_per_tok': 2,
        'intermediate_size': 11,
      },
      bytes_per_token=192,  # 2 * (3*4 + 3*4) * 4
      seed=2203,
    ),
  },
  defaults={
    'num_key_value_heads': None,
    'attention_bias': False,
    'clip_qkv': None,
    'num_experts_per_tok': 8,
    'norm_topk_prob': False,
    'rms_norm_eps': 1e-5,
    'tie_word_embeddings': False,
  },
  published={
    'olmoe-1b-7b': Figures(
      '2*16*128',
      layers=16,
      bytes_per_token=131072,
      parameters=6919161856,
      source='the count that its config implies, and that llama.cpp prints',
    ),
  },
)
