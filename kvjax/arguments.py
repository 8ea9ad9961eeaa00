"""What arguments must be: the fields of frozen choices, and arrays.

A dataclass takes any value for any field. A width of 2.5 would end in an error
of an array operation, which names no field, and a scale of NaN in none at all.
The public functions check arrays with the same message for every argument.
"""

import dataclasses
import functools
import inspect
import numbers
import reprlib
import types
import typing
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

LARGEST = 2**31 - 1  # sizes and positions are int32 on every device
LARGEST_FLOAT = float(np.finfo(np.float32).max)


def check_fields(
  choice: Any,
  *,
  at_least: Mapping[str, float] | None = None,
  above: Mapping[str, float] | None = None,
) -> None:
  """Raises ValueError where a field holds another type than it declares.

  An int field holds a whole number up to 2**31 - 1 and no bool, a float field a
  number that float32 has, a bool field True or False; None only where it is
  declared. A field of a dataclass or an abstract class holds an instance, or
  what has its method `init`. Every element of a field that is a tuple of such
  is checked. Fields of other types are not looked at.

  Args:
    choice: an instance of a dataclass.
    at_least: the smallest value of some fields.
    above: a bound that some fields must exceed.
  """
  at_least, above = at_least or {}, above or {}
  for name, accepted in _declared(type(choice)).items():
    value = getattr(choice, name)
    place = f'{type(choice).__name__} {name}={reprlib.repr(value)}'
    optional = ', or None' if types.NoneType in accepted else ''
    if value is None and optional:
      continue
    elements: Any = value if isinstance(value, tuple) else (value,)
    for number in elements:
      if not any(_is(number, kind) for kind in accepted):
        words = [
          NOUNS.get(kind, kind.__name__)
          for kind in accepted
          if kind is not types.NoneType
        ]
        raise ValueError(f'{place} must be {" or ".join(words)}{optional}.')
      if name in at_least and number < at_least[name]:
        low = at_least[name]
        raise ValueError(f'{place} must be at least {low}{optional}.')
      if name in above and number <= above[name]:
        raise ValueError(f'{place} must exceed {above[name]}{optional}.')


NOUNS: dict[type, str] = {
  bool: 'True or False',
  int: f'a whole number of at most {LARGEST}',
  float: 'a finite number',
}


def is_whole(value: Any, low: int = -LARGEST, high: float = LARGEST) -> bool:
  """Returns whether a value is an integer from low to high, and no bool."""
  whole = isinstance(value, numbers.Integral) and not isinstance(value, bool)
  return whole and low <= int(value) <= high


def is_number(
  value: Any, low: float = -LARGEST_FLOAT, high: float = LARGEST_FLOAT
) -> bool:
  """Returns whether a value is a number from low to high, no NaN, no bool."""
  real = isinstance(value, numbers.Real) and not isinstance(value, bool)
  number: Any = value  # compared as it is: a cast of a long int overflows
  return real and low <= number <= high


def _is(value: Any, kind: type) -> bool:
  if kind is int:
    return is_whole(value)
  if kind is float:
    return is_number(value)
  # Of what has params, others may write their own without inheriting.
  can_init = hasattr(kind, 'init') and hasattr(type(value), 'init')
  accepted = bool | np.bool_ if kind is bool else kind
  return can_init or isinstance(value, accepted)


@functools.cache
def _declared(cls: type) -> dict[str, tuple[type, ...]]:
  """Returns the types of fields declared as numbers, flags or choices."""
  try:
    hints = typing.get_type_hints(cls)
  except NameError:  # a class in a function may name types that only it sees
    return {}
  declared = {}
  for field in dataclasses.fields(cls):
    hint = hints[field.name]
    is_several = isinstance(hint, types.UnionType)
    is_several |= typing.get_origin(hint) is tuple
    accepted = typing.get_args(hint) if is_several else (hint,)
    accepted = tuple(kind for kind in accepted if kind is not ...)
    if accepted != (types.NoneType,) and all(map(_is_checked, accepted)):
      declared[field.name] = accepted
  return declared


def _is_checked(kind: Any) -> bool:
  """Returns whether `check_fields` knows what may stand for a type."""
  is_choice = dataclasses.is_dataclass(kind) or inspect.isabstract(kind)
  return is_choice or kind in (*NOUNS, types.NoneType)


def check_type(name: str, value: Any, kind: type, fix: str) -> None:
  """Raises ValueError for an argument of another class; `fix` is the cure."""
  if not isinstance(value, kind):
    raise ValueError(f'{name} is of type {type(value).__name__}: {fix}')


def check_flags(**flags: Any) -> None:
  """Raises ValueError for an argument that is neither True nor False."""
  for name, value in flags.items():
    if not _is(value, bool):
      raise ValueError(f'{name}={value!r} must be True or False.')


def check_callbacks(**callbacks: Any) -> None:
  """Raises ValueError for an argument that is neither a function nor None."""
  for name, value in callbacks.items():
    if value is not None and not callable(value):
      raise ValueError(f'{name}={value!r} must be a function, or None.')


