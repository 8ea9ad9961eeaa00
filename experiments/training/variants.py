"""MHA, MQA, GQA and MLA models of equal size, and what their caches occupy.

A variant with smaller key and value projections gets a wider MLP, so that a
difference between models is not a difference in parameters.
"""

import dataclasses
from typing import Any

import jax

import kvjax
from experiments.training.text import VOCABULARY
from kvjax.memory.planning import plan

VARIANTS = ('mha', 'gqa', 'mqa', 'mla')
TOLERANCE = 0.02  # of the parameters of `equal_models`


@dataclasses.dataclass(frozen=True)
class Shape:
  """Sizes that the variants share; see `Grouped` and `Latent`.

  Attributes:
    layers: L.
    width: D.
    num_heads: N.
    num_kv_heads: K of GQA; MHA has N, MQA has 1.
    key_width: H of a query, key and value.
    rotary_width: rotated features of a key in MHA, MQA and GQA.
    latent_width: R of MLA.
    latent_rotary_width: P of MLA's shared rotated key.
    hidden: F of MHA; the others' follows from equal size.
    vocab_size: V.
  """

  layers: int
  width: int
  num_heads: int
  num_kv_heads: int
  key_width: int
  rotary_width: int
  latent_width: int
  latent_rotary_width: int
  hidden: int
  vocab_size: int = VOCABULARY


def model(variant: str, shape: Shape) -> kvjax.ModelConfig:
  """Returns the model of a variant.

  Raises:
    ValueError: the variant is unknown, or sizes do not fit together.
  """
  layer = kvjax.Layer(_attention(variant, shape), kvjax.MLP(shape.hidden))
  return kvjax.ModelConfig(
    vocab_size=shape.vocab_size,
    width=shape.width,
    layers=(layer,) * shape.layers,
  )


def equal_models(
  variants: tuple[str, ...], shape: Shape
) -> dict[str, kvjax.ModelConfig]:
  """Returns a model a variant, of equal parameters: only `hidden` differs.

  Raises:
    ValueError: as `model`, or sizes cannot be made equal within 2 %.
  """
  target = num_params(model('mha', shape))
  models = {}
  for variant in variants:
    # Parameters grow linearly with `hidden`: two widths give the slope.
    narrow, wide = (
      num_params(model(variant, dataclasses.replace(shape, hidden=hidden)))
      for hidden in (1, 2)
    )
    hidden = max(1, 1 + round((target - narrow) / (wide - narrow)))
    models[variant] = model(variant, dataclasses.replace(shape, hidden=hidden))
    count = num_params(models[variant])
    if abs(count / target - 1) > TOLERANCE:
      raise ValueError(
        f'{variant} has {count} parameters where mha has {target}: more than '
        f'{TOLERANCE:.0%} apart whatever its MLP. Use a larger hidden.'
      )
  return models


def num_params(config: kvjax.ModelConfig) -> int:
  """Returns the number of parameters, without making any."""
  params = jax.eval_shape(lambda: kvjax.init_params(config, jax.random.key(0)))
  return sum(leaf.size for leaf in jax.tree.leaves(params))


def bytes_per_token(
  config: kvjax.ModelConfig, codec: kvjax.Codec | None = None
) -> int:
  """Returns stream bytes of one token in all layers, from the config alone."""
  return plan(config, batch_size=1, capacity=1, codec=codec).bytes_per_token


def query_bytes_per_token(config: kvjax.ModelConfig) -> int:
  """Returns what a Q cache would add a token; nothing would read it."""
  return plan(config, batch_size=1, capacity=1).query_cache_bytes


def array_bytes(tree: Any) -> int:
  """Returns the bytes of all arrays of a tree."""
  return sum(leaf.nbytes for leaf in jax.tree.leaves(tree))


def check_variant(variant: str) -> None:
  """Raises ValueError if no variant has that name."""
  if variant not in VARIANTS:
    raise ValueError(
      f'variant={variant!r} is unknown; known: {", ".join(VARIANTS)}.'
    )


def _attention(variant: str, shape: Shape) -> kvjax.Grouped | kvjax.Latent:
  check_variant(variant)
  if variant == 'mla':
    return kvjax.Latent(
      num_heads=shape.num_heads,
      latent_width=shape.latent_width,
      key_width=shape.key_width,
      value_width=shape.key_width,
      rotary=kvjax.Rotary(shape.latent_rotary_width),
    )
  kv = {'mha': shape.num_heads, 'gqa': shape.num_kv_heads, 'mqa': 1}[variant]
  rotary = kvjax.Rotary(shape.rotary_width)
  return kvjax.Grouped(shape.num_heads, kv, shape.key_width, rotary=rotary)
