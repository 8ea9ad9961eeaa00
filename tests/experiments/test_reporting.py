"""Blocks, records, plots and summaries."""

import html.parser
import json
import math
import re

import numpy as np
import pytest

from experiments.aggregate import summary
from experiments.measuring import small_example
from experiments.reporting import plots, records, writer
from experiments.reporting.blocks import (
  Code,
  Heading,
  Picture,
  Table,
  Text,
  page,
)

PNG = b'\x89PNG'
BLOCKS = (
  Heading('A `part`'),
  Text('one **two** `a < b`'),
  Code('x < 1\n', prompt='>>> '),
  Table('T', ('name', 'n', 'ok'), [['a & b', 12345, True], ['c', 0.5, False]]),
  Picture('plot', PNG, 'what "it" shows'),
)


class _Balanced(html.parser.HTMLParser):
  """Counts open elements and refuses anything fetched from outside."""

  def __init__(self):
    super().__init__()
    self.open = []

  def handle_starttag(self, tag, attrs):
    for name, value in attrs:
      if name in ('src', 'href'):
        assert value.startswith('data:')
    if tag not in ('img', 'meta'):
      self.open.append(tag)

  def handle_endtag(self, tag):
    assert self.open.pop() == tag


def test_a_page_is_balanced_escaped_and_self_contained():
  text = page('Title <1>', BLOCKS)
  parser = _Balanced()
  parser.feed(text)
  assert parser.open == []
  assert 'Title &lt;1&gt;' in text
  assert '<code>a &lt; b</code>' in text
  assert 'a &amp; b' in text and '12,345' in text and 'NO' in text
  assert 'http' not in text


def test_a_writer_shows_records_and_saves(tmp_path, capsys):
  report = writer.start(tmp_path / 'new', 'x', 'A title', {'seed': 3})
  report = report.show(*BLOCKS)
  report.record({'record': 'one', 'value': np.float32(0.5)})
  # Strings may hold what other programs take for the end of a line.
  report.record({'record': 'two', 'value': float('nan'), 'text': '\u2028'})
  path = report.save()
  out = capsys.readouterr().out
  assert '12,345' in out and 'a & b' in out
  assert (tmp_path / 'new' / 'plot.png').read_bytes() == PNG
  assert 'A title' in path.read_text()
  found = records.read([report.lines])
  assert [r['record'] for r in found] == ['run', 'one', 'two']
  assert found[0]['seed'] == 3 and found[0]['environment']['jax']
  assert found[1]['value'] == 0.5
  assert found[2]['value'] == 'nan' and found[2]['text'] == '\u2028'


def test_a_writer_begins_anew(tmp_path):
  for _ in range(2):
    report = writer.start(tmp_path, 'x', 'A title', {})
  assert len(records.read([report.lines])) == 1


def test_a_broken_line_is_named(tmp_path):
  file = tmp_path / 'bad.jsonl'
  file.write_text('{"a": 1}\n{"a": \n')
  with pytest.raises(ValueError, match=r'bad\.jsonl:2 is no JSON'):
    records.read([file])


def test_plots_are_pictures_and_repeat_themselves():
  memory = {'MHA': (512.0, 256.0), 'MQA': (64.0, 256.0)}
  made = lambda: [
    plots.bars('t', memory, 'bytes'),
    plots.lines(
      't', {'a': {1: 2.0, 4: 3.0}, 'b': {1: 9.0}}, 'x', 'y', dashed=['b']
    ),
    plots.lines_below(
      't', {'1': {'a': {1: 2.0}}, '2': {}}, 'x', 'y', limit=('most', 3.0)
    ),
    plots.lines('nothing fits', {'a': {}}, 'x', 'y'),
    plots.scatter('t', {'a': {'dense': (8.0, 1.0, 0.1)}}, 'x', 'y'),
    plots.heat('t', {'h': np.eye(3)}, 'abc', 'row', 'column'),
    plots.lifetimes(
      't', {'q': [(0, 0), (1, 1)], 'k': [(0, 1), (1, 1)]}, memory, 'bytes'
    ),
  ]
  first = made()
  assert all(png.startswith(PNG) for png in first)
  assert first == made()
  strokes = plots._strokes([*map(str, range(18))], ['a']).values()
  assert len({tuple(stroke.values()) for stroke in strokes}) == 19


