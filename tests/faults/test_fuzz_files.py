"""500 changed files: none does more than be refused, or be read as it says."""

import collections

import pytest

from kvjax import text
from tests.faults import fuzz_files


def test_changed_files():
  outcomes = list(fuzz_files.run(500, seed=0))
  faults = [
    f'{x.format} {x.number}: {x.result}' for x in outcomes if x.is_fault
  ]
  assert not faults
  counts = collections.Counter((x.format, x.result) for x in outcomes)
  names = {x.format for x in outcomes}
  assert len(names) == 10
  assert all(counts[name, 'refused'] for name in names)
  assert all(counts[name, 'read'] for name in names - {'saved cache'})


def test_a_tokenizer_without_its_unknown_token(tmp_path):
  """`tokenizers` reads such a file, and fails at an unknown character."""
  tokenizers = pytest.importorskip('tokenizers')
  model = tokenizers.models.BPE({'a': 0}, [], unk_token='?')
  tokenizers.Tokenizer(model).save(str(tmp_path / 'tokenizer.json'))
  with pytest.raises(ValueError, match="tokenizer.json cannot encode 'b': Unk"):
    text.load_tokenizer(tmp_path).encode('b')
