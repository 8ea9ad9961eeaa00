"""Uncached programs to analyse: examples, or one that a command line names.

The examples are attention, one layer of `x [T, D] -> y [T, D]` a variant. They
are written as formulas on a blackboard, and tensors are named where they are
made. With `causal=False` each is the encoder of its variant.
"""

import dataclasses
import importlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name as name

import kvjax
from experiments.measuring.clock import reason
from kvjax.attention.reference import masked_softmax
from kvjax.decoding.allocate import check_sizes

Program = Callable[[jax.Array], jax.Array]
VOCABULARY = 17  # of a program that is made of a model's attention
FORM = 'absorbed'  # of latent attention: its cache has latents, not keys


@dataclasses.dataclass(frozen=True)
class Sizes:
  """Of a layer; see the letters in `kvjax`.

  Attributes:
    width: D.
    heads: N.
    kv_heads: K of gqa.
    key_width: H of queries, keys and values, even.
    latent: R of mla.
    rotary: P of mla's shared key, even.
    window: positions a query of window sees, itself included.
  """

  width: int = 24
  heads: int = 4
  kv_heads: int = 2
  key_width: int = 6
  latent: int = 8
  rotary: int = 4
  window: int = 4

  def __post_init__(self) -> None:
    check_sizes(**vars(self))
    if self.heads % self.kv_heads:
      raise ValueError(
        f'heads={self.heads} is not a multiple of kv_heads={self.kv_heads}. '
        'Change one of the two.'
      )
    for field in ('key_width', 'rotary'):
      if getattr(self, field) % 2:
        raise ValueError(
          f'{field}={getattr(self, field)} must be even: pairs are rotated.'
        )


def example(variant: str, sizes: Sizes, causal: bool = True) -> Program:
  """Returns the program of a variant.

  Raises:
    ValueError: the variant is unknown.
  """
  if variant not in VARIANTS:
    raise ValueError(
      f'variant={variant!r} is unknown; known: {", ".join(VARIANTS)}.'
    )
  return VARIANTS[variant](sizes, causal)


def of_model(name: str) -> Program:
  """Returns a decoder with the attention of a model's first layer.

  The attention has its published size and random weights. What no attention
  reads is small: one layer, a vocabulary of 17, an MLP of 8.

  Args:
    name: as for `kvjax.load_config`.

  Raises:
    ValueError: the model reads a source, or its config is refused.
    FileNotFoundError: a name stands for no model.
  """
  config = kvjax.load_config(name)
  if config.encoder is not None:
    raise ValueError(f'model={name} reads a source: name a decoder.')
  layer = dataclasses.replace(config.layers[0], mlp=kvjax.MLP(8))
  config = dataclasses.replace(
    config, layers=(layer,), vocab_size=VOCABULARY, dtype='float32'
  )
  params = kvjax.init_params(config, jax.random.key(0))
  return lambda ids: kvjax.forward(config, params, ids[None], form=FORM)[0]


def load_program(path: str, x: Any) -> Callable[..., Any]:
  """Returns the function that `module:function` names.

  Args:
    path: the name; the module's folder is where Python looks for modules.
    x: an array that the function must take.

  Raises:
    ValueError: there is no such function, or calling it with `x` raises.
  """
  module, _, name = path.partition(':')
  if not module or not name:
    raise ValueError(f'program={path!r} must be module:function.')
  try:
    program = getattr(importlib.import_module(module), name)
  except Exception as error:  # Code of the user may raise anything.
    raise ValueError(
      f'program={path!r} cannot be imported: {reason(error)}. Name a '
      'function of a module whose folder is in PYTHONPATH.'
    ) from None
  try:
    jax.eval_shape(program, x)
  except Exception as error:
    raise ValueError(
      f'program={path!r} does not take {x.dtype}{list(x.shape)}: '
      f'{reason(error)}. Name a function of one array, or change '
      '--config.shape, or --config.vocab_size for token ids.'
    ) from None
  return program


def _grouped(sizes: Sizes, kv_heads: int, causal: bool, window: int) -> Program:
  K, G = kv_heads, sizes.heads // kv_heads
  D, H = sizes.width, sizes.key_width
  wq, wk = _weight(0, D, K, G, H), _weight(1, D, K, H)
  wv, wo = _weight(2, D, K, H), _weight(3, K, G, H, D)

  def program(x: jax.Array) -> jax.Array:
    q = name(_rotate(jnp.einsum('TD,DKGH->TKGH', x, wq)), 'q')
    k = name(_rotate(jnp.einsum('TD,DKH->TKH', x, wk)), 'k')
    v = name(jnp.einsum('TD,DKE->TKE', x, wv), 'v')
    scores = name(jnp.einsum('TKGH,SKH->KGTS', q, k), 'scores')
    p = name(masked_softmax(scores, visible(len(x), causal, window)), 'weights')
    out = name(jnp.einsum('KGTS,SKE->TKGE', p, v), 'out')
    return jnp.einsum('TKGE,KGED->TD', out, wo)

  return program


