"""docs/why_no_q says what the program prints, in both languages."""

import pathlib
import re

import numpy as np
import pytest

from experiments.why_no_q_cache import origin_note
from kvjax import liveness

DOCS = pathlib.Path(__file__).parents[2] / 'docs'
PAGES = ('why_no_q.md', 'why_no_q.zh.md')
SECTION = re.compile(r'<!-- (\w+) -->\n```text\n(.*?)```', re.DOTALL)


@pytest.fixture(scope='module')
def sections():
  return origin_note.sections()


@pytest.mark.parametrize('page', PAGES)
def test_the_numbers_of_the_page_are_the_programs(page, sections):
  text = (DOCS / page).read_text(encoding='utf-8')
  assert dict(SECTION.findall(text)) == sections
  table = [line for line in text.splitlines() if re.match(r'\| \d', line)]
  assert len(table) == 8
  for line in table:
    for named in re.findall(r'`(\w+)`', line.split('|')[-2]):
      assert named in sections


def test_row_1_is_one_query_and_column_1_one_key():
  q, k, _ = (part.astype(np.float64) for part in origin_note._qkv())
  scores = q @ k.T
  moved = lambda new: np.abs(new - scores) > 0
  by_q = moved((q + np.eye(3)[:, :1]) @ k.T)  # only row 1 of Q is changed
  assert by_q[0].all() and not by_q[1:].any()
  by_k = moved(q @ (k + np.eye(3)[:, :1]).T)
  assert by_k[:, 0].all() and not by_k[:, 1:].any()


def test_renaming_changes_no_verdict_and_columns_keep_the_query():
  x = origin_note._input(8)
  named = liveness.analyze(origin_note._attention(), x)
  other = liveness.analyze(origin_note._attention('k', 'q'), x)
  swap = {'q': 'k', 'k': 'q', 'v': 'v'}
  assert {swap[n]: t for n, t in named.live_for.items()} == other.live_for
  columns = liveness.analyze(origin_note._columns, x)
  assert set(columns.keep) == {'q', 'v'} and columns.live_for['k'] == 0
  assert columns.causal


def test_an_encoder_that_grows_reads_old_queries():
  report = liveness.analyze(
    origin_note._attention(causal=False), origin_note._input(8)
  )
  assert not report.causal and report.keep == ()
  assert report.live_for['q'] == np.inf


def test_a_stack_is_a_separation(sections):
  first, second, third = sections['stack'].splitlines()
  assert float(first.split()[-1]) > 0.01
  assert second.endswith('moves it by 0')
  assert third == 'lose any one of k1 v1 k2 v2: it moves'


def test_the_reader_decides_not_the_maker():
  x = origin_note._input(8)
  same = liveness.analyze(origin_note._attention(weights=(0, 0, 0)), x)
  assert same.keep == ('k', 'v') and same.live_for['q'] == 0
