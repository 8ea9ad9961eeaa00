"""Every buffer of a compiled program, read from the executable itself.

XLA serializes its buffer assignment and its optimized HLO module as protocol
buffers; the few fields used here are decoded by hand, so no protobuf package
is needed. Field numbers: openxla/xla `xla/service/hlo.proto` and
`xla/xla_data.proto`. They are no promised interface, so whatever does not
read as expected raises `EncodingError`, never a wrong table.
"""

import dataclasses
import difflib
import math
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax

from kvjax.display import Display, Displayed, binary_size
from kvjax.memory.compiled.measurement import measure

# xla_data.proto, PrimitiveType.
_DTYPES = (
  'invalid pred s8 s16 s32 s64 u8 u16 u32 u64 f16 f32 f64 tuple opaque c64 bf16'
  ' token c128 f8e5m2 f8e4m3fn s4 u4 f8e4m3b11fnuz f8e5m2fnuz f8e4m3fnuz s2 u2'
  ' f8e4m3 f8e3m4 s1 u1 f4e2m1fn f8e8m0fnu'
).split()


class EncodingError(RuntimeError):
  """The executable's protos do not read as expected in this JAX version."""


@dataclasses.dataclass(frozen=True)
class Shape:
  """The shape of an HLO value: an array, or a tuple of shapes."""

  dtype: str
  dims: tuple[int, ...] = ()
  order: tuple[int, ...] = ()  # axes from the outermost to the innermost
  elements: tuple['Shape', ...] = ()  # of a tuple

  @property
  def size(self) -> int:
    return math.prod(self.dims)

  @property
  def layout(self) -> tuple[int, ...]:
    """Dimensions in memory order, unit axes left out."""
    order = self.order or range(len(self.dims))
    return tuple(self.dims[axis] for axis in order if self.dims[axis] != 1)


@dataclasses.dataclass(frozen=True)
class Instruction:
  """One HLO instruction; operands and called computations are ids."""

  id: int
  name: str
  opcode: str
  shape: Shape
  op_name: str
  operands: tuple[int, ...]
  called: tuple[int, ...]
  parameter: int  # of a parameter: which
  index: int  # of a get-tuple-element: which


@dataclasses.dataclass(frozen=True)
class Module:
  """An optimized HLO module: computations in operand-first order, by id."""

  entry: int
  computations: dict[int, tuple[Instruction, ...]]
  roots: dict[int, int]
  instructions: dict[int, Instruction]


@dataclasses.dataclass(frozen=True, repr=False)
class Buffer(Displayed):
  """One buffer: where it is and which operation fills it.

  Attributes:
    allocation: number of the allocation that holds it.
    kind: parameter, aliased, output, temporary, constant or thread.
    bytes: its size.
    offset: bytes from the start of the allocation.
    opcode: of the HLO instruction that fills it.
    dtype: of its elements.
    shape: of the array.
    layout: shape in memory order, unit axes left out.
    name: of the HLO instruction.
    op_name: its `jax.named_scope` path; of a parameter, its argument's name.
    instruction: id in the module.
    index: which part, if the instruction returns a tuple.
  """

  allocation: int
  kind: str
  bytes: int
  offset: int
  opcode: str
  dtype: str
  shape: tuple[int, ...]
  layout: tuple[int, ...]
  name: str
  op_name: str
  instruction: int
  index: tuple[int, ...]

  def display(self) -> Display:
    values = dataclasses.asdict(self) | {'bytes': f'{self.bytes:,}'}
    rows = [[name, str(value)] for name, value in values.items()]
    return Display(repr(self), ('field', 'value'), rows, ('field', 'value'))

  def __repr__(self) -> str:
    shape = f'{self.dtype}[{",".join(map(str, self.shape))}]'
    size = binary_size(self.bytes)
    return f'Buffer({self.kind}, {shape}, {size}, {self.opcode} {self.name})'


