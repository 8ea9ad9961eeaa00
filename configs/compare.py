"""What does each attention variant remember, and what does forgetting cost?

  make run                                              under 2 minutes, 2 cores
  make run-full                                         under 8 minutes, 3 seeds
  python -m experiments.compare --config=configs/compare.py:tiny        seconds

Expected: cached and uncached logits differ by less than 1e-5 of the largest;
held-out text below 3.5 bits per byte (full: 3.0, uniform guessing: 8); bytes
allocated are the bytes predicted; noise on every past query changes the next
logits by exactly 0.

Would be refuted by: any of these failing; the last table of the report says.
"""

from ml_collections import ConfigDict

from configs import settings

SETTINGS = {
  'default': {},
  'full': {
    'seeds': 3,
    'training.steps': 250,
    'training.learning_rate': 5e-3,
    'training.batch': 8,
    'evaluation.rows': 128,
    'expected_bits': 3.0,
  },
  'tiny': {
    'variants': ('gqa', 'mla'),
    'model.width': 32,
    'model.num_heads': 4,
    'model.key_width': 8,
    'model.rotary_width': 8,
    'model.latent_width': 12,
    'model.latent_rotary_width': 4,
    'model.hidden': 64,
    'training.steps': 3,
    'training.batch': 2,
    'training.length': 32,
    'evaluation.rows': 2,
    'evaluation.budget': 8,
    'evaluation.sinks': 2,
    'evaluation.past': 8,
    'pace.contexts': (64,),
    'pace.steps': 2,
    'pace.repeats': 1,
    'sample.tokens': 8,
    'expected_bits': 9.0,
  },
}


def get_config(setting: str = 'default') -> ConfigDict:
  """Returns the setting 'default', 'full' or 'tiny'."""
  config = ConfigDict(
    {
      'seed': 0,
      'seeds': 1,
      'text': '',  # a file; empty for the standard library
      'variants': ('mha', 'gqa', 'mqa', 'mla'),
      'expected_bits': 3.5,  # held-out bits per byte, at most
      'tolerance': 1e-5,  # cached against uncached, of the largest logit
      'model': {
        'layers': 2,
        'width': 128,
        'num_heads': 4,
        'num_kv_heads': 2,  # of GQA
        'key_width': 32,
        'rotary_width': 32,
        'latent_width': 48,  # of MLA, like the next field
        'latent_rotary_width': 16,
        'hidden': 352,  # of MHA; follows from equal size in the others
      },
      'training': {
        'steps': 140,
        'batch': 4,
        'length': 128,
        'learning_rate': 7e-3,
        'warmup': 20,
      },
      'evaluation': {
        'rows': 32,
        'budget': 32,  # slots of ring, sinks and bounded
        'sinks': 4,
        'past': 48,  # tokens of the noise demonstration
      },
      'pace': {'contexts': (64, 256, 1024), 'steps': 16, 'repeats': 3},
      'sample': {
        'prompt': '',  # empty for the beginning of a held-out block
        'tokens': 161,
        'temperature': 0.7,
        'top_p': 0.95,
        'capacity': 512,
      },
    }
  )
  return settings.apply(config, SETTINGS, setting)
