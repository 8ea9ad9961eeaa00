"""What the sources say to an installation."""

import pathlib
import re
import tomllib

ROOT = pathlib.Path(__file__).parents[1]


def test_an_isolated_build_gets_the_jaxlib_that_is_installed():
  """Else it would see other headers, and name the library by them."""
  project = tomllib.loads((ROOT / 'pyproject.toml').read_text())
  (versions,) = re.findall(r"'jax(>=.*?)'", (ROOT / 'setup.py').read_text())
  assert f'jaxlib{versions}' in project['build-system']['requires']
