"""The loop of the kernel runs as a whole at tiny size."""

import pytest

from experiments.kernel_loop import loop
from kvjax.native.build import BuildError

CASES = (
  loop.Attention(2, 3, 16, 128, 'int8'),
  loop.Attention(2, 3, 64, 128, 'int4'),
  loop.Attention(1, 2, 32, 64, 'bfloat16', rotary=16),
  loop.Projection(8, 32, 64, 'float32'),
)


def test_the_loop_runs_at_tiny_size(tmp_path):
  try:
    lib = loop.build(tmp_path)
  except BuildError as error:
    if 'no C++ compiler' not in str(error):
      raise  # the loop follows the kernel's headers
    pytest.skip(str(error))
  machine, *records = loop.rows(lib, CASES, turns=1, rotate=40_000)
  assert machine['flops'] > 0 and machine['read'] > 0
  kinds = [record['record'] for record in records]
  assert kinds == ['attention'] * 3 + ['projection']
  for record in records:
    assert 0 < record['arithmetic'] and 0 < record['seconds']
    assert record['reading'] == record['bytes'] / record['read']


def test_small_cases_are_the_same_work_within_the_second_level_cache():
  whole = loop.Attention(8, 4, 128, 8192, 'float32')
  assert whole.bytes == 2 * 8 * 8192 * 128 * 4
  assert whole.operations == 2 * 2 * 8 * 4 * 8192 * 128
  assert whole.small.bytes == 2 * 256 * 128 * 4 <= loop.CACHED
  latent = loop.Attention(1, 16, 512, 8192, 'float32', rotary=64)
  assert latent.bytes == 8192 * 576 * 4
  assert latent.operations == 2 * 16 * 8192 * (512 + 576)
  weight = loop.Projection(8, 8192, 1024, 'int8')
  assert weight.small.bytes <= loop.CACHED and weight.small.lines % 16 == 0
