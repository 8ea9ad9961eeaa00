"""Whether a compiled step updates its donated cache in place.

Neither the alias table nor an unchanged pointer proves it: a scan with the
cache as xs and ys aliases every byte and copies all of them. What proves it
is that no buffer holds a moved leaf. Each leaf is followed from its parameter
through the optimized HLO (tuples, bitcasts, loops, calls, fusions), and a
buffer counts only if the leaf's contents flow into it: a weight matrix or a
row of attention weights that happens to have the leaf's shape is no copy.
"""

import dataclasses
import math
import warnings
from collections.abc import Mapping

import jax

from kvjax.display import SHORT, Display, Displayed, binary_size
from kvjax.memory.compiled.assignment import (
  Buffer,
  EncodingError,
  argument_leaves,
  read,
)
from kvjax.memory.compiled.dataflow import LeafTrace, Value, flat, follow, part
from kvjax.memory.compiled.measurement import measure

KINDS = ('copy', 'relayout', 'upcast', 'slice')


class InPlaceError(AssertionError):
  """A donated argument is not updated in place."""


@dataclasses.dataclass(frozen=True)
class Finding:
  """One buffer that holds a moved leaf.

  Attributes:
    kind: 'copy', 'relayout', 'upcast' or 'slice'.
    leaf: path of the leaf in the argument, as in `cache[0]['key']`.
    bytes: of the buffer.
    opcode: of the HLO instruction that fills the buffer.
    dtype: of the buffer.
    shape: of the buffer.
    name: of that instruction.
    op_name: its `jax.named_scope` path; '' where XLA kept none.
  """

  kind: str
  leaf: str
  bytes: int
  opcode: str
  dtype: str
  shape: tuple[int, ...]
  name: str
  op_name: str

  @property
  def place(self) -> str:
    """Dtype and shape of the buffer, as HLO writes them."""
    return f'{self.dtype}[{",".join(map(str, self.shape))}]'

  def __str__(self) -> str:
    where = f' in {self.op_name}' if self.op_name else ''
    return (
      f'{self.kind} of {self.leaf}: {self.place}, {self.bytes:,} bytes, by'
      f' {self.opcode} {self.name}{where}'
    )


@dataclasses.dataclass(frozen=True, repr=False)
class InPlaceReport(Displayed):
  """What became of every leaf of one argument.

  Attributes:
    argument: its name.
    leaves: paths of its leaves.
    aliased: the leaves whose memory holds an output.
    findings: buffers that hold a moved leaf, largest first.
  """

  argument: str
  leaves: tuple[str, ...]
  aliased: tuple[str, ...]
  findings: tuple[Finding, ...]

  @property
  def ok(self) -> bool:
    """Every leaf is aliased and none is moved."""
    return len(self.aliased) == len(self.leaves) and not self.findings

  @property
  def bytes(self) -> dict[str, int]:
    """Bytes of the moved leaves by kind, every kind included."""
    found = self.findings
    return {k: sum(f.bytes for f in found if f.kind == k) for k in KINDS}

  def display(self) -> Display:
    rows = [
      [x.kind, x.leaf, x.place, binary_size(x.bytes), f'{x.opcode} {x.name}']
      for x in self.findings
    ]
    columns = 'what', 'leaf', 'buffer', 'size', 'by'
    left = 'what', 'leaf', 'by'
    return Display(self._head(), columns, rows, left, self._advice())

  def __str__(self) -> str:
    findings = [str(finding) for finding in self.findings]
    return '\n  '.join([self._head(), *self._advice(), *findings])

  def __repr__(self) -> str:
    return self.display().text(SHORT) if self.findings else self._head()

  def _head(self) -> str:
    count = f'{len(self.aliased)} of {len(self.leaves)} leaves aliased'
    return f'{self.argument!r}: {count}, {len(self.findings)} moved'

  def _advice(self) -> list[str]:
    kept = [leaf for leaf in self.leaves if leaf not in self.aliased]
    if not kept:
      return []
    return [
      f'not aliased: {", ".join(kept)}; donate the argument (donate_argnames)'
      ' and return each leaf with its own shape and dtype'
    ]


def assert_in_place(
  compiled: jax.stages.Compiled, argument: str, *, min_bytes: int = 4096
) -> None:
  """Raises unless `compiled` updates `argument` in place; see `in_place`.

  Args:
    compiled: a compiled step.
    argument: name of the argument, or a path in it.
    min_bytes: smaller leaves and buffers are never findings.

  Raises:
    InPlaceError: (an AssertionError) names each leaf that is not aliased and
      each buffer that holds a moved leaf: operation, shape, bytes, scope.
    TypeError: `compiled` is not a compiled program.
    ValueError: no argument has that name, or all its leaves are smaller than
      `min_bytes`.
  """
  report = in_place(compiled, argument, min_bytes=min_bytes)
  if not report.ok:
    raise InPlaceError(f'not updated in place: {report}')


