"""Flags of an experiment, set for a while."""

import contextlib
from collections.abc import Iterator
from typing import Any

from absl import flags
from absl.testing import flagsaver


@contextlib.contextmanager
def given_flags(values: flags.FlagValues, **given: Any) -> Iterator[None]:
  """Sets an experiment's own flags, and puts them back."""
  values.mark_as_parsed()
  before = flagsaver.save_flag_values(values)
  try:
    for name, value in given.items():
      values[name].value = value
    yield
  finally:
    flagsaver.restore_flag_values(before, values)
