"""Flags of an experiment, set within a block."""

import contextlib
from collections.abc import Iterator
from typing import Any

from absl import flags
from absl.testing import flagsaver


@contextlib.contextmanager
def given_flags(values: flags.FlagValues, **given: Any) -> Iterator[None]:
  """Sets flags of an experiment, and puts them back at the end."""
  values.mark_as_parsed()
  before = flagsaver.save_flag_values(values)
  try:
    for name, value in given.items():
      values[name].value = value
    yield
  finally:
    flagsaver.restore_flag_values(before, values)
