"""Frozen choices as JSON and back: typed, by name, never pickled.

A dataclass becomes its type's name and its fields; a value comes back with the
very type it had, so a flag can not turn into the string 'False' on the way.
"""

import dataclasses
import functools
import types
import typing
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

TYPE = 'type'
DTYPE = 'dtype'


def encode(value: Any) -> Any:
  """Returns what JSON can hold of a tree of dataclasses, tuples and dtypes.

  Raises:
    ValueError: something in it is none of these; the message names it.
  """
  if dataclasses.is_dataclass(value) and not isinstance(value, type):
    fields = {f.name: getattr(value, f.name) for f in _fields(type(value))}
    found = {name: encode(x) for name, x in fields.items()}
    return {TYPE: type(value).__name__} | found
  if isinstance(value, tuple | list):
    return [encode(x) for x in value]
  if value is None or type(value) in (bool, int, float, str):
    return value
  if isinstance(value, np.dtype | type):
    return {DTYPE: np.dtype(value).name}
  raise ValueError(
    f'{value!r} cannot be written as JSON: use numbers, strings, dtypes, '
    'tuples and frozen dataclasses of them.'
  )


def decode(value: Any, known: Mapping[str, type]) -> Any:
  """Returns what was encoded; JSON's arrays come back as tuples.

  Args:
    value: as `json.loads` returns it.
    known: dataclasses by name; no other type is ever made.

  Raises:
    ValueError: a type is not known, or a field is missing, left over, or of
      another type than declared.
  """
  if isinstance(value, list):
    return tuple(decode(x, known) for x in value)
  if not isinstance(value, dict):
    return value
  if value.keys() == {DTYPE}:
    return np.dtype(value[DTYPE])
  made = known.get(str(value.get(TYPE)))
  if made is None:
    raise ValueError(
      f'{value.get(TYPE)!r} is a type unknown here; known: '
      f'{", ".join(sorted(known))}.'
    )
  given = {k: decode(x, known) for k, x in value.items() if k != TYPE}
  _check(made, given)
  return made(**given)


def difference(old: Any, new: Any, place: str = '') -> str | None:
  """Returns where two encoded values part, as 'place is old, not new'."""
  for name, a, b in _pairs(old, new):
    found = difference(a, b, f'{place}.{name}' if place else str(name))
    if found is not None:
      return found
  nested = all(isinstance(x, dict) for x in (old, new))
  nested |= all(isinstance(x, list) for x in (old, new))
  # In Python True == 1, and 1 == 1.0: only the latter mean the same.
  if nested or (old == new and isinstance(old, bool) == isinstance(new, bool)):
    return None
  return f'{place} is {_short(old)}, not {_short(new)}'


def _pairs(old: Any, new: Any) -> Iterator[tuple[Any, Any, Any]]:
  if isinstance(old, list) and isinstance(new, list):
    yield 'length', len(old), len(new)
    for index, (a, b) in enumerate(zip(old, new, strict=False)):
      yield index, a, b
  if isinstance(old, dict) and isinstance(new, dict):
    for name in [*old, *(k for k in new if k not in old)]:
      yield name, old.get(name), new.get(name)


def _short(value: Any) -> Any:
  if isinstance(value, dict):
    return value.get(TYPE, value)
  return value


def _check(made: type, given: Mapping[str, Any]) -> None:
  wanted = {f.name for f in _fields(made)}
  if wrong := sorted(wanted ^ given.keys()):
    raise ValueError(
      f'{made.__name__}.{wrong[0]} is '
      f'{"missing" if wrong[0] in wanted else "no field of it"}.'
    )
  hints = _hints(made)
  for name, value in given.items():
    if not _is(value, hints[name]):
      raise ValueError(
        f'{made.__name__}.{name}={value!r} is a {type(value).__name__}; '
        f'declared: {hints[name]}.'
      )


def _is(value: Any, hint: Any) -> bool:
  """Returns whether a plain value has its declared type: True is no int."""
  if typing.get_origin(hint) in (typing.Union, types.UnionType):
    return any(_is(value, h) for h in typing.get_args(hint))
  if hint in (bool, int, str, types.NoneType):
    return type(value) is hint
  if hint is float:
    return type(value) in (int, float)
  return hint is Any or type(value) not in (bool, int, float, str)


def _fields(made: Any) -> Iterable[Any]:
  return [f for f in dataclasses.fields(made) if f.init]


@functools.cache
def _hints(made: type) -> dict[str, Any]:
  return typing.get_type_hints(made)
