"""Which instructions of a compiled program read what an argument holds.

An in-place update writes a row of a leaf and reads none; the updated leaf is
then the leaf. Whatever else consumes it reads it.
"""

from collections.abc import Iterator, Mapping
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
  inputs = {i.parameter: i.parameter in numbers for i in entry if _given(i)}
  found: dict[str, None] = {}
  _run(module, module.entry, inputs, found)
  return tuple(found)


def _given(i: Instruction) -> bool:
  return i.opcode == 'parameter'


def _run(
  module: Module,
  computation: int,
  inputs: Mapping[int, _Leaf],
  found: dict[str, None],
) -> _Leaf:
  local: dict[int, _Leaf] = {}
  for i in module.computations[computation]:
    operands = [local[o] for o in i.operands]
    local[i.id] = _apply(module, i, operands, inputs, found)
  return local[module.roots[computation]]


def _apply(
  module: Module,
  i: Instruction,
  operands: list[_Leaf],
  inputs: Mapping[int, _Leaf],
  found: dict[str, None],
) -> _Leaf:
  """Whether the result is the leaf; notes the instruction when it reads it."""
  if _given(i):
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
    return _loop(module, i, operands[0], found)
  if i.opcode in ('fusion', 'call', 'conditional'):
    given = operands[1:] if i.opcode == 'conditional' else operands
    return _call(module, i, given, found)
  if i.opcode in _UPDATES and not any(map(_any, operands[1:])):
    return operands[0]
  found[f'{i.opcode} {i.name}'] = None
  return False


def _call(
  module: Module,
  i: Instruction,
  operands: list[_Leaf],
  found: dict[str, None],
) -> _Leaf:
  if i.opcode == 'conditional':
    pairs: Iterator[tuple[int, list[_Leaf]]] = zip(
      i.called, ([x] for x in operands), strict=True
    )
    results = [
      _run(module, c, dict(enumerate(given)), found) for c, given in pairs
    ]
    return any(map(_any, results))
  return _run(module, i.called[0], dict(enumerate(operands)), found)


def _loop(
  module: Module, i: Instruction, carry: _Leaf, found: dict[str, None]
) -> _Leaf:
  """A leaf stays in its place of the carry, or is counted as read."""
  for computation in i.called:
    result = _run(module, computation, {0: carry}, found)
    if isinstance(result, tuple) and result != carry:
      found[f'while {i.name}'] = None
  return carry


def _any(value: _Leaf) -> bool:
  return any(map(_any, value)) if isinstance(value, tuple) else value
