"""The sizes of one call, from which its intermediate results are planned."""

import dataclasses

import numpy as np

from kvjax.kernels.blockwise import QUERY_BLOCK
from kvjax.memory.parts.lines import Dim

FLOAT = 4  # bytes of a float32, in which sums are accumulated


@dataclasses.dataclass(frozen=True)
class CallShape:
  """The sizes of one call: B rows of T tokens, and what it runs on.

  `dtype` is that of the parameters; `kernel` None for the block loop.
  """

  batch: int
  tokens: int
  dtype: np.dtype
  backend: str
  kernel: str | None = None

  @property
  def size(self) -> int:
    """Bytes of an activation: parameters may be stored in fewer bits."""
    return max(self.dtype.itemsize, 2)

  @property
  def on_cpu(self) -> bool:
    return self.backend == 'cpu' and self.kernel != 'mosaic_gpu'

  @property
  def product_size(self) -> int:
    """Bytes of an element of a product: XLA:GPU makes products in float32."""
    return self.size if self.on_cpu else FLOAT

  @property
  def rows(self) -> Dim:
    """Rows of activations."""
    return Dim('B', self.batch, 'rows')

  @property
  def read_rows(self) -> Dim:
    """Rows of the cache, as its slots are read."""
    return Dim('B', self.batch, 'batch')

  @property
  def lead(self) -> tuple[Dim, Dim]:
    return self.rows, Dim('T', self.tokens)

  @property
  def passes(self) -> int:
    """Passes over the keys; a pass serves a block of a long prefill."""
    return -(-self.tokens // QUERY_BLOCK)

  @property
  def pass_lead(self) -> tuple[Dim, Dim]:
    """Rows, and tokens of one pass."""
    return self.read_rows, Dim('T', min(self.tokens, QUERY_BLOCK))

  @property
  def padded_lead(self) -> tuple[Dim, Dim]:
    """Rows, and tokens filled up to whole passes."""
    return self.read_rows, Dim('T', self.passes * QUERY_BLOCK)
