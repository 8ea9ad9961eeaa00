"""Seeded changes of a file: of its bytes, its JSON, or its binary header."""

import json
from typing import Any

import numpy as np

# What stands in place of a value: other types, edges, and numbers that would
# take memory or time in proportion to them.
VALUES = (
  *(
    None,
    True,
    False,
    0,
    -1,
    1,
    3,
    2**31 - 1,
    2**31,
    2**40,
    2**63,
    10**30,
    10**400,
  ),
  *(0.5, -0.0, 1e308, 1e-320, float('nan'), float('inf'), -float('inf')),
  *('', 'x', '../x', '\u2028', '\x00', '\x1b[31m', '9' * 40, [], {}),
  *([1], [[]], ['x'], {'x': 1}, [0] * 50, {'content': 'x'}),
)


def change_bytes(data: bytes, draw: np.random.Generator) -> bytes:
  """Returns bytes with one to three random edits."""
  changed = bytearray(data)
  for _ in range(draw.integers(1, 4)):
    start = int(draw.integers(len(changed) + 1))
    end = min(start + int(draw.integers(1, 17)), len(changed))
    edit = int(draw.integers(6))
    if edit == 0 and start < len(changed):
      changed[start] ^= 1 << int(draw.integers(8))
    elif edit == 1:
      changed[start:start] = draw.bytes(int(draw.integers(1, 9)))
    elif edit == 2:
      del changed[start:end]
    elif edit == 3:
      changed[start:start] = changed[start:end]
    elif edit == 4:
      del changed[start:]
    else:
      changed[start:end] = draw.bytes(end - start)
  return bytes(changed)


def change_json(text: bytes, draw: np.random.Generator) -> bytes:
  """Returns a JSON text with one value or key changed."""
  tree = json.loads(text)
  parent, key = _draw_place(tree, draw)
  edit = int(draw.integers(4))
  if edit == 0:
    del parent[key]
  elif edit == 1 and isinstance(parent, dict):
    parent[str(draw.choice(['x', '', '__metadata__', 'format']))] = parent[key]
  elif edit == 2:
    other, place = _draw_place(tree, draw)
    # A copy: a tree that contains itself cannot be written.
    parent[key] = json.loads(json.dumps(other[place]))
  else:
    parent[key] = VALUES[int(draw.integers(len(VALUES)))]
  return json.dumps(tree).encode()


def _draw_place(tree: Any, draw: np.random.Generator) -> tuple[Any, Any]:
  """Returns a container within a JSON tree, and a key or index of it."""
  places = []

  def visit(node):
    pairs = node.items() if isinstance(node, dict) else enumerate(node)
    for key, value in pairs:
      places.append((node, key))
      if isinstance(value, dict | list) and value:
        visit(value)

  visit(tree)
  return places[int(draw.integers(len(places)))]


def change_header(data: bytes, draw: np.random.Generator) -> bytes:
  """Returns a safetensors file whose header is changed, its length too."""
  length = int.from_bytes(data[:8], 'little')
  header = change_json(data[8 : 8 + length], draw)
  return len(header).to_bytes(8, 'little') + header + data[8 + length :]


HUGE = (2**31 - 1, 2**32, 2**40, 2**63 - 1, 2**64 - 1)
GGUF_HEADER = 4096  # bytes in which a change is likely to matter


def change_gguf_bytes(data: bytes, draw: np.random.Generator) -> bytes:
  """Returns a GGUF file with edits near its beginning."""
  head = change_bytes(data[:GGUF_HEADER], draw)
  return head + data[GGUF_HEADER:]


def change_gguf_number(data: bytes, draw: np.random.Generator) -> bytes:
  """Returns a GGUF file with eight bytes of its header changed to a count."""
  start = int(draw.integers(4, min(GGUF_HEADER, len(data) - 8)))
  number = HUGE[int(draw.integers(len(HUGE)))]
  return data[:start] + number.to_bytes(8, 'little') + data[start + 8 :]
