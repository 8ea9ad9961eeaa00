"""The library is built, or there is nothing to test."""

import pytest

from kvjax.native import build as library
from kvjax.native import load as loaded


@pytest.fixture(autouse=True, scope='module')
def built():
  if loaded.missing():
    try:
      library.build()
    except library.BuildError as error:
      pytest.skip(str(error))
    loaded.missing.cache_clear()
