"""What tests know of falcon."""

from tests.checkpoints.choices import SPELLED, Config, Draw, head_width
from tests.checkpoints.family_facts import Case, Facts

FALCON = {
  'model_type': 'falcon',
  'vocab_size': 97,
  'hidden_size': 30,
  'num_hidden_layers': 2,
  'ffn_hidden_size': 28,
}


def draw(d: Draw) -> Config:
  kv, groups = d.pick(1, 2, 3), d.pick(1, 2, 3)
  heads = kv * groups
  grouped = d.flag()
  config = {
    'vocab_size': 97,
    'hidden_size': heads * d.pick(6, 8),
    'num_attention_heads': heads,
    'num_hidden_layers': 2,
    # Falcon-7B's says `heads`, and has one: read in the newer layout only.
    'num_kv_heads': d.pick(None, kv if grouped else heads),
    'new_decoder_architecture': grouped,
    'num_ln_in_parallel_attn': d.pick(None, 1, 2) if grouped else None,
    'multi_query': d.flag(),
    'parallel_attn': True if grouped else d.flag(),
    'alibi': d.flag(),
    'bias': d.flag(),
    'activation': d.pick('gelu', *SPELLED),
    'layer_norm_epsilon': d.pick(1e-5, 1e-3),
    'ffn_hidden_size': d.pick(None, 28, 44),
    'max_position_embeddings': d.pick(16, 64),
    'tie_word_embeddings': d.flag(),
  }
  return config | {'rope_parameters': d.rope(head_width(config))}


FACTS = Facts(
  draw=draw,
  cases={
    'falcon': Case(
      FALCON | {'num_attention_heads': 5},
      bytes_per_token=96,  # 2 * (1*6 + 1*6) * 4
      seed=1016,
      by_name=False,
    ),
    'falcon_alibi': Case(
      FALCON
      | {
        'num_attention_heads': 5,
        'multi_query': False,
        'parallel_attn': False,
        'alibi': True,
        'bias': True,
      },
      bytes_per_token=480,  # 2 * (5*6 + 5*6) * 4
      seed=1018,
      by_name=False,
    ),
    'falcon_grouped': Case(
      FALCON
      | {
        'hidden_size': 24,
        'num_attention_heads': 6,
        'num_kv_heads': 2,
        'new_decoder_architecture': True,
      },
      bytes_per_token=128,  # 2 * (2*4 + 2*4) * 4, not 6 heads
      seed=1017,
      by_name=False,
    ),
  },
  defaults={'bias': False, 'alibi': False, 'activation': 'gelu'},
)
