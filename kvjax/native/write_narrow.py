"""Stores narrower than float32 on CPUs before JAX 0.11, never copied whole.

XLA:CPU of those versions has no bfloat16. It scatters into a float32 copy of
the whole store and converts the copy back; for a slice it makes a float32 copy
of the whole store outside the loop.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from kvjax.context import target
from kvjax.native import load

# Types of whole bytes. An element of four bits has no address.
NARROW = (jnp.bfloat16, jnp.float16)

Slice = Callable[[jax.Array, Any, int], jax.Array]
Write = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]


def refuses(leaf: jax.Array) -> str:
  """Returns why a store is written by XLA's own scatter; '' if it is not."""
  if jax.__version_info__ >= (0, 11):
    return 'XLA scatters in place'
  if leaf.dtype not in NARROW:
    return f'XLA scatters {leaf.dtype} in place'
  return load.unwanted(leaf)


def put(
  leaf: jax.Array, new: jax.Array, slots: jax.Array, plain: Write
) -> jax.Array:
  """Writes by the library where XLA would copy the store, else by `plain`."""
  if refuses(leaf):
    return plain(leaf, new, slots)
  return write(leaf, new, slots, plain)


def write(
  leaf: jax.Array, new: jax.Array, slots: jax.Array, plain: Write
) -> jax.Array:
  """Returns `leaf [B, K, S, ...]` with `new [B, K, T, ...]` in its slots.

  Args:
    leaf: with these axes, or with others of the same memory layout (a pool);
      that `refuses` did not refuse; it is written in place if it is donated.
    new: of the same dtype.
    slots: int32 `[B, 1 | K, T]`; outside the store nothing is written.
    plain: the same by a scatter, for derivatives and other platforms.
  """
  return _write(plain, leaf, new, slots)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _write(plain, leaf, new, slots):
  # One program may be lowered for another platform than the process runs on.
  return jax.lax.platform_dependent(leaf, new, slots, cpu=_call, default=plain)


@_write.defjvp
def _write_jvp(plain, primals, tangents):
  return jax.jvp(plain, primals, tangents)


def _call(leaf, new, slots):
  call = jax.ffi.ffi_call(
    load.WRITE,
    jax.ShapeDtypeStruct(leaf.shape, leaf.dtype),
    input_output_aliases={0: 0},
    vmap_method='broadcast_all',
  )
  return call(leaf, new, slots)


def slices_widely(leaf: jax.Array) -> bool:
  """Returns whether a slice of a store would copy all of it."""
  old = jax.__version_info__ < (0, 11)
  return old and leaf.dtype == jnp.bfloat16 and target() == 'cpu'


def slicer(leaf: jax.Array, plain: Slice) -> Callable[[Any, int], jax.Array]:
  """Returns `(start, size)` -> a float32 slice, cut by `plain` from the bits.

  XLA leaves a slice of integers alone.
  """
  bits = jax.lax.bitcast_convert_type(leaf, jnp.uint16)

  def widen(start, size):
    wide = plain(bits, start, size).astype(jnp.uint32) << jnp.uint32(16)
    return jax.lax.bitcast_convert_type(wide, jnp.float32)

  return widen
