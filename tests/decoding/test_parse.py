"""Kinds and codecs by name, and what is refused."""

import pytest

import kvjax
from kvjax.decoding.parse import parse_cache


@pytest.mark.parametrize(
  ('text', 'kind', 'codec'),
  [
    ('default', None, None),
    ('int8', None, kvjax.Int8()),
    ('dense', kvjax.Dense(), None),
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
    ('ring:widnow=3', "no field 'widnow'; its fields: window, slack"),
    ('int8:bits=4', "no field 'bits'; its fields: none"),
    ('ring:window=x', "'x' must be an integer"),
    ('ring', 'window=0 must be at least 1'),
    ('bounded:budget=4,per_head=0', "'0' must be true or false"),
    ('bounded:budget=4,score=best', "'best' is none of heavy_hitters"),
    ('ring:slots=4,window=3', "no field 'slots'"),
  ],
)
def test_refusals(text, message):
  with pytest.raises(ValueError, match=message):
    parse_cache(text)