ELEMENTS = {
  jnp.integer: 'integers',
  jnp.floating: 'floating numbers',
  jnp.bool_: 'booleans',
  jax.dtypes.prng_key: 'random keys',
}


def check_array(
  name: str, array: Any, shape: tuple[int | None, ...], dtype: Any
) -> None:
  """Raises ValueError unless `array` is an array of a shape and a type.

  Args:
    name: of the argument, for the message.
    array: what the caller gave.
    shape: sizes; None stands for any.
    dtype: one of `ELEMENTS`.
  """
  sizes = ', '.join('any' if size is None else str(size) for size in shape)
  wanted = f'it must be an array of {ELEMENTS[dtype]} [{sizes}]'
  if not (hasattr(array, 'shape') and hasattr(array, 'dtype')):
    raise ValueError(
      f'{name} is of type {type(array).__name__}; {wanted}: '
      f'jnp.asarray({name}), with rows of one length.'
    )
  if not jnp.issubdtype(array.dtype, dtype):
    raise ValueError(f'{name} has dtype {array.dtype}; {wanted}.')
  fits = len(array.shape) == len(shape) and all(
    want in (None, size) for want, size in zip(shape, array.shape, strict=True)
  )
  if not fits:
    raise ValueError(f'{name} has shape {list(array.shape)}; {wanted}.')


def random_keys(name: str, keys: Any, shape: tuple[int | None, ...]) -> Any:
  """Returns keys of a shape, the raw ones of `jax.random.PRNGKey` wrapped."""
  if getattr(keys, 'dtype', None) == jnp.uint32:
    try:
      keys = jax.random.wrap_key_data(keys)
    except TypeError:
      raise ValueError(
        f'{name} of shape {list(np.shape(keys))} is no random key: give '
        'jax.random.key(seed).'
      ) from None
  check_array(name, keys, shape, jax.dtypes.prng_key)
  return keys


def is_known(array: Any) -> bool:
  """Returns whether this process can read an array: not abstract, all here."""
  return not isinstance(array, Tracer) and getattr(
    array, 'is_fully_addressable', True
  )


def narrow_ids(ids: Any, vocab_size: int) -> Any:
  """Returns NumPy's ids as int32, other arrays as they are.

  A cast alone would wrap: -2**32 + 5 is no token, and must not become 5. An id
  outside the vocabulary becomes V, the first of those.
  """
  if not isinstance(ids, np.ndarray):
    return ids
  inside = np.where(ids < vocab_size, ids, vocab_size).astype(np.int64)
  return np.maximum(inside, -1).astype(np.int32)


def check_ids(
  name: str,
  ids: Any,
  is_token: Any,
  vocab_size: int,
  refused: tuple[int, ...] = (),
) -> None:
  """Raises ValueError for a token that is none of the model's, if all is known.

  Args:
    name: of the argument, for the message.
    ids: integers of any shape, read where they are known.
    is_token: bool of that shape, where there is a token.
    vocab_size: V.
    refused: ids below V that the model does not take.
  """
  if not (is_known(ids) and is_known(is_token)):
    return
  ids, is_token = jax.device_get((ids, is_token))
  unknown = ids[is_token & (ids >= vocab_size)]
  if unknown.size:
    raise ValueError(
      f'{name} has the id {unknown.max()}; the vocabulary has {vocab_size}: '
      f'ids 0 to {vocab_size - 1}, or -1 where a row has no token.'
    )
  if refused and (found := np.intersect1d(ids[is_token], refused)).size:
    raise ValueError(
      f'{name} has the id {found[0]}, which stands for an image or a video '
      '(image_token_id, image_token_index or video_token_id of config.json). '
      'kvjax reads the text part of the model only: leave images out.'
    )


def check_lengths(tokens: jax.Array, lengths: Any) -> Any:
  """Returns lengths as an array `[B]`, or None for None.

  Raises:
    ValueError: they are no integers, not one a row, or out of range where the
      host knows them.
  """
  if lengths is None:
    return None
  if not isinstance(lengths, jax.Array):
    lengths = np.asarray(lengths)
  batch, width = tokens.shape[:2]
  check_array('lengths', lengths, (batch,), jnp.integer)
  if is_known(lengths):
    host = jax.device_get(lengths)
    if host.min(initial=0) < 0 or host.max(initial=0) > width:
      raise ValueError(
        f'lengths={host.tolist()} must be between 0 and the {width} tokens '
        'given.'
      )
  return lengths


def unknown_ids(
  ids: jax.Array, vocab_size: int, refused: tuple[int, ...] = ()
) -> jax.Array:
  """Returns booleans: where an id is V or larger, or one of `refused`."""
  largest = jnp.iinfo(ids.dtype).max
  unknown = jnp.zeros(ids.shape, bool)
  if vocab_size <= largest:
    unknown = ids >= vocab_size
  for refused_id in refused:
    if refused_id <= largest:
      unknown |= ids == refused_id
  return unknown
