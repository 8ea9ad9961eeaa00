"""A few random calls under a sanitizer; `make sanitize` makes thousands."""

import pytest

from tests.native import sanitize


def test_random_calls_stay_in_their_operands_and_are_right(tmp_path):
  try:
    printed = sanitize.run_driver(tmp_path, sanitize.QUICK)
  except sanitize.MissingToolError as error:
    pytest.skip(str(error))
  assert f'{sanitize.CALLS[sanitize.QUICK]} calls' in printed
