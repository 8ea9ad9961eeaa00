"""The numbers of a frozen choice are what its fields declare, or are refused.

A dataclass takes any value for any field. A width of 2.5 would end in an error
of an array operation, which names no field, and a scale of NaN in none at all.
"""

import dataclasses
import functools
import math
import numbers
import types
import typing
from collections.abc import Mapping
from typing import Any

LARGEST = 2**31 - 1  # sizes and positions are int32 on every device


def check_fields(
  choice: Any,
  *,
  at_least: Mapping[str, float] | None = None,
  above: Mapping[str, float] | None = None,
) -> None:
  """Raises ValueError where a field declared as a number or flag holds another.

  An int field holds a whole number up to 2**31 - 1 and no bool, a float field a
  finite number, a bool field True or False; None only where it is declared.
  Fields of other types are not looked at.

  Args:
    choice: an instance of a dataclass.
    at_least: the smallest value of some fields.
    above: a bound that some fields must exceed.
  """
  at_least, above = at_least or {}, above or {}
  for name, accepted in _declared(type(choice)).items():
    value = getattr(choice, name)
    place = f'{type(choice).__name__} {name}={value!r}'
    optional = ', or None' if types.NoneType in accepted else ''
    if value is None and optional:
      continue
    if not any(_is(value, kind) for kind in accepted):
      words = ' or '.join(NOUNS[kind] for kind in accepted if kind in NOUNS)
      raise ValueError(f'{place} must be {words}{optional}.')
    number: Any = value
    if name in at_least and number < at_least[name]:
      raise ValueError(f'{place} must be at least {at_least[name]}{optional}.')
    if name in above and number <= above[name]:
      raise ValueError(f'{place} must exceed {above[name]}{optional}.')


NOUNS: dict[type, str] = {
  bool: 'True or False',
  int: f'a whole number of at most {LARGEST}',
  float: 'a finite number',
}


def is_whole(value: Any) -> bool:
  """Returns whether a value is an integer that an int32 holds, and no bool."""
  whole = isinstance(value, numbers.Integral) and not isinstance(value, bool)
  return whole and abs(int(value)) <= LARGEST


def _is(value: Any, kind: type) -> bool:
  if kind is int:
    return is_whole(value)
  if kind is float:
    real = isinstance(value, numbers.Real) and not isinstance(value, bool)
    return real and math.isfinite(value)
  return kind is bool and isinstance(value, bool)


@functools.cache
def _declared(cls: type) -> dict[str, tuple[type, ...]]:
  """Returns the types of the fields that are declared as numbers or flags."""
  try:
    hints = typing.get_type_hints(cls)
  except NameError:  # a class in a function may name types that only it sees
    return {}
  declared = {}
  for field in dataclasses.fields(cls):
    hint = hints[field.name]
    is_union = isinstance(hint, types.UnionType)
    accepted = typing.get_args(hint) if is_union else (hint,)
    if set(accepted) <= {bool, int, float, types.NoneType} != {types.NoneType}:
      declared[field.name] = tuple(accepted)
  return declared
