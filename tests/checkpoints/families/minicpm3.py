"""What tests know of minicpm3."""

from tests.checkpoints.choices import Config, Draw
from tests.checkpoints.family_facts import MLA, Case, Facts


def draw(d: Draw) -> Config:
  config = d.latent() | {'v_head_dim': d.pick(None, 6, 10)}
  return config | {
    'mlp_bias': d.flag(),
    'scale_emb': d.pick(1, 1.5, 12),
    'scale_depth': d.pick(None, 1.0, 1.4),
    'dim_model_base': d.pick(None, 16, 256),
  }


FACTS = Facts(
  draw=draw,
  cases={
    'minicpm3': Case(
      MLA
      | {
        'model_type': 'minicpm3',
        'scale_emb': 12,
        'scale_depth': 1.4,
        'dim_model_base': 16,
      },
      bytes_per_token=112,  # 2 * (10 + 4) * 4
      seed=1020,
      by_name=False,
    ),
  },
  defaults={
    'scale_emb': 12,
    'scale_depth': 1.4,
    'dim_model_base': 256,
    'q_lora_rank': 768,
    'mlp_bias': False,
    'tie_word_embeddings': True,
  },
)
