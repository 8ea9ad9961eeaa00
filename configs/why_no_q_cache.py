"""What must an attention program remember, and why is a query never in it?

  make why                                                  seconds, 2 cores
  python -m experiments.why_no_q_cache --variant=mla
  make why ARGS=--model=smollm2-135m
  python -m experiments.why_no_q_cache --program=my_module:my_attention \
      --config.shape=8,64

Expected: mha, gqa, mqa and mla keep keys and values and no query; a
convolution over queries keeps the last few. A query leaf put into a decode
cache is written and never read (in and out), or is not there at all.

Would be refuted by: noise in place of the past outside the cut moving a later
row (the analysis stops with an error), or the last table of the report.
"""

from ml_collections import ConfigDict

from configs import settings

SETTINGS = {
  'default': {},
  'tiny': {
    'sizes.width': 12,
    'sizes.key_width': 4,
    'shape': (8, 12),
    'decode.layers': 1,
    'decode.capacity': 256,
  },
}


def get_config(setting: str = 'default') -> ConfigDict:
  """Returns the setting 'default' or 'tiny'."""
  config = ConfigDict(
    {
      'variant': 'gqa',
      'program': '',  # module:function, in place of a variant
      'model': '',  # whose attention is analysed, in place of both
      'seed': 0,
      'shape': (8, 24),  # of the input of a program
      'axis': 0,  # of it, that counts positions
      'vocab_size': 0,  # the program takes token ids below this; 0: floats
      'device': 'H100-80',  # whose fastest point is named
      'sizes': {  # of a variant; width is the last of shape
        'width': 24,
        'heads': 4,
        'kv_heads': 2,
        'key_width': 6,
        'latent': 8,
        'rotary': 4,
        'window': 4,
      },
      'decode': {'layers': 2, 'batch_size': 2, 'capacity': 256},
    }
  )
  return settings.apply(config, SETTINGS, setting)
