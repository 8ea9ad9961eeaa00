"""Kernels by the names of configs and records: the library's and candidates.

A form is what a config calls a candidate that is raced against the kernel of
the library: 'inside' is `mosaic_gpu` merged inside its launch.
"""

from collections.abc import Sequence

from experiments.measuring.candidates import cudnn, mosaic_gpu_inside
from kvjax.kernels import KERNELS, Kernel

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
