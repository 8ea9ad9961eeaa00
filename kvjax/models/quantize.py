"""Weights in eight bits or four: a model whose projections are codes.

Eight bits are symmetric, one scale a line:
`w ~ codes * scale` with `scale = max |w| / 127` over a line of
`[out, in]`, so that every weight is within half a scale: what gpt-fast's
`WeightOnlyInt8Linear` does, and LLM.int8 (arXiv 2208.07339, section 3.1) with
its weights. Four bits are ggml's q4_1: `w ~ code * scale + zero` of each 32
inputs. Activations stay as they are.
"""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from kvjax.layers.int8_weight import CodedWeight
from kvjax.streams.codecs import GGML, Int8

WEIGHTS = {'int8': 8, 'int4': 4}
"""Bits of a code, by the names that `load_checkpoint` and `plan` take."""

# What `linear` and `matmul` multiply by. Not a router or the gate of a shared
# expert, whose choices are worth more than their bytes, and not MLA's
# up-projections: they are multiplied from both sides (vLLM widens them for the
# same reason).
PROJECTIONS = frozenset(
  ('query', 'key', 'value', 'output', 'latent', 'query_down')
  + ('gate', 'up', 'down', 'head')
)


def quantize(params: Any, bits: int = 8) -> Any:
  """Returns params whose projections are `CodedWeight`, all else as it was.

  Projections are those of attention (but MLA's two up-projections), of MLPs
  and of experts (each output channel of each expert has a scale), and the head.
  A tied embedding is the head, and is looked up through its codes; an untied
  one, norms, biases, routers, position tables and convolutions stay.

  Leaves are encoded one after the other, so that besides arguments and results
  nothing is alive (inside a `jit` XLA decides that).
  `load_checkpoint(weights=...)` never has more than one float weight in
  memory. The result decodes like any params; a gradient with respect to codes
  is refused by JAX.

  Args:
    params: of `init_params` or `load_checkpoint`, or a part of them that has
      both the head, if there is one, and the embedding.
    bits: of a code: 8, or 4 where 32 divides the inputs of every projection.

  Raises:
    ValueError: a projection is quantized already, or of no floating type;
      params are no dict.
  """
  coded = lambda leaf: isinstance(leaf, CodedWeight)
  if not isinstance(params, Mapping):
    raise ValueError(
      f'params is {type(params).__name__}: quantize takes the dict of params '
      'of a model; `models.quantize.encode` takes one weight.'
    )
  tied = 'embedding' in params and 'head' not in params

  def encode_leaf(path, leaf):
    place = '.'.join(_key(entry) for entry in path)
    if coded(leaf):
      raise ValueError(
        f'{place} is quantized already. Give the params that it was made of.'
      )
    return encode(leaf, place, bits) if is_projection(place, tied) else leaf

  return jax.tree.map_with_path(encode_leaf, params, is_leaf=coded)


def is_projection(place: str, tied: bool) -> bool:
  """Returns whether the param at a path (`layers.0.mlp.up`) is quantized."""
  name = place.rpartition('.')[2]
  return name in PROJECTIONS or (tied and place == 'embedding')


def encode(
  weight: jax.Array, place: str = 'weight', bits: int = 8
) -> CodedWeight:
  """Returns the codes and scales of a weight `[..., out, in]`."""
  if not jnp.issubdtype(weight.dtype, jnp.floating):
    raise ValueError(
      f'{place} is {weight.dtype}: quantize takes floating weights.'
    )
  if bits not in WEIGHTS.values():
    raise ValueError(f'bits={bits!r} must be 8 or 4.')
  if bits == 4 and weight.shape[-1] % 32:
    raise ValueError(
      f'{place} has {weight.shape[-1]} inputs: blocks of 32 do not divide '
      'them. Quantize to eight bits.'
    )
  return _encode(weight, bits)


@functools.partial(jax.jit, static_argnames='bits')
def _encode(weight: jax.Array, bits: int) -> CodedWeight:
  codec = Int8() if bits == 8 else GGML('q4_1')
  return CodedWeight(**codec.encode(weight, None), dtype=weight.dtype.name)


def _key(entry: Any) -> str:
  return str(getattr(entry, 'key', getattr(entry, 'idx', entry)))
