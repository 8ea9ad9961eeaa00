"""Attention of a prompt on a GPU, by cuDNN's flash attention.

A candidate: it has not run on a GPU. cuDNN masks by index: query row i meets
key i. The new tokens of an ordered view and the slots that they fill are cut
out for that; older slots are a second call, merged by log-sum-exp, or, within a
window, the first rows of the one call.

`jax.nn.dot_product_attention` rounds the log-sum-exp to the dtype of the
output. The function under it, private but the same in JAX 0.10 to 0.12, does
not, and takes heads first, as a cache has them.
"""

import functools
import importlib
from typing import Any

import jax
import jax.numpy as jnp

from kvjax.context import target
from kvjax.kernels.hopper import interpreter, mosaic_gpu
from kvjax.kernels.hopper.launch import DTYPES
from kvjax.kernels.kernel import Kernel, refuses_block, refuses_stored
from kvjax.kernels.log_sum_exp import merge
from kvjax.streams.scoring import Scoring
from kvjax.streams.view import LAST, Streams, View

_ROOM = 'jax._src.cudnn.fused_attention_stablehlo'


def missing() -> str:
  """Returns why this process cannot use the kernel; '' if it can."""
  if not is_at_home():
    return ''
  for platform in (target(), jax.default_backend()):
    if platform != 'gpu':
      return f'it runs, and is lowered, where a GPU is, not on {platform}'
  try:
    importlib.import_module(_ROOM).check_cudnn_version()
  except (AttributeError, ImportError, RuntimeError) as error:
    return f'this JAX has no cuDNN attention: {error}'
  return ''


def is_at_home() -> bool:
  """Returns whether cuDNN attends; else, interpreted, `jax.nn` by XLA."""
  return interpreter.settings() is None


def refuses(
  queries: Streams, view: View, scoring: Scoring, block: int | None = None
) -> str:
  """Returns why this kernel cannot serve a view; '' if it can."""
  if list(queries) != ['key']:
    return f'scores add up {", ".join(queries)}; it reads one stream of keys'
  tokens, rule = queries['key'].shape[3], scoring.visibility
  if tokens == 1:
    return 'one token a row; it serves prompts'
  reason = refuses_stored(tokens, tokens, view, scoring)
  if reason:
    return reason
  if scoring.softcap is not None:
    return 'scores have a soft-cap'
  if not rule.causal or rule.chunk is not None or rule.sink_tokens:
    return f'{rule} is not causal, with or without a window, and no more'
  if not view.ordered or (view.first, view.last) != (0, LAST):
    return "slots are not in the order of positions; a dense cache's are"
  return _refuses_streams(view, scoring) or refuses_block(block)


def _refuses_streams(view: View, scoring: Scoring) -> str:
  assert view.stored is not None
  found = [view.stored[name] for name in ('key', scoring.value)]
  kinds = {None if x is None else x.in_place_type for x in found}
  if len(kinds) > 1 or not kinds <= set(DTYPES):
    return f'keys and values are not both stored as {" or ".join(DTYPES)}'
  key, value = (x.codes.shape[3] for x in found if x is not None)
  most = 256 if mosaic_gpu.is_at_home() else 128
  if key != value or key % 8 or key > most:
    return f'widths {key}, {value} are not one multiple of 8 up to {most}'
  return ''


