"""Forms of a program by name; "inside" and "rows first" never ran on a GPU."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from kvjax.kernels.hopper import tuning
from kvjax.layers import linear

FORMS: dict[str, Callable[[], Any]] = {
  'after': lambda: tuning.merging('after'),
  'inside': lambda: tuning.merging('inside'),
  'rows first': lambda: linear.ordering('rows first'),
}


@contextlib.contextmanager
def using(form: str) -> Iterator[None]:
  """Lets what is traced meanwhile have a form, or several joined by ' + '."""
  with contextlib.ExitStack() as stack:
    for name in filter(None, form.split(' + ')):
      stack.enter_context(FORMS[name]())
    yield


def formed(form: str, call: Callable[..., Any]) -> Callable[..., Any]:
  """Returns a function that calls another so; itself for no form."""
  if not form:
    return call

  def within(*args, **kwargs):
    with using(form):
      return call(*args, **kwargs)

  return within


def named(kernel: str, form: str) -> str:
  """Returns the name of a row."""
  return f'kvjax {kernel}, {form}' if form else f'kvjax {kernel}'
