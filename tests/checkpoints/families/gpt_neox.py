"""What tests know of gpt_neox."""

from tests.checkpoints.choices import SPELLED, Config, Draw
from tests.checkpoints.family_facts import Case, Facts, Figures, rope

SIZES = {
  'model_type': 'gpt_neox',
  'vocab_size': 97,
  'hidden_size': 48,
  'intermediate_size': 28,
  'num_hidden_layers': 2,
  'num_attention_heads': 3,
  'max_position_embeddings': 64,
}


def draw(d: Draw) -> Config:
  heads, width = d.pick(1, 3, 4, 6), d.pick(8, 16)
  return {
    'vocab_size': 97,
    'hidden_size': heads * width,
    'intermediate_size': d.pick(28, 44),
    'num_hidden_layers': 2,
    'num_attention_heads': heads,
    'hidden_act': d.pick('gelu', *SPELLED),
    'max_position_embeddings': d.pick(16, 64),
    'layer_norm_eps': d.pick(1e-5, 1e-3),
    'use_parallel_residual': d.flag(),
    'attention_bias': d.flag(),
    'tie_word_embeddings': d.flag(),
    'rope_parameters': d.partial_rope(width, 0.25, 0.5, 1.0),
  }


FACTS = Facts(
  draw=draw,
  cases={
    'gpt_neox': Case(
      SIZES | {'rope_parameters': rope(theta=500.0, partial_rotary_factor=0.5)},
      bytes_per_token=768,  # 2 * (3*16 + 3*16) * 4
      seed=2000,
      old=True,
    ),
    'gpt_neox_serial': Case(
      SIZES
      | {
        'use_parallel_residual': False,
        'attention_bias': False,
        'tie_word_embeddings': True,
        'hidden_act': 'gelu_new',
        'rope_parameters': rope(
          'yarn', factor=4.0, original_max_position_embeddings=16
        ),
      },
      bytes_per_token=768,  # 2 * (3*16 + 3*16) * 4
      seed=2001,
    ),
  },
  defaults={
    'hidden_act': 'gelu',
    'layer_norm_eps': 1e-5,
    'use_parallel_residual': True,
    'attention_bias': True,
    'rotary_pct': 0.25,
    'rotary_emb_base': 10000,
    'tie_word_embeddings': False,
  },
  published={
    'pythia-6.9b': Figures(
      elements='2*32*128',
      layers=32,
      bytes_per_token=524288,
      parameters=6857302016,
      source='Model card of EleutherAI/pythia-6.9b-deduped, as quoted by '
      'promptlayer.com/models/pythia-69b-deduped.',
    ),
  },
)
