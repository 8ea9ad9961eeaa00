"""What is for a GPU, where none is: run in small, or refused in a line."""

import importlib.util
import json

import pytest

from kvjax.benchmark import ahead, for_hopper
from tests.experiments.commands import ROOT, run

PTXAS = """ptxas info    : Function properties for a
    0 bytes stack frame, {store} bytes spill stores, {load} bytes spill loads
ptxas info    : Used {registers} registers, used 16 barriers
"""
STEP = """HloModule jit_call
fused { %x = bf16[8,64]{1,0} transpose(%y) }
ENTRY %main {
  %cache = bf16[8,64]{1,0} parameter(0)
  %write = bf16[8,64]{1,0} fusion(%cache), metadata={op_name="layer_0/cache/sc"}
  %small = bf16[8,8]{1,0} copy(%cache), metadata={op_name="a/attend"}
  %moved.1 = bf16[64,8]{1,0} transpose(%write), metadata={op_name="a/attend"}
  ROOT %c = f32[8]{0} custom-call(%small), custom_call_target="mosaic_gpu_v2"
}
"""


class Compiled:
  """As much of a compiled program as a reader of its text needs."""

  def as_text(self) -> str:
    return STEP


def test_the_gpu_benchmark_runs_with_its_kernel_interpreted(tmp_path):
  config = f'--config={ROOT}/configs/benchmark_gpu.py:tiny'
  ended = run('benchmark', config, f'--workdir={tmp_path}')
  assert ended.code == 0, ended.err
  lines = (tmp_path / 'benchmark.jsonl').read_text().splitlines()
  rows = [json.loads(line) for line in lines]
  for record in ('attention', 'step'):
    ran = {r.get('kernel') for r in rows if r['record'] == record}
    assert {'blockwise', 'mosaic_gpu'} <= ran


def test_a_target_that_is_no_file_and_a_compiler_that_is_not_there(tmp_path):
  with pytest.raises(OSError, match='nowhere'):
    ahead.device(tmp_path / 'nowhere.txtpb')
  if any(importlib.util.find_spec(name) for name in ahead.PLUGINS):
    pytest.skip('the compiler is here')
  file = tmp_path / 'card.txtpb'
  file.write_text('device_description_str: "a card"\n')
  with pytest.raises(ValueError, match='pip install --no-deps jax-cuda13-pjrt'):
    ahead.device(file)
  assert ahead.name_of(file)['target'] == 'a card'


def test_what_the_assembler_says_is_summed_up_once(monkeypatch):
  monkeypatch.setenv('MOSAIC_GPU_DUMP_TO', 'before')
  with ahead.assembler() as reports:
    folder = ahead.pathlib.Path(ahead.os.environ['MOSAIC_GPU_DUMP_TO'])
    for n, store in enumerate((0, 24)):
      text = PTXAS.format(store=store, load=8 * n, registers=100 + n)
      (folder / f'{n}.ptxas').write_text(text)
    assert reports() == {'kernels': 2, 'registers': 101, 'spills': 32}
    assert reports()['kernels'] == 0
  assert ahead.os.environ['MOSAIC_GPU_DUMP_TO'] == 'before'


def test_a_transpose_of_the_cache_is_seen():
  assert ahead.moved(Compiled(), 8 * 64) == ['transpose a/attend']
  assert ahead.kernel_calls(Compiled()) == 1
  record = {
    'alias': 8, 'cache': 8, 'arguments': 9, 'planned_arguments': 9,
    'outputs': 9, 'planned_outputs': 9, 'ratio': 1.02, 'spills': 0,
    'moved': ['transpose a/attend'], 'kernel': 'mosaic_gpu', 'calls': 1,
    'layers': 1, 'temporaries': 5, 'smallest_leaf': 8, 'largest_leaf': 8,
  }  # fmt: skip
  assert for_hopper._failed(record) == [
    'peak within 1 %', 'no copy, no transpose', 'nothing moved',
  ]  # fmt: skip
  good = record | {'ratio': 0.995, 'moved': []}
  assert not for_hopper._failed(good)
  assert for_hopper._failed(good | {'temporaries': 8, 'spills': 4, 'alias': 4})
