"""Which instructions of a compiled program hold elements of which leaf.

A value that shows a leaf, moved or not, holds some of its elements; what is
computed from several of them (a dot, a sum) is a result.
"""

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple, TypeAlias

from kvjax.memory.compiled.assignment import Buffer, Instruction, Module, Shape


@dataclasses.dataclass(frozen=True)
class LeafTrace:
  """What one array shows of the leaves."""

  elements: Mapping[int, int]  # leaf (by allocation) -> elements of it, at most
  result: bool = False  # computed from a leaf's contents, holds none of them
  input: bool = False  # depends on any argument: not a constant or a counter
  indexed: bool = False  # one index of a first axis, chosen by no argument


Value: TypeAlias = 'LeafTrace | tuple[Value, ...]'  # of an array, or a tuple

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
  home: Mapping[tuple[int, tuple[int, ...]], LeafTrace]
  values: dict[int, Value]  # by instruction; grows as the flow is followed


def follow(
  module: Module, rows: Iterable[Buffer], leaves: Mapping[int, Buffer]
) -> dict[int, Value]:
  """Returns what every instruction of the module holds of the leaves."""
  # Whatever fills a leaf's own memory is that leaf's new contents, by
  # whatever arithmetic or kernel it was written.
  home = {
    (row.instruction, row.index): LeafTrace(
      {row.allocation: math.prod(leaf.shape)}, input=True
    )
    for row in rows
    if (leaf := leaves.get(row.allocation))
    and (row.dtype, row.bytes) == (leaf.dtype, leaf.bytes)
  }
  flow = _Flow(module, home, {})
  _run(
    flow, module.entry, [LeafTrace({}, input=True)] * len(module.instructions)
  )
  return flow.values


def _run(flow: _Flow, computation: int, inputs: Sequence[Value]) -> Value:
  local: dict[int, Value] = {}
  for i in flow.module.computations[computation]:
    value = _apply(flow, i, [local[o] for o in i.operands], inputs)
    if isinstance(value, tuple):
      parts = enumerate(value)
      value = tuple(flow.home.get((i.id, (n,)), x) for n, x in parts)
    local[i.id] = value = flow.home.get((i.id, ()), value)
    flow.values[i.id] = _join([flow.values.get(i.id, LeafTrace({})), value])
  return local[flow.module.roots[computation]]


def _apply(
  flow: _Flow,
  i: Instruction,
  operands: Sequence[Value],
  inputs: Sequence[Value],
) -> Value:
  match i.opcode:
    case 'parameter':
      return inputs[i.parameter]
    case 'tuple':
      return tuple(operands)
    case 'get-tuple-element':
      return part(operands[0], (i.index,))
    case 'while':
      return _loop(flow, i, operands[0])
    case 'conditional':
      branches = zip(i.called, operands[1:], strict=True)
      return _join([_run(flow, branch, [x]) for branch, x in branches])
    case 'call' | 'fusion':
      return _run(flow, i.called[0], operands)
    case 'async-start':  # its parts are inputs, result and context
      return flat(_run(flow, i.called[0], operands))
    case 'optimization-barrier':
      return operands[0]
  value = _array(flow.module, i, [flat(x) for x in operands])
  return tuple(value for _ in i.shape.elements) or value


def _loop(flow: _Flow, i: Instruction, carry: Value) -> Value:
  while True:  # what a carry holds only grows, and it is bounded
    after = _join([carry, _run(flow, i.called[0], [carry])])
    if after == carry:
      return carry
    carry = after


def _array(
  module: Module, i: Instruction, operands: list[LeafTrace]
) -> LeafTrace:
  found = flat(tuple(operands))
  if i.opcode == 'compare':  # a mask shows no contents
    return LeafTrace({}, input=found.input)
  if i.opcode in _MOVES:
    return _move(module, i, operands, found.input)
  # Positions and lengths are computed with, codes are only unpacked.
  counted = i.shape.dtype in ('s32', 's64') and i.opcode in _ARITHMETIC
  mixed = i.opcode in _MIXES or counted
  # Weights times a scale leaf are weights; a leaf plus a result is that leaf.
  added = i.opcode in ('add', 'subtract')
  if mixed or any(x.result and not (x.elements or added) for x in operands):
    return LeafTrace({}, found.result or bool(found.elements), found.input)
  return found


def _move(
  module: Module, i: Instruction, operands: list[LeafTrace], inputs: bool
) -> LeafTrace:
  n = len(operands)
  contents = {
    'select': operands[1:],
    'scatter': operands[: n // 2] + operands[n // 2 + 1 :],
    'gather': operands[:1],
    'dynamic-slice': operands[:1],
    'dynamic-update-slice': operands[:2],
  }.get(i.opcode, operands)
  found = dataclasses.replace(flat(tuple(contents)), input=inputs)
  if i.opcode in ('slice', 'dynamic-slice', 'gather'):
    return _read(i, module.instructions[i.operands[0]].shape, operands, found)
  if i.opcode in ('dynamic-update-slice', 'scatter', 'concatenate'):
    # Parts are put together here, in a loop perhaps until the leaf is whole.
    elements = {leaf: i.shape.size for leaf in found.elements}
    return dataclasses.replace(found, elements=elements, indexed=False)
  return found


def _read(
  i: Instruction, whole: Shape, operands: Sequence[LeafTrace], found: LeafTrace
) -> LeafTrace:
  size = i.shape.size
  first = whole.dims[0] if whole.dims else 1
  if i.opcode == 'gather':
    alone = first > 1 and size * first == whole.size
  else:
    alone = i.shape.dims[:1] < (first,) and i.shape.dims[1:] == whole.dims[1:]
  chosen = any(x.input for x in operands[1:2])  # by a page table, say
  elements = {leaf: min(n, size) for leaf, n in found.elements.items()}
  layer = found.indexed or (alone and not chosen)
  return dataclasses.replace(found, elements=elements, indexed=layer)


def _join(values: Sequence[Value]) -> Value:
  """What any of the values holds, part by part where they are tuples."""
  sizes = [len(x) for x in values if isinstance(x, tuple)]
  if not sizes:
    return flat(tuple(values))
  parts = ([part(x, (n,)) for x in values] for n in range(max(sizes)))
  return tuple(_join(each) for each in parts)


def flat(value: Value) -> LeafTrace:
  """Everything that any part of a value holds."""
  if isinstance(value, LeafTrace):
    return value
  parts = [flat(x) for x in value]
  elements: dict[int, int] = {}
  for each in parts:
    for leaf, n in each.elements.items():
      elements[leaf] = max(n, elements.get(leaf, 0))
  return LeafTrace(
    elements,
    any(x.result for x in parts),
    any(x.input for x in parts),
    any(x.indexed for x in parts),
  )


def part(value: Value, index: Sequence[int]) -> Value:
  """The value at a place of nested tuples."""
  for n in index:
    value = value[n] if isinstance(value, tuple) else value
  return value
