"""Kinds and codecs by name, and what is refused."""

import dataclasses
import importlib
import typing

import pytest

import kvjax
from kvjax.decoding.parse import CODECS, KINDS, parse_cache, spell


@pytest.mark.parametrize(
  ('text', 'kind', 'codec'),
  [
    ('default', None, None),
    ('int8', None, kvjax.Int8()),
    ('affine:bits=2,zero=false', None, kvjax.Affine(bits=2, zero=False)),
    ('dense+ggml(q4_0)', kvjax.Dense(), kvjax.GGML('q4_0')),
    ('ggml:name=q5_0', None, kvjax.GGML('q5_0')),
    (
      'hadamard:codec=lloydmax(bits=2),block=16',
      None,
      kvjax.Hadamard(kvjax.LloydMax(2), block=16),
    ),
    (
      'paged:page=4+key=hadamard(affine(bits=4)),value=ggml(q4_0)',
      kvjax.Paged(page=4),
      {'key': kvjax.Hadamard(kvjax.Affine(4)), 'value': kvjax.GGML('q4_0')},
    ),
    ('dense', kvjax.Dense(), None),
    (
      'residual:kind=paged(page=8),first=4,group=8+kivi(bits=4,group=8)',
      kvjax.Residual(kvjax.Paged(page=8), first=4, group=8),
      kvjax.KIVI(bits=4, group=8),
    ),
    ('ring:window=64', kvjax.Ring(window=64), None),
    (
      'sinks:sinks=3,window=5,renumber=true+int8',
      kvjax.Sinks(sinks=3, window=5, renumber=True),
      kvjax.Int8(),
    ),
    ('paged:page=16,pages=7', kvjax.Paged(page=16, pages=7), None),
    ('plain', None, kvjax.Plain()),
    (
      'bounded:budget=9,score=recency,per_head=false',
      kvjax.Bounded(budget=9, score=kvjax.Recency(), per_head=False),
      None,
    ),
    (
      'bounded:budget=9,protect=(1, 4),prefill=chunks,score=key_norm',
      kvjax.Bounded(9, kvjax.KeyNorm(), protect=(1, 4), prefill='chunks'),
      None,
    ),
    (
      'bounded:budget=9,score=heavy_hitters(recent=3),slack=2',
      kvjax.Bounded(budget=9, score=kvjax.HeavyHitters(recent=3), slack=2),
      None,
    ),
  ],
)
def test_names(text, kind, codec):
  assert parse_cache(text) == (kind, codec)


@pytest.mark.parametrize(
  ('text', 'message'),
  [
    ('rnig', "'rnig' is no name .*kinds: dense, ring.*codecs: plain, int8"),
    ('', "'' is no name"),
    ('dense+ring:window=3', "'ring' is no name of one kind"),
    ('int8+int8', "'int8' is no name of one kind and one codec"),
    ('ggml', "missing 1 required positional argument: 'name'"),
    ('affine(bits=3)', 'bits=3 must be 2, 4 or 8'),
    ('key=int9', "'int9' is none of plain, int8, affine"),
    ('hadamard(affine(bits=)', 'Python literals'),
    ('ring:widnow=3', "no field 'widnow'; its fields: window, slack"),
    ('int8:bits=4', "no field 'bits'; its fields: none"),
    ('ring:window=x', "'x' must be an integer"),
    ('ring', 'window=0 must be at least 1'),
    ('bounded:budget=4,per_head=0', "'0' must be true or false"),
    ('bounded:budget=4,protect=all', 'must be like'),
    ('bounded:budget=4,score=best', "'best' is none of heavy_hitters"),
    ('ring:slots=4,window=3', "no field 'slots'"),
    (
      'bounded:budget=9,score=heavy_hitters,recent=3',
      r'no field .recent.; .* score=heavy_hitters\(recent=8\)',
    ),
    ('bounded:budget=9,score=recency(age=3)', "argument 'age'"),
    ('bounded:budget=9,score=heavy_hitters(recent=x)', 'Python literals'),
    ('bounded:budget=9,score=heavy_hitters(recent=3', 'Python literals'),
    ('no_such_module:Kind()', "No module named 'no_such_module'"),
    ('kvjax:Nothing()', "no attribute 'Nothing'"),
    ('kvjax:Grouped(2, 1, 4)', 'kvjax:Grouped is no kind or codec'),
    ('subprocess:Popen("false")', 'subprocess:Popen is no kind or codec'),
    ('os:abort()', 'os:abort is no kind or codec'),
    ('bounded:budget=9,score=kvjax:Dense()', 'kvjax:Dense is no score'),
    ('kvjax:Ring(window=print())', 'must be Python literals'),
    ('kvjax:Ring(window=0)', 'window=0 must be at least 1'),
    ('kvjax:Ring(3)+dense', "'dense' is no name of one kind"),
    ('dense+kvjax:Ring(3)', 'more than one kind'),
  ],
)
def test_refusals(text, message):
  with pytest.raises(ValueError, match=message):
    parse_cache(text)


@pytest.mark.parametrize(
  'text',
  ['int8', 'hadamard(lloydmax(bits=2),block=16)', 'affine(zero=False)'],
)
def test_a_codec_is_shown_as_it_is_spelled(text):
  assert spell(parse_cache(text)[1]) == text


MODULE = """
import dataclasses
import kvjax

@dataclasses.dataclass(frozen=True)
class Tail(kvjax.Ring):
  mark: tuple = ()

class Halves(kvjax.Int8):
  pass

@dataclasses.dataclass(frozen=True)
class Fading(kvjax.LastQuery):
  fade: float = 0.7
"""


def test_what_is_outside_is_named_by_its_module(tmp_path, monkeypatch):
  (tmp_path / 'outside_kinds.py').write_text(MODULE)
  monkeypatch.syspath_prepend(tmp_path)
  text = "outside_kinds:Tail(3, mark=(1, 'a+b'))+outside_kinds:Halves()"
  kind, codec = parse_cache(text)
  module = importlib.import_module('outside_kinds')
  assert kind == module.Tail(3, mark=(1, 'a+b'))
  assert type(codec) is module.Halves
  kind, codec = parse_cache('bounded:budget=9,score=outside_kinds:Fading(0.5)')
  assert kind == kvjax.Bounded(budget=9, score=module.Fading(fade=0.5))
  assert codec is None


@pytest.mark.parametrize('name', KINDS | CODECS)
def test_every_option_of_ours_can_be_spelled(name):
  """A field of a new type needs a spelling."""
  choice = (KINDS | CODECS)[name]
  hints = typing.get_type_hints(choice)
  fields = [f for f in dataclasses.fields(choice) if f.init]
  spelled = {f.name for f in fields} - {'slots', 'constant'}
  types = {hints[name] for name in spelled}
  pair = tuple[int, int] | None
  known = {int, bool, str, pair, int | None}
  known |= {kvjax.Kind, kvjax.Score, kvjax.Codec}
  assert types <= known
