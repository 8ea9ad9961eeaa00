"""The uncached examples, and the picture of what crosses a boundary."""

import math
import re
import sys

import numpy as np
import pytest

from experiments.why_no_q_cache import examples
from experiments.why_no_q_cache.crossing import crossing
from kvjax import liveness

SIZES = examples.Sizes(
  width=10, heads=4, kv_heads=2, key_width=4, latent=5, rotary=2, window=3
)
X = np.random.default_rng(0).normal(size=(8, 10)).astype(np.float32)
INF = math.inf
KEPT = {
  'mha': {'k': INF, 'v': INF},
  'gqa': {'k': INF, 'v': INF},
  'mqa': {'k': INF, 'v': INF},
  'mla': {'k': INF, 'v': INF, 'k_rotary': INF},
  'window': {'k': 2, 'v': 2},
  'mta': {'q': 5, 'k': INF, 'v': INF},
  'convolution': {'q': 3, 'k': 3, 'v': 3, 'conv_k': INF, 'conv_v': INF},
  'linear': {'state': 1},
}


@pytest.mark.parametrize('variant', examples.VARIANTS)
def test_keeps_and_crosses(variant):
  program = examples.example(variant, SIZES)
  report = liveness.analyze(program, X)
  found = {r.name: r.live_for for r in report.tensors if r.kept}
  assert found == KEPT[variant]
  for row in report.tensors:
    lives = [last - made for made, last in row.spans]
    assert max(lives) == min(row.live_for, len(lives) - 1), row.name
  graph = crossing(program, X)
  over = {
    graph.nodes[a][0]
    for a, b in graph.edges
    if graph.nodes[a][1] != 'new' and graph.nodes[b][1] == 'new'
  }
  redone = {'scores'} if variant == 'mta' else set()
  assert over - redone == set(KEPT[variant]) - ({'q'} if redone else set())
  assert all(graph.nodes[b][1] != 'kept' or a != b for a, b in graph.edges)


def test_an_old_query_is_made_and_read_in_the_past_alone():
  graph = crossing(examples.example('gqa', SIZES), X)
  q = graph.nodes.index(('q', 'past'))
  read_by = {graph.nodes[b] for a, b in graph.edges if a == q}
  assert read_by == {('scores', 'past')}


@pytest.mark.parametrize(
  ('sizes', 'words'),
  [
    ({'heads': 3}, 'heads=3 is not a multiple of kv_heads=2'),
    ({'width': 0}, 'width=0 must be a positive integer'),
    ({'rotary': 3}, 'rotary=3 must be even'),
  ],
)
def test_sizes_that_do_not_fit_are_refused(sizes, words):
  with pytest.raises(ValueError, match=words):
    examples.Sizes(**sizes)


BROKEN = """
import jax
number, text = 3, 'attention'
attention = lambda x: x
two = lambda x, y: x
fails = lambda x: x.nothing
"""


@pytest.mark.parametrize(
  ('path', 'words'),
  [
    ('broken', 'must be module:function'),
    ('missing_module:f', "ModuleNotFoundError: No module named 'missing"),
    ('wrong_syntax:f', 'cannot be imported: SyntaxError'),
    ('broken:other', "has no attribute 'other'.*PYTHONPATH"),
    ('broken:number', 'TypeError: .* Name a function of one array'),
    ('broken:two', 'does not take float32.8, 10.: TypeError: .*missing 1'),
    ('broken:fails', 'AttributeError: .*no attribute nothing'),
  ],
)
def test_a_name_of_no_program_is_refused(path, words, tmp_path, monkeypatch):
  (tmp_path / 'broken.py').write_text(BROKEN)
  (tmp_path / 'wrong_syntax.py').write_text('def f(x) return x')
  monkeypatch.syspath_prepend(tmp_path)
  monkeypatch.delitem(sys.modules, 'broken', raising=False)
  with pytest.raises(ValueError, match=words) as caught:
    examples.load_program(path, X)
  assert '\n' not in str(caught.value)
  assert examples.load_program('broken:attention', X)(3) == 3


def test_an_unknown_variant_is_refused():
  with pytest.raises(ValueError, match="variant='mxa' is unknown; known: mha"):
    examples.example('mxa', SIZES)


def test_places_are_those_below_the_folder_that_python_imports_from():
  """An absolute path would differ from machine to machine."""
  report = liveness.analyze(examples.example('gqa', SIZES), X)
  places = re.findall(r'\S+\.py:\d+', ' '.join(report.notes))
  assert places
  for place in places:
    assert re.match(r'\(?experiments/why_no_q_cache/examples\.py:', place), (
      place
    )
