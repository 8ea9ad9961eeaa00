"""Which kernel attends: the one place where that is decided.

By default the fastest one that is there and supports the view: `ffi` on a CPU
where it is built, `mosaic_gpu` on a Hopper GPU, `blockwise` for all the rest.
`cudnn` attends to a prompt on a GPU where it is asked for by name.
An argument `kernel=` forces one and is refused where that one cannot serve; the
environment variable KVJAX_KERNEL sets the default of a process: 'blockwise', or
another wherever it can serve, refused where it is not there at all.
"""

import os

import jax

from kvjax.kernels import blockwise, cpu_library, cudnn
from kvjax.kernels.hopper import launch
from kvjax.kernels.hopper.tiling import BLOCK
from kvjax.native import load
from kvjax.streams.scoring import Scoring
from kvjax.streams.view import Streams, View
from kvjax.target import target

KERNELS = ('ffi', 'blockwise', 'mosaic_gpu', 'cudnn')
VARIABLE = 'KVJAX_KERNEL'


def available() -> dict[str, str]:
  """Returns, for each kernel, '' if this process can use it, or why not."""
  reason = load.missing()
  if not reason and target() != 'cpu':
    reason = f'it runs on cpu, not on {target()}'
  return {
    'ffi': reason,
    'blockwise': '',
    'mosaic_gpu': launch.missing(),
    'cudnn': cudnn.missing(),
  }


def choose(
  queries: Streams,
  view: View,
  scoring: Scoring,
  *,
  block: int | None = None,
  kernel: str | None = None,
) -> str:
  """Returns the name of the kernel that attends to a view.

  Args:
    queries, view, scoring, block: as `attend_view`.
    kernel: the one that must; None for the fastest.

  Raises:
    ValueError: no kernel has that name, or it cannot serve this view in blocks
      of that size.
  """
  wanted = kernel or os.environ.get(VARIABLE) or None
  if wanted not in (None, *KERNELS):
    raise ValueError(f'kernel={wanted!r} must be one of {", ".join(KERNELS)}.')
  if wanted == 'blockwise':
    return 'blockwise'
  name = wanted or ('mosaic_gpu' if launch.at_home() else 'ffi')
  absent = available()[name]
  serving = {'ffi': cpu_library, 'mosaic_gpu': launch, 'cudnn': cudnn}
  reason = absent or serving[name].refuses(queries, view, scoring)
  reason = reason or _refuses_block(name, view, block)
  if reason and (kernel or (wanted and absent)):
    raise ValueError(
      f"kernel={name!r} cannot serve: {reason}. Use kernel='blockwise', or "
      f'None (and no {VARIABLE}) for the fastest that can.'
    )
  # A size of block is a choice of the block loop, unless a kernel is named. On
  # several devices a plain jit would gather the cache for a call that it cannot
  # split.
  sized = block is not None and not kernel
  other = sized or (jax.device_count() > 1 and not wanted)
  return 'blockwise' if reason or other else name


def _refuses_block(name: str, view: View, block: int | None) -> str:
  """Returns why a kernel cannot read blocks of a size; '' if it can."""
  if block is None:
    return ''
  if name != 'mosaic_gpu':
    return f'block={block} is a size for the block loop; this one takes none'
  if block < BLOCK or block % BLOCK or view.slots % block:
    return (
      f'block={block} is no multiple of {BLOCK} that divides {view.slots} slots'
    )
  return ''


def attend_view(
  queries: Streams,
  positions: jax.Array,
  view: View,
  scoring: Scoring,
  *,
  block: int | None = None,
  kernel: str | None = None,
) -> tuple[jax.Array, jax.Array]:
  """Attends to one view by the chosen kernel.

  Args:
    queries: for each key stream its queries `[B, K, G, T, H]`.
    positions: int32 `[B, T]`, -1 for a row that is no token.
    view: the slots.
    scoring: scale, mask and bias (its sinks are left to the caller).
    block: slots read at once; None for the kernel's choice. A number means the
      block loop, or `mosaic_gpu` by name; the others take none.
    kernel: one of `KERNELS`; None for the fastest that can serve.

  Returns:
    Output `[B, K, G, T, E]` and log-sum-exp `[B, K, G, T]`, float32.
  """

  def plain(queries, positions):
    return blockwise.attend(queries, positions, view, scoring, block=block)

  def native(queries, positions):
    if name == 'ffi':
      return cpu_library.attend(queries, positions, view, scoring)
    if name == 'cudnn':
      return cudnn.attend(queries, positions, view, scoring)
    return launch.attend(queries, positions, view, scoring, block=block)

  name = choose(queries, view, scoring, block=block, kernel=kernel)
  if name == 'blockwise':
    return plain(queries, positions)
  # One program may be lowered for another platform than the process runs on.
  if name == 'ffi':
    return jax.lax.platform_dependent(
      queries, positions, cpu=native, default=plain
    )
  if (launch if name == 'mosaic_gpu' else cudnn).at_home():
    return jax.lax.platform_dependent(
      queries, positions, cuda=native, default=plain
    )
  return native(queries, positions)
