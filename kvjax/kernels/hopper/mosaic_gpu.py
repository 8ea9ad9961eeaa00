"""The record of the kernel of `launch`, and where it runs.

`launch` and all that it needs load when the kernel first sees a view:
a process without such a GPU never waits for them.
"""

import importlib
from typing import Any

import jax

from kvjax.context import target
from kvjax.kernels.hopper import interpreter
from kvjax.kernels.kernel import Kernel
from kvjax.streams.scoring import Scoring
from kvjax.streams.view import Streams, View


def missing() -> str:
  """Returns why this process cannot use the kernel; '' if it can."""
  if target() == 'gpu' or interpreter.settings() is not None:
    return ''
  return (
    f'it runs on a Hopper GPU, not on {target()}; '
    'kvjax.kernels.interpreted() runs it on a CPU, slowly'
  )


def is_at_home() -> bool:
  """Returns whether this process has a GPU on which it was measured."""
  if target() != 'gpu' or jax.default_backend() != 'gpu':
    return False
  return getattr(jax.devices()[0], 'compute_capability', '') == '9.0'


def refuses(
  queries: Streams, view: View, scoring: Scoring, block: int | None = None
) -> str:
  """Returns why this kernel cannot serve a view; '' if it can."""
  return _launch().refuses(queries, view, scoring, block)


def attend(
  queries: Streams,
  positions: jax.Array,
  view: View,
  scoring: Scoring,
  *,
  block: int | None = None,
) -> tuple[jax.Array, jax.Array]:
  """Attends to the slots of one view; see `blockwise.attend`."""
  return _launch().attend(queries, positions, view, scoring, block=block)


def _launch() -> Any:
  return importlib.import_module('kvjax.kernels.hopper.launch')


KERNEL = Kernel(
  name='mosaic_gpu',
  platform='cuda',
  missing=missing,
  is_at_home=is_at_home,
  refuses=refuses,
  attend=attend,
  ran_in_shards=False,
)
