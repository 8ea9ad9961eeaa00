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
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple, TypeAlias

import jax

from kvjax.memory.buffers import (
  Buffer,
  EncodingError,
  Instruction,
  Module,
  Shape,
  argument_leaves,
  read,
)
from kvjax.memory.measured import measure

KINDS = ('copy', 'relayout', 'upcast', 'slice')


class InPlaceError(AssertionError):
  """A donated argument is not updated in place."""


@dataclasses.dataclass(frozen=True)
class Finding:
  """One buffer that holds a moved leaf."""

  kind: str  # one of KINDS
  leaf: str  # argument path of the leaf, as in "cache[0]['key']"
  bytes: int
  opcode: str
  dtype: str
  shape: tuple[int, ...]
  name: str  # of the HLO instruction that fills the buffer
  op_name: str  # its jax.named_scope path; '' where XLA kept none

  def __str__(self) -> str:
    shape = f'{self.dtype}[{",".join(map(str, self.shape))}]'
    where = f' in {self.op_name}' if self.op_name else ''
    return (
      f'{self.kind} of {self.leaf}: {shape}, {self.bytes:,} bytes, by'
      f' {self.opcode} {self.name}{where}'
    )


@dataclasses.dataclass(frozen=True)
class Verdict:
  """What became of every leaf of one argument."""

  argument: str
  leaves: tuple[str, ...]
  aliased: tuple[str, ...]  # the leaves whose memory holds an output
  findings: tuple[Finding, ...]  # largest first

  @property
  def ok(self) -> bool:
    """Every leaf is aliased and none is moved."""
    return len(self.aliased) == len(self.leaves) and not self.findings

  @property
  def bytes(self) -> dict[str, int]:
    """Bytes of the moved leaves by kind, every kind included."""
    found = self.findings
    return {k: sum(f.bytes for f in found if f.kind == k) for k in KINDS}

  def __str__(self) -> str:
    count = f'{len(self.aliased)} of {len(self.leaves)} leaves aliased'
    lines = [f'{self.argument!r}: {count}, {len(self.findings)} moved']
    kept = [leaf for leaf in self.leaves if leaf not in self.aliased]
    if kept:
      lines.append(
        f'not aliased: {", ".join(kept)}; donate the argument (donate_argnames)'
        ' and return each leaf with its own shape and dtype'
      )
    return '\n  '.join(lines + [str(f) for f in self.findings])


def assert_in_place(
  compiled: jax.stages.Compiled, argument: str, *, min_bytes: int = 4096
) -> None:
  """Raises unless `compiled` updates `argument` in place; see `in_place`.

  Raises:
    InPlaceError: (an AssertionError) names each leaf that is not aliased and
      each buffer that holds a moved leaf: operation, shape, bytes, scope.
    TypeError, ValueError: as `in_place`.
  """
  verdict = in_place(compiled, argument, min_bytes=min_bytes)
  if not verdict.ok:
    raise InPlaceError(f'not updated in place: {verdict}')


