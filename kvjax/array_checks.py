"""What an array must be at a public door: one message for every argument."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

NOUNS = {
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
    dtype: one of `NOUNS`.
  """
  sizes = ', '.join('any' if size is None else str(size) for size in shape)
  wanted = f'it must be an array of {NOUNS[dtype]} [{sizes}]'
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


def check_ids(
  name: str, ids: Any, vocab_size: int, *, wait: bool = True
) -> Any:
  """Returns ids as an array of int32; refuses one outside the vocabulary.

  Args:
    name: of the argument, for the message.
    ids: integers of any shape; a negative one is no token.
    vocab_size: V.
    wait: read ids that are on a device; without it they come back as they are,
      as abstract ones do.

  Raises:
    ValueError: an id that is read is V or larger.
  """
  if isinstance(ids, jax.Array):
    known = not isinstance(ids, Tracer) and ids.is_fully_addressable
    if not (wait and known):
      return ids
    check_ids(name, jax.device_get(ids), vocab_size)
    return ids
  largest = int(ids.max()) if ids.size else -1
  if largest >= vocab_size:
    raise ValueError(
      f'{name} has the id {largest}; the vocabulary has {vocab_size}: ids '
      f'0 to {vocab_size - 1}, or -1 where a row has no token.'
    )
  # A cast alone would wrap: -2**32 + 5 is no token, and must not become 5.
  return np.where(ids < 0, np.int32(-1), ids.astype(np.int32))


def unknown_ids(ids: jax.Array, vocab_size: int) -> jax.Array:
  """Returns booleans: where an id is outside the vocabulary, V or larger."""
  if jnp.iinfo(ids.dtype).max < vocab_size:
    return jnp.zeros(ids.shape, bool)
  return ids >= vocab_size
