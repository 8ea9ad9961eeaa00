"""What does a smaller cache cost a trained model?

  make run                                       ends on this, with SmolLM2-135M
  python -m experiments.real_model --checkpoint=DIR
  python -m experiments.real_model --config=configs/real_model.py:tiny \
      --checkpoint=DIR                                                  seconds

Expected: the dense cache predicts as the model without a cache does; eight bits
change little, four bits more; a window that keeps the first tokens loses much
less than one that drops them (Xiao et al. 2023, arXiv 2309.17453); the full
cache finds most digits, and no cache that forgets finds as many.

Would be refuted by: any of these failing; the last table of the report says.
"""

from ml_collections import ConfigDict

from configs import settings

SETTINGS = {
  'default': {},
  'tiny': {
    'task.texts': 1,
    'task.following': 12,
    'answer.tokens': 4,
    'answer.window': 12,
    # A model that learned nothing finds no digit and has no sinks.
    'expected.digits': 0.0,
    'expected.ring_over_sinks': 0.0,
    'expected.int8_kl': 1.0,
  },
}


def get_config(setting: str = 'default') -> ConfigDict:
  """Returns the setting 'default' or 'tiny'."""
  config = ConfigDict(
    {
      'seed': 0,
      'task': {
        'context': 512,  # tokens that are compressed
        'texts': 2,  # rows of prose
        'following': 64,  # tokens of prose predicted behind the context
        'numbers': 4,  # hidden in one more row, of five digits each
      },
      'caches': (
        'default',
        'int8',
        'affine',
        'sinks:sinks=4,window=124',
        'ring:window=128',
        'bounded:budget=128,slack=64',  # room for what follows
      ),
      'answer': {
        'prompt': 'Why is the sky blue? Answer in three sentences.',
        'tokens': 64,
        'window': 48,  # tokens that sinks and bounded may remember
      },
      'expected': {
        'digits': 0.7,  # share that the full cache finds, at least
        'int8_kl': 0.01,  # nats, at most
        'ring_over_sinks': 3.0,  # ratio of their divergences, at least
      },
    }
  )
  return settings.apply(config, SETTINGS, setting)
