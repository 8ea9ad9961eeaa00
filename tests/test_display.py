"""What results look like at a prompt, printed, and in a notebook."""

import html.parser

import jax
import jax.numpy as jnp
import pytest

import kvjax
from kvjax.display import SHORT, Display, binary_size, compact

LAYER = kvjax.Layer(kvjax.Grouped(6, 3, 4), kvjax.MLP(11))
SIZES = {'batch_size': 2, 'capacity': 13}


def config(layers=2):
  return kvjax.ModelConfig(17, 24, (LAYER,) * layers)


@pytest.fixture(scope='module')
def shown():
  """An object of each class that shows itself."""
  step = kvjax.memory.compile_call(config(), **SIZES)
  cache = kvjax.init_cache(config(), 2, 13)
  return {
    'config': config(),
    'cache': cache,
    'inspection': kvjax.inspect(cache),
    'plan': kvjax.memory.plan(config(), **SIZES),
    'fit': kvjax.memory.fit(config(), 10**5, **SIZES),
    'measured': kvjax.memory.measure(step),
    'buffer': kvjax.memory.buffers(step)[0],
    'in_place': kvjax.memory.in_place(step, 'cache', min_bytes=64),
    'report': kvjax.liveness.analyze(jnp.cumsum, jnp.ones(8)),
  }


NAMES = (
  'config',
  'cache',
  'inspection',
  'plan',
  'fit',
  'measured',
  'buffer',
  'in_place',
  'report',
)


class Cells(html.parser.HTMLParser):
  """The cells of an HTML table, by row; every tag must close."""

  def __init__(self, text):
    super().__init__()
    self.rows, self.open = [], []
    self.feed(text)
    assert not self.open

  def handle_starttag(self, tag, attrs):
    self.open.append(tag)
    if tag == 'tr':
      self.rows.append([])

  def handle_endtag(self, tag):
    assert self.open.pop() == tag

  def handle_data(self, data):
    if self.open[-1:] in (['td'], ['th']):
      self.rows[-1].append(data)


@pytest.mark.parametrize('name', NAMES)
def test_each_is_short_at_a_prompt_and_a_table_in_a_notebook(shown, name):
  short = repr(shown[name])
  assert len(short.splitlines()) <= SHORT + 3
  assert len(short) < 1200
  rows = Cells(shown[name]._repr_html_()).rows
  assert len(rows) > 1 and '<' not in short


def test_a_plan_gives_four_sums_in_binary_units_unless_asked(shown):
  plan = shown['plan']
  title, head, *rows = str(plan).splitlines()
  assert head.split() == ['part', 'size', 'bytes']
  sums = [plan.params_bytes, plan.cache_bytes, plan.step_bytes]
  want = {
    name: [*binary_size(n).split(), f'{n:,}']
    for name, n in zip(
      ('params', 'cache', 'step', 'total'), [*sums, sum(sums)], strict=True
    )
  }
  assert {row.split()[0]: row.split()[1:] for row in rows} == want
  lines = plan.line_table().splitlines()
  assert len(lines) == 2 + len(plan.lines)
  assert '2 x (2 x 3 x 13 x 4 x 4 + 2 x 3 x 13 x 4 x 4)' in plan.line_table()


@pytest.mark.parametrize(
  ('count', 'text'),
  [
    (0, '0 bytes'),
    (1023, '1023 bytes'),
    (1024, '1 KiB'),
    (999 * 2**10, '999 KiB'),
    (1002 * 2**10, '1002 KiB'),
    (131 * 2**20, '131 MiB'),
    (141e9, '131 GiB'),
    (3 * 2**40, '3 TiB'),
  ],
)
def test_binary_sizes(count, text):
  assert binary_size(count) == text


def test_a_choice_is_shown_without_its_defaults():
  assert compact(LAYER) == (
    'Layer(attention=Grouped(num_heads=6, num_kv_heads=3, key_width=4), '
    'mlp=MLP(hidden=11))'
  )
  rotary = kvjax.Rotary(4, base=500.0)
  assert compact((rotary,)) == '(Rotary(width=4, base=500.0),)'
  assert compact(kvjax.Int8) == repr(kvjax.Int8)  # a class is no choice


def test_equal_layers_are_one_row():
  ring = kvjax.Layer(
    kvjax.Grouped(6, 3, 4, visibility=kvjax.Visibility(window=5)),
    kvjax.MLP(11),
  )
  model = kvjax.ModelConfig(17, 24, (ring, ring, LAYER) * 6, dtype='bfloat16')
  title, _, first, second = repr(model).splitlines()
  assert title == (
    "A model of 18 layers, vocab_size = 17, width = 24, dtype = 'bfloat16'"
  )
  assert first.startswith('0-1, 3-4, 6-7, 9-10, ... (12 in all)  Layer(')
  assert 'window=5' in first and 'window' not in second
  assert second.startswith('2, 5, 8, 11, ... (6 in all)')


def test_a_deep_cache_is_short_and_prints_whole():
  kinds = [None, kvjax.Ring(3)] * 10
  made = lambda: kvjax.init_cache(config(20), 2, 13, kinds=kinds)
  cache = jax.eval_shape(made)
  assert len(repr(cache).splitlines()) == 2 + SHORT + 1
  assert repr(cache).endswith('... and 12 more rows, which print() shows')
  assert len(str(cache).splitlines()) == 2 + 20
  assert len(Cells(cache._repr_html_()).rows) == 1 + 20


def test_neighbouring_layers_that_are_equal_share_a_row():
  kinds = [None, *[kvjax.Ring(3)] * 3, None, None]
  cache = kvjax.init_cache(config(6), 2, 13, kinds=kinds)
  rows = [line.split() for line in str(cache).splitlines()[2:]]
  assert [row[:2] for row in rows] == [
    ['0', 'dense'],
    ['1..3', 'ring'],
    ['4..5', 'dense'],
  ]
  shown = [int(row[-1].replace(',', '')) for row in rows]
  each = [row.bytes for row in kvjax.inspect(cache).rows]
  assert shown == [each[0], sum(each[1:4]), sum(each[4:])]


def test_a_spent_cache_shows_no_table():
  cache = kvjax.init_cache(config(), 2, 13)
  kvjax.fork(cache, donate=True)
  assert cache._repr_html_() is None
  assert 'donated' in str(cache) and 'donated' in repr(cache)


def test_what_others_named_is_no_html():
  table = Display('<b>', ('a', 'b'), [['<i>x', '1 & 2']], ('a',), ['<script>'])
  text = table.html()
  for tag in ('<b></b>', '<i>', '<script>'):
    assert tag not in text
  assert Cells(text).rows == [['a', 'b'], ['<i>x', '1 & 2']]
  assert table.text().splitlines() == [
    '<b>',
    'a         b',
    '<i>x  1 & 2',
    '<script>',
  ]
