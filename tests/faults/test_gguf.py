"""Changed GGUF files: refused in words, or read; never much time or memory."""

import pathlib
import time
import tracemalloc

import numpy as np
import pytest

from kvjax import text
from kvjax.checkpoints.load import open_checkpoint
from tests.checkpoints.gguf_writing import write
from tests.faults.fuzz_files import CONSTANT, SECONDS, TIMES
from tests.faults.mutations import (
  change_bytes,
  change_gguf_bytes,
  change_gguf_number,
)
from tests.golden.make_gguf import HERE
from tests.text.test_gguf_tokenizer import BYTES, SENTENCES


def read_model(path: pathlib.Path) -> None:
  _, sources = open_checkpoint(path)
  for source in sources:
    source.read()


def read_text(path: pathlib.Path) -> None:
  text.load_tokenizer(path).encode('ab é')
  text.stop_tokens(path)


def check(path: pathlib.Path, read, data: bytes) -> bool:
  """Returns whether a file is refused."""
  path.write_bytes(data)
  refused = False
  tracemalloc.reset_peak()
  before, _ = tracemalloc.get_traced_memory()
  begun = time.perf_counter()
  try:
    read(path)
  except ValueError as error:
    refused = True
    assert str(path) in str(error), error
  assert time.perf_counter() - begun < SECONDS
  size = tracemalloc.get_traced_memory()[1] - before
  assert size < TIMES * len(data) + CONSTANT
  return refused


@pytest.fixture
def traced():
  tracemalloc.start()
  yield
  tracemalloc.stop()


@pytest.mark.usefixtures('traced')
@pytest.mark.parametrize('name', ['llama3_old', 'gpt_oss', 'phi3'])
def test_changed_models(tmp_path, name):
  data = (HERE / f'{name}.gguf').read_bytes()
  path = tmp_path / 'model.gguf'
  assert not check(path, read_model, data)
  draw = np.random.default_rng(0)
  changes = change_bytes, change_gguf_bytes, change_gguf_number
  refused = [
    check(path, read_model, change(data, draw))
    for change in changes
    for _ in range(20)
  ]
  assert any(refused) and not all(refused)


@pytest.mark.usefixtures('traced')
@pytest.mark.parametrize('values', [BYTES, SENTENCES], ids=['bytes', 'pieces'])
def test_changed_tokenizers(tmp_path, values):
  pytest.importorskip('tokenizers')
  path = write(tmp_path / 'model.gguf', values)
  data = path.read_bytes()
  assert not check(path, read_text, data)
  draw = np.random.default_rng(0)
  refused = [
    check(path, read_text, change(data, draw))
    for change in (change_bytes, change_gguf_number)
    for _ in range(50)
  ]
  assert any(refused) and not all(refused)


@pytest.mark.parametrize(
  ('data', 'message'),
  [
    (b'', 'truncated or no GGUF file: 0 bytes'),
    (b'GGUF' + bytes(15), 'truncated or no GGUF file: 19 bytes'),
    (b'PK\x03\x04' + bytes(60), "begins with b'PK"),
    (b'GGUF\x01' + bytes(60), 'version 1 of the format is not supported'),
    (b'GGUF\x00\x00\x00\x03' + bytes(60), 'it is big-endian'),
  ],
)
def test_what_is_no_such_file_is_refused(tmp_path, data, message):
  path = tmp_path / 'x.gguf'
  path.write_bytes(data)
  with pytest.raises(ValueError, match=f'x.gguf.*{message}'):
    open_checkpoint(path)


def test_a_pipe_or_folder_with_the_suffix_is_not_opened(tmp_path):
  (tmp_path / 'x.gguf').mkdir()
  with pytest.raises(FileNotFoundError, match='neither a directory with conf'):
    open_checkpoint(tmp_path / 'x.gguf')
