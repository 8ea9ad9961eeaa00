"""What tests of experiments share."""

from collections.abc import Iterator

import pytest

from tests.experiments.commands import Commands


@pytest.fixture(scope='session')
def commands(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Commands]:
  """A process that has imported what experiments import."""
  found = Commands(tmp_path_factory.mktemp('commands'))
  yield found
  found.end()
