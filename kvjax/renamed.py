"""Keyword arguments that were renamed: their old spelling says the new one."""

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

P = ParamSpec('P')
R = TypeVar('R')


def renamed_arguments(
  **new_names: str,
) -> Callable[[Callable[P, R]], Callable[P, R]]:
  """Returns a decorator that refuses old spellings of keyword arguments.

  The signature of what it decorates stays visible to type checkers.

  Args:
    **new_names: the new spelling by the old one: `cache='kinds'`.
  """

  def decorate(function: Callable[P, R]) -> Callable[P, R]:
    @functools.wraps(function)
    def checked(*args: P.args, **kwargs: P.kwargs) -> R:
      for old, new in new_names.items():
        if old in kwargs:
          name = function.__name__
          raise TypeError(f'{name}({old}=) is spelled {new}= now.')
      return function(*args, **kwargs)

    return checked

  return decorate
