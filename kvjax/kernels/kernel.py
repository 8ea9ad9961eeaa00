"""The interface of a kernel: one record of a name and functions.

The library's records are listed in `registry.KERNELS`. A function that takes
`kernel=` takes a record, too: a kernel that is tried out needs no registration.
"""

import dataclasses
from collections.abc import Callable
from typing import Protocol

import jax

from kvjax.streams.scoring import Scoring
from kvjax.streams.view import Streams, View
from kvjax.streams.visibility import Visibility


class Attend(Protocol):
  """Attends to the slots of one view; see `blockwise.attend`."""

  def __call__(
    self,
    queries: Streams,
    positions: jax.Array,
    view: View,
    scoring: Scoring,
    *,
    block: int | None = None,
  ) -> tuple[jax.Array, jax.Array]: ...


class Refuses(Protocol):
  """Returns why a kernel cannot serve a view in such blocks; '' if it can."""

  def __call__(
    self,
    queries: Streams,
    view: View,
    scoring: Scoring,
    block: int | None = None,
  ) -> str: ...


@dataclasses.dataclass(frozen=True)
class Kernel:
  """One implementation of attention to one view.

  Attributes:
    name: what `kernel=` calls it.
    platform: as `jax.lax.platform_dependent` calls it ('cpu', 'cuda'): a
      program that is lowered for another one attends block by block instead.
      '' for a kernel that every platform runs.
    missing: returns why this process cannot use it; '' if it can.
    is_at_home: returns whether this process has the device that the kernel is
      made for. There a kernel of the registry may be chosen without being
      named, and is written into programs for its `platform` only.
    refuses: why it cannot serve a view.
    attend: what it computes.
    ran_in_shards: it has run on several devices of a mesh. A kernel that has
      not is chosen there by its name alone.
  """

  name: str
  platform: str
  missing: Callable[[], str]
  is_at_home: Callable[[], bool]
  refuses: Refuses
  attend: Attend
  ran_in_shards: bool = True


def refuses_stored(
  rows: int,
  most: int,
  view: View,
  scoring: Scoring,
  *,
  follows_tables: bool = False,
) -> str:
  """Returns why such a kernel cannot serve a view; '' if it can.

  Args:
    rows: query rows of a kv head, G T.
    most: rows that the kernel serves.
    view: the slots.
    scoring: how queries score them.
    follows_tables: whether it finds slots in pages of a pool.
  """
  if rows > most:
    return f'{rows} query rows a kv head; it serves at most {most}'
  if scoring.bias is not None:
    return 'scores have an additive bias'
  if type(scoring.visibility) is not Visibility:
    # A kernel knows the rule's fields; it cannot know another rule's `sees`.
    return f'{type(scoring.visibility).__name__} is not a plain Visibility'
  if view.stored is None:
    return 'the view does not read whole leaves as they are stored'
  if view.table is not None and not follows_tables:
    return 'slots are in pages, to be found through a table'
  return ''


def refuses_block(block: int | None) -> str:
  """Returns why a kernel without blocks takes no size of one; '' for None."""
  if block is None:
    return ''
  return f'block={block} is a size for the block loop; this one takes none'