def buffers(compiled: jax.stages.Compiled) -> tuple[Buffer, ...]:
  """Returns every buffer that XLA assigned to `compiled`, largest first.

  Buffers whose lifetimes do not overlap share bytes of an allocation, so
  the sizes of temporaries add up to more than `measure(compiled)` reports.
  An `aliased` buffer is part of a donated argument that is also an output.

  Args:
    compiled: `jax.jit(f).lower(...).compile()`.

  Raises:
    EncodingError: this version of JAX encodes executables differently;
      `measure` reads stable fields and still works.
  """
  return read(compiled)[1]


def read(compiled: jax.stages.Compiled) -> tuple[Module, tuple[Buffer, ...]]:
  """Returns the optimized module with its buffers; raises as `buffers`."""
  expected = measure(compiled).arguments
  stats: Any = compiled.memory_analysis()
  executable: Any = compiled.runtime_executable()
  try:
    raw = stats.serialized_buffer_assignment_proto
    hlo = executable.hlo_modules()[0]
    module = _module(hlo.as_serialized_hlo_module_proto())
    rows, arguments = _assignment(raw, module)
  except (
    AttributeError,
    LookupError,
    NotImplementedError,
    RuntimeError,
    TypeError,
    ValueError,
  ) as error:
    raise _unreadable(f'{type(error).__name__}: {error}') from error
  if arguments != expected:
    raise _unreadable(
      f'it shows {arguments} bytes of arguments, the stable fields {expected}'
    )
  return module, tuple(sorted(rows, key=lambda row: -row.bytes))


def argument_leaves(
  module: Module, rows: Iterable[Buffer], argument: str
) -> dict[int, Buffer]:
  """Returns the buffers of one argument's leaves, by allocation, in order.

  Raises:
    ValueError: no argument of the program has that name.
  """
  entry = module.computations[module.entry]
  ids = {i.id for i in entry if i.opcode == 'parameter'}
  parameters = {row.allocation: row for row in rows if row.instruction in ids}
  path = re.compile(re.escape(argument) + r'([\[.]|$)')
  leaves = {n: r for n, r in parameters.items() if path.match(r.op_name)}
  if not leaves:
    names = {re.split(r'[\[.]', r.op_name)[0] for r in parameters.values()}
    near = difflib.get_close_matches(argument, names, n=1)
    hint = f' (did you mean {near[0]!r}?)' if near else ''
    raise ValueError(
      f'no argument {argument!r} in the compiled program{hint}; it has'
      f' {", ".join(sorted(names))}. An argument nothing reads is dropped.'
    )
  return dict(sorted(leaves.items(), key=lambda x: _number(module, x[1])))


def _number(module: Module, row: Buffer) -> int:
  return module.instructions[row.instruction].parameter


def _unreadable(reason: str) -> EncodingError:
  return EncodingError(
    f'cannot read the buffer assignment of this executable (jax'
    f' {jax.__version__}; {reason}); kvjax.memory.measure(compiled) reads'
    ' stable fields and still works.'
  )


def _assignment(raw: bytes, module: Module) -> tuple[list[Buffer], int]:
  """Returns the rows and the bytes of all arguments."""
  logical, allocations = {}, []
  for field, value in _fields(raw):
    if field == 1:  # LogicalBufferProto
      buffer = dict(_fields(value))
      logical[buffer.get(1, 0)] = dict(_fields(buffer[3]))
    elif field == 3:
      allocations.append(value)
  rows, arguments = [], 0
  for allocation in map(_allocation, allocations):
    arguments += allocation[2] if 5 in allocation else 0
    for part in allocation['assigned']:
      where = logical[part.get(1, 0)]
      rows.append(_buffer(allocation, part, where, module))
  return rows, arguments


def _allocation(raw: bytes) -> dict[Any, Any]:
  found: dict[Any, Any] = {'assigned': []}
  for field, value in _fields(raw):
    if field == 9:
      found['assigned'].append(dict(_fields(value)))
    else:
      found[field] = value
  return found


