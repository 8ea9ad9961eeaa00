"""Multi-head latent attention (DeepSeek-V2, arXiv 2405.04434, section 2.1).

A token leaves a latent and one rotated key shared by all heads; no key or
value of a head is ever stored. Two equal ways to read them:

- expanded: `k = [c W_UK; k_R]`, `v = c W_UV` for every stored token, the
  formula of the paper and the oracle here;
- absorbed: W_UK moves to the query and W_UV to the output (equation 10 ff.),
  so that all heads read the latent itself, like MQA. Cheaper for few new
  tokens: `absorbs` decides by cost.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from kvjax.attention.attend import Scoring
from kvjax.attention.rotary import Rotary, rotate
from kvjax.attention.variant import Table
from kvjax.layers.linear import init_linear, join_heads, linear, split_heads
from kvjax.layers.norm import Norm
from kvjax.streams.stream import Stream
from kvjax.streams.view import Streams
from kvjax.streams.visibility import Visibility


@dataclasses.dataclass(frozen=True)
class Latent:
  """Attention that remembers a latent and one rotated key a token.

  Attributes:
    num_heads: N.
    latent_width: R, width of the latent (kv_lora_rank).
    key_width: H, unrotated features of a head's key (qk_nope_head_dim).
    value_width: E, features of a head's value (v_head_dim).
    rotary: rotation of the shared key; its width is P (qk_rope_head_dim).
    query_rank: width of the query's own latent; None for none. It dies with
      its token like the query.
    norm: of the latents.
    visibility: which keys a query sees.
    scale: of the scores; None for `(H + P) ** -0.5`.
    projection_bias: the down-projections have biases.
    output_bias: the output projection has one.
  """

  num_heads: int
  latent_width: int
  key_width: int
  value_width: int
  rotary: Rotary
  query_rank: int | None = None
  norm: Norm = Norm()
  visibility: Visibility = Visibility()
  scale: float | None = None
  projection_bias: bool = False
  output_bias: bool = False
  shared_from: int | None = dataclasses.field(default=None, init=False)
  bias: None = dataclasses.field(default=None, init=False)

  def __post_init__(self):
    for name in ('num_heads', 'latent_width', 'key_width', 'value_width'):
      if getattr(self, name) < 1:
        raise ValueError(f'{name}={getattr(self, name)} must be at least 1.')

  @property
  def output_width(self) -> int:
    return self.num_heads * self.value_width

  @property
  def query_width(self) -> int:
    """Elements of all query heads of a token."""
    return self.num_heads * (self.key_width + self.rotary.width)

  def streams(self) -> dict[str, Stream]:
    """Returns what a token leaves behind: `latent` is key and value in one."""
    return {
      'latent': Stream(1, self.latent_width),
      'rotary': Stream(1, self.rotary.width, quantize=False),
    }

  def num_params(self, width: int) -> int:
    """Returns elements of its parameters for activations of `width`."""
    down = self.latent_width + self.rotary.width
    count = down * (width + self.projection_bias)
    count += self.norm.num_params(self.latent_width)
    if self.query_rank is not None:
      count += self.query_rank * (width + self.projection_bias)
      count += self.norm.num_params(self.query_rank)
    count += self.query_width * (self.query_rank or width)
    heads = self.num_heads * (self.key_width + self.value_width)
    count += heads * self.latent_width
    return count + width * (self.output_width + self.output_bias)

  def init(self, key: jax.Array, width: int, dtype: Any) -> dict[str, Any]:
    """Returns parameters for activations of `width` features."""
    keys = jax.random.split(key, 6)
    bias, rank = self.projection_bias, self.query_rank
    params: dict[str, Any] = {}
    params |= init_linear(
      keys[0],
      'latent',
      width,
      self.latent_width + self.rotary.width,
      bias=bias,
      dtype=dtype,
    )
    params['latent_norm'] = self.norm.init(self.latent_width, dtype)
    if rank is not None:
      params |= init_linear(
        keys[1], 'query_down', width, rank, bias=bias, dtype=dtype
      )
      params['query_norm'] = self.norm.init(rank, dtype)
    params |= init_linear(
      keys[2],
      'query',
      rank or width,
      self.query_width,
      bias=False,
      dtype=dtype,
    )
    out, bias = self.output_width, self.output_bias
    params |= init_linear(keys[3], 'output', out, width, bias=bias, dtype=dtype)
    return params | {
      'up_key': _init_up(
        keys[4], self.num_heads, self.key_width, self.latent_width, dtype
      ),
      'up_value': _init_up(
        keys[5], self.num_heads, self.value_width, self.latent_width, dtype
      ),
    }

  def absorbs(self, tokens: int) -> bool:
    """Returns whether the absorbed form costs less for so many new tokens.

    For each stored token the absorbed form multiplies `N (2 R + P)` a query
    and the expanded one `N (H + P + E)`, plus `N R (H + E)` to expand it once:
    equal at 171 tokens for DeepSeek-V3.
    """
    heads = self.key_width + self.value_width
    surplus = 2 * self.latent_width - heads
    return surplus <= 0 or tokens < self.latent_width * heads / surplus

  def project_queries(
    self, params: Mapping[str, Any], x: jax.Array, table: Table, absorb: bool
  ) -> Streams:
    """Returns queries of `[B, T, D]`.

    Absorbed `{'latent': [B, 1, N, T, R], 'rotary': [B, 1, N, T, P]}`, expanded
    `{'key': [B, N, 1, T, H + P]}`.
    """
    if self.query_rank is not None:
      x = linear(params, 'query_down', x)
      x = checkpoint_name(self.norm(params['query_norm'], x), 'query_latent')
    query = split_heads(linear(params, 'query', x), self.num_heads)
    plain, turned = jnp.split(query, [self.key_width], axis=-1)
    turned = self._turn(turned, table)
    if not absorb:
      query = jnp.concatenate([plain, turned], axis=-1)
      return {'key': checkpoint_name(query, 'query')[:, :, None]}
    plain = _per_head('NMH,NHR->NMR', plain, params['up_key'])
    return {
      'latent': checkpoint_name(plain, 'query')[:, None],
      'rotary': checkpoint_name(turned, 'query_rotary')[:, None],
    }

  def project_streams(
    self, params: Mapping[str, Any], x: jax.Array, table: Table
  ) -> Streams:
    """Returns latent `[B, 1, T, R]` and rotated key `[B, 1, T, P]`."""
    down = linear(params, 'latent', x)
    latent, turned = jnp.split(down, [self.latent_width], axis=-1)
    latent = self.norm(params['latent_norm'], latent)[:, None]
    turned = self._turn(turned[:, None], table)
    return {
      'latent': checkpoint_name(latent, 'latent'),
      'rotary': checkpoint_name(turned, 'rotary'),
    }

  def reads_stored(self, absorb: bool) -> bool:
    """Returns whether `expand` changes nothing."""
    return absorb

  def expand(
    self, params: Mapping[str, Any], streams: Streams, absorb: bool
  ) -> Streams:
    """Returns streams as `project_queries` scores them.

    Absorbed: as they are. Expanded: key `[B, N, S, H + P]`, value
    `[B, N, S, E]` of the given tokens.
    """
    if absorb:
      return streams
    latent, turned = streams['latent'], streams['rotary']
    key = _expand(latent, params['up_key'], 'BSR,NHR->BNSH')
    value = _expand(latent, params['up_value'], 'BSR,NER->BNSE')
    turned = jnp.broadcast_to(turned, key.shape[:3] + turned.shape[-1:])
    key = jnp.concatenate([key, turned.astype(key.dtype)], axis=-1)
    return {
      'key': checkpoint_name(key, 'key'),
      'value': checkpoint_name(value, 'value'),
    }

  def scoring(
    self,
    params: Mapping[str, Any],
    relative: jax.Array | None,
    absorb: bool,
  ) -> Scoring:
    """Returns scale and mask; the value of an absorbed layer is its latent."""
    del params, relative
    width = self.key_width + self.rotary.width
    return Scoring(
      scale=width**-0.5 if self.scale is None else self.scale,
      value='latent' if absorb else 'value',
      visibility=self.visibility,
    )

  def project_output(
    self, params: Mapping[str, Any], out: jax.Array, absorb: bool
  ) -> jax.Array:
    """Returns `[B, T, D]` from `[B, 1, N, T, R]` or `[B, N, 1, T, E]`."""
    if absorb:
      out = _per_head('NMR,NER->NME', out[:, 0], params['up_value'])
    else:
      out = out[:, :, 0]
    return linear(params, 'output', join_heads(out))

  def _turn(self, x, table):
    return x if table is None else rotate(x, table, self.rotary.interleaved)


def _init_up(key, heads, out, latent, dtype):
  up = jax.random.normal(key, (heads, out, latent), jnp.float32)
  return (up * latent**-0.5).astype(dtype)


def _per_head(formula: str, x: jax.Array, up: jax.Array) -> jax.Array:
  """Multiplies `x [B, N, T, .]` by one matrix a head `[N, ., .]`.

  Heads lead both operands, so that the weight is read in the order it is
  stored; float32 accumulation is part of the result (DeepSeek-style models
  fall into repetition without it).
  """
  batch, heads, tokens, width = x.shape
  rows = jnp.moveaxis(x, 1, 0).reshape(heads, batch * tokens, width)
  y = jnp.einsum(
    formula, rows, up.astype(rows.dtype), preferred_element_type=jnp.float32
  )
  y = y.reshape(heads, batch, tokens, -1)
  return jnp.moveaxis(y, 0, 1).astype(x.dtype)


def _expand(latent: jax.Array, up: jax.Array, formula: str) -> jax.Array:
  y = jnp.einsum(
    formula,
    latent[:, 0],
    up.astype(latent.dtype),
    preferred_element_type=jnp.float32,
  )
  return y.astype(latent.dtype)
