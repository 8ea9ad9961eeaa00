"""What is no JSON, or has two meanings, is refused with its file's name."""

import json
import math

import pytest

from kvjax.strict_json import parse_json, parse_object

REFUSED = {
  'nothing': (b'', 'Expecting value'),
  'half': (b'{"a": ', 'Expecting value'),
  'no_utf8': (b'"\xff"', 'invalid start byte'),
  'nested': (b'[' * 100_000, 'nested too deeply'),
  'long_integer': (b'1' * 5_000, 'Exceeds the limit'),
  'two_equal_keys': (b'{"a": {"b": 1, "b": 2}}', "the key 'b' is there twice"),
}


@pytest.mark.parametrize('name', REFUSED)
def test_refused_with_the_file(name):
  data, reason = REFUSED[name]
  with pytest.raises(ValueError, match='x.json is no JSON: ') as caught:
    parse_json(data, 'x.json')
  assert reason in str(caught.value)


def test_numbers_that_are_not_finite():
  """As transformers writes them; what else has that key stays an object."""
  text = '[{"__float__": "Infinity"}, {"__float__": "-Infinity"}]'
  assert parse_json(text, 'x.json') == [math.inf, -math.inf]
  (found,) = parse_object('{"a": {"__float__": "NaN"}}', 'x.json').values()
  assert math.isnan(found)
  for other in ('"1e5"', '"1_0"', '"sin"', '[]', '1', '"NaN", "b": 1'):
    text = '{"a": {"__float__": ' + other + '}}'
    assert parse_object(text, 'x.json') == json.loads(text)


def test_values():
  assert parse_json('[1, 2.5, null]', 'x.json') == [1, 2.5, None]
  assert parse_object(b'{"a": {"a": true}}', 'x.json') == {'a': {'a': True}}
  with pytest.raises(ValueError, match='x.json holds no JSON object'):
    parse_object('[]', 'x.json')
