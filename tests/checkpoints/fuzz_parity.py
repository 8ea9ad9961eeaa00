"""Question: do configs never tried before match transformers on the first try?

    make fuzz-parity FAMILY=llama SEED=7
    python tests/checkpoints/fuzz_parity.py --family=llama --seed=7

Draws `--count` tiny configs of the family, builds each with transformers
(random weights, older or newer key style, keys at their default said or left
out), and compares on CPU: float32 logits uncached, in ragged chunks, one token
at a time and through pages, and greedy continuations. A difference over 1e-4
(2e-6 of the largest logit where that is more), or another token, refutes the
claim; its config is printed and the exit status is 1. Needs torch and
transformers. Programs are compiled as in tests (XLA_FLAGS=' ' for what users
run): 2 to 5 s of processor time a config.
"""

import json
import os
import pathlib
import sys
import tempfile
import warnings

import jax
import numpy as np
from absl import app, flags

ROOT = pathlib.Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from tests.compiler import quick_flags  # noqa: E402

os.environ.setdefault('XLA_FLAGS', quick_flags())  # before anything compiles

from tests.checkpoints import compare, drawing  # noqa: E402
from tests.checkpoints.families import FACTS  # noqa: E402
from tests.golden.reference import quiet, write_checkpoint  # noqa: E402

FAMILY = flags.DEFINE_enum(
  'family', 'llama', [*sorted(FACTS), 'all'], 'Model family.'
)
SEED = flags.DEFINE_integer('seed', 0, 'Of configs, weights and tokens.')
COUNT = flags.DEFINE_integer('count', 20, 'Configs a family.')
WAYS = flags.DEFINE_list('ways', list(compare.WAYS), 'How logits are made.')


def run(family: str, seed: int, count: int) -> int:
  """Prints a line a config; returns how many failed."""
  rng = np.random.default_rng([seed, *family.encode()])
  failed, worst, limit = 0, 0.0, compare.TOLERANCE
  for index in range(count):
    config = drawing.draw(family, rng)
    old, bare = bool(rng.integers(2)), bool(rng.integers(2))
    weights = int(rng.integers(1 << 30))
    with tempfile.TemporaryDirectory() as folder:
      path = pathlib.Path(folder)
      try:
        write_checkpoint(path, config, seed=weights, old=old, bare=bare)
        found = compare.differences(path, WAYS.value)
        limit = compare.limit(path)
      except Exception as error:  # a refusal or a crash is a finding as well
        print(f'{family} {index}: {type(error).__name__}: {error}')
        found = {'error': np.inf}
    worst = max(worst, *found.values())
    if max(found.values()) > limit:
      failed += 1
      style = f'old={old} bare={bare} weights={weights}'
      print(f'{family} {index} {style}: {found}')
      print(json.dumps(config), flush=True)
  print(
    f'{family} seed={seed}: {count - failed} of {count}, worst {worst:.1e}',
    flush=True,
  )
  return failed


def main(argv: list[str]) -> None:
  del argv
  warnings.simplefilter('ignore')
  quiet()
  jax.config.update('jax_platforms', 'cpu')
  families = [FAMILY.value]
  if FAMILY.value == 'all':
    families = sorted(FACTS)
  sys.exit(any([run(f, SEED.value, COUNT.value) for f in families]))


if __name__ == '__main__':
  app.run(main)
