"""What the sources say to an installation."""

import pathlib
import re
import shutil
import subprocess
import tomllib

import pytest

ROOT = pathlib.Path(__file__).parents[1]


def test_an_isolated_build_gets_the_jaxlib_that_is_installed():
  """Else it would see other headers, and name the library by them."""
  project = tomllib.loads((ROOT / 'pyproject.toml').read_text())
  (versions,) = re.findall(r"'jax(>=.*?)'", (ROOT / 'setup.py').read_text())
  assert f'jaxlib{versions}' in project['build-system']['requires']


@pytest.mark.skipif(shutil.which('make') is None, reason='there is no make')
@pytest.mark.parametrize(
  ('fails', 'is_left_out', 'code'),
  [
    ('nothing', False, 0),
    ('pip', True, 0),
    ('experiments.real_model', False, 2),
  ],
)
def test_make_run_leaves_the_model_out_only_without_its_package(
  tmp_path, fails, is_left_out, code
):
  """An interpreter that runs nothing, and fails for one module."""
  python = tmp_path / 'python'
  python.write_text(f'#!/bin/sh\necho "$@"\n[ "$2" != {fails} ]\n')
  python.chmod(0o755)
  done = subprocess.run(
    ['make', 'run', f'PY={python}'], cwd=ROOT, capture_output=True, text=True
  )
  assert done.returncode == code
  assert ('was left out' in done.stdout) == is_left_out
  assert ('-m experiments.real_model\n' in done.stdout) != is_left_out
