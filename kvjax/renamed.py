"""Old spellings raise one line that names the new one."""

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

P = ParamSpec('P')
R = TypeVar('R')

# Methods that a subclass outside the package may still have by an old name.
KIND_METHODS = {
  'lead': 'leaf_axes',
  'admits': 'has_room',
  'narrow': 'visible_through',
  'earliest': 'shortest_rewind',
  'settle': 'after_gather',
  'apply': 'copy_pages',
  'shift': 'offset_pages',
  'evict': 'make_room, observe and choose',
}
VARIANT_METHODS = {
  'ask': 'project_queries',
  'leave': 'project_streams',
  'unfold': 'expand',
  'output': 'project_output',
  'absorbs': 'form',
  'reads_stored': 'expands',
}
SCORE_METHODS = {
  'observes': 'window (0 for no query, None for all of a call)',
  'accumulate': 'statistic(evidence), of evidence.total and .weights()',
}


def renamed_arguments(**new: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
  """Returns a decorator that refuses old keyword arguments by their new name.

  Args:
    new: for each old argument what to write now, for example
      `cache='kinds='`.
  """

  def decorate(function: Callable[P, R]) -> Callable[P, R]:
    @functools.wraps(function)
    def checked(*args: P.args, **kwargs: P.kwargs) -> R:
      if not new.keys().isdisjoint(kwargs):
        old = next(name for name in kwargs if name in new)
        raise TypeError(
          f'{function.__name__}({old}=...) has a new name: give {new[old]}.'
        )
      return function(*args, **kwargs)

    return checked

  return decorate


def check_methods(cls: type, new: dict[str, str]) -> None:
  """Raises TypeError if a subclass overrides a method by its old name.

  Args:
    cls: a class that someone derived.
    new: for each old method its name now.
  """
  for old in vars(cls).keys() & new.keys():
    raise TypeError(f'{cls.__name__}.{old} has a new name: {new[old]}.')
