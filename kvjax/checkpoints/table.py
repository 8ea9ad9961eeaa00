"""The table of a family: published names and shapes against kvjax params.

A line of a table reads

    self_attn.q_proj.weight      N*H D      attention.query      T

published name, published shape in the letters of `kvjax` (sizes of the layer,
taken from its config), place in the params, and how the one becomes the other.
`{i}` is a layer and `{e}` an expert (experts are stacked). `experts` is the
place of an `mlp` that has experts. A line whose place the model does not have
(a bias it was built without) is not used, and of two lines for one place the
one whose tensor is there counts: one table serves every configuration of a
family.

How, in order of application; nothing means as stored:

    [a:b]    rows from a to b, in letters
    [:a:b]   columns (last axis) from a to b
    name     one of `SHAPERS`
    T        last two axes swapped: `[in, out]` becomes `[out, in]`, the order
             of nearly all checkpoints and of kvjax

Letters are those of `kvjax`, and Q: rank of the query's latent, X: experts, M:
hidden width of the shared expert, C: rows of learned positions, W: buckets of
a relative bias; of an encoder, S: rows of its positions, B: width of a frame.
"""

import dataclasses
import math
import re
from collections.abc import Callable, Iterable, Mapping

import numpy as np

Sizes = Mapping[str, int]
Read = Callable[[np.ndarray, Sizes], np.ndarray]

NOTHING = '-'  # published name of a param that checkpoints leave out: zeros


@dataclasses.dataclass(frozen=True)
class TableRow:
  """One line of a table.

  Attributes:
    name: published, with `{i}` and `{e}`; `-` for a param without a tensor.
    shape: published, a letter formula an axis.
    place: path in the params, with `{i}`.
    how: transformation, in the grammar above.
  """

  name: str
  shape: tuple[str, ...]
  place: str
  how: str = ''

  @property
  def stacked(self) -> bool:
    """One tensor an expert, stacked into one param."""
    return '{e}' in self.name

  def read(self, tensor: np.ndarray, sizes: Sizes) -> np.ndarray:
    """Returns the param (or an expert's part of it) of a published tensor."""
    for step in re.findall(r'\[[^\]]*\]|[a-z_]+|T', self.how):
      tensor = _apply(step, tensor, sizes)
    return tensor


def table(published: str, place: str, text: str) -> tuple[TableRow, ...]:
  """Returns rows of a literal table whose names share two prefixes."""
  rows = []
  for line in text.strip().splitlines():
    name, shape, leaf, *how = re.split(r' {2,}', line.strip())
    name = name if name == NOTHING else published + name
    rows.append(
      TableRow(name, tuple(shape.split()), place + leaf, ''.join(how))
    )
  return tuple(rows)


def size(formula: str, sizes: Sizes) -> int:
  """Returns a formula of letters: a product of sums, `N*(H+E)` or `3*N*H`.

  >>> size('(N+K+K)*H', {'N': 4, 'K': 2, 'H': 8})
  64
  """
  return math.prod(
    sum(_letter(x, sizes) for x in factor.strip('()').split('+'))
    for factor in formula.split('*')
  )


def _letter(text: str, sizes: Sizes) -> int:
  return int(text) if text.isdigit() else sizes[text]


def by_place(rows: Iterable[TableRow]) -> dict[str, list[TableRow]]:
  """Returns the rows of each place: one, or one a published spelling."""
  found: dict[str, list[TableRow]] = {}
  for row in rows:
    found.setdefault(row.place, []).append(row)
  return found


def _apply(step: str, x: np.ndarray, sizes: Sizes) -> np.ndarray:
  if step == 'T':
    return np.swapaxes(x, -1, -2)
  if not step.startswith('['):
    return SHAPERS[step](x, sizes)
  *columns, start, stop = step[1:-1].split(':')
  span = slice(*(size(f, sizes) if f else None for f in (start, stop)))
  return x[..., span] if columns else x[span]


def _grouped(part: int) -> Read:
  """Rows `[K * (G + 2) * H, ...]`: for a kv head G queries, key, value."""

  def read(x: np.ndarray, sizes: Sizes) -> np.ndarray:
    heads, groups, width = sizes['K'], sizes['G'], sizes['H']
    x = x.reshape((heads, groups + 2, width) + x.shape[1:])
    x = x[:, :groups] if part == 0 else x[:, groups + part - 1]
    return x.reshape((-1,) + x.shape[(3 if part == 0 else 2) :])

  return read


def _up_key(x: np.ndarray, sizes: Sizes) -> np.ndarray:
  """`[N * (H + E), R]` to `[N, H, R]` (DeepSeek's kv_b_proj)."""
  return x.reshape(sizes['N'], -1, x.shape[-1])[:, : sizes['H']]


def _up_value(x: np.ndarray, sizes: Sizes) -> np.ndarray:
  return x.reshape(sizes['N'], -1, x.shape[-1])[:, sizes['H'] :]


SHAPERS: dict[str, Read] = {
  'even': lambda x, _: x[..., ::2],
  'odd': lambda x, _: x[..., 1::2],
  'queries': _grouped(0),
  'keys': _grouped(1),
  'values': _grouped(2),
  'up_key': _up_key,
  'up_value': _up_value,
  'kernel': lambda x, _: x.transpose(2, 1, 0),
}
