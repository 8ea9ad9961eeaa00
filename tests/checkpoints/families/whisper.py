"""What tests know of whisper."""

from tests.checkpoints.choices import SPELLED, Config, Draw
from tests.checkpoints.family_facts import Case, Facts


def draw(d: Draw) -> Config:
  return {
    'vocab_size': 97,
    'd_model': d.pick(24, 36),
    'encoder_attention_heads': d.pick(1, 2, 3, 4),
    'decoder_attention_heads': d.pick(1, 2, 3, 4),
    'encoder_layers': d.pick(1, 2, 3),
    'decoder_layers': d.pick(1, 2, 3),
    'encoder_ffn_dim': d.pick(20, 44),
    'decoder_ffn_dim': d.pick(28, 44),
    'num_mel_bins': d.pick(5, 6),
    'max_source_positions': d.pick(9, 13),
    'max_target_positions': d.pick(21, 24),
    'scale_embedding': d.flag(),
    'activation_function': d.pick('gelu', *SPELLED),
    **d.pick({}, {'tie_word_embeddings': False}),
    'decoder_start_token_id': 2,
    'pad_token_id': 0,
    'bos_token_id': 1,
    'eos_token_id': 1,
  }


FACTS = Facts(
  draw=draw,
  cases={
    'whisper': Case(
      {
        'model_type': 'whisper',
        'vocab_size': 97,
        'd_model': 18,
        'encoder_attention_heads': 2,
        'decoder_attention_heads': 3,
        'encoder_layers': 1,
        'decoder_layers': 2,
        'encoder_ffn_dim': 14,
        'decoder_ffn_dim': 22,
        'num_mel_bins': 5,
        'max_source_positions': 9,
        'max_target_positions': 24,
        'scale_embedding': True,
        'decoder_start_token_id': 2,
        'pad_token_id': 0,
        'bos_token_id': 1,
        'eos_token_id': 1,
      },
      bytes_per_token=288,  # 2 * (3*6 + 3*6) * 4
      seed=1025,
      by_name=False,
    ),
  },
  defaults={},
)
