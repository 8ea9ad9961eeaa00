"""The library is built, or there is no compiler and nothing to test."""

import pytest

from kvjax.native import build, load


@pytest.fixture(autouse=True, scope='module')
def built():
  if load.missing():
    try:
      build.build()
    except build.BuildError as error:
      if 'no C++ compiler' not in str(error):
        raise
      pytest.skip(str(error))
    load.missing.cache_clear()
