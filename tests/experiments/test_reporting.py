"""Blocks, records, plots and summaries."""

import html
import html.parser
import itertools
import math
import re
import shutil
import subprocess

import numpy as np
import pytest

from experiments.measuring import small_example
from experiments.reporting import plots, records, writer
from experiments.reporting.blocks import (
  Code,
  Heading,
  Picture,
  Table,
  Text,
  are_numbers,
  page,
)

PNG = b'\x89PNG'
CHROMIUM = shutil.which('chromium') or shutil.which('google-chrome')
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


def test_a_page_has_no_control():
  assert 'a[31mb' in page('t', [Code('a\x1b[31m\x00b')])


def test_a_total_is_set_off(tmp_path, capsys):
  table = Table('T', ('name', 'n'), [['a', 1], ['b', 2]], total=['all', 3])
  marked = table.html()
  assert '<tfoot><tr><td>all</td><td class="number">3</td></tr>' in marked
  assert '<td>all</td>' not in marked.partition('<tfoot>')[0]
  writer.Writer(tmp_path, 'x', 'A title').show(table)
  last, before = capsys.readouterr().out.rstrip().splitlines()[:-3:-1]
  assert last.split() == ['all', '3'] and not before.strip()


def test_products_are_text_and_empty_cells_are_none():
  assert are_numbers(['1,024', '', '-', '+0', 'x 1.5', '16 KiB', '2 ± 1'])
  assert not are_numbers(['1,024', '2 x 3 x 4'])
  assert not are_numbers(['1,024', 'yes'])


WIDE = Table(
  'A wide table, whose title is longer than a phone is wide',
  [f'column {i}' for i in range(12)],
  [[f'text_{i}' * 3 for i in range(12)]],
  'A note that is longer than a phone is wide, and stays in the page.',
)
# Reports how far the page and a table in it can be scrolled, in pixels.
MEASURE = """<script>onload = () => {
  const room = e => e.scrollWidth - e.clientWidth;
  document.title = room(document.documentElement) + ' ' +
    room(document.querySelector('.scroll'));
}</script>"""


@pytest.mark.skipif(CHROMIUM is None, reason='there is no Chromium')
def test_a_phone_scrolls_a_table_and_not_the_page(tmp_path):
  inner = page('t', [WIDE, Code('x' * 300), Text('`' + 'y' * 90 + '`')])
  # A headless window may be no narrower than 500 pixels: a frame may.
  source = html.escape(inner + MEASURE, quote=True)
  script = 'document.title = frames[0].document.title'
  frame = f'<iframe width="420" height="900" srcdoc="{source}"></iframe>'
  file = tmp_path / 'frame.html'
  file.write_text(f'<body>{frame}<script>onload = () => {script}</script>')
  flags = ('--headless', '--no-sandbox', '--disable-gpu', '--dump-dom')
  profile = f'--user-data-dir={tmp_path / "profile"}'
  done = subprocess.run(
    [CHROMIUM, *flags, profile, f'file://{file}'],
    capture_output=True,
    text=True,
    timeout=120,
  )
  found = re.search(r'<title>(-?\d+) (-?\d+)</title>', done.stdout)
  assert found, done.stderr[-500:]
  of_page, of_table = map(int, found.groups())
  assert of_page <= 0 and of_table > 100


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


@pytest.fixture
def canvas(monkeypatch):
  """Makes plots return their figure, drawn, in place of its PNG."""

  def draw(figure):
    figure.draw_without_rendering()
    return figure

  monkeypatch.setattr(plots, 'png', draw)


@pytest.mark.usefixtures('canvas')
def test_the_end_of_a_bar_says_its_sum():
  drawn = plots.bars('t', {'MHA': (512.0, 256.0), 'MQA': (64, 1024)}, 'bytes')
  (axes,) = drawn.axes
  assert [text.get_text() for text in axes.texts] == [
    '512 + 256 = 768',
    '64 + 1,024 = 1,088',
  ]


@pytest.mark.usefixtures('canvas')
def test_cached_and_uncached_look_different_at_one_context():
  series = {'a cached': {64: 0.3}, 'a uncached': {64: 4.0}}
  drawn = plots.lines('t', series, 'x', 'y', dashed=['a uncached'])
  (axes,) = drawn.axes
  cached, uncached = axes.lines
  assert cached.get_color() != uncached.get_color()
  assert cached.get_markerfacecolor() == cached.get_color()
  assert uncached.get_markerfacecolor() == 'white'


@pytest.mark.usefixtures('canvas')
@pytest.mark.parametrize(
  ('values', 'wanted'),
  [((0.3, 4.0), {'0.5', '1', '2'}), ((6.2, 7.9), {'6.5', '7', '7.5'})],
)
def test_logarithmic_ticks_are_plain_numbers(values, wanted):
  points = dict(zip((1, 2), values, strict=True))
  (axes,) = plots.lines('t', {'a': points}, 'x', 'y').axes
  low, high = axes.get_ylim()
  ticks = zip(axes.get_yticks(), axes.get_yticklabels(), strict=True)
  texts = {text.get_text() for at, text in ticks if low <= at <= high}
  assert wanted <= texts and len(texts) >= 3
  assert all(math.isfinite(float(text)) for text in texts)
  assert not any(text.get_text() for text in axes.get_yticklabels(minor=True))


def test_points_that_would_cover_each_other_stand_side_by_side():
  # The axis goes from 32 to 1024: 5 octaves, of which a step is an 80th.
  points = [
    (32, 8.30, 0.0),
    (32, 8.31, 0.0),
    (64, 8.0, 0.0),
    (32, 9.0, 0.0),
    (1024, 8.3, 0.2),  # the spreads of these two meet
    (1024, 8.6, 0.2),
  ]
  step = 2 ** (5 / 80 / 2)
  want = [32 / step, 32 * step, 64, 32, 1024 / step, 1024 * step]
  np.testing.assert_allclose(plots.side_by_side(points), want, rtol=1e-12)
  assert plots.side_by_side([(8.0, 1.0, 0.1)]) == [8.0]
  first, second = plots.side_by_side([(8.0, 1.0, 0.0)] * 2)
  assert first < 8 < second


@pytest.mark.usefixtures('canvas')
@pytest.mark.parametrize(('panels', 'labels'), [(1, 'abc'), (6, 'a' * 24)])
def test_labels_of_a_heat_map_can_be_read(panels, labels):
  matrices = {str(i): np.eye(len(labels)) for i in range(panels)}
  drawn = plots.heat('t', matrices, labels, 'row', 'column')
  assert drawn.get_figwidth() <= plots.PAGE
  for axes in drawn.axes:
    texts = axes.get_xticklabels()
    assert all(text.get_fontsize() >= 8 for text in texts)
    boxes = [text.get_window_extent() for text in texts]
    assert all(a.x1 <= b.x0 for a, b in itertools.pairwise(boxes))


def test_the_answer_in_small_is_in_english():
  assert ''.join(
    block.html() for block in small_example.answer_blocks()
  ).isascii()


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


def test_a_record_holds_arrays_and_keys_as_text_and_nothing_else(tmp_path):
  file = tmp_path / 'x.jsonl'
  record = {('a', 1): np.float32(math.inf), 'rows': (np.arange(2), None)}
  records.append(file, record)
  assert records.read([file]) == [{"('a', 1)": 'inf', 'rows': [[0, 1], None]}]
  with pytest.raises(TypeError, match='Object of type set'):
    records.append(file, {'rows': [{1}]})