def test_the_answer_in_small():
  tables = {
    b.title: b for b in small_example.answer_blocks() if isinstance(b, Table)
  }
  read = tables['Who reads which row (found by changing one row at a time)']
  assert [row[1:] for row in read.rows] == [
    ['none', 'none', 'v0'],
    ['q1', 'k0 k1', 'v0 v1'],
    ['q2', 'k0 k1 k2', 'v0 v1 v2'],
  ]
  assert small_example.llama_bytes() == {
    'MHA': (2 * 32 * 32 * 128 * 2, 32 * 32 * 128 * 2),
    'GQA': (2 * 32 * 8 * 128 * 2, 32 * 32 * 128 * 2),
    'MQA': (2 * 32 * 128 * 2, 32 * 32 * 128 * 2),
    'MLA': (32 * (512 + 64) * 2, 32 * 32 * (128 + 64) * 2),
  }


ROWS = [
  {'record': 'r', 'kind': 'a', 'config': {'seed': s}, 'bits': b}
  for s, b in [(0, 1.0), (1, 4.0), (2, 2.0)]
] + [{'record': 'r', 'kind': 'b_1', 'bits': 7.0}, {'record': 'other'}]


def test_a_summary_is_median_and_half_range():
  columns, rows = summary.summarize(ROWS, ['kind'], ['bits'], {'record': 'r'})
  assert columns == ['kind', 'bits', 'bits ±', 'n']
  assert rows == [['a', 2.0, 1.5, 3], ['b_1', 7.0, 0.0, 1]]


def test_a_dotted_field_reaches_into_a_record():
  _, rows = summary.summarize(ROWS, ['config.seed'], ['bits'])
  assert [row[0] for row in rows] == [0, 1, 2]


def test_latex_is_escaped():
  rows = [{'kind': 'b#1$', 'bits': 1.0}, {'kind': 'b#1$', 'bits': 2.0}]
  text = summary.latex(*summary.summarize(rows, ['kind'], ['bits']))
  assert r'b\#1\$ & 1.500 $\pm$ 0.500 & 2 \\' in text


def test_every_format_holds_the_numbers():
  columns, rows = summary.summarize(ROWS, ['kind'], ['bits'])
  made = {name: f(columns, rows) for name, f in summary.FORMATS.items()}
  assert '| a | 2.000 ± 1.500 | 3 |' in made['markdown']
  assert made['csv'].splitlines()[1] == 'a,2.0,1.5,3'
  assert r'b\_1 & 7 & 1 \\' in made['latex']
  assert re.search(r'a & 2.000 \$\\pm\$ 1.500 & 3', made['latex'])


def test_fields_that_fit_nothing_are_refused_with_those_that_are():
  with pytest.raises(ValueError, match='theirs: bits, config, kind, record'):
    summary.summarize(ROWS, ['nope'], ['bits'])
  with pytest.raises(ValueError, match='value=bits,nope: not all are fields'):
    summary.summarize(ROWS, ['kind'], ['bits', 'nope'])


def test_records_survive_json():
  assert json.loads(json.dumps(ROWS)) == ROWS


def test_a_record_holds_arrays_and_keys_as_text_and_nothing_else(tmp_path):
  file = tmp_path / 'x.jsonl'
  record = {('a', 1): np.float32(math.inf), 'rows': (np.arange(2), None)}
  records.append(file, record)
  assert records.read([file]) == [{"('a', 1)": 'inf', 'rows': [[0, 1], None]}]
  with pytest.raises(TypeError, match='Object of type set'):
    records.append(file, {'rows': [{1}]})
