"""Lines of a plan with the buffers that pay for them.

Arguments are exact: every leaf of parameters and cache belongs to one line,
and what a line promised is compared with what its leaves are. A line of the
step is a formula for buffers that fusion moves and merges. It is compared with
the largest buffer of its `jax.named_scope` that is not larger than the line.
"""

import dataclasses
import functools
import re
from collections.abc import Iterable, Iterator

import jax

from kvjax.memory.compiled.assignment import Buffer, argument_leaves, read
from kvjax.memory.compiled.measurement import measure
from kvjax.memory.parts.cache_bytes import BOOKS
from kvjax.memory.parts.lines import Line
from kvjax.memory.planning import RESULTS, MemoryPlan

ENDS = ('embedding', 'head', 'head_bias', 'positions', 'relative')
# Names of lines, by their beginnings, and the scopes their buffers carry.
SCOPES = {
  'hidden': r'embedding|layer_\d+/(add|mul)',
  'query': r'/query/',
  'new ': r'/(leave|cache)/',
  'mlp': r'/mlp/|/experts/',
  'logits before': r'/logits/',
  'logits': '',
  'copy': r'^$|cache',
  '': r'/attend/',
}


@dataclasses.dataclass(frozen=True)
class PlannedBuffer:
  """One line, or several that share their leaves, and what pays for it.

  Attributes:
    part: of the plan.
    name: of the line.
    planned: bytes.
    assigned: bytes of its leaves or of its buffer; None if it has none.
    where: the largest of them: type, shape, operation and scope.
  """

  part: str
  name: str
  planned: int
  assigned: int | None
  where: str

  @property
  def unaccounted(self) -> int | None:
    return None if self.assigned is None else self.assigned - self.planned


def reconcile(
  plan: MemoryPlan,
  compiled: jax.stages.Compiled,
  *,
  params: str = 'params',
  cache: str = 'cache',
) -> tuple[PlannedBuffer, ...]:
  """Returns the lines of a plan, each with what XLA assigned to a step.

  Args:
    plan: of the same call.
    compiled: `jax.jit(step).lower(params, cache, ...).compile()`.
    params: name of the argument that holds `init_params(config)`.
    cache: name of the argument that holds `init_cache(config, ...)`.

  Raises:
    EncodingError: this version of JAX encodes executables differently.
    ValueError: the program has no argument of that name.
  """
  module, rows = read(compiled)
  leaves = argument_leaves(module, rows, params).values()
  paths = [_keys(leaf.op_name) for leaf in leaves]
  sparse = {keys[1] for keys in paths if 'router' in keys}
  name_of = functools.partial(_param_name, sparse=sparse)
  found = list(_arguments('params', plan, leaves, name_of))
  leaves = argument_leaves(module, rows, cache).values()
  found += _arguments('cache', plan, leaves, _cache_name)
  for line in plan.lines_of('step') + plan.lines_of('in logits'):
    kinds = ('output',) if line.name in RESULTS else ('temporary',)
    found.append(_step(line, [row for row in rows if row.kind in kinds]))
  total = measure(compiled).temporaries
  planned = plan.temporaries_bytes
  found.append(PlannedBuffer('step', 'temporaries in all', planned, total, ''))
  return tuple(found)


def _arguments(part, plan, leaves, name_of) -> Iterator[PlannedBuffer]:
  lines: dict[str, list[Line]] = {}
  for line in plan.lines_of(part):
    lines.setdefault(_joined(line), []).append(line)
  buffers: dict[str, list[Buffer]] = {}
  for leaf in leaves:
    buffers.setdefault(name_of(leaf.op_name), []).append(leaf)
  for name in dict.fromkeys((*lines, *buffers)):
    promised = lines.get(name, [])
    allocated = buffers.get(name, [])
    yield PlannedBuffer(
      part,
      ' and '.join(line.name for line in promised) or name,
      sum(line.bytes for line in promised),
      sum(leaf.bytes for leaf in allocated),
      _where(allocated, f'{len(allocated)} arguments, the largest '),
    )


def _joined(line: Line) -> str:
  """Lines whose leaves have the same names share one row."""
  if line.name.startswith('corrections'):
    return 'experts'
  if line.part == 'params':
    return line.name.removeprefix('codes of ').removeprefix('scales of ')
  if line.part == 'cache' and line.name.endswith('layers'):
    return 'streams'
  return 'scales' if line.name.endswith(': scales') else line.name


def _keys(path: str) -> list[str]:
  return re.findall(r"\['?(\w+)'?\]", path)


def _param_name(path: str, sparse: set[str]) -> str:
  keys = _keys(path)
  if keys[0] in ENDS:
    return 'embedding, head, positions'
  if keys[0] != 'layers':
    return 'encoder' if keys[0] == 'encoder' else 'norms'
  if keys[2] in ('attention', 'cross'):
    return 'attention'
  if keys[2] != 'mlp':
    return 'norms'
  return 'experts' if keys[1] in sparse else 'mlp'


def _cache_name(path: str) -> str:
  if '.stores' in path:
    return 'scales' if path.endswith("'scale']") else 'streams'
  if '.books' in path:
    field = path.rsplit('.', 1)[-1]
    return BOOKS.get(field, field)
  cross = '.cross' in path or '.source' in path
  return 'cross keys and values' if cross else 'lengths and flags'


def _step(line: Line, rows: Iterable[Buffer]) -> PlannedBuffer:
  scope = next(s for name, s in SCOPES.items() if line.name.startswith(name))
  fits = [
    row
    for row in rows
    if row.shape and row.bytes <= line.bytes and _carries(row, scope)
  ]
  paid = sorted(fits, key=lambda row: -row.bytes)[:1]
  size = paid[0].bytes if paid else None
  return PlannedBuffer(line.part, line.name, line.bytes, size, _where(paid, ''))


def _carries(row: Buffer, scope: str) -> bool:
  copies = scope == SCOPES['copy']
  return (not copies or row.opcode == 'copy') and bool(
    re.search(scope, row.op_name)
  )


def _where(rows: list[Buffer], before: str) -> str:
  if not rows:
    return ''
  row = max(rows, key=lambda row: row.bytes)
  shape = f'{row.dtype}[{",".join(map(str, row.shape))}]'
  return f'{before}{shape} {row.opcode} {row.op_name}'.rstrip()
