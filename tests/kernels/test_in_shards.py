"""Kernels inside the shards of a mesh, run and lowered in another process."""

import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from tests import compiler

ROOT = pathlib.Path(__file__).parents[2]
FLAGS = f'--xla_force_host_platform_device_count=2 {compiler.quick_flags()}'


@pytest.fixture(scope='module')
def two_devices():
  run = subprocess.run(
    [sys.executable, '-m', 'tests.kernels.in_shards'],
    cwd=ROOT,
    env=os.environ | {'XLA_FLAGS': FLAGS, 'JAX_PLATFORMS': 'cpu'},
    capture_output=True,
    text=True,
    check=False,
  )
  assert not run.returncode, run.stderr[-2_000:]
  return json.loads(run.stdout)


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
