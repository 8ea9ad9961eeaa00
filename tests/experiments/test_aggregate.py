"""Tables of medians: digits, alignment, columns, and what LaTeX reads."""

import csv
import io
import shutil
import subprocess

import pytest

from experiments.aggregate import summary
from experiments.aggregate.summary import Repeats, Summary, summarize
from experiments.reporting import records
from tests.experiments.commands import ROOT

ROWS = [
  {'record': 'r', 'kind': 'a', 'config': {'seed': s}, 'bits': b}
  for s, b in [(0, 1.0), (1, 4.0), (2, 2.0)]
] + [{'record': 'r', 'kind': 'b_1', 'bits': 7.0}, {'record': 'other'}]
# Every sign that LaTeX reads as a command, at the start of a row too.
HOSTILE = (r'a_b^2\c~{d}&%#$', '[8pt]', '*', '<x|y>', '-0.5')


def test_a_summary_is_median_and_half_range():
  made = summarize(ROWS, ['kind'], ['bits'], {'record': 'r'})
  assert made.columns == ('kind', 'bits', 'n')
  assert made.rows == (
    ('a', Repeats(2.0, 1.5, 3), 3),
    ('b_1', Repeats(7.0, 0.0, 1), 1),
  )
  assert made.note() == 'bits: median of 1 to 3 records, ± half their range.'


def test_a_dotted_field_reaches_into_a_record():
  made = summarize(ROWS, ['config.seed'], ['bits'])
  assert [row[0] for row in made.rows] == [0, 1, 2]
  assert made.note() == 'bits: of one record.'


@pytest.mark.parametrize(
  ('median', 'spread', 'text'),
  [
    (8.041, 0.06566, '8.041 ± 0.066'),
    (2.0, 1.5, '2.0 ± 1.5'),
    (12345.6, 7.0, '12,345.6 ± 7.0'),
    (12345.6, 234.5, '12,346 ± 234'),
    (0.0, 0.0126, '0.000 ± 0.013'),
    (2.7134, 0.0094, '2.7134 ± 0.0094'),
    (2.7134, 0.0996, '2.71 ± 0.10'),
    (7.0, 0.0, '7'),
    (float('nan'), 0.0, 'nan'),
    (1.0, float('inf'), '1 ± inf'),
  ],
)
def test_a_spread_has_two_digits_and_its_median_the_same_decimals(
  median, spread, text
):
  assert str(Repeats(median, spread, 3)) == text


def test_columns_by_the_values_of_a_field():
  """The table of variants by caches, whose cells are bits."""
  found = records.read([ROOT / 'results' / 'compare_full.jsonl'])
  where = {'record': 'quality'}
  made = summarize(found, ['variant'], ['bits'], where, 'cache')
  assert made.columns == (
    'variant',
    'dense',
    'int8',
    'ring',
    'sinks',
    'bounded',
  )
  assert [row[0] for row in made.rows] == ['mha', 'gqa', 'mqa', 'mla']
  assert made.texts()[1][:3] == ['mha', '2.652 ± 0.055', '2.652 ± 0.055']
  # The second form of the same: a row a variant and a cache.
  flat = summarize(found, ['variant', 'cache'], ['bits'], where)
  cells = {row[:2]: row[2] for row in flat.rows}
  for variant, *medians in made.rows:
    for cache, median in zip(made.columns[1:], medians, strict=True):
      assert cells[variant, cache] == median


def test_columns_of_two_fields_and_of_groups_that_are_not_there():
  found = [
    {'v': 'a', 'c': 'x', 'bits': 1.0, 'size': 8},
    {'v': 'a', 'c': 'y', 'bits': 2.0},
    {'v': 'b', 'c': 'y', 'bits': 3.0, 'size': 4},
  ]
  made = summarize(found, ['v'], ['bits', 'size'], across='c')
  assert summary.markdown(made) == (
    '| v | x: bits | x: size | y: bits | y: size |\n'
    '| --- | ---: | ---: | ---: | ---: |\n'
    '| a | 1 | 8 | 2 | - |\n'
    '| b | - | - | 3 | 4 |\n'
    '\nbits, size: of one record.\n'
  )
  head, *rows = csv.reader(io.StringIO(summary.comma_separated(made)))
  assert head[:5] == ['v', 'x: bits', 'x: bits ±', 'x: size', 'x: size ±']
  assert rows[1] == ['b', '', '', '', '', '3.0', '0.0', '4.0', '0.0']


