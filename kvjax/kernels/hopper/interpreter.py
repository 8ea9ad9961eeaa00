"""GPU kernels on a CPU: Pallas interprets them, shared memory and barriers too.

Slow (a second or so a program of the grid), and blind to what the tensor cores
do with their operands: it checks masks, lengths, the softmax, the ring of
buffers and its barriers. Pallas keeps its interpreter in private modules, so
all that kvjax knows of them is here (JAX 0.10 to 0.12 agree on it).
"""

import contextlib
import importlib
from collections.abc import Iterator
from typing import Any

from kvjax.context import INTERPRETER

_ROOM = 'jax._src.pallas.mosaic_gpu.interpret'


def settings() -> Any:
  """Returns what `plgpu.kernel(interpret=)` takes; None to compile."""
  return INTERPRETER.value


@contextlib.contextmanager
def interpreted(*, detect_races: bool = False) -> Iterator[None]:
  """Lets GPU kernels that are traced inside run on this CPU.

  Args:
    detect_races: look for accesses of shared memory that no barrier orders;
      `races_found` says whether there were any.
  """
  params = importlib.import_module(f'{_ROOM}.params')
  try:
    with INTERPRETER(params.InterpretGPUParams(detect_races=detect_races)):
      yield
  except Exception:
    # The simulated machine keeps the threads of a kernel that failed.
    _calls().reset_gpu_interpret_mode_state()
    raise


def races_found() -> bool:
  """Returns whether the last kernel run with `detect_races` had a race."""
  return _calls().get_races().races_found


def _calls() -> Any:
  return importlib.import_module(f'{_ROOM}.interpret_pallas_call')
