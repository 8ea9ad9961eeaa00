"""Values of config.json: judged by their key, or by the published default."""

import math

import pytest

from kvjax.checkpoints.hf_config import Settings

KEY = 'some_new_key'  # which no table of kinds has
# Default, values that are right, values that are wrong, and what they must be.
CASES = {
  'switch': (True, (True, False), (1, 0, 'true', 1.0), 'true or false'),
  'count': (
    7,
    (0, 1, 2**31 - 1),
    (-1, 2.0, True, 2**31),
    'a whole number from',
  ),
  'number': (
    1.5,
    (3, 0.25, 1e-30),
    (0.0, -1.0, math.nan, math.inf, 10**400, '2', True),
    'a number above 0, finite',
  ),
  'text': ('silu', ('relu', ''), (1, True, ['silu']), 'a text'),
}


@pytest.mark.parametrize('name', CASES)
def test_a_key_without_a_kind_is_judged_by_its_default(name):
  default, right, wrong, words = CASES[name]
  for value in right:
    found = Settings({KEY: value}).get(KEY, default)
    assert found == value and type(found) is type(value)
  for value in wrong:
    with pytest.raises(ValueError, match=f'{KEY}=.* must be {words}'):
      Settings({KEY: value}).get(KEY, default)
  for absent in ({}, {KEY: None}):
    assert Settings(absent).get(KEY, default) is default


def test_a_default_of_none_judges_nothing():
  for value in (-1, 'LLG', [1, 2], True):
    assert Settings({KEY: value}).get(KEY, None) == value


def test_a_key_with_a_kind_keeps_it():
  """Whatever the default: rms_norm_eps may be 0, and use_qk_norm no 1."""
  assert Settings({'rms_norm_eps': 0}).get('rms_norm_eps', 1e-6) == 0
  with pytest.raises(ValueError, match='use_qk_norm=1 .*true or false'):
    Settings({'use_qk_norm': 1}).get('use_qk_norm', 3)
