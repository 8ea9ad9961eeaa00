"""What one token leaves behind."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Stream:
  """What one token leaves behind under one name: `[heads, width]` elements.

  Attributes:
    heads: K kv heads.
    width: elements of a head.
    quantize: False where precision decides (MLA's rotated key).
  """

  heads: int
  width: int
  quantize: bool = True