def test_numbers_are_to_the_right_in_markdown_and_latex():
  made = summarize(ROWS, ['kind'], ['bits'])
  assert summary.markdown(made) == (
    '| kind | bits | n |\n'
    '| --- | ---: | ---: |\n'
    '| a | 2.0 ± 1.5 | 3 |\n'
    '| b_1 | 7 | 1 |\n'
    '\nbits: median of 1 to 3 records, ± half their range.\n'
  )
  assert r'\begin{tabular}{lrr}' in summary.latex(made)


def test_a_bar_in_a_name_makes_no_column():
  made = summarize([{'k': 'a|b', 'x': 1.0}], ['k'], ['x'])
  assert r'| a\|b | 1 | 1 |' in summary.markdown(made)


def test_csv_has_all_digits():
  made = summarize(ROWS, ['kind'], ['bits'])
  assert summary.comma_separated(made).splitlines() == [
    'kind,bits,bits ±,n',
    'a,2.0,1.5,3',
    'b_1,7.0,0.0,1',
  ]


def hostile():
  repeats = Repeats(8.041, 0.06566, 2)
  rows = tuple((name, repeats, -1) for name in HOSTILE)
  return Summary(('a_b', 'bits & %', 'n'), rows, ('bits_x',))


def test_every_sign_of_latex_is_escaped():
  text = summary.latex(hostile(), 'Bits.', 'tab:bits')
  assert text.splitlines() == [
    r'\begin{table}',
    r'\centering',
    r'\caption{Bits. bits\_x: median of 2 records, $\pm$ half their range.}',
    r'\label{tab:bits}',
    r'\begin{tabular}{lrr}',
    r'\toprule',
    r'a\_b & bits \& \% & n \\',
    r'\midrule',
    r'a\_b\textasciicircum{}2\textbackslash{}c\textasciitilde{}\{d\}\&\%\#\$'
    r' & 8.041 $\pm$ 0.066 & $-$1 \\',
    r'{[}8pt] & 8.041 $\pm$ 0.066 & $-$1 \\',
    r'{*} & 8.041 $\pm$ 0.066 & $-$1 \\',
    r'\textless{}x\textbar{}y\textgreater{} & 8.041 $\pm$ 0.066 & $-$1 \\',
    r'$-$0.5 & 8.041 $\pm$ 0.066 & $-$1 \\',
    r'\bottomrule',
    r'\end{tabular}',
    r'\end{table}',
  ]


@pytest.mark.skipif(shutil.which('pdflatex') is None, reason='no pdflatex')
def test_latex_compiles(tmp_path):
  table = summary.latex(hostile(), r'Bits of $x_1$.', 'tab:bits')
  (tmp_path / 'a.tex').write_text(
    '\\documentclass{article}\\usepackage{booktabs}\\begin{document}\n'
    f'{table}Table \\ref{{tab:bits}}.\\end{{document}}\n'
  )
  done = subprocess.run(
    ['pdflatex', '-interaction=nonstopmode', '-halt-on-error', 'a.tex'],
    cwd=tmp_path,
    capture_output=True,
    timeout=120,
  )
  assert done.returncode == 0, done.stdout.decode(errors='replace')[-1000:]


def test_fields_that_fit_nothing_are_refused_with_those_that_are():
  with pytest.raises(ValueError, match='theirs: bits, config, kind, record'):
    summarize(ROWS, ['nope'], ['bits'])
  with pytest.raises(ValueError, match='value=bits,nope: not all are fields'):
    summarize(ROWS, ['kind'], ['bits', 'nope'])
  with pytest.raises(ValueError, match='by=kind,nope value=bits: not all'):
    summarize(ROWS, ['kind'], ['bits'], across='nope')


def test_a_caption_without_latex_is_refused(commands):
  ended = commands('aggregate', '--caption=Bits.', 'x.jsonl')
  assert ended.code == 2 and 'add --format=latex' in ended.err


def test_the_command_makes_a_table_of_columns(commands):
  ended = commands(
    'aggregate',
    '--where=record=quality',
    '--by=variant',
    '--columns=cache',
    str(ROOT / 'results' / 'compare_full.jsonl'),
  )
  head = ended.out.splitlines()[0]
  assert head == '| variant | dense | int8 | ring | sinks | bounded |'
