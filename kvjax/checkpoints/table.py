"""The table of a family: published names and shapes against kvjax params.

A row of a table reads

    self_attn.q_proj.weight      N*H D      attention.query      transpose

published name, published shape, place in the params, and how the published
tensor becomes the param. `{i}` is a layer and `{e}` a part of a stacked param:
an expert, or the norm of a head. `experts` is the place of an `mlp` that has
experts. A heading

    model.layers.{i}.mlp.*   layers.{i}.mlp.*

says what the names and the places of the rows below it begin with.

A row whose place the model does not have (a bias it was built without) is not
used. Of two rows for one place the row whose tensor is in the checkpoint
counts, so one table serves every configuration of a family.

Shapes are sizes of the layer, taken from its config: the letters of `kvjax`,
and a word where `kvjax` has no letter:

    experts            routed experts
    shared_hidden      hidden width of the shared expert
    query_rank         width of the queries' latent
    buckets            of a relative bias
    positions          rows of the learned positions
    source_positions   rows of the encoder's learned positions
    features           of a frame that the encoder reads

How, in order of application; nothing means as stored:

    [a:b]       rows from a to b, in sizes
    [:a:b]      columns (last axis) from a to b
    word        one of `SHAPERS`
"""

import dataclasses
import math
import re
from collections.abc import Callable, Iterable, Mapping

import numpy as np

Sizes = Mapping[str, int]
Shaper = Callable[[np.ndarray, Sizes], np.ndarray]

NOTHING = '-'  # published name of a param that checkpoints leave out: zeros


@dataclasses.dataclass(frozen=True)
class TableRow:
  """One row of a table.

  Attributes:
    name: published, with `{i}` and `{e}`; `-` for a param without a tensor.
    shape: published, a formula of sizes for each axis.
    place: path in the params, with `{i}`.
    how: transformation, in the grammar above.
  """

  name: str
  shape: tuple[str, ...]
  place: str
  how: str = ''

  @property
  def stacked(self) -> bool:
    """Whether each part of the param, an expert say, has a tensor."""
    return '{e}' in self.name

  def tensor_name(self, layer: str, expert: int) -> str:
    """Returns the published name for a layer and an expert."""
    return self.name.replace('{i}', layer).replace('{e}', str(expert))

  def read(self, tensor: np.ndarray, sizes: Sizes) -> np.ndarray:
    """Returns the param (or an expert's part of it) of a published tensor."""
    for step in re.findall(r'\[[^\]]*\]|[a-z_]+', self.how):
      tensor = _apply(step, tensor, sizes)
    return tensor


def parse_table(text: str) -> tuple[TableRow, ...]:
  """Returns the rows of a literal table.

  Args:
    text: one row a line, columns two spaces or more apart; a line of only two
      columns is a heading.
  """
  published, place = '', ''
  rows = []
  for line in text.strip().splitlines():
    name, shape, *others = re.split(r' {2,}', line.strip())
    if not others:
      published, place = name.removesuffix('*'), shape.removesuffix('*')
      continue
    rows.append(
      TableRow(
        name=name if name == NOTHING else published + name,
        shape=tuple(shape.split()),
        place=place + others[0],
        how=''.join(others[1:]),
      )
    )
  return tuple(rows)


def evaluate(formula: str, sizes: Sizes) -> int:
  """Returns a formula of sizes: a product of sums, `N*(H+E)` or `3*N*H`.

  >>> evaluate('(N+K+K)*H', {'N': 4, 'K': 2, 'H': 8})
  64
  """
  return math.prod(
    sum(_evaluate_term(term, sizes) for term in factor.strip('()').split('+'))
    for factor in formula.split('*')
  )


def _evaluate_term(term: str, sizes: Sizes) -> int:
  return int(term) if term.isdigit() else sizes[term]


def group_by_place(rows: Iterable[TableRow]) -> dict[str, list[TableRow]]:
  """Returns the rows of each place, one for each published spelling."""
  groups: dict[str, list[TableRow]] = {}
  for row in rows:
    groups.setdefault(row.place, []).append(row)
  return groups


def _apply(step: str, x: np.ndarray, sizes: Sizes) -> np.ndarray:
  if not step.startswith('['):
    return SHAPERS[step](x, sizes)
  *columns, start, stop = step[1:-1].split(':')
  span = slice(
    evaluate(start, sizes) if start else None,
    evaluate(stop, sizes) if stop else None,
  )
  return x[..., span] if columns else x[span]


def _kv_part(part: int | slice) -> Shaper:
  """Returns a shaper to some of the rows `[K * (G + 2) * H, ...]`.

  For each kv head the rows of its G queries come first, then the rows of its
  key and of its value (Falcon, GPTBigCode).
  """

  def pick(x: np.ndarray, sizes: Sizes) -> np.ndarray:
    heads = (sizes['K'], sizes['G'] + 2, sizes['H'])
    parts = x.reshape(heads + x.shape[1:])[:, part]
    return parts.reshape((-1,) + x.shape[1:])

  return pick


def _up(x: np.ndarray, sizes: Sizes) -> np.ndarray:
  """Returns `[N, H + E, R]` of the rows of DeepSeek's kv_b_proj."""
  return x.reshape(sizes['N'], -1, x.shape[-1])


def _halves(x: np.ndarray, sizes: Sizes) -> np.ndarray:
  """Returns rows `[heads * H, ...]` that llama.cpp rotates, in our order.

  llama.cpp rotates the neighbours (2i, 2i + 1), kvjax (i, i + H / 2).
  """
  pairs = x.reshape((-1, sizes['H'] // 2, 2) + x.shape[1:])
  return pairs.swapaxes(1, 2).reshape(x.shape)


def _minus_one(x: np.ndarray, sizes: Sizes) -> np.ndarray:
  with np.errstate(invalid='ignore'):  # NaN stays NaN
    return x.astype(np.float32) - 1


SHAPERS: dict[str, Shaper] = {
  # `[in, out]` becomes `[out, in]`, the order of nearly all checkpoints and of
  # kvjax.
  'transpose': lambda x, _: np.swapaxes(x, -1, -2),
  # Columns of two projections that alternate (gpt-oss).
  'even': lambda x, _: x[..., ::2],
  'odd': lambda x, _: x[..., 1::2],
  'queries': _kv_part(slice(-2)),
  'keys': _kv_part(-2),
  'values': _kv_part(-1),
  'up_key': lambda x, sizes: _up(x, sizes)[:, : sizes['H']],
  'up_value': lambda x, sizes: _up(x, sizes)[:, sizes['H'] :],
  'halves': _halves,
  # GGUF files have the norms of Gemma with 1 added.
  'minus_one': _minus_one,
  # A convolution `[out, in, width]` becomes `[width, in, out]`.
  'kernel': lambda x, _: x.transpose(2, 1, 0),
}
