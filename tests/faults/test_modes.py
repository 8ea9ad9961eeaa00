"""Without jit, with guarded transfers, interrupted, forked: results stay."""

import contextlib
import os
import pathlib
import signal
import subprocess
import sys

import jax
import numpy as np
import pytest

import kvjax

LAYER = kvjax.Layer(kvjax.Grouped(2, 1, 16), kvjax.MLP(24))
CONFIG = kvjax.ModelConfig(29, 32, (LAYER,))
PARAMS = kvjax.init_params(CONFIG, jax.random.key(0))


def put(*numbers: object) -> jax.Array:
  return jax.device_put(np.asarray(numbers, np.int32))


def run_every_door(kind: kvjax.Kind | None) -> dict[str, object]:
  """Returns the results of the public calls by name; the host's are there."""
  cache = kvjax.init_cache(CONFIG, 2, 16, kinds=kind)
  tokens, lengths = put([1, 2, 3], [4, 5, -1]), put(3, 1)
  logits, cache = kvjax.prefill(CONFIG, PARAMS, cache, tokens, lengths)
  rest = CONFIG, PARAMS, cache, logits, 5
  results = {
    'prefill': (logits, cache),
    'extend': kvjax.extend(CONFIG, PARAMS, cache, tokens),
    'decode_step': kvjax.decode_step(
      CONFIG, PARAMS, cache, put(7, 8), donate=False
    ),
    'forward': kvjax.forward(CONFIG, PARAMS, tokens),
    'generate': kvjax.generate(*rest, block=2, donate=False),
    'generate_all': kvjax.generate(
      *rest,
      temperature=0.7,
      top_k=9,
      top_p=0.9,
      min_p=0.01,
      seed=[3, 4],
      stop_tokens=[5],
      stop_lengths=[5, 3],
      log_probs=True,
      stream=lambda tokens: None,
      donate=False,
    ),
    'rewind': kvjax.rewind(cache, put(2, 1)),
    'rewind_all': kvjax.rewind(cache, 1),
    'take': kvjax.take(cache, put(1, 1)),
    'repeat': kvjax.repeat(cache, 2),
    'fork': kvjax.fork(cache),
    'concat': kvjax.concat([cache, kvjax.fork(cache)]),
    'earliest': kvjax.earliest(cache),
  }
  kvjax.check(cache)
  return {'inspect': str(kvjax.inspect(cache))} | jax.device_get(results)


MODES = {
  # Without jit every operation is a program to compile: one kind must do.
  'disable_jit_dense': (jax.disable_jit, None),
  'transfer_guard_dense': (lambda: jax.transfer_guard('disallow'), None),
  'transfer_guard_paged': (
    lambda: jax.transfer_guard('disallow'),
    kvjax.Paged(page=2),
  ),
}


@pytest.mark.parametrize('mode, kind', MODES.values(), ids=MODES)
def test_every_door_gives_the_plain_result(mode, kind):
  # Programs that are compiled already have no numbers to transfer.
  jax.clear_caches()
  with mode():
    found = run_every_door(kind)
  want = run_every_door(kind)
  assert found.pop('inspect') == want.pop('inspect')
  for name, result in want.items():
    jax.tree.map(
      lambda x, y, name=name: np.testing.assert_allclose(
        x, y, atol=1e-5, err_msg=name
      ),
      found[name],
      result,
    )


def interrupt(*_: object) -> None:
  """What Ctrl-C does while the host is in the middle of something."""
  signal.raise_signal(signal.SIGINT)


def test_an_interrupted_generation_keeps_what_was_sampled():
  cache = kvjax.init_cache(CONFIG, 1, 16)
  logits, cache = kvjax.prefill(CONFIG, PARAMS, cache, put([1, 2, 3]))
  want, _ = kvjax.generate(CONFIG, PARAMS, cache, logits, 9, donate=False)

  def progress(done, _):
    if done == 5:
      interrupt()

  with pytest.raises(KeyboardInterrupt) as raised:
    kvjax.generate(CONFIG, PARAMS, cache, logits, 9, block=2, progress=progress)
  tokens, cache = vars(raised.value)['partial']
  np.testing.assert_array_equal(tokens[:, :5], want[:, :5])
  np.testing.assert_array_equal(tokens[:, 5:], -1)
  np.testing.assert_array_equal(cache.length, [3 + 4])
  logits, _ = kvjax.decode_step(CONFIG, PARAMS, cache, tokens[:, 4])
  np.testing.assert_array_equal(logits.argmax(-1), want[:, 5])


@pytest.mark.parametrize('seconds', [0.02, 0.05, 0.1])
def test_an_interrupt_at_any_moment_leaves_a_cache(seconds):
  """The host may be within a call that was given the cache; none is lost."""
  logits, cache = kvjax.prefill(
    CONFIG, PARAMS, kvjax.init_cache(CONFIG, 1, 8192), put([1, 2, 3])
  )
  kvjax.generate(CONFIG, PARAMS, cache, logits, 9, block=8, donate=False)
  before = signal.signal(signal.SIGALRM, interrupt)
  signal.setitimer(signal.ITIMER_REAL, seconds)
  try:
    with pytest.raises(KeyboardInterrupt) as raised:
      kvjax.generate(CONFIG, PARAMS, cache, logits, 8001, block=8)
  finally:
    signal.signal(signal.SIGALRM, before)
  tokens, cache = vars(raised.value)['partial']
  count = int((tokens >= 0).sum())
  assert cache.length.tolist() == [3 + count - 1]
  logits, _ = kvjax.decode_step(CONFIG, PARAMS, cache, tokens[:, count - 1])
  assert np.isfinite(logits).all()


def test_an_interrupted_save_leaves_the_old_file(tmp_path, monkeypatch):
  cache = kvjax.init_cache(CONFIG, 1, 16)
  path = tmp_path / 'prompt.safetensors'
  kvjax.save_cache(path, cache, CONFIG, PARAMS)
  before = path.read_bytes()
  _, cache = kvjax.prefill(CONFIG, PARAMS, cache, put([1, 2, 3]))
  with monkeypatch.context() as patched:
    patched.setattr(os, 'fsync', interrupt)
    with contextlib.suppress(KeyboardInterrupt):
      kvjax.save_cache(path, cache, CONFIG, PARAMS)
  assert path.read_bytes() == before
  assert [file.name for file in tmp_path.iterdir()] == [path.name]
  kvjax.save_cache(path, cache, CONFIG, PARAMS)
  assert path.read_bytes() != before


# In a forked child a program of plain JAX waits forever for threads that are
# gone, and Python's own exit ends in a signal: JAX warns of it. A child can use
# what the host has, and leave by os._exit. The library does not wait:
# tests/native/sanitize.cc calls the library with a pool whose threads are gone.
FORKED = """
import os, sys, warnings
warnings.simplefilter('ignore', RuntimeWarning)
sys.path.insert(0, {folder!r})
import numpy as np
import test_modes as modes
results = modes.run_every_door(None)
child = os.fork()
if not child:
  os._exit(0 if np.isfinite(results['prefill'][0]).all() else 1)
assert os.waitpid(child, 0)[1] == 0
again = modes.run_every_door(None)
np.testing.assert_array_equal(results['prefill'][0], again['prefill'][0])
"""


@pytest.mark.skipif(not hasattr(os, 'fork'), reason='no fork on this system')
def test_a_forked_child_ends_and_its_parent_goes_on():
  code = FORKED.format(folder=str(pathlib.Path(__file__).parent))
  done = subprocess.run(
    [sys.executable, '-c', code], timeout=120, capture_output=True, text=True
  )
  assert done.returncode == 0, done.stderr
