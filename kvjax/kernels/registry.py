"""Which kernel attends: the one place where that is decided."""

from collections.abc import Sequence

import jax

from kvjax.context import PARTITION, target
from kvjax.kernels import blockwise, cpu_library, shards
from kvjax.kernels.hopper import mosaic_gpu
from kvjax.kernels.kernel import Kernel
from kvjax.mesh.region import is_in_shard, mesh_of
from kvjax.native import load
from kvjax.streams.scoring import Scoring
from kvjax.streams.view import Streams, View

# In order of preference. The block loop is last, for it serves every view.
REGISTRY: tuple[Kernel, ...] = (
  cpu_library.KERNEL,
  mosaic_gpu.KERNEL,
  blockwise.KERNEL,
)
KERNELS: tuple[str, ...] = tuple(kernel.name for kernel in REGISTRY)
"""Names of the library's kernels, in order of preference."""


def available(candidates: Sequence[Kernel] = ()) -> dict[str, str]:
  """Returns, for each kernel, '' if this process can use it, or why not.

  Args:
    candidates: kernels to report after those of the library.
  """
  return {kernel.name: kernel.missing() for kernel in (*REGISTRY, *candidates)}


def choose(
  queries: Streams,
  view: View,
  scoring: Scoring,
  *,
  block: int | None = None,
  kernel: str | Kernel | None = None,
) -> str:
  """Returns the name of the kernel that attends to a view.

  Args:
    queries: for each key stream its queries `[B, K, G, T, H]`.
    view: the slots.
    scoring: scale, mask and bias.
    block: slots read at once; None for the kernel's choice.
    kernel: the one that must; None for the fastest.

  Raises:
    ValueError: no kernel has that name, or it cannot serve this view in blocks
      of that size.
  """
  return select(queries, view, scoring, block, kernel).name


def select(
  queries: Streams,
  view: View,
  scoring: Scoring,
  block: int | None,
  kernel: str | Kernel | None,
) -> Kernel:
  """Returns the kernel that attends to a view; see `choose`."""
  if kernel is not None:
    requested = kernel if isinstance(kernel, Kernel) else _by_name(kernel)
    refusal = _refusal(requested, queries, view, scoring, block)
    if refusal:
      raise ValueError(
        f'kernel={requested.name!r} cannot serve: {refusal}. Use '
        "kernel='blockwise', or None for the fastest that can."
      )
    return requested
  # Without a name, the size of a block is a choice of the block loop.
  if block is not None or _mesh_of(queries, view) is not None:
    return blockwise.KERNEL
  in_shard = is_in_shard(next(iter(queries.values())))
  if target() == 'cpu':
    load.warn_if_missing()
  for candidate in REGISTRY:
    if not candidate.is_at_home() or in_shard and not candidate.ran_in_shards:
      continue
    if not _refusal(candidate, queries, view, scoring, block):
      return candidate
  return blockwise.KERNEL


def _by_name(name: str) -> Kernel:
  for kernel in REGISTRY:
    if kernel.name == name:
      return kernel
  raise ValueError(f'kernel={name!r} must be one of {", ".join(KERNELS)}.')


def _refusal(
  kernel: Kernel,
  queries: Streams,
  view: View,
  scoring: Scoring,
  block: int | None,
) -> str:
  refusal = kernel.missing() or kernel.refuses(queries, view, scoring, block)
  tokens = next(iter(queries.values())).shape[3]
  if not refusal and kernel.platform and view.shown_to and tokens > 1:
    return 'each query of the call sees other slots of this view'
  if not refusal and kernel.platform and _mesh_of(queries, view) is not None:
    # XLA splits the block loop, but would gather the whole cache for a call
    # that it cannot split.
    return 'arrays are split over devices by no rules of the cache'
  return refusal


def _mesh_of(queries: Streams, view: View) -> jax.sharding.AbstractMesh | None:
  """Returns the mesh that queries or slots are split over; None for none."""
  leaves = jax.tree.leaves((queries, view.leaves, view.positions))
  return mesh_of(*leaves)


def attend_view(
  queries: Streams,
  positions: jax.Array,
  view: View,
  scoring: Scoring,
  *,
  block: int | None = None,
  kernel: str | Kernel | None = None,
) -> tuple[jax.Array, jax.Array]:
  """Attends to one view by the chosen kernel.

  Where a mesh splits the slots, or kernels can read them as they are stored,
  every device attends to its own part; else XLA splits the block loop.

  Args:
    queries: for each key stream its queries `[B, K, G, T, H]`.
    positions: int32 `[B, T]`, -1 for a row that is no token.
    view: the slots.
    scoring: scale, mask and bias; sinks and temperature are the caller's.
    block: slots read at once; None for the kernel's choice. A number means the
      block loop, or `mosaic_gpu` by name; the others take none.
    kernel: one of `KERNELS`, or a record of a kernel that is not among them;
      None for the fastest that can serve.

  Returns:
    Output `[B, K, G, T, E]` and log-sum-exp `[B, K, G, T]`, float32.
  """
  partition = PARTITION.value

  def attend_here(queries, positions, view, scoring):
    return _attend_here(queries, positions, view, scoring, block, kernel)

  if partition is None or not shards.serves(partition, queries, view, scoring):
    return attend_here(queries, positions, view, scoring)
  return shards.attend(
    partition, queries, positions, view, scoring, attend_here
  )


def _attend_here(queries, positions, view, scoring, block, kernel):
  """Attends to slots that this device holds, or all of them."""
  chosen = select(queries, view, scoring, block, kernel)

  def attend_by_kernel(queries, positions):
    return chosen.attend(queries, positions, view, scoring, block=block)

  def attend_by_blocks(queries, positions):
    return blockwise.attend(queries, positions, view, scoring, block=block)

  if not chosen.platform or not chosen.is_at_home():
    return attend_by_kernel(queries, positions)
  # One program may be lowered for another platform than the process runs on.
  return jax.lax.platform_dependent(
    queries,
    positions,
    default=attend_by_blocks,
    **{chosen.platform: attend_by_kernel},
  )
