"""Draws runs of operations, and shrinks one that fails to its least steps."""

import zlib

import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from tests.stateful.feeds import WIDTH
from tests.stateful.session import BATCHES, LIVE, MOST, NUM_TOKENS, Session
from tests.stateful.subjects import Subject
from tests.stateful.tally import Tally


def one_a_row(strategy: st.SearchStrategy) -> st.SearchStrategy:
  return st.lists(strategy, min_size=MOST, max_size=MOST)


places = st.integers(0, LIVE - 1)
seeds = st.integers(0, 99)
rows = st.integers(0, MOST - 1)
batches = st.sampled_from(BATCHES)
counts = st.sampled_from((1, 2, 4, 7))
paddings = st.sampled_from(('right', 'left', 'ids'))
stops = one_a_row(st.integers(0, NUM_TOKENS))
back = one_a_row(st.sampled_from((0, 0, 1, 0, 2, 3, WIDTH)))
flags = one_a_row(st.sampled_from((True, True, True, False)))
# Bits of a mask say which of WIDTH places have a token.
masks = one_a_row(st.sampled_from((15, 1, 3, 7, 14, 12, 8, 5, 10, 0, 15, 15)))
copies = rows.map(lambda row: [row] * MOST)
FEED = dict(masks=masks, seed=seeds, padding=paddings)
OPERATIONS = (
  ('rest', dict()),  # the simplest comes first
  ('init', dict(batch=batches)),
  ('extend', FEED),
  ('extend', FEED),
  ('prefill', FEED),
  ('prefill', FEED),
  ('decode_step', dict(seed=seeds, active=flags, is_token=flags)),
  ('decode_steps_of_all_rows', dict(seed=seeds, count=counts)),
  ('decode_steps_of_all_rows', dict(seed=seeds, count=counts)),
  ('decode_steps_of_all_rows', dict(seed=seeds, count=counts)),
  ('generate', dict(stops=stops)),
  ('rewind', dict(back=back, donate=st.booleans())),
  ('rewind', dict(back=back, donate=st.booleans())),
  ('rewind_a_row_to_its_edges', dict(row=rows, by=st.integers(-1, 1))),
  ('fork', dict(other=places)),
  ('take', dict(numbers=one_a_row(rows), half=st.booleans())),
  ('take', dict(numbers=copies, donate=st.booleans())),
  ('repeat', dict()),
  ('concat', dict(other=places, seed=seeds)),
  ('save_and_load', dict()),
  ('wrong_arguments', dict(seed=seeds, row=rows, extend=st.booleans())),
)
operations = st.one_of(
  *(
    st.tuples(st.just(name), st.fixed_dictionaries({'place': places} | more))
    for name, more in OPERATIONS
  )
)


def explore(
  subject: Subject, tally: Tally, examples: int, steps: int, number: int
) -> None:
  """Runs that many examples of a subject, which `tally` counts.

  Raises what the smallest failing example raises. Examples follow from
  `number` and the subject's name.
  """

  def run(batch, plan):
    tally.examples += 1
    session = Session(subject, tally, batch)
    try:
      for name, arguments in plan:
        getattr(session, name)(**arguments)
    except (Exception, pytest.fail.Exception):
      tally.first_failure = tally.first_failure or tally.examples
      raise

  plans = st.lists(operations, min_size=steps, max_size=steps)
  fixed = settings(
    max_examples=examples,
    deadline=None,
    database=None,
    phases=(Phase.generate, Phase.shrink),
    suppress_health_check=(HealthCheck.too_slow, HealthCheck.data_too_large),
  )
  start = zlib.crc32(f'{subject.name} {number}'.encode())
  seed(start)(fixed(given(batch=batches, plan=plans)(run)))()
