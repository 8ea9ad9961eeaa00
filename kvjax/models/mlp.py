"""The feed-forward half of a layer: plain or gated, dense or experts."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax

from kvjax.arguments import check_fields
from kvjax.layers.linear import init_linear, linear

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
  'silu': jax.nn.silu,
  'gelu': lambda x: jax.nn.gelu(x, approximate=False),
  'gelu_tanh': lambda x: jax.nn.gelu(x, approximate=True),
  'relu': jax.nn.relu,
}


@dataclasses.dataclass(frozen=True)
class MLP:
  """`(act(x W_gate) * x W_up) W_down`, or `act(x W_up) W_down` ungated.

  Attributes:
    hidden: F, width between.
    activation: one of `ACTIVATIONS`.
    gated: with a gate (arXiv 2002.05202).
    bias: on every projection.
  """

  hidden: int
  activation: str = 'silu'
  gated: bool = True
  bias: bool = False

  def __post_init__(self):
    check_fields(self, at_least={'hidden': 1})
    if self.activation not in ACTIVATIONS:
      raise ValueError(
        f'Unknown activation={self.activation!r}; known: '
        f'{", ".join(sorted(ACTIVATIONS))}.'
      )

  def num_params(self, width: int) -> int:
    """Returns elements of its parameters for activations of `width`."""
    matrices = 3 if self.gated else 2
    biases = width + (matrices - 1) * self.hidden if self.bias else 0
    return matrices * width * self.hidden + biases

  def num_active(self, width: int) -> int:
    """Returns elements that one token reads: all of them."""
    return self.num_params(width)

  def init(self, key: jax.Array, width: int, dtype: Any) -> dict[str, Any]:
    """Returns parameters for activations of `width` features."""
    keys = jax.random.split(key, 3)
    names = ('gate', 'up') if self.gated else ('up',)
    params: dict[str, Any] = {}
    for k, name in zip(keys, names, strict=False):
      params |= init_linear(
        k, name, width, self.hidden, bias=self.bias, dtype=dtype
      )
    return params | init_linear(
      keys[2], 'down', self.hidden, width, bias=self.bias, dtype=dtype
    )

  def __call__(self, params: Mapping[str, Any], x: jax.Array) -> jax.Array:
    """Returns `[B, T, D]` from `[B, T, D]`."""
    act = ACTIVATIONS[self.activation]
    with jax.named_scope('mlp'):
      up = linear(params, 'up', x)
      hidden = act(linear(params, 'gate', x)) * up if self.gated else act(up)
      return linear(params, 'down', hidden)
