"""Streams that are turned before they are encoded.

A few features of keys are much larger than the others. A Hadamard matrix
spreads each feature over all of its block, so that one scale fits them better
(QuIP#, arXiv 2402.04396; QuaRot, arXiv 2404.00456). Nothing is turned back slot
by slot: queries are turned as their keys are, and of values only the weighted
sum is turned back.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from kvjax.arguments import check_fields
from kvjax.streams.codecs.by_stream import tiering_of
from kvjax.streams.codecs.codec import Codec
from kvjax.streams.codecs.floats import Plain


@dataclasses.dataclass(frozen=True)
class Hadamard(Codec):
  """Another codec's codes of streams multiplied by a Hadamard matrix.

  The matrix is orthogonal, so products of queries and keys are what they were.
  It costs a step two products of `[b, b]` a query, key and value, and no bytes.
  Of eight bits it takes a little accuracy; it is for four and fewer.

  Attributes:
    codec: of the turned streams.
    block: features that are turned together, a power of two that divides the
      width; None for the largest such.
  """

  codec: Codec
  block: int | None = None

  def __post_init__(self):
    check_fields(self, at_least={'block': 1})
    block = self.block or 1
    if block & (block - 1):
      raise ValueError(f'Hadamard block={block} must be a power of two.')
    if not hasattr(self.codec, 'leaves') or hasattr(self.codec, 'turn'):
      raise ValueError(
        f'Hadamard codec={self.codec!r} must be a codec that turns nothing '
        'itself, such as Affine(bits=4).'
      )
    if tiering_of(self.codec).tokens > 1:
      raise ValueError(
        f'Hadamard codec={self.codec!r} scales each channel by itself, and a '
        'turn would mix them. Use one or the other.'
      )

  @property
  def exact(self) -> 'Hadamard':
    """The codec of tokens that are not encoded: turned, as queries are."""
    return Hadamard(Plain(), self.block)

  def leaves(self, width, dtype):
    block = self.block or 1
    if width % block:
      raise ValueError(
        f'{self}: blocks of {block} do not divide a stream of {width} '
        f'features. Give {width & -width} or a smaller power of two.'
      )
    return self.codec.leaves(width, dtype)

  def encode(self, x, dtype):
    return self.codec.encode(self.turn(x), dtype)

  def decode(self, encoded):
    return self.codec.decode(encoded)

  def stored(self, encoded):
    return self.codec.stored(encoded)

  def turn(self, x: jax.Array) -> jax.Array:
    """Returns float32 `[..., H]`, each block multiplied by the matrix."""
    width = x.shape[-1]
    block = self.block or width & -width
    # The matrix of a block is a Kronecker product of two much smaller ones.
    rows = 2 ** (block.bit_length() // 2)
    parts = x.astype(jnp.float32).reshape(
      x.shape[:-1] + (width // block, rows, block // rows)
    )
    turned = jnp.einsum(
      '...ij,ik,jl->...kl',
      parts,
      matrix(rows),
      matrix(block // rows),
      precision='highest',
    )
    return turned.reshape(x.shape)

  turn_back = turn  # the matrix is symmetric, and its own inverse


def matrix(size: int) -> jax.Array:
  """Returns the orthogonal Hadamard matrix `[size, size]` (Sylvester)."""
  signs = np.ones((1, 1))
  while len(signs) < size:
    signs = np.block([[signs, signs], [signs, -signs]])
  return jnp.asarray(signs * size**-0.5, jnp.float32)
