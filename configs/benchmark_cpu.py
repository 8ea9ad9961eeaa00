"""How close to the speed of memory does kvjax decode on this CPU?

  make bench                                     under 15 minutes, 2 cores
  python -m experiments.benchmark --config=configs/benchmark_cpu.py:step
  python -m experiments.benchmark --config=configs/benchmark_cpu.py:tiny
  python -m experiments.benchmark --compare=old.jsonl,new.jsonl

Expected, on 2 cores: attention alone at 0.7 to 0.85 of the read bandwidth where
caches are full, in float32 (the goal is 0.80); the 107M model 2.0 to 2.4 times
as fast as transformers on torch at 8 rows of 2048 tokens, and 1.5 times at one
row of 128. docs/results/goals.md says what was reached and missed, and why.

Would be refuted by: a ratio below these in a run on an idle machine.
"""

from ml_collections import ConfigDict

from configs import settings

SETTINGS = {
  'default': {},
  'tiny': {
    'repeats': 2,
    'rotate': 0,
    'bandwidth': 1,
    'attention.shapes': ((2, 4, 16),),
    'attention.slots': 64,
    'attention.cases': ((1, 24),),
    'attention.dtypes': ('float32', 'int8'),
    'model.layers': 2,
    'model.width': 32,
    'model.num_heads': 4,
    'model.num_kv_heads': 2,
    'model.key_width': 8,
    'model.hidden': 64,
    'model.vocab_size': 64,
    'latent': ((1, 2, 16, 8, 8, 32, 'float32'),),
    'layer': ((2, 24),),
    'variants.names': ('mla',),
    'variants.sizes': ((2, 24),),
    'overhead': (2,),
    'caches.sizes': ((2, 24),),
    'caches.names': (
      'dense',
      'paged:page=8',
      'bounded:budget=8,score=heavy_hitters+int8',
    ),
    'cold.model': 'tests/golden/checkpoints/llama',
    'cold.gguf': 'tests/golden/gguf/llama.gguf',
    'cold.prompt': 'A KV ',
    'cold.tokens': 4,
    'cold.lengths': (5, 20),
    'steps': ((2, 24),),
    'prompts': (16,),
    'generate': ((1, 8, 4),),
  },
  'step': {
    'sections': ('models',),
    'steps': ((1, 128), (8, 2048)),
    'prompts': (),
    'generate': (),
  },
}


def get_config(setting: str = 'default') -> ConfigDict:
  """Returns the setting 'default', 'step' (only that) or 'tiny'."""
  config = ConfigDict(
    {
      'repeats': 5,
      # Bytes that are read before any byte is read again: of the largest
      # cache this is a single copy.
      'rotate': 2**29,
      'bandwidth': 512,  # MiB that are read to measure the read bandwidth
      'kernels': ('ffi', 'blockwise'),
      'prompt_kernels': (),  # kernels besides the default one
      'interpret': False,
      'together': 8,  # buffers that a call reads, to hide the call's cost
      'calls': 1,  # calls queued before the host waits for one
      'sections': (
        'models',
        'caches',
        'variants',
        'latent',
        'layer',
        'overhead',
        'attention',
        'cold',
      ),
      'models': ('model',),
      'room': 256,  # slots beyond the context, for the tokens that are timed
      'attention': {
        'shapes': ((8, 1, 64), (8, 4, 64), (8, 4, 128), (8, 8, 128)),
        'slots': 8192,
        'cases': ((1, 8192), (1, 1024), (8, 8192), (8, 1024)),  # batch, filled
        'dtypes': ('float32', 'bfloat16', 'int8'),
      },
      'model': {
        'layers': 8,
        'width': 1024,
        'num_heads': 16,
        'num_kv_heads': 4,
        'key_width': 64,
        'hidden': 2816,
        'vocab_size': 8192,
        'dtype': 'float32',
      },
      # Rows, heads, latent, rotated key, rest of a key, slots, dtype.
      'latent': (
        (1, 16, 512, 64, 128, 8192, 'float32'),
        (1, 16, 512, 64, 128, 8192, 'bfloat16'),
      ),
      'layer': ((1, 2048), (8, 2048)),  # batch, context
      'overhead': (32,),  # layers
      'caches': {
        'names': (  # dense and paged store all tokens, the others 512 of them
          'dense',
          'ring:window=512',
          'sinks:sinks=4,window=508',
          'paged:page=64',
          'bounded:budget=512,score=recency',
          'bounded:budget=512,score=heavy_hitters',
          'dense+int8',
          'ring:window=512+int8',
          'paged:page=64+int8',
          'bounded:budget=512,score=heavy_hitters+int8',
        ),
        'sizes': ((1, 2048), (8, 2048)),  # batch, context
      },
      'variants': {
        'names': ('mha', 'gqa', 'mqa', 'mla'),
        'sizes': ((8, 2048),),  # batch, context
      },
      'steps': ((1, 128), (1, 2048), (8, 2048)),  # batch, context
      'prompts': (1024,),
      'generate': ((1, 128, 32),),  # batch, context, tokens
      'cold': {
        'model': 'smollm2-135m',  # a name, as for load_checkpoint
        'gguf': '',  # the same model; smollm2-135m has one
        'prompt': 'What is the capital of France?',
        'tokens': 64,
        # Tokens of prompts that are read in chunks.
        'lengths': (20, 40, 70, 100, 150, 200, 300, 500, 700, 1000, 1500),
      },
    }
  )
  return settings.apply(config, SETTINGS, setting)