def _buffer(
  allocation: dict[Any, Any],
  part: dict[int, int],
  where: dict[int, Any],
  module: Module,
) -> Buffer:
  instruction = module.instructions[where[4]]
  index = _packed(where.get(3, b''))
  shape = instruction.shape
  for element in index:
    shape = shape.elements[element]
  return Buffer(
    allocation=allocation.get(1, 0),
    kind=_kind(allocation),
    bytes=part.get(3, 0),
    offset=part.get(2, 0),
    opcode=instruction.opcode,
    dtype=shape.dtype,
    shape=shape.dims,
    layout=shape.layout,
    name=instruction.name,
    op_name=_scope(instruction, module),
    instruction=instruction.id,
    index=index,
  )


def _kind(allocation: dict[Any, Any]) -> str:
  if 5 in allocation:  # is_entry_computation_parameter
    return 'aliased' if 7 in allocation else 'parameter'
  # is_tuple (11) is no kind: a table of pointers sets it for all its members.
  kinds = {12: 'constant', 3: 'thread', 7: 'output'}
  return next((k for f, k in kinds.items() if f in allocation), 'temporary')


def _scope(instruction: Instruction, module: Module) -> str:
  """A fusion that XLA left nameless goes by what it fused, root first."""
  if instruction.op_name or instruction.opcode != 'fusion':
    return instruction.op_name
  fused = reversed(module.computations[instruction.called[0]])
  return next((i.op_name for i in fused if '/' in i.op_name), '')


def _module(raw: bytes) -> Module:
  entry, computations, roots = 0, {}, {}
  for field, value in _fields(raw):
    if field == 6:
      entry = value
    elif field == 3:
      parts = list(_fields(value))
      found = dict(parts)
      roots[found[5]] = found[6]
      computations[found[5]] = tuple(
        _instruction(v) for f, v in parts if f == 2
      )
  instructions = {i.id: i for c in computations.values() for i in c}
  return Module(entry, computations, roots, instructions)


def _instruction(raw: bytes) -> Instruction:
  parts = list(_fields(raw))
  found = dict(parts)
  return Instruction(
    id=found[35],
    name=found[1].decode(),
    opcode=found[2].decode(),
    shape=_shape(found[3]),
    op_name=dict(_fields(found.get(7, b''))).get(2, b'').decode(),
    operands=_repeated(parts, 36),
    called=_repeated(parts, 38),
    parameter=found.get(9, 0),
    index=found.get(13, 0),
  )


def _shape(raw: bytes) -> Shape:
  parts = list(_fields(raw))
  found = dict(parts)
  layout = list(_fields(found.get(5, b'')))
  return Shape(
    dtype=_DTYPES[found.get(2, 0)],
    dims=_repeated(parts, 3),
    order=_repeated(layout, 1)[::-1],
    elements=tuple(_shape(value) for field, value in parts if field == 4),
  )


def _repeated(parts: list[tuple[int, Any]], field: int) -> tuple[int, ...]:
  values = (_packed(value) for f, value in parts if f == field)
  return tuple(x for value in values for x in value)


def _packed(value: int | bytes) -> tuple[int, ...]:
  """A repeated integer field: one varint, or several in a run of bytes."""
  if isinstance(value, int):
    return (value,)
  found, at = [], 0
  while at < len(value):
    x, at = _varint(value, at)
    found.append(x)
  return tuple(found)


def _fields(raw: bytes) -> Iterator[tuple[int, Any]]:
  """Yields (number, value) of a message: integers, else bytes."""
  at = 0
  while at < len(raw):
    key, at = _varint(raw, at)
    field, wire = key >> 3, key & 7
    if wire == 0:
      value, at = _varint(raw, at)
    else:
      size, at = _SIZES[wire](raw, at)
      value, at = raw[at : at + size], at + size
    yield field, value


def _varint(raw: bytes, at: int) -> tuple[int, int]:
  value = shift = 0
  while True:
    byte = raw[at]
    value |= (byte & 127) << shift
    at, shift = at + 1, shift + 7
    if byte < 128:
      return value, at


_SIZES: dict[int, Callable[[bytes, int], tuple[int, int]]] = {
  1: lambda raw, at: (8, at),
  2: _varint,
  5: lambda raw, at: (4, at),
}
