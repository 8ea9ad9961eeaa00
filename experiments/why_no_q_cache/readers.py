"""Which instructions of a compiled program read the contents of an argument.

An in-place update writes a row of a leaf and reads none, and its result is then
the leaf. Any other instruction that takes the leaf reads it.
"""

from collections.abc import Mapping
from typing import TypeAlias

import jax

from kvjax.memory.compiled.assignment import (
  Instruction,
  Module,
  argument_leaves,
  read,
)

# Whether an instruction's result is the leaf itself, part by part of a tuple.
_Leaf: TypeAlias = 'bool | tuple[_Leaf, ...]'
_PASSES = frozenset(
  'bitcast copy optimization-barrier tuple get-tuple-element'.split()
)
_UPDATES = frozenset(('dynamic-update-slice', 'scatter'))


def readers(compiled: jax.stages.Compiled, argument: str) -> tuple[str, ...]:
  """Returns the instructions that read the contents of an argument's leaves.

  Writing rows into a leaf, copying it whole and returning it do not count.

  Args:
    compiled: `jax.jit(step).lower(...).compile()`.
    argument: name of the argument in the step's signature, or a path in it
      (`"cache.stores[0]['query']"`).

  Returns:
    `opcode name` of each, in the order of the program.

  Raises:
    EncodingError: this version of JAX encodes executables differently.
    ValueError: no argument of the program has that name; one that nothing
      uses is dropped.
  """
  module, rows = read(compiled)
  leaves = argument_leaves(module, rows, argument)
  numbers = {
    module.instructions[row.instruction].parameter for row in leaves.values()
  }
  entry = module.computations[module.entry]
  inputs = {
    i.parameter: i.parameter in numbers
    for i in entry
    if i.opcode == 'parameter'
  }
  reads: dict[str, None] = {}
  _run(module, module.entry, inputs, reads)
  return tuple(reads)


def _run(
  module: Module,
  computation: int,
  inputs: Mapping[int, _Leaf],
  reads: dict[str, None],
) -> _Leaf:
  local: dict[int, _Leaf] = {}
  for i in module.computations[computation]:
    operands = [local[o] for o in i.operands]
    local[i.id] = _apply(module, i, operands, inputs, reads)
  return local[module.roots[computation]]


def _apply(
  module: Module,
  i: Instruction,
  operands: list[_Leaf],
  inputs: Mapping[int, _Leaf],
  reads: dict[str, None],
) -> _Leaf:
  """Returns whether the result is the leaf; notes an instruction that reads."""
  if i.opcode == 'parameter':
    return inputs.get(i.parameter, False)
  if not any(map(_any, operands)):
    return False
  if i.opcode == 'tuple':
    return tuple(operands)
  if i.opcode == 'get-tuple-element':
    whole = operands[0]
    return whole[i.index] if isinstance(whole, tuple) else whole
  if i.opcode in _PASSES:
    return operands[0]
  if i.opcode == 'while':
    return _loop(module, i, operands[0], reads)
  if i.opcode in ('fusion', 'call', 'conditional'):
    return _call(module, i, operands, reads)
  if i.opcode in _UPDATES and not any(map(_any, operands[1:])):
    return operands[0]
  reads[f'{i.opcode} {i.name}'] = None
  return False


def _call(
  module: Module,
  i: Instruction,
  operands: list[_Leaf],
  reads: dict[str, None],
) -> _Leaf:
  if i.opcode != 'conditional':
    return _run(module, i.called[0], dict(enumerate(operands)), reads)
  # The first operand picks the branch; each branch takes one of the others.
  pairs = zip(i.called, operands[1:], strict=True)
  results = [_run(module, branch, {0: x}, reads) for branch, x in pairs]
  return any(map(_any, results))


def _loop(
  module: Module, i: Instruction, carry: _Leaf, reads: dict[str, None]
) -> _Leaf:
  """Returns the carry; a leaf that leaves its place in it counts as read."""
  for computation in i.called:
    result = _run(module, computation, {0: carry}, reads)
    if isinstance(result, tuple) and result != carry:
      reads[f'while {i.name}'] = None
  return carry


def _any(value: _Leaf) -> bool:
  return any(map(_any, value)) if isinstance(value, tuple) else value
