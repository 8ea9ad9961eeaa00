"""Weights of Flax's attention modules as kvjax params, and back, exactly.

In Flax the projections of `MultiHeadDotProductAttention` (linen) and
`MultiHeadAttention` (nnx) are `[D, N, H]`, and the output is `[N, H, D]`; in
kvjax both are `[out, in]`. Nothing is computed: weights that go to Flax and
back are the same.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from kvjax.attention.grouped import Grouped
from kvjax.layers.int8_weight import CodedWeight
from kvjax.layers.norm import Norm

if TYPE_CHECKING:
  from flax import nnx

# Flax normalises queries and keys with a LayerNorm without bias.
NORM = Norm(eps=1e-6, centered=True)
PROJECTIONS = ('query', 'key', 'value')


def from_linen(params: Mapping[str, Any]) -> tuple[Grouped, dict[str, Any]]:
  """Returns the attention and its params of linen's `params` collection.

  Causal, without rotary positions or a window: `dataclasses.replace` the
  attention for others.

  Args:
    params: of one `MultiHeadDotProductAttention`: `query`, `key`, `value`,
      `out`, each with `kernel` (and `bias`), and perhaps `query_ln`, `key_ln`.

  Raises:
    ValueError: something is missing or unknown, or keys are projected from
      another width than queries (cross attention).
  """
  norms = {'query_ln', 'key_ln'}
  names = {*PROJECTIONS, 'out'}
  if not names <= params.keys() <= names | norms:
    raise ValueError(
      f'params have {sorted(params)}; an attention of Flax has '
      f'{sorted(names)}, and perhaps {sorted(norms)}.'
    )
  kernels = {name: params[name]['kernel'] for name in PROJECTIONS}
  width, heads, key_width = kernels['query'].shape
  for name in ('key', 'value'):
    if kernels[name].shape[0] != width:
      raise ValueError(
        f'{name} reads {kernels[name].shape[0]} features and query {width}: '
        'only attention of a sequence to itself leaves a cache.'
      )
  if params['out']['kernel'].shape[-1] != width:
    raise ValueError(
      f'out makes {params["out"]["kernel"].shape[-1]} features of {width}: '
      'in a stack of layers both widths are equal.'
    )
  biased = 'bias' in params['query']
  attention = Grouped(
    heads,
    kernels['key'].shape[1],
    key_width,
    projection_bias=biased,
    output_bias=biased,
    qk_norm=NORM if 'query_ln' in params else None,
  )
  return attention, _to_kvjax(params)


def to_linen(
  attention: Grouped, params: Mapping[str, Any]
) -> dict[str, dict[str, jax.Array]]:
  """Returns linen's `params` collection of one attention.

  Args:
    attention: the variant.
    params: its parameters.

  Raises:
    ValueError: the attention has a feature that Flax has not, or its weights
      are quantized.
  """
  _check_fits_flax(attention)
  if isinstance(params['output'], CodedWeight):
    raise ValueError(
      "params are quantized, and Flax's attention takes floating weights: "
      'give the params before quantization.'
    )
  heads = {
    'query': attention.num_heads,
    'key': attention.num_kv_heads,
    'value': attention.num_kv_heads,
  }
  linen: dict[str, dict[str, jax.Array]] = {}
  for name, count in heads.items():
    weight = params[name]
    linen[name] = {'kernel': weight.T.reshape(weight.shape[1], count, -1)}
    if attention.projection_bias:
      linen[name]['bias'] = params[f'{name}_bias'].reshape(count, -1)
  output = params['output']
  kernel = output.T.reshape(attention.num_heads, -1, output.shape[0])
  linen['out'] = {'kernel': kernel}
  if attention.output_bias:
    linen['out']['bias'] = params['output_bias']
  if attention.qk_norm is not None:
    for name in ('query', 'key'):
      linen[f'{name}_ln'] = {'scale': params[f'{name}_norm']['weight']}
  return linen


def from_nnx(
  module: 'nnx.MultiHeadAttention',
) -> tuple[Grouped, dict[str, Any]]:
  """Returns the attention and its params of an nnx module; see `from_linen`.

  Args:
    module: an attention with its weights.
  """
  # Importing nnx is slow, and a caller with a module has imported it.
  from flax import nnx

  params = nnx.to_pure_dict(nnx.state(module, nnx.Param))
  return from_linen(jax.tree.map(jnp.asarray, params))


def to_nnx(
  attention: Grouped,
  params: Mapping[str, Any],
  module: 'nnx.MultiHeadAttention',
) -> 'nnx.MultiHeadAttention':
  """Sets the weights of an nnx module in place, and returns the module.

  Args:
    attention: the variant.
    params: its parameters.
    module: the module to change.

  Raises:
    ValueError: the attention has a feature that Flax has not, or the module
      has other shapes.
  """
  from flax import nnx

  state = nnx.state(module, nnx.Param)
  new = to_linen(attention, params)
  old = nnx.to_pure_dict(state)
  old_shapes = jax.tree.map(jnp.shape, old)
  new_shapes = jax.tree.map(jnp.shape, new)
  if old_shapes != new_shapes:
    raise ValueError(
      f'The module has weights {old_shapes}; the params are {new_shapes}.'
    )
  nnx.replace_by_pure_dict(state, new)
  nnx.update(module, state)
  return module


def _to_kvjax(linen: Mapping[str, Any]) -> dict[str, Any]:
  """Returns kvjax params of linen's `params` collection."""
  params: dict[str, Any] = {}
  for name in PROJECTIONS:
    kernel = linen[name]['kernel']
    params[name] = kernel.reshape(kernel.shape[0], -1).T
    if 'bias' in linen[name]:
      params[f'{name}_bias'] = linen[name]['bias'].reshape(-1)
  kernel = linen['out']['kernel']
  params['output'] = kernel.reshape(-1, kernel.shape[-1]).T
  if 'bias' in linen['out']:
    params['output_bias'] = linen['out']['bias']
  for name in ('query', 'key'):
    if f'{name}_ln' in linen:
      params[f'{name}_norm'] = {'weight': linen[f'{name}_ln']['scale']}
  return params


def _check_fits_flax(attention: Grouped) -> None:
  """Raises ValueError for a feature that attention of Flax has not."""
  width = attention.key_width
  wrong = {
    'value_width': attention.value_width not in (None, width),
    'rotary': attention.rotary is not None,
    'scale': attention.scale not in (None, width**-0.5),
    'softcap': attention.softcap is not None,
    'bias': attention.bias is not None,
    'sinks': attention.sinks,
    'output_bias': attention.output_bias != attention.projection_bias,
    'qk_norm': attention.qk_norm not in (None, NORM),
    'qk_norm_joint': attention.qk_norm_joint,
    'qk_norm_each': attention.qk_norm_each,
    'clip': attention.clip is not None,
    'temperature': attention.temperature is not None,
    'shared_from': attention.shared_from is not None,
  }
  for name, is_wrong in wrong.items():
    if is_wrong:
      raise ValueError(
        f'{name}={getattr(attention, name)!r}: attention of Flax has no '
        'such thing. Keep this one in kvjax.'
      )
