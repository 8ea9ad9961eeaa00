"""What tests of experiments share."""

from collections.abc import Iterator

import pytest

from tests.experiments.commands import Commands


@pytest.fixture(scope='session')
def commands(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Commands]:
  """Yields a process that has imported what experiments import."""
  process = Commands(tmp_path_factory.mktemp('commands'))
  yield process
  process.end()