def in_place(
  compiled: jax.stages.Compiled, argument: str, *, min_bytes: int = 4096
) -> InPlaceReport:
  """Judges whether `compiled` updates a donated argument in place.

  Findings are buffers outside the leaf's own memory that hold its contents:

  - copy: the whole leaf as it was;
  - relayout: the whole leaf in another memory order;
  - upcast: the whole leaf in a wider dtype (dequantized codes included);
  - slice: one index of a stacked leaf's first axis, chosen by a constant or a
    loop counter (a layer), or any part of more than half of the leaf.

  Smaller parts are how a step is meant to read: blocks of a loop, and pages
  or rows that a table in an argument names. A step that rewrites every slot
  in place passes: the verdict is on memory, not on traffic. On CPU judge
  float32: before JAX 0.12 XLA upcasts operands of bfloat16 dots there.

  Args:
    compiled: `jax.jit(step, donate_argnames='cache').lower(...).compile()`.
    argument: name of the argument in the step's signature, or a path in it
      (`"variables['cache']"`).
    min_bytes: smaller leaves and buffers (lengths, say) are never findings.

  Returns:
    An `InPlaceReport`. Where this JAX's encoding of the executable cannot be
    read, it warns and judges all donated arguments from stable fields: alias
    bytes, and temporaries smaller than the largest leaf.

  Raises:
    TypeError: `compiled` is not a compiled program.
    ValueError: no argument has that name, or all its leaves are smaller than
      `min_bytes`, so nothing could be found.
  """
  try:
    module, rows = read(compiled)
  except EncodingError as error:
    warnings.warn(f'in_place sees no buffers: {error}', stacklevel=2)
    return _stable(compiled, argument)
  leaves = argument_leaves(module, rows, argument)
  if all(leaf.bytes < min_bytes for leaf in leaves.values()):
    raise ValueError(
      f'every leaf of {argument!r} is smaller than min_bytes={min_bytes}, so'
      ' no copy could be found; compile a larger cache or lower min_bytes.'
    )
  values = follow(module, rows, leaves)
  found = {}
  for row in rows:
    if finding := _finding(row, values, leaves, min_bytes):
      # An update of a moved leaf stays where the move put it: one finding.
      key = (finding.kind, finding.leaf, row.allocation, row.offset)
      found.setdefault(key, finding)
  names = tuple(x.op_name for x in leaves.values())
  aliased = tuple(x.op_name for x in leaves.values() if x.kind == 'aliased')
  return InPlaceReport(argument, names, aliased, tuple(found.values()))


def _finding(
  row: Buffer,
  values: Mapping[int, Value],
  leaves: Mapping[int, Buffer],
  min_bytes: int,
) -> Finding | None:
  if row.kind not in ('temporary', 'output') or row.bytes < min_bytes:
    return None
  if not row.shape or row.instruction not in values:
    return None
  trace = flat(part(values[row.instruction], row.index))
  large = [key for key in trace.elements if leaves[key].bytes >= min_bytes]
  # Codes and scales flow into one dequantized buffer: say the larger leaf.
  for key in sorted(large, key=lambda key: -leaves[key].bytes):
    kind = _kind(row, trace, leaves[key], trace.elements[key])
    if kind:
      return Finding(
        kind,
        leaves[key].op_name,
        row.bytes,
        row.opcode,
        row.dtype,
        row.shape,
        row.name,
        row.op_name,
      )
  return None


def _kind(
  row: Buffer, trace: LeafTrace, leaf: Buffer, elements: int
) -> str | None:
  size = math.prod(leaf.shape)
  if elements < size:
    first = leaf.shape[0] if leaf.shape else 1
    layer = trace.indexed and first > 1 and elements * first == size
    return 'slice' if layer or 2 * elements > size else None
  if row.bytes * size > leaf.bytes * math.prod(row.shape):
    return 'upcast'
  if row.layout != leaf.layout and sorted(row.layout) == sorted(leaf.layout):
    return 'relayout'
  return 'copy'


def _stable(compiled: jax.stages.Compiled, argument: str) -> InPlaceReport:
  """Judges all donated leaves together, from stable fields alone."""
  donated = {
    jax.tree_util.keystr(path): math.prod(info.shape) * info.dtype.itemsize
    for path, info in jax.tree.leaves_with_path(compiled.args_info)
    if info.donated
  }
  if not donated:
    return InPlaceReport(argument, ('(nothing is donated)',), (), ())
  found, leaves = measure(compiled), tuple(donated)
  aliased = leaves if found.alias >= sum(donated.values()) else ()
  largest = max(donated, key=lambda leaf: donated[leaf])
  if (size := found.temporaries) < donated[largest]:
    return InPlaceReport(argument, leaves, aliased, ())
  copy = Finding('copy', largest, size, 'some', 'u8', (size,), 'operation', '')
  return InPlaceReport(argument, leaves, aliased, (copy,))
