"""500 changed files: none does more than be refused, or be read as it says."""

import collections
import dataclasses
import mmap
import tracemalloc

import pytest

from kvjax import text
from tests.faults import formats, fuzz_files


def test_changed_files():
  outcomes = list(fuzz_files.run(500, seed=0))
  faults = [
    f'{x.format} {x.number}: {x.result}' for x in outcomes if x.is_fault
  ]
  assert not faults
  counts = collections.Counter((x.format, x.result) for x in outcomes)
  names = {x.format for x in outcomes}
  assert len(names) == 15
  assert all(counts[name, 'refused'] for name in names)
  assert all(counts[name, 'read'] for name in names - {'saved cache'})


def test_a_tokenizer_without_its_unknown_token(tmp_path):
  """`tokenizers` reads such a file, and fails at an unknown character."""
  tokenizers = pytest.importorskip('tokenizers')
  model = tokenizers.models.BPE({'a': 0}, [], unk_token='?')
  tokenizers.Tokenizer(model).save(str(tmp_path / 'tokenizer.json'))
  with pytest.raises(ValueError, match="tokenizer.json cannot encode 'b': Unk"):
    text.load_tokenizer(tmp_path).encode('b')


def judge(tmp_path, read, reference=None, name='file'):
  """Returns the result of one changed file of a format that `read` parses."""
  form = formats.Format(
    name,
    lambda folder: None,
    (lambda data, draw: data + b'x',),
    read,
    reference,
  )
  return fuzz_files._try(form, tmp_path, b'x', (0, 0), 'bad').result


@pytest.fixture
def traced():
  tracemalloc.start()
  yield
  tracemalloc.stop()


@pytest.mark.usefixtures('traced')
class TestOracles:
  """A parser that is at fault is found: each with one deliberate fault."""

  def test_memory_of_python(self, tmp_path):
    result = judge(tmp_path, lambda folder: len(bytes(32 << 20)))
    assert 'bytes for a file of 2' in result

  @pytest.mark.skipif(
    not fuzz_files.CLEAR.exists(), reason='Only Linux counts a peak anew.'
  )
  def test_memory_of_libraries(self, tmp_path):
    def read(folder):
      with mmap.mmap(-1, 32 << 20) as memory:
        for start in range(0, 32 << 20, 1 << 12):
          memory[start] = 1

    assert 'bytes for a file of 2' in judge(tmp_path, read)

  def test_a_refusal_that_names_nothing(self, tmp_path):
    def refuse(folder):
      raise ValueError('a number is wrong')

    result = judge(tmp_path, refuse)
    assert result == 'refuses without naming the file: a number is wrong'

  def test_a_refusal_that_names_its_file(self, tmp_path):
    def refuse(folder):
      raise ValueError(f'{folder / "file"}: a number is wrong')

    assert judge(tmp_path, refuse) == 'refused'

  def test_a_template(self, tmp_path):
    pytest.importorskip('jinja2')
    formats.write_template(tmp_path)
    name = formats.chat.FILE
    assert formats.render(tmp_path) == formats.official_render(tmp_path)
    (tmp_path / name).write_text('x{% break')
    assert formats.render(tmp_path) is None
    result = judge(
      tmp_path, lambda folder: 'y', formats.official_render, name=name
    )
    assert result == 'reads y, not xx'

  def test_a_config_whose_number_is_changed(self, tmp_path, monkeypatch):
    """kvjax's own parser agrees with itself here; the formulas do not."""
    formats.copy_model('qwen2')(tmp_path)
    assert formats.read_config(tmp_path) == formats.config_of_json(tmp_path)
    config = dataclasses.replace(formats.QWEN2[0], vocab_size=98)
    monkeypatch.setattr(formats.kvjax, 'load_config', lambda folder: config)
    monkeypatch.setattr(formats, 'parse_config', lambda values: config)
    assert formats.read_config(tmp_path) != formats.config_of_json(tmp_path)
