"""Which instructions of a compiled program read the contents of an argument.

An in-place update writes a row of a leaf and reads none, and its result is then
the leaf. Any other instruction that takes the leaf reads it.
"""

import dataclasses
from collections.abc import Mapping
from typing import TypeAlias

import jax

from kvjax.memory.compiled import assignment

# Whether an instruction's result is the leaf itself, part by part of a tuple.
_Leaf: TypeAlias = 'bool | tuple[_Leaf, ...]'
_PASSES = ('bitcast', 'copy', 'optimization-barrier')
_UPDATES = ('dynamic-update-slice', 'scatter')


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
  module, rows = assignment.read(compiled)
  leaves = assignment.argument_leaves(module, rows, argument)
  numbers = {
    module.instructions[row.instruction].parameter for row in leaves.values()
  }
  walk = _Walk(module)
  walk.run(module.entry, dict.fromkeys(numbers, True))
  return tuple(walk.reads)


@dataclasses.dataclass(frozen=True)
class _Walk:
  """Follows a leaf through the computations of a module.

  Attributes:
    module: of the compiled program.
    reads: the instructions that read the leaf, as the keys of a dict, which
      keeps their order.
  """

  module: assignment.Module
  reads: dict[str, None] = dataclasses.field(default_factory=dict)

  def run(self, computation: int, inputs: Mapping[int, _Leaf]) -> _Leaf:
    """Returns the result of a computation whose parameters are `inputs`."""
    local: dict[int, _Leaf] = {}
    for i in self.module.computations[computation]:
      if i.opcode == 'parameter':
        local[i.id] = inputs.get(i.parameter, False)
      else:
        local[i.id] = self._apply(i, [local[o] for o in i.operands])
    return local[self.module.roots[computation]]

  def _apply(self, i: assignment.Instruction, operands: list[_Leaf]) -> _Leaf:
    """Returns whether the result is the leaf; notes instructions that read."""
    if not any(map(_any, operands)):
      return False
    if i.opcode == 'tuple':
      return tuple(operands)
    if i.opcode == 'get-tuple-element':
      whole = operands[0]
      return whole[i.index] if isinstance(whole, tuple) else whole
    if i.opcode in _PASSES:
      return operands[0]
    if i.opcode in _UPDATES and not any(map(_any, operands[1:])):
      return operands[0]
    if i.opcode == 'while':
      return self._loop(i, operands[0])
    if i.opcode in ('fusion', 'call'):
      return self.run(i.called[0], dict(enumerate(operands)))
    if i.opcode == 'conditional':
      # The first operand picks the branch; each branch takes one of the others.
      branches = zip(i.called, operands[1:], strict=True)
      results = [self.run(branch, {0: x}) for branch, x in branches]
      return any(map(_any, results))
    self.reads[f'{i.opcode} {i.name}'] = None
    return False

  def _loop(self, i: assignment.Instruction, carry: _Leaf) -> _Leaf:
    """Returns the carry; a leaf that leaves its place in it counts as read."""
    for computation in i.called:
      result = self.run(computation, {0: carry})
      if isinstance(result, tuple) and result != carry:
        self.reads[f'while {i.name}'] = None
    return carry


def _any(value: _Leaf) -> bool:
  return any(map(_any, value)) if isinstance(value, tuple) else value
