"""Caches saved by earlier versions still load and continue.

`tests/golden/saved_caches/` holds one file for every kind, saved at commit
717c09c after 7 and 5 tokens, and the logits `[2, V]` of the tokens 3 and 4
that came next.
"""

import jax.numpy as jnp
import numpy as np
import pytest

import kvjax
from tests.checkpoints.writing import GOLDEN

SAVED = sorted((GOLDEN.parent / 'saved_caches').glob('*.safetensors'))


@pytest.mark.parametrize('path', SAVED, ids=lambda path: path.stem)
def test_a_saved_cache_still_loads_and_continues(path):
  model = next(n for n in ('qwen2', 'deepseek_v2') if path.stem.startswith(n))
  config, params = kvjax.load_checkpoint(GOLDEN / model)
  cache = kvjax.load_cache(path, config, params)
  assert cache.length.tolist() == [7, 5]
  logits, _ = kvjax.decode_step(config, params, cache, jnp.asarray([3, 4]))
  want = np.load(path.with_suffix('.npy'))
  np.testing.assert_allclose(logits, want, atol=2e-5, rtol=2e-5)


def test_there_is_one_of_every_kind():
  assert len(SAVED) == 5
