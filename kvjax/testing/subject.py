"""What the harness tests: functions around a cache, and a run of them."""

import dataclasses
from collections.abc import Callable
from typing import Any

import chex
import jax
import numpy as np

Forward = Callable[[np.ndarray], Any]
Init = Callable[[int], Any]
Extend = Callable[[Any, np.ndarray, np.ndarray], tuple[Any, Any]]
OnRows = Callable[[Any, np.ndarray], Any]
OnCache = Callable[[Any], Any]


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
    widths: W of the calls, ascending; empty for as many as they need.
  """

  forward: Forward
  init: Init
  extend: Extend
  rewind: OnRows | None = None
  take: OnRows | None = None
  fork: OnCache | None = None
  widths: tuple[int, ...] = ()

  def width(self, count: int) -> int:
    """Returns the width of a call that holds `count` tokens a row."""
    return min((w for w in self.widths if w >= count), default=max(count, 1))


def poisoned(subject: Subject, poison: OnCache) -> Subject:
  """Returns the subject with every cache it hands out poisoned."""

  def extend(cache, tokens, lengths):
    logits, cache = subject.extend(cache, tokens, lengths)
    return logits, poison(cache)

  def after(f):
    return None if f is None else lambda *args: poison(f(*args))

  return dataclasses.replace(
    subject,
    init=lambda batch: poison(subject.init(batch)),
    extend=extend,
    rewind=after(subject.rewind),
    take=after(subject.take),
    fork=after(subject.fork),
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

  Behind them lie other rows' tokens: a call that reads its padding is caught.
  """
  width = subject.width(int(counts.max()))
  rolled = np.roll(tokens, (1, 1), axis=(0, 1))
  steps = np.arange(width)[None, :]
  rows = np.arange(len(tokens))[:, None]
  at = (state.seen[:, None] + steps) % tokens.shape[1]
  held = (steps < counts[:, None]).reshape(at.shape + (1,) * (tokens.ndim - 2))
  chunk = np.where(held, tokens[rows, at], rolled[rows, at])
  logits, cache = unchanged(subject.extend, 'extend', state.cache)(
    chunk, counts.astype(np.int32)
  )
  logits = as_array(logits)
  chex.assert_shape(logits, (len(tokens), width, ...))
  parts = tuple(
    new[:count] if old is None else np.concatenate([old, new[:count]])
    for old, new, count in zip(state.logits, logits, counts, strict=True)
  )
  return RunState(cache, (state.seen + counts).astype(np.int32), parts)


def change(state: RunState, f: Any, name: str, *args: np.ndarray) -> Any:
  """Returns `f(cache, *args)`, which must leave its cache as it is."""
  return unchanged(f, name, state.cache)(*args)


def unchanged(f: Any, name: str, cache: Any) -> Any:
  """Returns `f` of this cache; raises AssertionError if a call changes it."""

  def call(*args):
    before = _leaves(cache)
    result = f(cache, *args)
    for (path, old), (_, new) in zip(before, _leaves(cache, name), strict=True):
      if old.dtype != new.dtype or old.tobytes() != new.tobytes():
        raise AssertionError(
          f'{name} changed its input cache: leaf {path or "cache"} is not '
          'bit-identical after the call. Return a new cache instead.'
        )
    return result

  return call


def as_array(x: Any) -> np.ndarray:
  """Returns a float64 copy of anything array-like."""
  return np.asarray(x).astype(np.float64)


def _leaves(cache: Any, name: str = '') -> list[tuple[str, np.ndarray]]:
  found = []
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
    found.append((jax.tree_util.keystr(path), np.array(leaf)))
  return found
