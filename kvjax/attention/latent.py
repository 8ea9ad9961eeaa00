"""Multi-head latent attention (DeepSeek-V2, arXiv 2405.04434, section 2.1).

A token leaves a latent and one rotated key shared by all heads; no key or
value of a head is ever stored. Two equal ways to read them:

- expanded: `k = [c W_UK; k_R]`, `v = c W_UV` for every stored token, the
  formula of the paper and the oracle here;
- absorbed: W_UK moves to the query and W_UV to the output (equation 10 ff.),
  so that all heads read the latent itself, like MQA. Cheaper for few new
  tokens: `Latent.form` decides by cost.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from kvjax.arguments import check_fields
from kvjax.attention.attend import Scoring
from kvjax.attention.rotary import Rotary, rotate
from kvjax.attention.variant import Form, Table, Variant
from kvjax.layers.linear import init_linear, join_heads, linear, split_heads
from kvjax.layers.norm import Norm
from kvjax.streams.stream import Stream
from kvjax.streams.view import Streams
from kvjax.streams.visibility import Visibility


@dataclasses.dataclass(frozen=True)
class Latent(Variant):
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
    sizes = 'num_heads', 'latent_width', 'key_width', 'value_width'
    check_fields(self, at_least=dict.fromkeys((*sizes, 'query_rank'), 1))

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

  def form(self, tokens: int, name: str | None = None) -> Form:
    """Returns the absorbed or the expanded form, whichever costs less.

    For each stored token the absorbed form multiplies `N (2 R + P)` a query
    and the expanded one `N (H + P + E)`, plus `N R (H + E)` to expand it once:
    equal at 171 new tokens for DeepSeek-V3.

    Args:
      tokens: new tokens a row, T.
      name: 'absorbed' or 'expanded', to force it; None for the cheaper one.

    Raises:
      ValueError: there is no form of that name.
    """
    if name is None:
      widths = self.key_width + self.value_width
      surplus = 2 * self.latent_width - widths
      absorbs = surplus <= 0 or tokens < self.latent_width * widths / surplus
      name = 'absorbed' if absorbs else 'expanded'
    if name not in FORMS:
      raise ValueError(f'form={name!r} must be one of {", ".join(FORMS)}.')
    return FORMS[name](self)

  def split_queries(
    self, params: Mapping[str, Any], x: jax.Array, table: Table
  ) -> tuple[jax.Array, jax.Array]:
    """Returns queries `[B, N, T, H]` and rotated ones `[B, N, T, P]`."""
    if self.query_rank is not None:
      x = linear(params, 'query_down', x)
      x = checkpoint_name(self.norm(params['query_norm'], x), 'query_latent')
    query = split_heads(linear(params, 'query', x), self.num_heads)
    plain, rotary = jnp.split(query, [self.key_width], axis=-1)
    return plain, self._rotate(rotary, table)

  def project_streams(
    self, params: Mapping[str, Any], x: jax.Array, table: Table
  ) -> Streams:
    """Returns latent `[B, 1, T, R]` and rotated key `[B, 1, T, P]`."""
    down = linear(params, 'latent', x)
    latent, rotary = jnp.split(down, [self.latent_width], axis=-1)
    latent = self.norm(params['latent_norm'], latent)[:, None]
    rotary = self._rotate(rotary[:, None], table)
    return {
      'latent': checkpoint_name(latent, 'latent'),
      'rotary': checkpoint_name(rotary, 'rotary'),
    }

  def scoring_by(self, value: str) -> Scoring:
    """Returns scale and mask; `value` names the stream that is summed."""
    width = self.key_width + self.rotary.width
    return Scoring(
      scale=width**-0.5 if self.scale is None else self.scale,
      value=value,
      visibility=self.visibility,
    )

  def _rotate(self, x, table):
    return x if table is None else rotate(x, table, self.rotary.interleaved)


@dataclasses.dataclass(frozen=True)
class Absorbed(Form):
  """All heads read the latent as it is stored.

  The weights that would expand the latent are applied to queries and outputs
  instead (equation 10 ff.).

  Attributes:
    variant: whose latent it is.
  """

  variant: Latent

  def project_queries(self, params, x, table):
    """Returns `{'latent': [B, 1, N, T, R], 'rotary': [B, 1, N, T, P]}`."""
    plain, rotary = self.variant.split_queries(params, x, table)
    latent = _per_head('NMH,NHR->NMR', plain, params['up_key'])
    return {
      'latent': checkpoint_name(latent, 'query')[:, None],
      'rotary': checkpoint_name(rotary, 'query_rotary')[:, None],
    }

  def scoring(self, params, relative):
    """Returns scale and mask; the value is the latent."""
    del params, relative
    return self.variant.scoring_by('latent')

  def project_output(self, params, out):
    """Returns `[B, T, D]` from `[B, 1, N, T, R]`."""
    out = _per_head('NMR,NER->NME', out[:, 0], params['up_value'])
    return linear(params, 'output', join_heads(out))


@dataclasses.dataclass(frozen=True)
class Expanded(Form):
  """Every head reads keys and values that are expanded from the latent.

  Attributes:
    variant: whose latent it is.
  """

  variant: Latent
  expands: ClassVar[bool] = True

  def project_queries(self, params, x, table):
    """Returns `{'key': [B, N, 1, T, H + P]}`."""
    plain, rotary = self.variant.split_queries(params, x, table)
    query = jnp.concatenate([plain, rotary], axis=-1)
    return {'key': checkpoint_name(query, 'query')[:, :, None]}

  def expand(self, params, streams):
    """Returns key `[B, N, S, H + P]` and value `[B, N, S, E]` of the slots."""
    latent, rotary = streams['latent'], streams['rotary']
    key = _expand(latent, params['up_key'], 'BSR,NHR->BNSH')
    value = _expand(latent, params['up_value'], 'BSR,NER->BNSE')
    rotary = jnp.broadcast_to(rotary, key.shape[:3] + rotary.shape[-1:])
    key = jnp.concatenate([key, rotary.astype(key.dtype)], axis=-1)
    return {
      'key': checkpoint_name(key, 'key'),
      'value': checkpoint_name(value, 'value'),
    }

  def scoring(self, params, relative):
    """Returns scale and mask."""
    del params, relative
    return self.variant.scoring_by('value')

  def project_output(self, params, out):
    """Returns `[B, T, D]` from `[B, N, 1, T, E]`."""
    return linear(params, 'output', join_heads(out[:, :, 0]))


FORMS: dict[str, Callable[[Latent], Form]] = {
  'absorbed': Absorbed,
  'expanded': Expanded,
}


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
