"""Frozen choices as JSON and back: typed, by name, never pickled.

A dataclass becomes its type's name and its fields. A value comes back with the
type that it had, so a flag cannot come back as the string 'False'.
"""

import dataclasses
import functools
import itertools
import reprlib
import types
import typing
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

_type_hints = functools.cache(typing.get_type_hints)

TYPE = 'type'
DTYPE = 'dtype'


def encode(value: Any) -> Any:
  """Returns a tree of dataclasses, tuples and dtypes as values of JSON.

  Raises:
    ValueError: a value is none of these; the message names it.
  """
  if dataclasses.is_dataclass(value) and not isinstance(value, type):
    fields = {
      field.name: encode(getattr(value, field.name))
      for field in _init_fields(type(value))
    }
    return {TYPE: type(value).__name__} | fields
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
  """Returns the tree that was encoded; JSON's arrays come back as tuples.

  A field that is left out has its default, so a file of an earlier version can
  be read after a field was added.

  Args:
    value: as `json.loads` returns it.
    known: dataclasses by name; no other type is called.

  Raises:
    ValueError: a type is not known, or a field without a default is missing, or
      a field is left over, or of another type than declared.
  """
  if isinstance(value, list):
    return tuple(decode(x, known) for x in value)
  if not isinstance(value, dict):
    return value
  if value.keys() == {DTYPE}:
    return np.dtype(value[DTYPE])
  cls = known.get(str(value.get(TYPE)))
  if cls is None:
    raise ValueError(
      f'{value.get(TYPE)!r} is a type unknown here; known: '
      f'{", ".join(sorted(known))}.'
    )
  fields = {k: decode(x, known) for k, x in value.items() if k != TYPE}
  _check_fields(cls, fields)
  return cls(**fields)


def with_added_fields(written: Any, value: Any) -> Any:
  """Returns an encoded value with the fields that its classes have by now.

  Those that it was written without have their defaults.

  Args:
    written: as this version or an earlier one encoded it.
    value: whose classes have the fields; other classes are left as written.
  """
  if isinstance(written, list) and isinstance(value, tuple):
    # Of two lengths the rest stays, for `difference` to report.
    rest = written[len(value) :]
    return [*map(with_added_fields, written, value), *rest]
  if not isinstance(written, dict) or written.get(TYPE) != type(value).__name__:
    return written
  defaults = {name: encode(x) for name, x in _defaults(type(value)).items()}
  return defaults | {
    name: with_added_fields(part, getattr(value, name, None))
    for name, part in written.items()
  }


def difference(old: Any, new: Any, place: str = '') -> str | None:
  """Returns where two encoded values first differ; None if they are equal.

  Args:
    old: encoded value.
    new: encoded value.
    place: path of the two values in the tree, for the message.

  Returns:
    'place is old, not new'.
  """
  if isinstance(old, list) and isinstance(new, list):
    lengths = ('length', len(old), len(new))
    pairs = [lengths, *zip(itertools.count(), old, new, strict=False)]
  elif isinstance(old, dict) and isinstance(new, dict):
    pairs = [(name, old.get(name), new.get(name)) for name in old | new]
  # In Python True == 1 and 1 == 1.0, but True and 1 mean different things.
  elif old == new and isinstance(old, bool) == isinstance(new, bool):
    return None
  else:
    return f'{place} is {_short(old)}, not {_short(new)}'
  for name, old_part, new_part in pairs:
    part = f'{place}.{name}' if place else str(name)
    message = difference(old_part, new_part, part)
    if message is not None:
      return message
  return None


def _short(value: Any) -> Any:
  if isinstance(value, dict) and TYPE in value:
    return value[TYPE]
  return reprlib.repr(value) if isinstance(value, dict | list) else value


def _check_fields(cls: type, fields: Mapping[str, Any]) -> None:
  """Raises ValueError unless these are the fields of the class, by type."""
  names = {field.name for field in _init_fields(cls)}
  if wrong := sorted((names ^ fields.keys()) - _defaults(cls).keys()):
    state = 'missing' if wrong[0] in names else 'no field of it'
    raise ValueError(f'{cls.__name__}.{wrong[0]} is {state}.')
  hints = _type_hints(cls)
  for name, value in fields.items():
    if not _has_type(value, hints[name]):
      raise ValueError(
        f'{cls.__name__}.{name}={value!r} is a {type(value).__name__}; '
        f'declared: {hints[name]}.'
      )


def _has_type(value: Any, hint: Any) -> bool:
  """Returns whether a plain value has its declared type; True is no int."""
  origin, parts = typing.get_origin(hint), typing.get_args(hint)
  if origin in (typing.Union, types.UnionType):
    return any(_has_type(value, part) for part in parts)
  if origin is tuple and isinstance(value, tuple):
    if parts[-1:] == (Ellipsis,):
      parts = parts[:1] * len(value)
    return len(value) == len(parts) and all(map(_has_type, value, parts))
  if hint in (bool, int, str, types.NoneType):
    return type(value) is hint
  if hint is float:
    return type(value) in (int, float)
  if dataclasses.is_dataclass(hint):
    return isinstance(value, typing.cast(type, hint))
  return hint is Any or (
    origin is not tuple and type(value) not in (bool, int, float, str)
  )


def _defaults(cls: Any) -> dict[str, Any]:
  return {
    field.name: field.default
    for field in _init_fields(cls)
    if field.default is not dataclasses.MISSING
  }


def _init_fields(cls: Any) -> Iterable[Any]:
  return [field for field in dataclasses.fields(cls) if field.init]
