"""What does inference with a model occupy, what fits, and where is Q?

  make memory                                                          seconds
  python -m experiments.memory --model=deepseek-v3 --device=H200 --devices=16
  python -m experiments.memory --checkpoint=DIR --batch=4 --cache=int8 --measure

Expected, of Llama-3-8B in bfloat16, 8 rows of 8,192 tokens: 131,072 bytes a
token and row, 24.8 GB in all, of which the queries of a step are 65,536 bytes.

Would be refuted by: `--measure`, which compiles the step for this machine and
compares the lines of the plan with what XLA assigned.
"""

from ml_collections import ConfigDict

from configs import settings

SETTINGS = {
  'default': {},
  'tiny': {'contexts': (16, 64), 'batch': 2, 'context': 64, 'measure': True},
}


def get_config(setting: str = 'default') -> ConfigDict:
  """Returns the setting 'default' or 'tiny'."""
  config = ConfigDict(
    {
      'model': 'llama-3-8b',  # a published name, or a config.json
      'checkpoint': '',  # a directory with a config.json, before `model`
      'batch': 8,
      'context': 8_192,
      'source': 0,  # positions of an encoder-decoder's source
      'device': 'H100-80',
      'devices': 1,  # that share the heads
      'cache': 'default',  # int8, ring:window=64+int8, paged:page=16, ...
      'compare': ('mha', 'gqa', 'mqa', 'mla'),
      'contexts': (1_024, 4_096, 16_384, 65_536, 262_144, 1_048_576),
      'measure': False,
    }
  )
  return settings.apply(config, SETTINGS, setting)
