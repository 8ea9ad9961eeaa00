"""Collectives in the text of an optimized HLO module, each with its loops.

The grammar is that of openxla/xla `xla/hlo/parser/hlo_parser.cc`; JAX prints it
by `compiled.as_text()`.
"""

import collections
import math
import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

KINDS = (
  'all-reduce',
  'all-gather',
  'all-to-all',
  'collective-permute',
  'reduce-scatter',
  'collective-broadcast',
  'ragged-all-to-all',
)
_HEADER = re.compile(r'(ENTRY )?%?([\w.\-]+) .*\{$')
_INSTRUCTION = re.compile(
  r'\s+(?:ROOT )?%?(?P<name>[\w.\-]+) = (?P<type>.*?) (?P<opcode>[a-z][\w\-]*)'
  r'\(%?(?P<operand>[\w.\-]*)'
)
_CALLED = re.compile(
  r'\b(body|condition|calls|to_apply|branch_computations|true_computation|'
  r'false_computation|called_computations)=(\{[^}]*\}|%?[\w.\-]+)'
)
_ARRAY = re.compile(r'\b([a-z]\w*)\[([^\]]*)\]')
# What JAX writes into a name for control flow; no scope of a user.
_CONTROL = re.compile(
  r'.*\(.*|while|body|cond|branch_\d+_fun|closed_call|eval_jaxpr|shard_map|'
  r'checkpoint|rematted_computation'
)


class Collective(NamedTuple):
  """One exchange between devices in a compiled program.

  Attributes:
    kind: as HLO names it, such as 'all-reduce'.
    bytes: of its result on one device.
    shape: dtype and shape of that result, of all parts if it has several.
    scope: the `jax.named_scope` path of the operation. Where it has none, that
      of its first operand, or the argument that is this operand.
    loops: how many loops the operation is in; 0 for once a call.
  """

  kind: str
  bytes: int
  shape: str
  scope: str
  loops: int


class _Line(NamedTuple):
  """One instruction: what it is, and where it leads."""

  type: str
  opcode: str
  operand: str
  op_name: str
  called: tuple[str, ...]


_Computation = dict[str, _Line]


def read_collectives(text: str) -> Iterator[Collective]:
  """Yields the collectives of an optimized HLO module, in program order.

  A computation that is called in two places runs twice, so its collectives are
  yielded twice; of a conditional, those of every branch are.

  Args:
    text: of the module, as `compiled.as_text()` returns it.

  Raises:
    ValueError: the text is no HLO module.
  """
  computations: dict[str, _Computation] = {}
  entry, lines = None, {}
  for line in text.splitlines():
    if header := _HEADER.match(line):
      lines = computations[header[2]] = {}
      entry = header[2] if header[1] else entry
    elif found := _INSTRUCTION.match(line):
      lines[found['name']] = _parse(found, line)
  if entry is None:
    raise ValueError(
      f'text={text[:40]!r}... is no HLO of a compiled program: give '
      'jax.jit(f).lower(...).compile(), or its as_text().'
    )
  yield from _walk(entry, 0, computations)


def _parse(found: re.Match[str], line: str) -> _Line:
  op_name = re.search(r'op_name="((?:[^"\\]|\\.)*)"', line)
  called = ' '.join(names for _, names in _CALLED.findall(line))
  return _Line(
    found['type'],
    found['opcode'],
    found['operand'],
    op_name[1].replace('\\', '') if op_name else '',
    tuple(re.findall(r'[\w.\-]+', called)),
  )


def _walk(
  name: str, loops: int, computations: Mapping[str, _Computation]
) -> Iterator[Collective]:
  lines = computations[name]
  for line in lines.values():
    kind = line.opcode.removesuffix('-start')
    if kind in KINDS:
      result = _result(line)
      scope = _scope(line, lines)
      yield Collective(kind, _bytes(result), _shape(result), scope, loops)
    elif not line.opcode.endswith(('-update', '-done')):  # of a counted start
      inside = loops + (line.opcode == 'while')
      for called in line.called:
        yield from _walk(called, inside, computations)


def _result(line: _Line) -> str:
  """Returns the type of what a collective makes.

  The start of an asynchronous one has (operands, results, buffers...), except
  for `all-reduce-start`, whose type is that of the results alone.
  """
  parts = _parts(line.type)
  own_start = line.opcode == 'all-reduce-start' and parts[0][:1] != '('
  is_start = line.opcode.endswith('-start') and not own_start
  return parts[1] if is_start and len(parts) > 1 else line.type


def _parts(text: str) -> list[str]:
  """Returns the elements of a tuple type; of an array type, itself."""
  if not text.startswith('('):
    return [text]
  parts, depth = [''], 0
  for letter in text[1:-1]:
    depth += (letter in '([{') - (letter in ')]}')
    if letter == ',' and not depth:
      parts.append('')
    else:
      parts[-1] += letter
  return [part.strip() for part in parts]


def _bytes(text: str) -> int:
  total = 0
  for dtype, dims in _ARRAY.findall(text):
    # The first number of a dtype is its bits, as in bf16, f8e4m3fn and s4.
    bits = re.search(r'\d+', dtype.replace('pred', 'pred8'))
    size = math.prod(map(int, re.findall(r'\d+', dims)))
    total += -(-size * int(bits[0] if bits else 0) // 8)
  return total


def _shape(text: str) -> str:
  counts = collections.Counter(x[0] for x in _ARRAY.finditer(text))
  return ' + '.join(
    shape if count == 1 else f'{count} {shape}'
    for shape, count in counts.items()
  )


def _scope(line: _Line, lines: _Computation) -> str:
  # A parameter of an inner computation has the path of its caller.
  if line.opcode == 'parameter' and not line.op_name.startswith('jit('):
    return line.op_name
  names = line.op_name.split(';')[0].split('/')[:-1]
  scope = '/'.join(name for name in names if not _CONTROL.fullmatch(name))
  is_collective = line.opcode.removesuffix('-start') in KINDS
  operand = lines.get(line.operand) if is_collective else None
  return _scope(operand, lines) if operand and not scope else scope
