"""Makes the checkpoints that tests/checkpoints reads.

    python tests/golden/make_checkpoints.py [name ...]

Needs torch and transformers (5.23 made the committed ones); the tests do not.
Each folder under tests/golden/checkpoints is one model as published: a
config.json, safetensors and `reference.npz`, inputs and float32 logits of one
pass without a cache. The file of its family in tests/checkpoints/families says
what its config.json has.
"""

import pathlib
import shutil
import sys

ROOT = pathlib.Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from tests.checkpoints.families import CASES  # noqa: E402
from tests.golden.reference import write_checkpoint  # noqa: E402

HERE = pathlib.Path(__file__).parent / 'checkpoints'


def main(names: list[str]) -> None:
  for name, case in CASES.items():
    if names and name not in names:
      continue
    path = HERE / name
    shutil.rmtree(path, ignore_errors=True)
    write_checkpoint(
      path, dict(case.config), seed=case.seed, old=case.old, shard=case.shard
    )
    size = sum(file.stat().st_size for file in path.iterdir())
    print(f'{name:20s} {size:7d} bytes')


if __name__ == '__main__':
  main(sys.argv[1:])
