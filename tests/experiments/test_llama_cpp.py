"""The parts of the peer llama.cpp that run where it is not installed."""

import importlib.util

import jax
import numpy as np
import pytest

from configs import benchmark_cpu
from experiments.measuring import llama_cpp, model, peers

SHAPE = benchmark_cpu.get_config('tiny').model.to_dict()


def test_absence_is_named_and_nothing_is_raced(monkeypatch):
  find = importlib.util.find_spec
  for lacking in ('llama_cpp', 'gguf'), ('gguf',):
    monkeypatch.setattr(
      importlib.util,
      'find_spec',
      lambda name, *rest, lacking=lacking: (
        None if name in lacking else find('jax')
      ),
    )
    names = ', '.join(peers.PIP.get(name, name) for name in lacking)
    assert llama_cpp.absence() == f'not installed: {names}'
    case = model.StepCase(model.describe(SHAPE), {}, 1, 8)
    assert llama_cpp.entries(case, 1) == {}
  monkeypatch.setattr(jax, 'default_backend', lambda: 'gpu')
  assert llama_cpp.absence() == 'not raced on gpu'


def test_only_float32_is_written(tmp_path):
  config = model.describe(SHAPE | {'dtype': 'bfloat16'})
  with pytest.raises(ValueError, match='in float32, not in bfloat16'):
    llama_cpp.write_gguf(tmp_path / 'model.gguf', config, {})


def test_pairs_of_rotated_features_become_neighbours():
  halves = np.arange(2 * 8)[:, None]  # two heads, of eight features each
  pairs = [0, 4, 1, 5, 2, 6, 3, 7]
  want = [pairs, [8 + x for x in pairs]]
  assert llama_cpp.paired(halves, 2).reshape(2, 8).tolist() == want


@pytest.mark.parametrize('tied', [False, True])
def test_what_is_written(tmp_path, tied):
  gguf = pytest.importorskip('gguf')
  config, params = model.build(SHAPE | {'tied': tied})
  llama_cpp.write_gguf(tmp_path / 'model.gguf', config, params)
  read = gguf.GGUFReader(tmp_path / 'model.gguf')
  written = {x.name: x.data for x in read.tensors}
  shapes = {
    name: x.shape for name, x in written.items() if 'blk.1.' not in name
  }
  assert shapes == {
    'token_embd.weight': (64, 32),
    'output_norm.weight': (32,),
    **({} if tied else {'output.weight': (64, 32)}),
    'blk.0.attn_q.weight': (32, 32),
    'blk.0.attn_k.weight': (16, 32),
    'blk.0.attn_v.weight': (16, 32),
    'blk.0.attn_output.weight': (32, 32),
    'blk.0.ffn_gate.weight': (64, 32),
    'blk.0.ffn_up.weight': (64, 32),
    'blk.0.ffn_down.weight': (32, 64),
    'blk.0.attn_norm.weight': (32,),
    'blk.0.ffn_norm.weight': (32,),
  }
  assert all(x.dtype == np.float32 for x in written.values())
  attention = params['layers'][1]['attention']
  assert (written['blk.1.attn_v.weight'] == attention['value']).all()
  want = llama_cpp.paired(np.asarray(attention['key']), 2)
  assert (written['blk.1.attn_k.weight'] == want).all()
