"""Kernels inside the shards of a mesh, run and lowered in another process."""

import numpy as np
import pytest

from tests.sharding.eight_devices import run_lines


@pytest.fixture(scope='module')
def two_devices():
  (found,) = run_lines('tests.kernels.in_shards', devices=2)
  return found


def test_each_device_runs_the_hopper_kernel_on_its_slots(two_devices):
  logits = two_devices['logits']
  np.testing.assert_allclose(logits['shards'], logits['one device'], atol=0.03)


@pytest.mark.parametrize(('platform', 'calls'), [('cuda', 1), ('tpu', 0)])
def test_shards_are_lowered_for_absent_devices(two_devices, platform, calls):
  text = two_devices['lowered'][platform]
  assert text.count('@mosaic_gpu') == calls
  # Outputs of both heads over one half of the slots, with their log-sum-exps.
  moved = '(tensor<1x1x2x1x65xf32>) -> tensor<2x1x1x1x65xf32>'
  assert text.count(moved) == 1


def test_a_compiled_call_of_a_mesh_is_that_of_each_device(two_devices):
  # Half the slots of keys, values and positions; a length and a flag.
  cache = 2 * 64 * 64 * 2 + 64 * 4 + 4 + 1
  assert two_devices['alias'] == two_devices['planned'] == cache
