"""Random operations on caches of every kind, against lists of tokens.

  python -m tests.stateful.run --examples=1000 --seed=0 [--subjects=NAME,...]

Every example is a run of operations on a few caches of one subject (a model,
kinds and a codec). A failure is shrunk and printed as the operations that lead
to it; the exit status is then 1.
"""

import os
import sys
import time
import traceback
from collections.abc import Sequence

import jax
import pytest
from absl import app, flags

from tests.compiler import quick_flags

os.environ.setdefault('XLA_FLAGS', quick_flags())  # before anything compiles
jax.config.update('jax_platforms', 'cpu')

from tests.stateful.explore import explore  # noqa: E402
from tests.stateful.subjects import SUBJECTS  # noqa: E402
from tests.stateful.tally import Tally  # noqa: E402

NAMES = [subject.name for subject in SUBJECTS]
EXAMPLES = flags.DEFINE_integer('examples', 1000, 'Runs of operations.')
STEPS = flags.DEFINE_integer('steps', 20, 'Operations of a run.')
SEED = flags.DEFINE_integer('seed', 0, 'Of the operations.')
NAMED = flags.DEFINE_list('subjects', NAMES, 'What is run, by name.')


def main(argv: Sequence[str]) -> None:
  if len(argv) > 1:
    raise app.UsageError(f'Unknown argument {argv[1]!r}.')
  unknown = set(NAMED.value) - set(NAMES)
  if unknown:
    raise app.UsageError(f'Unknown subjects: {sorted(unknown)}; of {NAMES}.')
  subjects = [x for x in SUBJECTS if x.name in NAMED.value]
  total, failed, start = Tally(), [], time.time()
  for index, subject in enumerate(subjects):
    share = EXAMPLES.value * (index + 1) // len(subjects)
    count = share - EXAMPLES.value * index // len(subjects)
    began, tally = time.time(), Tally()
    try:
      explore(subject, tally, count, STEPS.value, SEED.value)
    except (Exception, pytest.fail.Exception):
      traceback.print_exc()
      failed.append(f'{subject.name} after {tally.first_failure} examples')
    jax.clear_caches()  # no other subject has these programs
    total.add(tally)
    print(f'{subject.name}: {tally}, {time.time() - began:.0f} s', flush=True)
  print(', '.join(f'{n} {k}' for k, n in sorted(total.operations.items())))
  print(f'Seed {SEED.value}: {total}, {time.time() - start:.0f} s.')
  if failed:
    print('Failed:', *failed, sep='\n  ')
    sys.exit(1)


if __name__ == '__main__':
  app.run(main)