def in_place(
  compiled: jax.stages.Compiled, argument: str, *, min_bytes: int = 4096
) -> Verdict:
  """Judges whether `compiled` updates a donated argument in place.

  Findings are buffers outside the leaf's own memory that hold its contents:

  - copy: the whole leaf as it was;
  - relayout: the whole leaf in another memory order;
  - upcast: the whole leaf in a wider dtype (dequantized codes included);
  - slice: one index of a stacked leaf's first axis, chosen by a constant or a
    loop counter (a layer), or any part of more than half of the leaf.

  Smaller parts are how a step is meant to read: blocks of a loop, and pages
  or rows that a table in an argument names. A step that rewrites every slot
  where it lies passes: the verdict is on memory, not on traffic. On CPU judge
  float32: before JAX 0.12 XLA upcasts operands of bfloat16 dots there.

  Args:
    compiled: `jax.jit(step, donate_argnames='cache').lower(...).compile()`.
    argument: name of the argument in the step's signature, or a path in it
      (`"variables['cache']"`).
    min_bytes: smaller leaves and buffers (lengths, say) are never findings.

  Returns:
    A `Verdict`. Where this JAX's encoding of the executable cannot be read,
    it warns and judges all donated arguments from stable fields: alias bytes,
    and temporaries smaller than the largest leaf.

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
  values = _follow(module, rows, leaves)
  found = {}
  for row in rows:
    if finding := _finding(row, values, leaves, min_bytes):
      # An update of a moved leaf stays where the move put it: one finding.
      key = (finding.kind, finding.leaf, row.allocation, row.offset)
      found.setdefault(key, finding)
  names = tuple(x.op_name for x in leaves.values())
  aliased = tuple(x.op_name for x in leaves.values() if x.kind == 'aliased')
  return Verdict(argument, names, aliased, tuple(found.values()))


def _finding(
  row: Buffer,
  values: Mapping[int, '_Value'],
  leaves: Mapping[int, Buffer],
  min_bytes: int,
) -> Finding | None:
  if row.kind not in ('temporary', 'output') or row.bytes < min_bytes:
    return None
  if not row.shape or row.instruction not in values:
    return None
  trace = _flat(_part(values[row.instruction], row.index))
  held = [key for key in trace.held if leaves[key].bytes >= min_bytes]
  # Codes and scales flow into one dequantized buffer: say the larger leaf.
  for key in sorted(held, key=lambda key: -leaves[key].bytes):
    kind = _kind(row, trace, leaves[key], trace.held[key])
    if kind:
      return Finding(
        kind, leaves[key].op_name, row.bytes, row.opcode, row.dtype,
        row.shape, row.name, row.op_name,
      )  # fmt: skip
  return None


def _kind(row: Buffer, trace: '_Trace', leaf: Buffer, held: int) -> str | None:
  size = math.prod(leaf.shape)
  if held < size:
    first = leaf.shape[0] if leaf.shape else 1
    layer = trace.indexed and first > 1 and held * first == size
    return 'slice' if layer or 2 * held > size else None
  if row.bytes * size > leaf.bytes * math.prod(row.shape):
    return 'upcast'
  if row.layout != leaf.layout and sorted(row.layout) == sorted(leaf.layout):
    return 'relayout'
  return 'copy'


def _stable(compiled: jax.stages.Compiled, argument: str) -> Verdict:
  """Judges all donated leaves together, from stable fields alone."""
  donated = {
    jax.tree_util.keystr(path): math.prod(info.shape) * info.dtype.itemsize
    for path, info in jax.tree.leaves_with_path(compiled.args_info)
    if info.donated
  }
  if not donated:
    return Verdict(argument, ('(nothing is donated)',), (), ())
  found, leaves = measure(compiled), tuple(donated)
  aliased = leaves if found.alias >= sum(donated.values()) else ()
  largest = max(donated, key=lambda leaf: donated[leaf])
  if (size := found.temporaries) < donated[largest]:
    return Verdict(argument, leaves, aliased, ())
  copy = Finding('copy', largest, size, 'some', 'u8', (size,), 'operation', '')
  return Verdict(argument, leaves, aliased, (copy,))


# The data flow. A value that shows a leaf, moved or not, holds some of its
# elements; what is computed from several of them (a dot, a sum) is a result.


@dataclasses.dataclass(frozen=True)
class _Trace:
  held: Mapping[int, int]  # leaf (by allocation) -> elements of it, at most
  result: bool = False  # computed from a leaf's contents, holds none of them
  input: bool = False  # depends on any argument: not a constant or a counter
  indexed: bool = False  # one index of a first axis, chosen by no argument


_Value: TypeAlias = '_Trace | tuple[_Value, ...]'  # of an array, or a tuple

_MIXES = frozenset(
  'dot convolution reduce reduce-window sort custom-call topk scaled-dot'
  ' reduce-scatter select-and-scatter ragged-dot'.split()
)
_MOVES = frozenset(
  'all-gather all-to-all async-done bitcast bitcast-convert broadcast'
  ' collective-permute concatenate convert copy copy-done copy-start'
  ' dynamic-slice dynamic-update-slice gather pad reshape reverse scatter'
  ' select slice transpose'.split()
)
_ARITHMETIC = frozenset(
  'add subtract multiply divide remainder maximum minimum negate clamp'.split()
)


class _Flow(NamedTuple):
  module: Module
  home: Mapping[tuple[int, tuple[int, ...]], _Trace]
  values: dict[int, _Value]  # by instruction; grows as the flow is followed


def _follow(
  module: Module, rows: Iterable[Buffer], leaves: Mapping[int, Buffer]
) -> dict[int, _Value]:
  """Returns what every instruction of the module holds of the leaves."""
  # Whatever fills a leaf's own memory is that leaf's new contents, by
  # whatever arithmetic or kernel it was written.
  home = {
    (row.instruction, row.index): _Trace(
      {row.allocation: math.prod(leaf.shape)}, input=True
    )
    for row in rows
    if (leaf := leaves.get(row.allocation))
    and (row.dtype, row.bytes) == (leaf.dtype, leaf.bytes)
  }
  flow = _Flow(module, home, {})
  _run(flow, module.entry, [_Trace({}, input=True)] * len(module.instructions))
  return flow.values


def _run(flow: _Flow, computation: int, inputs: Sequence[_Value]) -> _Value:
  local: dict[int, _Value] = {}
  for i in flow.module.computations[computation]:
    value = _apply(flow, i, [local[o] for o in i.operands], inputs)
    if isinstance(value, tuple):
      parts = enumerate(value)
      value = tuple(flow.home.get((i.id, (n,)), x) for n, x in parts)
    local[i.id] = value = flow.home.get((i.id, ()), value)
    flow.values[i.id] = _join([flow.values.get(i.id, _Trace({})), value])
  return local[flow.module.roots[computation]]


def _apply(
  flow: _Flow,
  i: Instruction,
  operands: Sequence[_Value],
  inputs: Sequence[_Value],
) -> _Value:
  match i.opcode:
    case 'parameter':
      return inputs[i.parameter]
    case 'tuple':
      return tuple(operands)
    case 'get-tuple-element':
      return _part(operands[0], (i.index,))
    case 'while':
      return _loop(flow, i, operands[0])
    case 'conditional':
      branches = zip(i.called, operands[1:], strict=True)
      return _join([_run(flow, branch, [x]) for branch, x in branches])
    case 'call' | 'fusion':
      return _run(flow, i.called[0], operands)
    case 'async-start':  # its parts are inputs, result and context
      return _flat(_run(flow, i.called[0], operands))
    case 'optimization-barrier':
      return operands[0]
  value = _array(flow.module, i, [_flat(x) for x in operands])
  return tuple(value for _ in i.shape.elements) or value


def _loop(flow: _Flow, i: Instruction, carry: _Value) -> _Value:
  while True:  # what a carry holds only grows, and it is bounded
    after = _join([carry, _run(flow, i.called[0], [carry])])
    if after == carry:
      return carry
    carry = after


def _array(module: Module, i: Instruction, operands: list[_Trace]) -> _Trace:
  found = _flat(tuple(operands))
  if i.opcode == 'compare':  # a mask shows no contents
    return _Trace({}, input=found.input)
  if i.opcode in _MOVES:
    return _move(module, i, operands, found.input)
  # Positions and lengths are computed with, codes are only unpacked.
  counted = i.shape.dtype in ('s32', 's64') and i.opcode in _ARITHMETIC
  mixed = i.opcode in _MIXES or counted
  # Weights times a scale leaf are weights; a leaf plus a result is that leaf.
  added = i.opcode in ('add', 'subtract')
  if mixed or any(x.result and not (x.held or added) for x in operands):
    return _Trace({}, found.result or bool(found.held), found.input)
  return found


def _move(
  module: Module, i: Instruction, operands: list[_Trace], inputs: bool
) -> _Trace:
  n = len(operands)
  contents = {
    'select': operands[1:],
    'scatter': operands[: n // 2] + operands[n // 2 + 1 :],
    'gather': operands[:1],
    'dynamic-slice': operands[:1],
    'dynamic-update-slice': operands[:2],
  }.get(i.opcode, operands)
  found = dataclasses.replace(_flat(tuple(contents)), input=inputs)
  if i.opcode in ('slice', 'dynamic-slice', 'gather'):
    return _read(i, module.instructions[i.operands[0]].shape, operands, found)
  if i.opcode in ('dynamic-update-slice', 'scatter', 'concatenate'):
    # Parts are put together here, in a loop perhaps until the leaf is whole.
    held = {leaf: i.shape.size for leaf in found.held}
    return dataclasses.replace(found, held=held, indexed=False)
  return found


def _read(
  i: Instruction, whole: Shape, operands: Sequence[_Trace], found: _Trace
) -> _Trace:
  size = i.shape.size
  first = whole.dims[0] if whole.dims else 1
  if i.opcode == 'gather':
    alone = first > 1 and size * first == whole.size
  else:
    alone = i.shape.dims[:1] < (first,) and i.shape.dims[1:] == whole.dims[1:]
  chosen = any(x.input for x in operands[1:2])  # by a page table, say
  held = {leaf: min(n, size) for leaf, n in found.held.items()}
  layer = found.indexed or (alone and not chosen)
  return dataclasses.replace(found, held=held, indexed=layer)


def _join(values: Sequence[_Value]) -> _Value:
  """What any of the values holds, part by part where they are tuples."""
  sizes = [len(x) for x in values if isinstance(x, tuple)]
  if not sizes:
    return _flat(tuple(values))
  parts = ([_part(x, (n,)) for x in values] for n in range(max(sizes)))
  return tuple(_join(part) for part in parts)


def _flat(value: _Value) -> _Trace:
  """Everything that any part of a value holds."""
  if isinstance(value, _Trace):
    return value
  parts = [_flat(x) for x in value]
  held: dict[int, int] = {}
  for part in parts:
    for leaf, n in part.held.items():
      held[leaf] = max(n, held.get(leaf, 0))
  return _Trace(
    held,
    any(x.result for x in parts),
    any(x.input for x in parts),
    any(x.indexed for x in parts),
  )


def _part(value: _Value, index: Sequence[int]) -> _Value:
  for n in index:
    value = value[n] if isinstance(value, tuple) else value
  return value
