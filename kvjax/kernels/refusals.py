"""Why kernels that read whole leaves in place cannot serve a view."""

from kvjax.streams.scoring import Scoring
from kvjax.streams.view import View
from kvjax.streams.visibility import Visibility


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
    return f'{type(scoring.visibility).__name__} is a rule of its own'
  if view.stored is None:
    return 'the view does not read whole leaves as they are stored'
  if view.table is not None and not follows_tables:
    return 'slots lie in pages, to be found through a table'
  return ''


def refuses_block(block: int | None) -> str:
  """Returns why a kernel without blocks takes no size of one; '' for None."""
  if block is None:
    return ''
  return f'block={block} is a size for the block loop; this one takes none'
