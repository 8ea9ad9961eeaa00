"""Kernels: one signature, one file a backend, chosen in one place.

`available()` says which ones this process can use, and why not the others. The
first attention on a CPU without the compiled library warns, once, with a
`KernelNotBuiltWarning` that gives the command which builds it.
`CUSTOM_CALLS` are the names by which programs call the compiled CPU library;
`jax.export` wants to know them (docs/howto/export_a_step.md).
"""

from kvjax.context import targeting
from kvjax.kernels.hopper.interpreter import interpreted
from kvjax.kernels.kernel import Kernel
from kvjax.kernels.registry import KERNELS, attend_view, available, choose
from kvjax.native.load import CUSTOM_CALLS, KernelNotBuiltWarning
from kvjax.streams.scoring import Bias, Scoring

__all__ = (
  'CUSTOM_CALLS',
  'KERNELS',
  'Bias',
  'Kernel',
  'KernelNotBuiltWarning',
  'Scoring',
  'attend_view',
  'available',
  'choose',
  'interpreted',
  'targeting',
)
