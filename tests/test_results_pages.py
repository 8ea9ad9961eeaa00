"""The results pages are what the script prints from the committed records."""

import json

import pytest
from absl.flags import FLAGS

from experiments import launch
from experiments.results_pages import recordings
from experiments.results_pages.__main__ import RESULTS, TEMPLATES, main, page
from experiments.results_pages.expressions import evaluate, format_value
from experiments.results_pages.templates import render_template
from tests.experiments.flags import given_flags

FOLDER = launch.ROOT / 'docs' / 'results'
NAMES = [template.name for template in TEMPLATES]
RECORDS = (
  {'record': 'run', 'config': {'layers': 8}},
  {'record': 'step', 'name': 'a', 'rows': 1, 'seconds': 0.002},
  {'record': 'step', 'name': 'a', 'rows': 8, 'seconds': 0.004, 'bytes': 1234},
  {'record': 'step', 'name': 'b c', 'rows': 1, 'seconds': 0.0123},
)


def render(tmp_path, text):
  """Returns a template rendered over RECORDS, in a file named `steps`."""
  lines = ''.join(json.dumps(record) + '\n' for record in RECORDS)
  (tmp_path / 'steps.jsonl').write_text(lines)
  (tmp_path / 'page.md').write_text(text)
  return render_template(tmp_path / 'page.md', tmp_path)


@pytest.mark.parametrize('template', TEMPLATES, ids=NAMES)
def test_a_committed_page_is_what_the_script_prints(template):
  committed = (FOLDER / template.name).read_text()
  assert committed == page(template), (
    f'docs/results/{template.name} is old: '
    'run python -m experiments.results_pages'
  )


def test_every_record_is_shown():
  text = ''.join((FOLDER / name).read_text() for name in NAMES)
  for path in RESULTS.glob('*.jsonl'):
    assert f'record: `results/{path.name}`' in text, path.name


def test_every_section_of_numbers_names_command_machine_date_and_commit():
  for name in NAMES:
    text = (FOLDER / name).read_text()
    count = text.count('- record: ')
    assert count
    for word in ('- command: `python -m experiments.', '- machine: ', '- date'):
      assert text.count(word) == count, (name, word)
    assert '| ---' not in text.split('- record: ')[0], name


def test_no_column_is_empty():
  """A misspelled key of a ratio would be one."""
  for name in NAMES:
    for part in (FOLDER / name).read_text().split('\n\n'):
      if part.startswith('|'):
        head, _, *rows = (row.split(' | ') for row in part.splitlines())
        for title, *column in zip(head, *rows, strict=True):
          assert any(text.strip(' |') for text in column), (name, title)


def test_prose_stays_within_80_columns():
  for path in FOLDER.glob('*.md'):
    for line in path.read_text().splitlines():
      assert len(line) <= 80 or line[0] in '|-', (path.name, line)


def test_a_table_has_a_row_a_record(tmp_path):
  text = """```table record=step "name!=b c"
records: steps
| what | ms |
| --- | ---: |
| {name} of {run[config][layers]} | {seconds:ms} | {bytes} |
```
```table name=b* rows<=1
records: steps
| {rows} | {seconds:ms .1f} |
```
"""
  assert render(tmp_path, text).splitlines() == [
    '| what | ms |',
    '| --- | ---: |',
    '| a of 8 | 2.00 |  |',
    '| a of 8 | 4.00 | 1,234 |',
    '| 1 | 12.3 |',
  ]


def test_values_of_a_field_become_columns(tmp_path):
  text = """```table record=step
records: steps
by: name
across: rows
sort: -count
| {name} | {rows[8][seconds] / rows[1][seconds]:.1f} | {max seconds:us} |
```
"""
  assert render(tmp_path, text) == '| a | 2.0 | 4,000 |\n| b c |  | 12,300 |\n'


def test_a_text_is_about_all_selected_records(tmp_path):
  text = (
    'Before.\n\n```text rows=1\nrecords: steps\n{count}:\n{min seconds}.\n```'
  )
  assert render(tmp_path, text) == 'Before.\n\n2: 0.002.'


@pytest.mark.parametrize(
  ('text', 'message'),
  [
    ('```table name=a\n{name}\n```', 'above the first source'),
    ('```table name=z\nrecords: steps\n{name}\n```', 'no record with  ?name=z'),
    ('```table name\nrecords: steps\n{name}\n```', "'name' is no condition"),
    ('```table\nrecords: steps\n```', 'nothing to show'),
  ],
)
def test_a_wrong_block_is_refused(tmp_path, text, message):
  with pytest.raises(ValueError, match=message):
    render(tmp_path, text)


def test_a_field_that_no_record_has_is_refused(tmp_path):
  with pytest.raises(KeyError, match='second'):
    render(tmp_path, '```table name=a\nrecords: steps\n{second}\n```')


def test_a_run_of_a_file_with_several_is_named():
  third = recordings.read_recording(RESULTS, 'benchmark_cpu_step_avx512#3')
  assert third.run['environment']['commit'] == 'e5dba6be53+'
  with pytest.raises(ValueError, match='holds 3 runs'):
    recordings.read_recording(RESULTS, 'benchmark_cpu_step_avx512')


def test_statistics_pass_over_records_without_the_field():
  row = {'members': [{'bits': 0.0}, {'bits': None}, {'bits': 3.0}]}
  assert evaluate('min bits', row) == 0
  assert evaluate('spread bits', row) == 1.5


def test_a_ratio_says_faster_or_slower():
  assert format_value(2.0, 'faster') == '2.00x faster'
  assert format_value(0.8, 'faster') == '1.25x slower'
  assert format_value(12.34, 'faster') == '12.3x faster'
  assert format_value(1.0, 'faster') == format_value(None, 'faster') == ''
  ratios = {'slow': 3.0, 'quick': 0.5}
  assert format_value(ratios, 'than fastest') == '2.00x slower than quick'
  assert format_value({}, 'than fastest') == ''


def test_the_script_writes_every_page(tmp_path, capsys):
  with given_flags(FLAGS, pages=str(tmp_path)):
    main([])
  assert {path.name for path in tmp_path.iterdir()} == set(NAMES)
  assert '| machine | what |' in capsys.readouterr().out
