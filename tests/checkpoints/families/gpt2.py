"""What tests know of gpt2."""

from tests.checkpoints.choices import SPELLED, Config, Draw
from tests.checkpoints.family_facts import GPT2, Case, Facts


def draw(d: Draw) -> Config:
  heads = d.pick(1, 3, 5)
  return {
    'vocab_size': 97,
    'n_embd': heads * d.pick(6, 7, 8),
    'n_head': heads,
    'n_layer': 2,
    'n_positions': d.pick(21, 32),
    'n_inner': d.pick(None, 44),
    'activation_function': d.pick('gelu_new', *SPELLED),
    'layer_norm_epsilon': d.pick(1e-5, 1e-3),
    'scale_attn_weights': d.pick(True, True, False),
    'scale_attn_by_inverse_layer_idx': d.flag(),
    'reorder_and_upcast_attn': d.flag(),
    'tie_word_embeddings': d.flag(),
  }


FACTS = Facts(
  draw=draw,
  cases={
    'gpt2': Case(
      GPT2 | {'model_type': 'gpt2'},
      bytes_per_token=480,  # 2 * (5*6 + 5*6) * 4
      seed=1014,
    ),
  },
  defaults={},
)
