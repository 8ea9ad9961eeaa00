"""Grouped attention: single-head, MHA, MQA and GQA, by shape alone.

`num_kv_heads == num_heads` is MHA (Vaswani et al. 2017, arXiv 1706.03762),
1 is MQA (Shazeer 2019, arXiv 1911.02150), anything between is GQA (Ainslie et
al. 2023, arXiv 2305.13245).
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from kvjax.arguments import check_fields
from kvjax.attention.attend import Scoring
from kvjax.attention.bias import Alibi, PositionBias, RelativeBias
from kvjax.attention.rotary import Rotary, rotate
from kvjax.attention.variant import Form, Table, Variant
from kvjax.layers.linear import init_linear, join_heads, linear, split_heads
from kvjax.layers.norm import Norm
from kvjax.streams.scoring import Temperature
from kvjax.streams.stream import Stream
from kvjax.streams.view import Streams
from kvjax.streams.visibility import Visibility


@dataclasses.dataclass(frozen=True)
class Grouped(Variant, Form):
  """Attention that remembers K and V of `num_kv_heads` heads a token.

  Attributes:
    num_heads: N query heads, a multiple of `num_kv_heads`.
    num_kv_heads: K heads of keys and values.
    key_width: H features of a query and of a key.
    value_width: E features of a value; None for H.
    rotary: rotation of queries and keys; None for none.
    visibility: which keys a query sees.
    scale: of the scores; None for `H ** -0.5`.
    softcap: bound of the scores; None for none.
    bias: additive bias from positions; None for none.
    sinks: a learned logit a head joins the softmax.
    projection_bias: query, key and value projections have biases.
    output_bias: the output projection has one.
    qk_norm: normalises queries and keys before rotation; None for none.
    qk_norm_joint: over all heads at once (OLMo-2), not head by head.
    qk_norm_each: every head has its own weight (Command-R+).
    qk_norm_after: after rotation, not before (Hunyuan).
    clip: bound of the absolute values of queries, keys and values (OLMo); None
      for none.
    temperature: factor on queries by their position; None for none.
    shared_from: index of the earlier layer whose K and V this one reads
      (arXiv 2405.12981); it then projects no K and V.
  """

  num_heads: int
  num_kv_heads: int
  key_width: int
  value_width: int | None = None
  rotary: Rotary | None = None
  visibility: Visibility = Visibility()
  scale: float | None = None
  softcap: float | None = None
  bias: Alibi | RelativeBias | None = None
  sinks: bool = False
  projection_bias: bool = False
  output_bias: bool = False
  qk_norm: Norm | None = None
  qk_norm_joint: bool = False
  qk_norm_each: bool = False
  qk_norm_after: bool = False
  clip: float | None = None
  temperature: Temperature | None = None
  shared_from: int | None = None

  def __post_init__(self):
    sizes = ('num_heads', 'num_kv_heads', 'key_width', 'value_width')
    above = {'softcap': 0, 'clip': 0}
    check_fields(self, at_least=dict.fromkeys(sizes, 1), above=above)
    if self.num_heads % self.num_kv_heads:
      raise ValueError(
        f'num_heads={self.num_heads} is not a multiple of '
        f'num_kv_heads={self.num_kv_heads}: every kv head serves as many '
        'query heads. Change one of the two.'
      )
    if self.qk_norm_after and self.qk_norm_joint:
      raise ValueError(
        'qk_norm_after=True with qk_norm_joint=True: rotation is head by head, '
        'and the norm over all heads comes before it. Choose one of the two.'
      )
    if self.rotary is not None and self.rotary.width > self.key_width:
      raise ValueError(
        f'Rotary width={self.rotary.width} exceeds key_width='
        f'{self.key_width}: it rotates the first features of a key.'
      )

  @property
  def output_width(self) -> int:
    return self.num_heads * (self.value_width or self.key_width)

  @property
  def query_width(self) -> int:
    """Elements of all query heads of a token."""
    return self.num_heads * self.key_width

  def streams(self) -> dict[str, Stream]:
    """Returns what a token leaves behind; no field for a query."""
    if self.shared_from is not None:
      return {}
    return {
      'key': Stream(self.num_kv_heads, self.key_width),
      'value': Stream(self.num_kv_heads, self.value_width or self.key_width),
    }

  def num_params(self, width: int) -> int:
    """Returns elements of its parameters for activations of `width`."""
    value = self.value_width or self.key_width
    key_out, value_out = (
      self.num_kv_heads * self.key_width,
      self.num_kv_heads * value,
    )
    outputs = self.query_width
    if self.shared_from is None:
      outputs += key_out + value_out
    count = outputs * (width + self.projection_bias)
    count += width * (self.output_width + self.output_bias)
    if self.sinks:
      count += self.num_heads
    if self.qk_norm is not None:
      outs = [self.query_width]
      outs += [key_out] if self.shared_from is None else []
      whole = self.qk_norm_joint or self.qk_norm_each
      sizes = outs if whole else [self.key_width] * len(outs)
      count += sum(self.qk_norm.num_params(size) for size in sizes)
    return count

  def init(self, key: jax.Array, width: int, dtype: Any) -> dict[str, Any]:
    """Returns parameters for activations of `width` features."""
    keys = jax.random.split(key, 4)
    kv = self.num_kv_heads
    make = {'query': self.query_width}
    if self.shared_from is None:
      make['key'] = kv * self.key_width
      make['value'] = kv * (self.value_width or self.key_width)
    params: dict[str, Any] = {}
    for k, (name, out) in zip(keys, make.items(), strict=False):
      params |= init_linear(
        k, name, width, out, bias=self.projection_bias, dtype=dtype
      )
    params |= init_linear(
      keys[3],
      'output',
      self.output_width,
      width,
      bias=self.output_bias,
      dtype=dtype,
    )
    if self.sinks:
      params['sinks'] = jax.random.normal(key, (self.num_heads,)).astype(dtype)
    if self.qk_norm is not None:
      for name in ('query', 'key')[: 1 if self.shared_from is not None else 2]:
        size = make[name] if self.qk_norm_joint else self.key_width
        params[f'{name}_norm'] = self.qk_norm.init(size, dtype)
        if self.qk_norm_each:
          shape = (make[name] // self.key_width, self.key_width)
          params[f'{name}_norm'] = _per_head(params[f'{name}_norm'], shape)
    return params

  def form(self, tokens: int, name: str | None = None) -> Form:
    """Returns itself: grouped attention has one form."""
    del tokens, name
    return self

  def project_queries(
    self, params: Mapping[str, Any], x: jax.Array, table: Table
  ) -> Streams:
    """Returns queries `{'key': [B, K, G, T, H]}` of activations `[B, T, D]`."""
    query = self._project_joint(params, 'query', x)
    groups = self.num_heads // self.num_kv_heads
    query = split_heads(query, self.num_kv_heads, groups)
    query = self._norm_and_rotate(params, 'query', query, table)
    return {'key': checkpoint_name(query, 'query')}

  def project_streams(
    self, params: Mapping[str, Any], x: jax.Array, table: Table
  ) -> Streams:
    """Returns key and value `[B, K, T, H]` of tokens `[B, T, D]`."""
    key = split_heads(self._project_joint(params, 'key', x), self.num_kv_heads)
    key = self._norm_and_rotate(params, 'key', key, table)
    value = self._clip(linear(params, 'value', x))
    value = split_heads(value, self.num_kv_heads)
    return {
      'key': checkpoint_name(key, 'key'),
      'value': checkpoint_name(value, 'value'),
    }

  def rotate_streams(
    self, streams: Streams, table: tuple[jax.Array, jax.Array]
  ) -> Streams:
    """Returns streams whose keys `[B, K, S, H]` are rotated by a table."""
    assert self.rotary is not None
    key = rotate(streams['key'], table, self.rotary.interleaved)
    return streams | {'key': key}

  def refuses_constant(self, name: str, rotated: bool) -> str:
    """Returns why no constant can be taken off keys or values; '' for keys."""
    if name != 'key':
      return super().refuses_constant(name, rotated)
    if rotated:
      if self.softcap is not None:
        return f'softcap={self.softcap} bends scores; store keys as they are'
      if self.sinks:
        return 'learned sinks are no keys and keep their logits; rotated=False'
    elif self.rotary is None:
      return 'it has no rotary positions; use rotated=True'
    elif self.qk_norm_after:
      return 'qk_norm_after=True needs rotated keys; use rotated=True'
    return ''

  def scoring(
    self, params: Mapping[str, Any], relative: jax.Array | None
  ) -> Scoring:
    """Returns scale, mask, bias and sinks of this layer."""
    groups = (self.num_kv_heads, self.num_heads // self.num_kv_heads)
    sinks = params['sinks'].reshape(groups) if self.sinks else None
    bias = None
    if self.bias is not None:
      bias = PositionBias(self.bias, self.bias.table(self.num_heads, relative))
    scale = self.key_width**-0.5 if self.scale is None else self.scale
    return Scoring(
      scale=scale,
      softcap=self.softcap,
      visibility=self.visibility,
      bias=bias,
      sinks=sinks,
      temperature=self.temperature,
    )

  def project_output(
    self, params: Mapping[str, Any], out: jax.Array
  ) -> jax.Array:
    """Returns `[B, T, D]` from attention's output `[B, K, G, T, E]`."""
    return linear(params, 'output', join_heads(out))

  def _project_joint(self, params, name, x):
    """Projects `[B, T, D]`; normalises over all heads if the variant does."""
    y = linear(params, name, x)
    if self.qk_norm is not None and self.qk_norm_joint:
      y = self.qk_norm(params[f'{name}_norm'], y)
    return self._clip(y)

  def _clip(self, x):
    return x if self.clip is None else jnp.clip(x, -self.clip, self.clip)

  def _norm_and_rotate(self, params, name, x, table):
    """Normalises heads `[B, K, (G,) T, H]` one by one, and rotates them."""
    by_heads = self.qk_norm is not None and not self.qk_norm_joint
    if by_heads and not self.qk_norm_after:
      x = self._norm_heads(params[f'{name}_norm'], x)
    if self.rotary is not None and table is not None:
      x = rotate(x, table, self.rotary.interleaved)
    if by_heads and self.qk_norm_after:
      x = self._norm_heads(params[f'{name}_norm'], x)
    return x

  def _norm_heads(self, params, x):
    """Returns `x [B, K, (G,) T, H]` normalised over its last axis."""
    norm = self.qk_norm
    if norm is None or not self.qk_norm_each:
      return x if norm is None else norm(params, x)
    heads = x.shape[1:-2] + (1,) + x.shape[-1:]
    return norm(jax.tree.map(lambda w: w.reshape(heads), params), x)


def _per_head(params, shape):
  return jax.tree.map(lambda x: jnp.broadcast_to(x, shape), params)
