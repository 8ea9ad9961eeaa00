"""What changes logits before a token is drawn: penalties, biases, allowed sets.

An adjustment is a pure function of logits `[B, V]` and the tokens sampled so
far `[B, num_tokens]`. `generate` traces it into the programs of its blocks.
"""

import dataclasses
import numbers
import reprlib
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax.tree_util import Partial

from kvjax.arguments import check_array, check_fields, is_number, is_whole

Adjust = Callable[[jax.Array, jax.Array], jax.Array]


@struct.dataclass
class RepetitionPenalty:
  """Makes tokens less likely that a row has seen already.

  A logit x of such a token becomes `x / penalty` where x is positive and
  `x * penalty` elsewhere, once however often the token is there (CTRL, arXiv
  1909.05858, section 4.1, which divides; logits below 0 are multiplied, so that
  they fall as well).

  Attributes:
    penalty: above 0; values below 1 favour repetition. Static.
    prompt: int `[B, P]`, tokens of each row's prompt, which count as well; a
      negative id is padding. None for sampled tokens alone. Another prompt of
      the same shape compiles nothing anew.
  """

  penalty: float = struct.field(pytree_node=False)
  prompt: jax.Array | np.ndarray | None = None

  def __post_init__(self):
    check_fields(self, above={'penalty': 0})

  def __call__(self, logits: jax.Array, tokens: jax.Array) -> jax.Array:
    batch, vocab_size = logits.shape
    if self.prompt is not None:
      check_array('prompt', self.prompt, (batch, None), jnp.integer)
      prompt = jnp.asarray(self.prompt, jnp.int32)
      tokens = jnp.concatenate([prompt, tokens], axis=1)
    # A negative index would count from the end.
    ids = jnp.where(tokens < 0, vocab_size, tokens)
    mark = lambda row, ids: row.at[ids].set(True, mode='drop')
    seen = jax.vmap(mark)(jnp.zeros(logits.shape, bool), ids)
    penalty = jnp.float32(self.penalty)
    less = jnp.where(logits < 0, logits * penalty, logits / penalty)
    return jnp.where(seen, less, logits)


@dataclasses.dataclass(frozen=True)
class LogitBias:
  """Adds a number to the logits of some tokens.

  Attributes:
    biases: `{id: bias}`; -inf excludes a token. Kept as sorted pairs.
  """

  biases: Mapping[int, float] | tuple[tuple[int, float], ...]

  def __post_init__(self):
    try:
      given = dict(self.biases)
    except (TypeError, ValueError):
      raise ValueError(
        f'LogitBias biases={self.biases!r} must be {{id: bias}}.'
      ) from None
    for token, bias in given.items():
      excludes = isinstance(bias, numbers.Real) and bias == -np.inf
      if not is_whole(token, 0) or not (is_number(bias) or excludes):
        raise ValueError(
          f'LogitBias has the pair {token!r}: {bias!r}; it must be an id from '
          '0 on and a finite number, or -inf for a token that is excluded.'
        )
    pairs = sorted((int(token), float(bias)) for token, bias in given.items())
    object.__setattr__(self, 'biases', tuple(pairs))

  def __call__(self, logits: jax.Array, tokens: jax.Array) -> jax.Array:
    del tokens
    biases = dict(self.biases)
    _check_largest('LogitBias', biases, logits)
    bias = np.zeros((1, logits.shape[1]), np.float32)
    bias[0, list(biases)] = list(biases.values())
    return logits + bias


@dataclasses.dataclass(frozen=True)
class AllowedTokens:
  """Excludes all tokens but some.

  Attributes:
    ids: of the tokens that may be sampled, or bool `[V]`, True for each of
      them. Kept as a sorted tuple.
  """

  ids: Sequence[int] | np.ndarray

  def __post_init__(self):
    try:
      ids = np.asarray(self.ids)
    except ValueError:  # rows of different lengths
      ids = np.zeros(())
    if ids.ndim == 1 and ids.dtype == bool:
      ids = np.flatnonzero(ids)
    whole = ids.ndim == 1 and np.issubdtype(ids.dtype, np.integer)
    if not (whole and ids.size and ids.min() >= 0):
      raise ValueError(
        f'AllowedTokens ids={reprlib.repr(self.ids)} must be ids from 0 on, or '
        'booleans [V]; at least one token must be allowed.'
      )
    allowed = np.unique(ids)
    object.__setattr__(self, 'ids', tuple(allowed.tolist()))

  def __call__(self, logits: jax.Array, tokens: jax.Array) -> jax.Array:
    del tokens
    _check_largest('AllowedTokens', self.ids, logits)
    allowed = np.zeros((1, logits.shape[1]), bool)
    allowed[0, list(self.ids)] = True
    return jnp.where(allowed, logits, -jnp.inf)


def _check_largest(name: str, ids: Collection[int], logits: jax.Array) -> None:
  """Raises ValueError for an id that the vocabulary does not have."""
  vocab_size = logits.shape[1]
  if max(ids, default=0) >= vocab_size:
    raise ValueError(
      f'{name} has the id {max(ids)}; the vocabulary has {vocab_size}: ids 0 '
      f'to {vocab_size - 1}.'
    )


def as_pytrees(adjust: Adjust | Sequence[Adjust] | None) -> tuple[Adjust, ...]:
  """Returns adjustments as pytrees that a compiled program takes.

  Arrays in a pytree are traced. All else is static: it is compared by `==`.

  Raises:
    ValueError: one is no function, or cannot be hashed.
  """
  given: Any = () if adjust is None else adjust
  functions = tuple(given) if isinstance(given, tuple | list) else (given,)
  return tuple(map(_as_pytree, functions))


def _as_pytree(function: Any) -> Any:
  if not callable(function):
    raise ValueError(
      f'adjust={function!r} must be a function of logits [B, V] and tokens '
      '[B, num_tokens], or a tuple of such functions.'
    )
  is_pytree = not jax.tree_util.all_leaves([function])
  try:
    # JAX would compare it by == alone, and miss what changes in place.
    hash(jax.tree.structure(function) if is_pytree else function)
  except TypeError as error:
    raise ValueError(
      f'adjust={function!r} cannot be hashed ({error}): make it a frozen '
      'dataclass of plain values, or jax.tree_util.Partial(function, array) '
      'for what reads arrays.'
    ) from None
  return function if is_pytree else Partial(function)


def adjust_logits(
  adjusts: Sequence[Adjust], logits: jax.Array, tokens: jax.Array
) -> jax.Array:
  """Returns logits after each adjustment in turn.

  A row whose logits are NaN has no distribution, and gets none here.

  Args:
    adjusts: functions of logits and tokens.
    logits: floating `[B, V]`.
    tokens: int32 `[B, num_tokens]`, sampled so far, then -1.

  Raises:
    ValueError: a result is no float32 `[B, V]`.
  """
  logits = adjusted = logits.astype(jnp.float32)
  for index, adjust in enumerate(adjusts):
    adjusted = adjust(adjusted, tokens)
    name = f'The result of adjust[{index}]'
    check_array(name, adjusted, logits.shape, jnp.floating)
    if adjusted.dtype != jnp.float32:
      raise ValueError(
        f'{name} has dtype {adjusted.dtype}; it must be float32, as the '
        'logits that it is given are.'
      )
  is_nan = jnp.isnan(logits).any(axis=1, keepdims=True)
  return jnp.where(is_nan, jnp.nan, adjusted)
