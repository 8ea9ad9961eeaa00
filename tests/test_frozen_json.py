"""Choices as JSON and back, fields that were added later included."""

import dataclasses
import json

import pytest

import kvjax
from kvjax import frozen_json


@dataclasses.dataclass(frozen=True)
class Part:
  """A choice to which fields were added."""

  size: int
  added: bool = False


@dataclasses.dataclass(frozen=True)
class Whole:
  """A choice that has others."""

  parts: tuple[Part, ...]
  norm: kvjax.Norm = kvjax.Norm()


KNOWN = {cls.__name__: cls for cls in (Part, Whole, kvjax.Norm)}
WHOLE = Whole((Part(3), Part(5)), kvjax.Norm(1e-3))


def read(written):
  """Returns what a file says, through its text."""
  return frozen_json.decode(json.loads(json.dumps(written)), KNOWN)


def written_before():
  """Returns `WHOLE` as a version wrote it that had no `added`, no `norm`."""
  parts = [{'type': 'Part', 'size': size} for size in (3, 5)]
  return {'type': 'Whole', 'parts': parts}


def test_there_and_back():
  assert read(frozen_json.encode(WHOLE)) == WHOLE


def test_a_file_from_before_a_field_was_added_has_its_default():
  old = written_before()
  assert read(old) == Whole((Part(3), Part(5)))
  del old['parts'][1]['size']
  with pytest.raises(ValueError, match='Part.size is missing'):
    read(old)
  old['parts'][1] = {'type': 'Part', 'size': 5, 'aded': True}
  with pytest.raises(ValueError, match='Part.aded is no field of it'):
    read(old)


def differ(old, new):
  """Returns where a file differs from a choice of today."""
  old = frozen_json.with_added_fields(old, new)
  return frozen_json.difference(old, frozen_json.encode(new))


def test_an_added_field_is_a_difference_where_it_is_no_default():
  old = written_before()
  assert differ(old, Whole((Part(3), Part(5)))) is None
  assert differ(old, WHOLE) == 'norm.eps is 1e-06, not 0.001'
  for parts, message in (
    ((Part(3), Part(5, added=True)), 'parts.1.added is False, not True'),
    ((Part(3), Part(7)), 'parts.1.size is 5, not 7'),
    ((Part(3),), 'parts.length is 2, not 1'),
    ((Part(3), kvjax.Norm()), 'parts.1.type is Part, not Norm'),
  ):
    assert differ(old, Whole(parts)) == message
