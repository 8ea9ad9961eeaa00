"""The picture of the README: how long q, k and v live, and what that costs.

  make picture        or        python -m experiments.why_no_q_cache.lifetimes

Lifetimes are found by changing one row of q, k or v at a time in an attention
and looking which output rows change; bytes come from the models' configs.
"""

import pathlib

from absl import flags

from experiments import launch
from experiments.measuring.separation import lives
from experiments.measuring.small_example import llama_bytes
from experiments.reporting import plots, records

_OUT = flags.DEFINE_string('out', 'docs/images/lifetimes.png', 'PNG to write.')
TOKENS = 6


def main(argv: list[str]) -> None:
  del argv
  picture = plots.lifetimes(
    'A query dies with its token; its key and value are read by every later '
    'one',
    lives(TOKENS),
    llama_bytes(),
    'bytes per token at the size of Llama-3-8B, bfloat16',
  )
  path = pathlib.Path(_OUT.value)
  with records.writing_to(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(picture)
  print(path)


if __name__ == '__main__':
  launch.run(main)
