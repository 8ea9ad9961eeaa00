"""Kernels: one signature, one file a backend, chosen in one place.

`available()` says which ones this process can use, and why not the others.
`CUSTOM_CALLS` are the names by which programs call the compiled CPU library;
`jax.export` wants to know them (docs/howto/export_a_step.md).
"""

from kvjax.context import targeting
from kvjax.kernels.hopper.interpreter import interpreted
from kvjax.kernels.kernel import Kernel
from kvjax.kernels.registry import KERNELS, attend_view, available, choose
from kvjax.native.load import CUSTOM_CALLS
from kvjax.streams.scoring import Bias, Scoring

__all__ = (
  'CUSTOM_CALLS',
  'KERNELS',
  'Bias',
  'Kernel',
  'Scoring',
  'attend_view',
  'available',
  'choose',
  'interpreted',
  'targeting',
)
