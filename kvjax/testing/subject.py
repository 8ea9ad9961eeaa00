"""What the harness tests: functions around a cache, and a run of them."""

import dataclasses
import inspect
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

ForwardFunction = Callable[[np.ndarray], Any]
InitFunction = Callable[[int], Any]
ExtendFunction = Callable[[Any, np.ndarray, np.ndarray], tuple[Any, Any]]
RowsFunction = Callable[[Any, np.ndarray], Any]
CacheFunction = Callable[[Any], Any]


ARGUMENTS = {
  'forward': ('tokens',),
  'init': ('batch_size',),
  'extend': ('cache', 'tokens', 'lengths'),
  'rewind': ('cache', 'lengths'),
  'take': ('cache', 'rows'),
  'fork': ('cache',),
  'poison': ('cache',),
}


def check_arguments(name: str, function: Any) -> None:
  """Raises TypeError where a function cannot take its arguments.

  Args:
    name: of the function, a key of `ARGUMENTS`.
    function: of the user; one without a signature is let through.
  """
  given = ARGUMENTS[name]
  try:
    signature = inspect.signature(function)
  except ValueError:
    return
  try:
    signature.bind(*given)
  except TypeError as error:
    raise TypeError(
      f'{name} is called as {name}({", ".join(given)}), and the function that '
      f'was given takes {signature}.'
    ) from error


@dataclasses.dataclass(frozen=True)
class Subject:
  """A model with a cache, as functions; none may change its arguments.

  Attributes:
    forward: tokens `[B, T, ...]` -> logits `[B, T, ...]`, uncached.
    init: batch size -> an empty cache.
    extend: cache, tokens `[B, W, ...]`, int32 lengths `[B]` -> logits
      `[B, W, ...]` and the new cache.
    rewind: cache, int32 lengths `[B]` -> cache.
    take: cache, int32 rows `[B]` -> cache.
    fork: cache -> an independent cache.
    widths: W of the calls, ascending; empty for the number of their tokens.
  """

  forward: ForwardFunction
  init: InitFunction
  extend: ExtendFunction
  rewind: RowsFunction | None = None
  take: RowsFunction | None = None
  fork: CacheFunction | None = None
  widths: tuple[int, ...] = ()

  def __post_init__(self):
    for name in ARGUMENTS:
      function = getattr(self, name, None)
      if function is not None:
        check_arguments(name, function)

  def width(self, count: int) -> int:
    """Returns the width of a call that holds `count` tokens a row."""
    return min((w for w in self.widths if w >= count), default=max(count, 1))


def poisoned(subject: Subject, poison: CacheFunction) -> Subject:
  """Returns a subject each of whose caches is poisoned."""

  def extend(cache: Any, *chunk: np.ndarray) -> tuple[Any, Any]:
    logits, cache = subject.extend(cache, *chunk)
    return logits, poison(cache)

  def then_poison(f: Callable[..., Any] | None) -> Callable[..., Any] | None:
    return None if f is None else lambda *args: poison(f(*args))

  return dataclasses.replace(
    subject,
    init=lambda batch: poison(subject.init(batch)),
    extend=extend,
    rewind=then_poison(subject.rewind),
    take=then_poison(subject.take),
    fork=then_poison(subject.fork),
  )


@dataclasses.dataclass(frozen=True)
class RunState:
  """A run under way.

  Attributes:
    cache: of B rows.
    seen: int32 `[B]`, tokens of each row so far.
    logits: one `[seen, ...]` array a row, so far.
  """

  cache: Any
  seen: np.ndarray
  logits: tuple[np.ndarray | None, ...]


def start(subject: Subject, batch: int) -> RunState:
  """Returns a run that has seen nothing."""
  seen = np.zeros(batch, np.int32)
  return RunState(subject.init(batch), seen, (None,) * batch)


def feed(
  subject: Subject, state: RunState, tokens: np.ndarray, counts: np.ndarray
) -> RunState:
  """Returns the run after the next `counts [B]` tokens of each row.

  The padding of a call is other rows' tokens, so that a model which reads its
  padding differs from the uncached one.
  """
  width = subject.width(int(counts.max()))
  rolled = np.roll(tokens, (1, 1), axis=(0, 1))
  steps = np.arange(width)[None, :]
  rows = np.arange(len(tokens))[:, None]
  positions = (state.seen[:, None] + steps) % tokens.shape[1]
  is_token = steps < counts[:, None]
  is_token = is_token.reshape(positions.shape + (1,) * (tokens.ndim - 2))
  chunk = np.where(is_token, tokens[rows, positions], rolled[rows, positions])
  result = change(
    state, subject.extend, 'extend', chunk, counts.astype(np.int32)
  )
  logits, cache = _as_pair(result, (len(tokens), width))
  parts = tuple(
    new[:count] if old is None else np.concatenate([old, new[:count]])
    for old, new, count in zip(state.logits, logits, counts, strict=True)
  )
  return RunState(cache, (state.seen + counts).astype(np.int32), parts)


