"""The library is built, or there is nothing to test."""

import pytest

from kvjax.native import build, load


@pytest.fixture(autouse=True, scope='module')
def built():
  if load.missing():
    try:
      build.build()
    except build.BuildError as error:
      pytest.skip(str(error))
    load.missing.cache_clear()
