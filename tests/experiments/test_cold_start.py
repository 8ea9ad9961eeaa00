"""Which processes are started and timed, and with what bytecode."""

import numpy as np
import pytest
from ml_collections import ConfigDict

from configs import benchmark_cpu
from experiments.benchmark import cold_start, tables
from experiments.measuring import llama_cpp, model
from kvjax.text import smollm2
from tests.checkpoints.writing import GOLDEN

LLAMA = str(GOLDEN / 'llama')


@pytest.fixture
def started(monkeypatch):
  """Returns what is started in place of processes: code, or a source."""
  calls = []

  def start(writer, source, tokens, ids, variables):
    calls.append((writer, source))
    return {'tokens': [7] * tokens, 'load': 1.0, 'first': 2.0, 'seconds': 3.0}

  monkeypatch.setattr(cold_start, '_start', start)
  monkeypatch.setattr(
    cold_start, '_python', lambda *arguments: calls.append(arguments)
  )
  monkeypatch.setattr(llama_cpp, 'absence', lambda: '')
  monkeypatch.setattr(llama_cpp, 'stored_type', lambda path: 'Q4_1')
  monkeypatch.setattr(cold_start.peers, 'transformers_absence', lambda: 'none')
  return calls


def rows_of(model, gguf):
  chosen = {'model': model, 'gguf': gguf, 'prompt': 'A', 'tokens': 2}
  return list(cold_start.time_starts(ConfigDict(chosen)))


def test_the_model_may_have_no_gguf_file(started, monkeypatch):
  def another():
    pytest.fail('the file of another model was taken')

  monkeypatch.setattr(smollm2, 'source', another)
  rows = rows_of(LLAMA, '')
  assert started[1:] == [('kvjax', LLAMA)] * 3
  skipped = {row['name']: row['skipped'] for row in rows if 'skipped' in row}
  reason = skipped['rows of a .gguf']
  assert f'smollm2-135m and not of {LLAMA}' in reason
  assert '--config.cold.gguf=FILE' in reason
  assert not tables.wrongs(rows)


def test_a_gguf_file_that_is_named_is_read(started):
  rows = rows_of(LLAMA, 'its.gguf')
  assert started[-2:] == [('kvjax', 'its.gguf'), ('llama.cpp', 'its.gguf')]
  (last,) = [row for row in rows if row['name'] == 'llama.cpp']
  assert last['weights'] == 'Q4_1'
  shown = tables.section('Cold', rows)[0]
  names = [row[0] for row in shown.rows]
  assert names[0] == 'kvjax' and names[-1] == 'llama.cpp (Q4_1)'


def test_a_start_before_all_others_leaves_bytecode(started, monkeypatch):
  rows_of(LLAMA, '')
  assert started[0] == ('-c', 'import kvjax, kvjax.text')
  monkeypatch.undo()
  monkeypatch.setenv('PYTHONDONTWRITEBYTECODE', '1')
  code = 'import os, sys; print(sys.dont_write_bytecode, os.environ["X"])'
  assert cold_start._python('-c', code, X='y').stdout.split() == ['False', 'y']


def test_the_type_of_most_weights(tmp_path):
  gguf = pytest.importorskip('gguf')
  path = str(tmp_path / 'model.gguf')
  shape = benchmark_cpu.get_config('tiny').model.to_dict()
  llama_cpp.write_gguf(path, *model.build(shape))
  assert llama_cpp.stored_type(path) == 'F32'
  writer = gguf.GGUFWriter(path, 'llama')
  weights = np.ones((64, 32), 'float32')
  kind = gguf.GGMLQuantizationType.Q4_1
  writer.add_tensor('wide', gguf.quantize(weights, kind), raw_dtype=kind)
  writer.add_tensor('norm', weights[0])
  writer.add_tensor('bias', weights[0])
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()
  assert llama_cpp.stored_type(path) == 'Q4_1'
