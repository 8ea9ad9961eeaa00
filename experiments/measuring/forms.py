"""Kernels by the names of configs and records: the library's and candidates.

A form is what a config calls a candidate that is raced against the kernel of
the library: 'inside' is `mosaic_gpu` merged inside its launch.
"""

from collections.abc import Iterator, Sequence

from experiments.measuring.candidates import cudnn, mosaic_gpu_inside
from experiments.measuring.clock import Pace
from kvjax.kernels import KERNELS, Kernel
from kvjax.kernels.hopper.launch import DTYPES

FORMS: dict[str, Kernel] = {'inside': mosaic_gpu_inside.KERNEL}
PROMPT_CANDIDATES: dict[str, Kernel] = {'cudnn': cudnn.KERNEL}
PROMPT_KERNELS: Sequence[str] = (*KERNELS, *PROMPT_CANDIDATES)


def kernel_of(name: str, form: str = '') -> str | Kernel:
  """Returns what `kernel=` takes for a name of a config, in a form of it."""
  if form:
    return FORMS[form]
  return PROMPT_CANDIDATES.get(name, name)


def named(kernel: str, form: str) -> str:
  """Returns the name of a row."""
  return f'kvjax {kernel}, {form}' if form else f'kvjax {kernel}'


def raced(pace: Pace, dtype: str) -> Iterator[tuple[str, str, str | Kernel]]:
  """Yields the participants of kvjax that decode streams of a dtype.

  Yields:
    The name of the row, the name of the kernel, and what `kernel=` takes.
  """
  for kernel in pace.usable():
    if kernel == 'mosaic_gpu' and dtype not in DTYPES:
      continue
    candidates = pace.forms if kernel == 'mosaic_gpu' else ()
    for form in ('', *candidates):
      yield named(kernel, form), kernel, kernel_of(kernel, form)
