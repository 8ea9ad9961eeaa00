"""`experiments.why_no_q_cache` on a program that a user wrote."""

import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from experiments.reporting import records
from experiments.why_no_q_cache import examples
from kvjax import liveness
from tests.checkpoints.writing import GOLDEN

ROOT = pathlib.Path(__file__).parents[2]
MINE = """
import jax
import numpy as np
from jax.ad_checkpoint import checkpoint_name

W = np.random.default_rng(0).normal(size=(3, 10, 6)).astype(np.float32)

def attention(x):
  q, k, v = (checkpoint_name(x @ w, n) for w, n in zip(W, 'qkv'))
  past = np.tril(np.ones((len(x), len(x)), bool))
  return jax.nn.softmax(jax.numpy.where(past, q @ k.T, -1e30)) @ v
"""


def run(*flags, folder):
  (folder / 'mine.py').write_text(MINE)
  paths = os.pathsep.join([str(ROOT), str(folder)])
  return subprocess.run(
    [
      sys.executable,
      '-m',
      'experiments.why_no_q_cache',
      '--config=configs/why_no_q_cache.py:tiny',
      f'--workdir={folder / "out"}',
      *flags,
    ],
    cwd=ROOT,
    env=os.environ
    | {'JAX_PLATFORMS': 'cpu', 'PYTHONPATH': paths, 'XLA_FLAGS': ''},
    capture_output=True,
    text=True,
    timeout=600,
  )


def test_a_program_that_a_user_wrote(tmp_path):
  done = run('--program=mine:attention', '--config.shape=8,10', folder=tmp_path)
  assert done.returncode == 0, done.stderr
  assert 'Traceback' not in done.stderr and 'Warning' not in done.stderr
  found = records.read([tmp_path / 'out' / 'why_no_q_cache.jsonl'])
  tensors = {r['name']: r for r in found if r['record'] == 'tensor'}
  kept = {n: r['bytes_per_token'] for n, r in tensors.items() if r['kept']}
  assert kept == {'k': 24, 'v': 24}
  assert tensors['q']['live_for'] == 0
  reads = {r['tensor']: r['rows'] for r in found if r['record'] == 'reads'}
  assert sum(map(sum, reads['q'])) == 8 and sum(map(sum, reads['k'])) == 36
  assert len([r for r in found if r['record'] == 'form']) == 3
  pictures = {p.stem for p in (tmp_path / 'out').glob('*.png')}
  assert pictures == {'reads_decoder', 'lifetimes', 'frontier', 'cut'}
  page = (tmp_path / 'out' / 'why_no_q_cache.html').read_text()
  assert page.count('<img') == 4 and 'http' not in page


def test_a_model_by_its_name(tmp_path):
  done = run(f'--model={GOLDEN / "llama"}', folder=tmp_path)
  assert done.returncode == 0, done.stderr
  found = records.read([tmp_path / 'out' / 'why_no_q_cache.jsonl'])
  kept = {r['name'] for r in found if r['record'] == 'tensor' and r['kept']}
  assert kept == {'key', 'value'}
  latent = examples.of_model(str(GOLDEN / 'deepseek_v3'))
  report = liveness.analyze(latent, np.arange(5, dtype=np.int32), 0)
  assert report.keep == ('latent', 'rotary')


@pytest.mark.parametrize(
  ('flags', 'words'),
  [
    (['--variant=mxa'], "variant='mxa' is unknown"),
    (['--model=llama-3-9b'], "'llama-3-9b'; the nearest known: llama-3-8b"),
    ([f'--model={GOLDEN / "t5"}'], 'reads a source: name a decoder'),
    (['--program=mine'], "program='mine' must be module:function"),
    (
      ['--program=mine:attention', '--config.shape=8,7'],
      "program='mine:attention' does not take float32[8, 7]: TypeError",
    ),
  ],
)
def test_nonsense_is_refused_in_a_line(flags, words, tmp_path):
  done = run(*flags, folder=tmp_path)
  assert done.returncode == 2
  assert len(done.stderr.strip().splitlines()) == 1 and words in done.stderr
  assert not (tmp_path / 'out').exists()