def _mla(sizes: Sizes, causal: bool) -> Program:
  """DeepSeek-V2 (arXiv 2405.04434), expanded: keys and values are formed."""
  D, N, H = sizes.width, sizes.heads, sizes.key_width
  R, P = sizes.latent, sizes.rotary
  wq, wc, wr = _weight(0, D, N, H + P), _weight(1, D, R), _weight(2, D, P)
  wk, wv = _weight(3, R, N, H), _weight(4, R, N, H)
  wo = _weight(5, N, H, D)

  def program(x: jax.Array) -> jax.Array:
    q = jnp.einsum('TD,DNH->TNH', x, wq)
    q = name(jnp.concatenate([q[..., :H], _rotate(q[..., H:])], -1), 'q')
    c, r = name(x @ wc, 'c'), name(_rotate(x @ wr), 'k_rotary')
    k = name(jnp.einsum('TR,RNH->TNH', c, wk), 'k')
    v = name(jnp.einsum('TR,RNE->TNE', c, wv), 'v')
    scores = jnp.einsum('TNH,SNH->NTS', q[..., :H], k)
    scores += jnp.einsum('TNP,SP->NTS', q[..., H:], r)
    p = masked_softmax(name(scores, 'scores'), visible(len(x), causal))
    out = name(jnp.einsum('NTS,SNE->TNE', name(p, 'weights'), v), 'out')
    return jnp.einsum('TNE,NED->TD', out, wo)

  return program


def _linear(sizes: Sizes, causal: bool) -> Program:
  """Linear attention (arXiv 2006.16236), equation 12; an encoder sums all."""
  (wq, wk, wv), wo = _one_head(sizes)

  def program(x: jax.Array) -> jax.Array:
    q = name(jax.nn.elu(x @ wq) + 1, 'q')
    k = name(jax.nn.elu(x @ wk) + 1, 'k')
    v = name(x @ wv, 'v')
    summands = jnp.einsum('TH,TE->THE', k, v)
    total = jnp.broadcast_to(summands.sum(0), summands.shape)
    state = name(jnp.cumsum(summands, 0) if causal else total, 'state')
    return name(jnp.einsum('TH,THE->TE', q, state), 'out') @ wo

  return program


def _mta(sizes: Sizes, causal: bool) -> Program:
  """Multi-token attention (arXiv 2504.00927): logits mixed over six queries."""
  weights, wo = _one_head(sizes)

  def program(x: jax.Array) -> jax.Array:
    q, k, v = (name(x @ w, n) for w, n in zip(weights, 'qkv', strict=True))
    mask = visible(len(x), causal)
    scores = name(jnp.where(mask, q @ k.T, 0.0), 'scores')
    kernel = 0.5 ** jnp.arange(5.0, -1.0, -1.0)
    mixed = jnp.einsum('ITS,I->TS', _shifts(scores, 6), kernel)
    return name(name(masked_softmax(mixed, mask), 'weights') @ v, 'out') @ wo

  return program


def _shorten(sizes: Sizes, causal: bool) -> Program:
  """Short convolutions of 4 before attention, as in Qwen3-Next's q, k, v."""
  weights, wo = _one_head(sizes)
  kernel = _weight(4, 4, sizes.key_width)

  def program(x: jax.Array) -> jax.Array:
    q, k, v = (name(x @ w, n) for w, n in zip(weights, 'qkv', strict=True))
    q, k, v = (
      name(jnp.einsum('ITH,IH->TH', _shifts(rows, 4), kernel), f'conv_{n}')
      for rows, n in zip((q, k, v), 'qkv', strict=True)
    )
    scores = name(q @ k.T, 'scores')
    p = name(masked_softmax(scores, visible(len(x), causal)), 'weights')
    return name(p @ v, 'out') @ wo

  return program


def _shifts(rows: jax.Array, count: int) -> jax.Array:
  """Returns `[count, T, ...]`: for each row those up to it, zeros before."""
  padded = jnp.pad(rows, ((count - 1, 0), (0, 0)))
  return jnp.stack([padded[i : i + len(rows)] for i in range(count)])


def _one_head(sizes: Sizes) -> tuple[list[jax.Array], jax.Array]:
  """Returns the weights of q, k and v, and of the output."""
  D, H = sizes.width, sizes.key_width
  return [_weight(i, D, H) for i in range(3)], _weight(3, H, D)


def _weight(seed: int, *shape: int) -> jax.Array:
  draw = np.random.default_rng((seed, *shape)).normal(size=shape)
  return jnp.asarray(draw / shape[0] ** 0.5, jnp.float32)


def visible(length: int, causal: bool, window: int = 0) -> jax.Array:
  """Returns `[T, T]`, which columns each row sees; a window of 0 is none."""
  positions = jnp.arange(length)
  back = positions[:, None] - positions[None, :]
  seen = back >= 0 if causal else jnp.ones((length, length), bool)
  return seen & (jnp.abs(back) < window) if window else seen


def _rotate(x: jax.Array) -> jax.Array:
  """Rotates pairs of features by angles that grow with position.

  Of `[T, ..., H]` each feature of the first half is paired with one of the
  second half.

  RoFormer (arXiv 2104.09864), equation 34.
  """
  half = x.shape[-1] // 2
  rate = 10.0 ** -(jnp.arange(half, dtype=jnp.float32) / half)
  angle = jnp.outer(jnp.arange(len(x), dtype=jnp.float32), rate)
  angle = jnp.expand_dims(angle, range(1, x.ndim - 1))
  cosine, sine = jnp.cos(angle), jnp.sin(angle)
  a, b = x[..., :half], x[..., half:]
  return jnp.concatenate([a * cosine - b * sine, b * cosine + a * sine], -1)


VARIANTS: dict[str, Callable[[Sizes, bool], Program]] = {
  'mha': lambda s, causal: _grouped(s, s.heads, causal, 0),
  'gqa': lambda s, causal: _grouped(s, s.kv_heads, causal, 0),
  'mqa': lambda s, causal: _grouped(s, 1, causal, 0),
  'mla': _mla,
  'window': lambda s, causal: _grouped(s, s.kv_heads, causal, s.window),
  'mta': _mta,
  'convolution': _shorten,
  'linear': _linear,
}
