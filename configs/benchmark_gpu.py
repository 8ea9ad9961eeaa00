"""How close to the speed of memory does kvjax decode on a Hopper GPU?

  make bench-gpu                       all of it; or in two calls, first the
                                       parts that have not run on a GPU:
  make bench-gpu ARGS=--sections=target,memory,checks,models,products
  make bench-gpu ARGS='--append --sections=sweep,attention'
  python -m experiments.benchmark --config=configs/benchmark_gpu.py --budget=540
  python -m experiments.benchmark --config=configs/benchmark_gpu.py:tiny

One run measures what the card reads and copies. It writes the card's
description, for `make aot-h200`, compares the memory that a step and a prefill
occupied with the plan, and compares both forms of the kernel with float64 and
XLA. It times prompts, steps and tokens of a 1B and an 8B model, sweeps the
kernel's tiles, writes the best as the kernel's table and uses the table from
then on. Last it times attention with the peers and the bars. After `--budget`
seconds no row is begun. `tiny` runs on a CPU and interprets the kernels.

Goals, bfloat16, 8 kv heads, G = 4, H = 128, cold L2, on an H200: at least
4.2 TB/s at 8 rows of 32k, 4.0 at 16k, 3.3 at 4k; at most 40, 14 and 10 us at
one row of 32k, 4k and 1k (FlashAttention-3: 4.24, 4.05, 3.23 TB/s; 43.5, 14.5,
11.0 us); a step of the 8B-shaped model at 0.80 of its floor, of the 1B-shaped
one at 0.75. On another card bandwidths are multiplied, and times divided, by
its measured copy bandwidth over 4.3 TB/s. A row says whether its goal is met.

Expected, as measured on an H100: the bandwidths missed by 2 to 3 %, 1 x 32k by
5, the other two met; the 8B-shaped model at 0.799 by `generate`, the 1B-shaped
one at 0.57.
Would be refuted by: `mosaic_gpu` further below, or slower than `blockwise`.
"""

from ml_collections import ConfigDict

from configs import settings

CASES = (
  (8, 32_768),
  (8, 16_384),
  (8, 4096),
  (1, 32_768),
  (1, 4096),
  (1, 1024),
)
TINY = {
  'repeats': 1,
  'rotate': 0,
  'bandwidth': 1,
  'calls': 1,
  'models': ('model',),
  'memory': (('model', 'mosaic_gpu', 1, 64, 1),),
  'products': ((3, 32, 48),),
  'checks.problems': ((3, 1, 64, 64, 'bfloat16', {}, None),),
  'checks.lengths': (0, 5),
  'checks.slots': 64,
  'sweep.shapes': ((1, 64),),
  'sweep.heads_groups_width': (1, 4, 64),
  'sweep.axes': ('merge',),
  'sweep.repeats': 1,
  'attention.shapes': ((1, 4, 64),),
  'attention.slots': 64,
  'attention.cases': ((1, 40),),
  'attention.bars': (((1, 40), ('bandwidth', 4.2e12)),),
  'model.layers': 1,
  'model.width': 32,
  'model.num_heads': 2,
  'model.num_kv_heads': 1,
  'model.key_width': 64,
  'model.hidden': 48,
  'model.vocab_size': 64,
  'steps': ((1, 8),),
  'prompts': (72,),  # more rows than a kernel for few rows serves
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
      'repeats': 5,
      'rotate': 200_000_000,  # bytes of buffers; an L2 has 50 MB
      'bandwidth': 2048,  # MiB that are read to measure the read bandwidth
      'kernels': ('blockwise', 'mosaic_gpu'),
      'prompt_kernels': ('cudnn',),  # besides the default one
      'interpret': True,  # where there is no GPU
      # A host is slow: a call reads several buffers, and several calls are
      # queued before the host waits for one.
      'together': 64,
      'calls': 32,
      'sections': (
        'target',
        'memory',
        'checks',
        'models',
        'products',
        'sweep',
        'attention',
      ),
      'kinds': ('prefill', 'step', 'generate'),  # of rows of the models
      'forms': ('inside',),  # candidates of the kernel, alone and in steps
      'products': (  # rows, output and input channels
        (8, 4096, 4096),
        (8, 14_336, 4096),
        (8, 4096, 14_336),
      ),
      'memory': (  # model, kernel, batch, capacity, tokens, of growing size
        ('model', 'mosaic_gpu', 1, 4096, 1),
        ('model', 'blockwise', 4, 2048, 512),
      ),
      'models': ('small', 'model'),
      'checks': {
        'forms': ('', 'inside'),
        # Groups, tokens, key and value width, dtype, rule, softcap.
        'problems': (
          (4, 1, 128, 128, 'bfloat16', {}, None),
          (8, 4, 128, 128, 'bfloat16', {}, None),
          (1, 1, 64, 64, 'float16', {}, None),
          (4, 1, 192, 128, 'bfloat16', {}, None),
          (
            4,
            1,
            128,
            128,
            'bfloat16',
            {'window': 100, 'sink_tokens': 4},
            50.0,
          ),
          (4, 3, 128, 64, 'bfloat16', {'chunk': 128}, None),
          (16, 4, 64, 128, 'float16', {'causal': False}, None),
        ),
        'lengths': (0, 1, 77, 1000),
        'slots': 1024,
      },
      'sweep': {
        'heads_groups_width': (8, 4, 128),
        'shapes': CASES,  # batch, slots
        'axes': ('splits', 'block', 'merge'),  # varied in turn
        'repeats': 3,
      },
      'room': 512,  # slots beyond the context for tokens that are timed
      'attention': {
        'shapes': ((8, 4, 128),),
        'cases': CASES,  # batch, filled
        'slots': 0,  # 0: every slot is filled
        'dtypes': ('bfloat16',),
        'bars': (  # batch, filled: field, bar on an H200
          ((8, 32_768), ('bandwidth', 4.2e12)),
          ((8, 16_384), ('bandwidth', 4.0e12)),
          ((8, 4096), ('bandwidth', 3.3e12)),
          ((1, 32_768), ('seconds', 40e-6)),
          ((1, 4096), ('seconds', 14e-6)),
          ((1, 1024), ('seconds', 10e-6)),
        ),
      },
      'small': {  # Llama-3.2-1B
        'layers': 16,
        'width': 2048,
        'num_heads': 32,
        'num_kv_heads': 8,
        'key_width': 64,
        'hidden': 8192,
        'vocab_size': 128_256,
        'tied': True,
        'dtype': 'bfloat16',
        'bar': 0.75,  # of its floor, at one row
        'transformers': ('static', 'compiled'),
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
        'bar': 0.80,
        'transformers': ('static',),  # 'compiled' would take minutes
      },
      'steps': ((8, 2048), (1, 2048)),  # batch, context
      'prompts': (1024,),
      'generate': ((1, 2048, 32),),  # batch, context, tokens
    }
  )
  return settings.apply(config, SETTINGS, setting)
