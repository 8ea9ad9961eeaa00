"""A program that a command line names, with every mistake in one line."""

import importlib
from collections.abc import Callable
from typing import Any

import jax

Program = Callable[[Any], Any]


def load(path: str, x: Any) -> Program:
  """Returns the function that `module:function` names.

  Args:
    path: the name; the module's folder is where Python looks for modules.
    x: an array that the function must take.

  Raises:
    ValueError: there is none, or it does not take `x`, whatever it raises.
  """
  module, _, name = path.partition(':')
  if not module or not name:
    raise ValueError(f'program={path!r} must be module:function.')
  try:
    found = getattr(importlib.import_module(module), name)
  except Exception as error:  # A module of the user's may raise anything.
    raise ValueError(
      f'program={path!r} cannot be imported: {_line(error)}. Name a '
      'function of a module whose folder is in PYTHONPATH.'
    ) from None
  if not callable(found):
    raise ValueError(
      f'program={path!r} is of type {type(found).__name__}. Name a function '
      'of one array.'
    )
  try:
    jax.eval_shape(found, x)
  except Exception as error:
    raise ValueError(
      f'program={path!r} does not take {x.dtype}{list(x.shape)}: '
      f'{_line(error)}. Name a function of one array, or change '
      '--config.shape, or --config.vocab_size for token ids.'
    ) from None
  return found


def _line(error: Exception) -> str:
  text = str(error).strip().partition('\n')[0].rstrip('.')
  return f'{type(error).__name__}: {text}' if text else type(error).__name__