def attend(
  queries: Streams,
  positions: jax.Array,
  view: View,
  scoring: Scoring,
  *,
  block: int | None = None,
) -> tuple[jax.Array, jax.Array]:
  """Attends to the slots of one view; see `blockwise.attend`.

  Tokens of a row follow each other, padding on either side; a row where they
  do not is NaN. It has no derivative: a race takes none.
  """
  del block  # `refuses` lets no number pass
  assert view.stored is not None and view.positions is not None
  stored: Streams = view.stored
  # A masked weight is 0, and 0 times the NaN of an empty slot would be NaN.
  has_token = (view.positions >= 0)[..., None]
  key, value = (
    jnp.where(has_token, stored[name].codes, 0)
    for name in ('key', scoring.value)
  )
  batch, heads, groups, tokens, width = queries['key'].shape
  query = queries['key'].astype(key.dtype)
  query = query.reshape(batch, heads * groups, tokens, width)
  capacity, window = key.shape[2], scoring.visibility.window
  lead = 0 if window is None else window - 1
  size = min(tokens + lead, capacity)
  start, offset, count, apart = _square(positions, lead, size, capacity)
  row = jnp.arange(size, dtype=jnp.int32)[None, :] - offset[:, None]
  query, near = _take(query, row), (key, value)
  if size < capacity:
    cut = jax.lax.dynamic_slice_in_dim
    cut = jax.vmap(functools.partial(cut, slice_size=size, axis=1))
    near = cut(key, start), cut(value, start)
  out, lse = _call(scoring, query, *near, count, count, causal=True)
  if window is None and size < capacity:
    old, total = _call(scoring, query, key, value, count, start, causal=False)
    total = jnp.where((start > 0)[:, None, None], total, -jnp.inf)
    out, lse = merge([(out, lse), (old, total)])
  row = jnp.arange(tokens, dtype=jnp.int32)[None, :] + offset[:, None]
  seen = (positions >= 0)[:, None, :]
  out = jnp.where(seen[..., None], _take(out, row), 0)
  lse = jnp.where(seen, _take(lse, row), -jnp.inf)
  out = jnp.where(apart[:, None, None, None], jnp.nan, out)
  shape = batch, heads, groups, tokens
  return out.reshape(*shape, out.shape[-1]), lse.reshape(shape)


def _square(positions, lead: int, size: int, slots: int):
  """Returns how each row's tokens fill `size` slots; int32 `[B]` but one.

  The first of those slots, the row there of token 0, how many of them are
  read, and whether tokens do not follow each other.
  """
  is_token, tokens = positions >= 0, positions.shape[1]
  token = jnp.arange(tokens, dtype=jnp.int32)[None, :]
  first = jnp.min(jnp.where(is_token, positions, slots), axis=1)
  first = jnp.where(first == slots, 0, first)  # no token: nothing to read
  start = jnp.clip(first - lead, 0, slots - size)
  shift = jnp.max(jnp.where(is_token, positions - token, -slots), axis=1)
  apart = is_token & (positions - token != shift[:, None])
  count = jnp.max(positions, axis=1) + 1 - start
  return start, shift - start, count, jnp.any(apart, axis=1)


def _take(x: jax.Array, rows: jax.Array) -> jax.Array:
  """Returns rows `[B, R]`, clamped, of the third axis of `[B, N, T, ...]`."""
  take = functools.partial(jnp.take, axis=1, mode='clip')
  return jax.vmap(take)(x, rows)


def _call(
  scoring: Scoring, query, key, value, rows, keys, *, causal: bool
) -> tuple[Any, Any]:
  """Returns output `[B, N, T, H]` and log-sum-exp `[B, N, T]`, float32.

  Args:
    scoring: its scale and, of a causal call, its window.
    query: `[B, N, T, H]`.
    key, value: `[B, K, S, H]`.
    rows, keys: int32 `[B]`, how many count; of a row without any, one does.
    causal: query i sees no key after key i.
  """
  rows, keys = jnp.maximum(rows, 1), jnp.maximum(keys, 1)
  window = scoring.visibility.window if causal else None
  if not is_at_home():
    wide = [
      jnp.swapaxes(x, 1, 2).astype(jnp.float32) for x in (query, key, value)
    ]
    out, lse = jax.nn.dot_product_attention(
      *wide,
      scale=float(scoring.scale),
      is_causal=causal,
      query_seq_lengths=rows,
      key_value_seq_lengths=keys,
      local_window_size=None if window is None else (window - 1, 0),
      implementation='xla',
      return_residual=True,
    )
    return jnp.swapaxes(out, 1, 2), jnp.swapaxes(lse, 1, 2)
  cudnn = importlib.import_module(_ROOM)
  masks = cudnn.MaskType
  out, lse = cudnn.dot_product_attention(
    query,
    key,
    value,
    q_seqlen=rows,
    kv_seqlen=keys,
    scale=float(scoring.scale),
    mask_type=masks.PADDING_CAUSAL if causal else masks.PADDING,
    qkv_layout='BNTH',
    sliding_window_length=window,
    return_residual=True,
  )
  return out.astype(jnp.float32), lse


KERNEL = Kernel(
  name='cudnn',
  platform='cuda',
  missing=missing,
  is_at_home=is_at_home,
  refuses=refuses,
  attend=attend,
)
