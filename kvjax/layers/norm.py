"""Normalisation over the last axis, in float32."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from kvjax.arguments import check_fields


@dataclasses.dataclass(frozen=True)
class Norm:
  """RMSNorm (arXiv 1910.07467) or LayerNorm (arXiv 1607.06450).

  Attributes:
    eps: added to the mean square (variance).
    centered: subtract the mean (LayerNorm).
    bias: add a learned bias.
    offset: added to the stored weight (1 in Gemma, whose weights are offsets).
    weighted: multiply by a learned weight (OLMo and the queries and keys of
      Llama 4 have none, and no bias).
  """

  eps: float = 1e-6
  centered: bool = False
  bias: bool = False
  offset: float = 0.0
  weighted: bool = True

  def __post_init__(self):
    check_fields(self, at_least={'eps': 0})
    if not self.weighted and (self.bias or self.offset):
      raise ValueError(
        f'weighted=False with bias={self.bias} and offset={self.offset}: a '
        'norm without a weight has neither. Leave both out.'
      )

  def init(self, width: int, dtype: Any) -> dict[str, jax.Array]:
    """Returns parameters of the identity scale: weight (and bias) `[width]`."""
    if not self.weighted:
      return {}
    weight = jnp.full((width,), 1.0 - self.offset, dtype)
    return {'weight': weight} | (
      {'bias': jnp.zeros((width,), dtype)} if self.bias else {}
    )

  def num_params(self, width: int) -> int:
    """Returns elements of its parameters."""
    return width * (self.weighted + self.bias)

  def __call__(self, params: dict[str, jax.Array], x: jax.Array) -> jax.Array:
    """Returns `x [..., D]` normalised over its last axis, in its dtype.

    A weight may have the axes before the last, too: `[K, 1, D]`.
    """
    y = x.astype(jnp.float32)
    if self.centered:
      y = y - jnp.mean(y, axis=-1, keepdims=True)
    y = y * jax.lax.rsqrt(jnp.mean(y * y, axis=-1, keepdims=True) + self.eps)
    if not self.weighted:
      return y.astype(x.dtype)
    weight = params['weight'].astype(jnp.float32) + self.offset
    lead = (1,) * (x.ndim - weight.ndim) + weight.shape
    y = y * weight.reshape(lead)
    if self.bias:
      y = y + params['bias'].astype(jnp.float32).reshape(lead)
    return y.astype(x.dtype)