def change(state: RunState, f: Any, name: str, *args: np.ndarray) -> Any:
  """Returns `f(cache, *args)`.

  Args:
    state: of the run, with the cache.
    f: one of the subject's functions.
    name: of the function, for messages.
    *args: further arguments of the function.

  Raises:
    AssertionError: the call changed or donated its cache.
  """
  before = _leaves(state.cache)
  result = f(state.cache, *args)
  after = _leaves(state.cache, name)
  for (path, old), (_, new) in zip(before, after, strict=True):
    # Bytes are compared, because NaN differs from itself.
    if old.dtype != new.dtype or old.tobytes() != new.tobytes():
      raise AssertionError(
        f'{name} changed its input cache: leaf {path or "cache"} is not '
        'bit-identical after the call. Return a new cache instead.'
      )
  return result


def _as_pair(result: Any, shape: tuple[int, int]) -> tuple[np.ndarray, Any]:
  """Returns logits and cache, as `extend` must return them."""
  if not isinstance(result, tuple | list) or len(result) != 2:
    what = f'a {type(result).__name__}'
    if isinstance(result, tuple | list):
      what += f' of {len(result)}'
    raise ValueError(
      f'extend must return logits and cache; it returned {what}.'
    )
  first, second = result
  if not _are_logits(first, shape) and _are_logits(second, shape):
    raise ValueError(
      'extend returned the cache and the logits: return (logits, cache), in '
      'that order.'
    )
  return as_logits('extend', first, shape), second


def _are_logits(x: Any, shape: tuple[int, int]) -> bool:
  return hasattr(x, 'shape') and x.shape[:2] == shape


def as_logits(name: str, logits: Any, shape: tuple[int, int]) -> np.ndarray:
  """Returns a float64 copy of logits `[B, T, ...]`.

  Args:
    name: of the function that returned them, for the message.
    logits: what it returned.
    shape: B and T.

  Raises:
    ValueError: it is no array of that many rows and tokens.
  """
  if _are_logits(logits, shape):
    return as_array(logits)
  fix = f'{name} must return logits [{shape[0]}, {shape[1]}, ...]'
  if name == 'extend':
    fix += ' of every token and the new cache, in that order'
  given = getattr(logits, 'shape', None)
  if given is None:
    raise ValueError(f'{fix}; it returned a {type(logits).__name__}.')
  rest = ''
  if given[:1] == shape[:1] and (len(given) == 2 or given[1:2] == (1,)):
    rest = ' They look like the logits of the last token alone.'
  raise ValueError(f'{fix}; it returned {given}.{rest}')


def as_array(x: Any) -> np.ndarray:
  """Returns a float64 copy of anything array-like."""
  return np.asarray(x).astype(np.float64)


def _leaves(cache: Any, name: str = '') -> list[tuple[str, np.ndarray]]:
  """Returns copies of a cache's arrays, with their paths.

  Args:
    cache: a pytree of arrays and numbers.
    name: of the function that was called with the cache, for messages.

  Raises:
    TypeError: a leaf is neither array nor number.
    AssertionError: an array was donated.
  """
  leaves = []
  for path, leaf in jax.tree_util.tree_leaves_with_path(cache):
    if not hasattr(leaf, 'dtype') and not isinstance(leaf, int | float):
      raise TypeError(
        f'A {type(leaf).__name__} in the cache is no array, so whether a '
        'call changes it cannot be seen. Make the cache a pytree of arrays '
        '(jax.tree_util.register_dataclass, flax.struct, a dict).'
      )
    if getattr(leaf, 'is_deleted', lambda: False)():
      raise AssertionError(
        f'{name or "An earlier call"} donated its input cache, which is '
        'deleted now. Pass a function that does not donate.'
      )
    leaves.append((jax.tree_util.keystr(path), np.array(leaf)))
  return leaves
