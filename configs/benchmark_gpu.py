"""How close to the speed of memory does kvjax decode on a Hopper GPU?

  python -m experiments.benchmark --config=configs/benchmark_gpu.py
  python -m experiments.benchmark --config=configs/benchmark_gpu.py:tiny

`tiny` runs on a CPU, the kernel interpreted, in half a minute. Nothing of this
has run on a GPU yet, so no wall time is known.

Expected, bfloat16, 8 kv heads, G = 4, H = 128, cold L2, on an H200: at least
4.2 TB/s at 8 rows of 32k, 4.0 at 16k, 3.3 at 4k; at most 40, 14 and 10 us at
one row of 32k, 4k and 1k (FlashAttention-3: 4.24, 4.05, 3.23 TB/s; 43.5, 14.5,
11.0 us); a step of the 8B-shaped model at 0.80 of its floor. On an H100 times,
or divided by, its measured copy bandwidth over 4.3 TB/s.

Would be refuted by: `mosaic_gpu` below these, or slower than `jax.nn`.
"""

from ml_collections import ConfigDict

TINY = {
    'repeats': 1,
    'rotate': 0,
    'bandwidth': 1,
    'attention.shapes': ((1, 4, 64),),
    'attention.batches': (1,),
    'attention.slots': 64,
    'attention.filled': (40,),
    'model.layers': 1,
    'model.width': 32,
    'model.num_heads': 2,
    'model.num_kv_heads': 1,
    'model.key_width': 64,
    'model.hidden': 48,
    'model.vocab_size': 64,
    'steps': ((1, 8),),
    'prompts': (),
    'generate': (),
    'room': 56,
}
SETTINGS = {
    'default': {},
      'tiny': TINY,
}


def get_config(setting: str = 'default') -> ConfigDict:
  """Returns the setting 'default' or 'tiny'."""
  config = ConfigDict(
      {
          'repeats': 9,
          'rotate': 300_000_000,  # bytes of buffers; an L2 has 50 MB
          'bandwidth': 2048,  # MiB read to find what the machine can read
          'kernels': ('blockwise', 'mosaic_gpu'),
          'generate_kernels': ('blockwise', 'mosaic_gpu'),
          'interpret': True,  # where there is no GPU
          'together': True,  # one call reads all buffers: a host is slow
          'room': 256,  # slots beyond the context for tokens that are timed
          'attention': {
              'shapes': ((8, 4, 128),),
              'batches': (1, 8),
              'slots': 0,  # as many as are filled
              'filled': (32_768, 16_384, 4096, 1024),
              'dtypes': ('bfloat16',),
              'largest': 5_000_000_000,  # bytes of a float32 cache
          },
          'model': {  # Llama-3.1-8B
              'layers': 32,
              'width': 4096,
              'num_heads': 32,
              'num_kv_heads': 8,
              'key_width': 128,
              'hidden': 14_336,
              'vocab_size': 128_256,
              'dtype': 'bfloat16',
          },
          'steps': ((1, 128), (1, 2048), (8, 2048)),  # batch, context
          'prompts': (1024,),
          'generate': ((1, 2048, 32),),  # batch, context, tokens
      }
  )
  if setting not in SETTINGS:
    raise ValueError(
        f'setting={setting!r} is unknown; known: {", ".join(SETTINGS)}.'
    )
  config.update_from_flattened_dict(SETTINGS[setting])
  return config
