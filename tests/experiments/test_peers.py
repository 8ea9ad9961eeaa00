"""Peers compute what kvjax does. Needs torch, and one test triton."""

import os
import subprocess
import sys

import jax
import pytest

from configs import benchmark_cpu
from experiments.measuring import (
  attention,
  attention_peers,
  clock,
  llama_cpp,
  model,
  peers,
)
from tests.experiments.commands import ROOT

pytestmark = [
  pytest.mark.slow,
  pytest.mark.filterwarnings('ignore'),
]
SHAPE = benchmark_cpu.get_config('tiny').model.to_dict()
TRITON = """
import torch
from experiments.measuring import triton_decode
for shape in ((1, 1, 4, 40, 64), (2, 3, 5, 200, 64), (1, 8, 1, 1000, 128)):
  batch, heads, groups, slots, width = shape
  for dtype in torch.float32, torch.float16:
    q, k, v = (
      torch.randn(batch, heads, n, width, dtype=dtype)
      for n in (groups, slots, slots)
    )
    result = triton_decode.attend(q, k, v).double()
    q, k, v = (x.double() for x in (q, k, v))
    scores = q @ k.transpose(-1, -2) * width**-0.5
    want = torch.softmax(scores, -1) @ v
    assert (result - want).abs().max() < 1e-3, (shape, dtype)
"""


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
@pytest.mark.parametrize(
  'name',
  ['jax.nn', 'torch sdpa', 'torch flash', 'torch math', 'torch flex'],
)
def test_attention_of_peers_on_a_cpu(name, dtype):
  (peer,) = [p for p in attention_peers.PEERS if p.name == name]
  for module in peer.modules:
    pytest.importorskip(module)
  case = attention.AttentionCase(2, 2, 4, 64, 128, 100, dtype)
  drawn = [attention.draw(case, seed) for seed in range(2)]
  parts = [
    (q.astype(dtype), *(x[:, :, :100].astype(dtype) for x in (k, v)))
    for q, k, v in drawn
  ]
  with jax.numpy_dtype_promotion('standard'):  # jax.nn mixes dtypes
    first, second = peer.make(parts)()
  assert first.shape == second.shape == parts[0][0].shape
  result = peers.host(first[:1])[0]
  error = clock.difference(result, attention.reference(case, drawn[0]))
  assert error < attention.TOLERANCE[dtype]


@pytest.mark.parametrize(
  ('kind', 'dtype', 'tied'),
  [
    ('static', 'float32', False),
    ('dynamic', 'bfloat16', True),
    ('compiled', 'bfloat16', True),
  ],
)
def test_a_step_of_transformers_with_our_weights(kind, dtype, tied):
  pytest.importorskip('transformers')
  shape = SHAPE | {'dtype': dtype, 'tied': tied}
  config, params = model.build(shape)
  case = model.StepCase(config, params, 2, 24)
  cache = model.filled(case, 24 + 32)
  want = model.step_calls(case, cache, 'blockwise')()
  theirs = peers.torch_model(config, params)
  call = peers.torch_decode(theirs, kind, case.streams, case.token, 24 + 32)
  assert clock.difference(call(), want) < model.TOLERANCE[dtype]


@pytest.mark.parametrize(('rows', 'tied'), [(1, False), (3, True)])
def test_a_step_of_llama_cpp_with_our_weights(rows, tied):
  for module in llama_cpp.MODULES:
    pytest.importorskip(module)
  shape = SHAPE | {'tied': tied}
  config, params = model.build(shape)
  # More tokens than llama.cpp reads at once, and no multiple of its cells.
  context = llama_cpp.CHUNK + 88
  case = model.StepCase(config, params, rows, context)
  entries = llama_cpp.entries(case, 1)
  assert list(entries) == list(llama_cpp.KINDS)
  for name, entry in entries.items():
    runner = entry()
    assert runner.error < runner.tolerance, name
    # The token was removed again: the next step is at the same length.
    assert (runner.call() == runner.call()).all(), name


def test_the_triton_kernel_interpreted():
  pytest.importorskip('triton')
  subprocess.run(
    [sys.executable, '-c', TRITON],
    cwd=ROOT,
    env=os.environ | {'TRITON_INTERPRET': '1'},
    check=True,
  )
