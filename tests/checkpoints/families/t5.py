"""What tests know of t5."""

from tests.checkpoints.choices import SPELLED, Config, Draw
from tests.checkpoints.family_facts import Case, Facts


def draw(d: Draw) -> Config:
  gated, act = d.flag(), d.pick('relu', 'gelu', *SPELLED)
  return {
    'vocab_size': 97,
    'd_model': d.pick(20, 28),
    'd_kv': d.pick(6, 10),
    'd_ff': d.pick(22, 44),
    'num_layers': d.pick(1, 2, 3),
    'num_decoder_layers': d.pick(None, 1, 3),
    'num_heads': d.pick(1, 3, 4),
    'relative_attention_num_buckets': d.pick(6, 8, 32),
    'relative_attention_max_distance': d.pick(18, 128),
    'layer_norm_epsilon': d.pick(1e-6, 1e-5, 1e-3),
    'feed_forward_proj': f'gated-{act}' if gated else act,
    # A head of its own and no scale; or no scale alone; or as the paper.
    **d.pick(
      {'tie_word_embeddings': False},
      {'scale_decoder_outputs': False},
      {'tie_word_embeddings': True},
    ),
    **d.pick(
      {}, {}, {'dense_act_fn': d.pick(*SPELLED)}, {'is_gated_act': d.flag()}
    ),
    'decoder_start_token_id': 0,
  }


FACTS = Facts(
  draw=draw,
  cases={
    't5': Case(
      {
        'model_type': 't5',
        'vocab_size': 97,
        'd_model': 20,
        'd_kv': 6,
        'd_ff': 22,
        'num_layers': 1,
        'num_decoder_layers': 2,
        'num_heads': 3,
        'relative_attention_num_buckets': 8,
        'relative_attention_max_distance': 12,
        'decoder_start_token_id': 0,
      },
      bytes_per_token=288,  # 2 * (3*6 + 3*6) * 4
      seed=1023,
      by_name=False,
    ),
    't5_gated': Case(
      {
        'model_type': 't5',
        'vocab_size': 97,
        'd_model': 20,
        'd_kv': 6,
        'd_ff': 22,
        'num_layers': 1,
        'num_heads': 3,
        'feed_forward_proj': 'gated-gelu',
        'tie_word_embeddings': False,
        'decoder_start_token_id': 0,
      },
      bytes_per_token=144,  # 1 * (3*6 + 3*6) * 4
      seed=1024,
      old=True,
      by_name=False,
    ),
  },
  defaults={},
)
