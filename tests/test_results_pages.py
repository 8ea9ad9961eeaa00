"""The results pages are what the script prints from the committed records."""

import pytest
from absl.flags import FLAGS

from experiments import launch
from experiments.results_pages.__main__ import PAGES, RESULTS, main
from experiments.results_pages.markdown import relative, table
from tests.experiments.flags import given_flags

FOLDER = launch.ROOT / 'docs' / 'results'


@pytest.mark.parametrize('name', PAGES)
def test_a_committed_page_is_what_the_script_prints(name):
  committed = (FOLDER / name).read_text()
  assert committed == PAGES[name](RESULTS), (
    f'docs/results/{name} is old: run python -m experiments.results_pages'
  )


def test_every_record_is_shown():
  text = ''.join((FOLDER / name).read_text() for name in PAGES)
  for path in RESULTS.glob('*.jsonl'):
    assert f'record: `results/{path.name}`' in text, path.name


def test_every_section_of_numbers_names_command_machine_date_and_commit():
  for name in PAGES:
    text = (FOLDER / name).read_text()
    count = text.count('- record: ')
    assert count
    for word in ('- command: `python -m experiments.', '- machine: ', '- date'):
      assert text.count(word) == count, (name, word)


def test_prose_stays_within_80_columns():
  for path in FOLDER.glob('*.md'):
    for line in path.read_text().splitlines():
      assert len(line) <= 80 or line[0] in '|-', (path.name, line)


def test_a_ratio_says_faster_or_slower():
  assert relative(2.0) == '2.00x faster'
  assert relative(0.8) == '1.25x slower'
  assert relative(12.34) == '12.3x faster'
  assert relative(None) == ''


def test_a_table_aligns_columns_of_numbers():
  text = table(('what', 'ms'), [('a|b', 1.5), ('c', 12000)])
  assert text.splitlines() == [
    '| what | ms |',
    '| --- | ---: |',
    '| a\\|b | 1.5 |',
    '| c | 12,000 |',
  ]


def test_the_script_writes_every_page(tmp_path):
  with given_flags(FLAGS, out=str(tmp_path)):
    main([])
  assert {path.name for path in tmp_path.iterdir()} == set(PAGES)
