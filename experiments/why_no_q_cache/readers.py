"""Which instructions of a compiled program read the contents of an argument.

An in-place update writes a row of a leaf and reads none, and its result is then
the leaf. Any other instruction that takes the leaf reads it.
"""

import jax

from kvjax.memory.compiled import assignment
from kvjax.memory.compiled.dataflow import LeafTrace, flat, follow

# What these pass on is read, if at all, by the instructions that take it.
_PASSES = frozenset(
  'bitcast call conditional copy fusion get-tuple-element optimization-barrier'
  ' parameter tuple while'.split()
)
_UPDATES = ('dynamic-update-slice', 'scatter')


def readers(compiled: jax.stages.Compiled, argument: str) -> tuple[str, ...]:
  """Returns the instructions that read the contents of an argument's leaves.

  Writing rows into a leaf, copying it whole and returning it do not count.

  Args:
    compiled: `jax.jit(step).lower(...).compile()`.
    argument: name of the argument in the step's signature, or a path in it
      (`"cache.stores[0]['query']"`).

  Returns:
    `opcode name` of each, in the order of the module.

  Raises:
    EncodingError: this version of JAX encodes executables differently.
    ValueError: no argument of the program has that name; one that nothing
      uses is dropped.
  """
  module, rows = assignment.read(compiled)
  leaves = assignment.argument_leaves(module, rows, argument)
  values = follow(module, rows, leaves)
  found = []
  for i in module.instructions.values():
    operands = i.operands[1:] if i.opcode in _UPDATES else i.operands
    # Only what runs has a value; the body of a reduction has none.
    taken = [flat(values.get(operand, LeafTrace({}))) for operand in operands]
    if i.opcode not in _PASSES and any(trace.elements for trace in taken):
      found.append(f'{i.opcode} {i.name}')
  return tuple(found)
