"""The feed-forward half of a layer: plain or gated, dense or experts."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from kvjax.arguments import check_fields
from kvjax.layers.linear import init_linear, linear

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
  'silu': jax.nn.silu,
  'gelu': lambda x: jax.nn.gelu(x, approximate=False),
  'gelu_tanh': lambda x: jax.nn.gelu(x, approximate=True),
  'relu': jax.nn.relu,
  'relu2': lambda x: jnp.square(jax.nn.relu(x)),  # arXiv 2109.08668
}
XIELU = 'xielu'


@dataclasses.dataclass(frozen=True)
class MLP:
  """`(act(x W_gate) * x W_up) W_down`, or `act(x W_up) W_down` ungated.

  Attributes:
    hidden: F, width between.
    activation: one of `ACTIVATIONS`, or 'xielu', which has two learned numbers
      (arXiv 2411.13010, section 3).
    gated: with a gate (arXiv 2002.05202).
    bias: on every projection.
  """

  hidden: int
  activation: str = 'silu'
  gated: bool = True
  bias: bool = False

  def __post_init__(self):
    check_fields(self, at_least={'hidden': 1})
    if self.activation not in (*ACTIVATIONS, XIELU):
      raise ValueError(
        f'Unknown activation={self.activation!r}; known: '
        f'{", ".join(sorted([*ACTIVATIONS, XIELU]))}.'
      )

  def num_params(self, width: int) -> int:
    """Returns elements of its parameters for activations of `width`."""
    matrices = 3 if self.gated else 2
    biases = width + (matrices - 1) * self.hidden if self.bias else 0
    learned = 2 if self.activation == XIELU else 0
    return matrices * width * self.hidden + biases + learned

  def num_active(self, width: int) -> int:
    """Returns elements that one token reads: all of them."""
    return self.num_params(width)

  def init(self, key: jax.Array, width: int, dtype: Any) -> dict[str, Any]:
    """Returns parameters for activations of `width` features."""
    keys = jax.random.split(key, 3)
    names = ('gate', 'up') if self.gated else ('up',)
    params: dict[str, Any] = {}
    if self.activation == XIELU:
      params |= {name: jnp.zeros((1,), dtype) for name in ('rise', 'fall')}
    for k, name in zip(keys, names, strict=False):
      params |= init_linear(
        k, name, width, self.hidden, bias=self.bias, dtype=dtype
      )
    return params | init_linear(
      keys[2], 'down', self.hidden, width, bias=self.bias, dtype=dtype
    )

  def __call__(self, params: Mapping[str, Any], x: jax.Array) -> jax.Array:
    """Returns `[B, T, D]` from `[B, T, D]`."""
    if self.activation == XIELU:
      act = functools.partial(xielu, rise=params['rise'], fall=params['fall'])
    else:
      act = ACTIVATIONS[self.activation]
    with jax.named_scope('mlp'):
      up = linear(params, 'up', x)
      hidden = act(linear(params, 'gate', x)) * up if self.gated else act(up)
      return linear(params, 'down', hidden)


def xielu(x: jax.Array, rise: jax.Array, fall: jax.Array) -> jax.Array:
  """Returns xIELU (arXiv 2411.13010, equation 7), with beta = 1/2.

  `a x^2 + x / 2` above 0, and `(exp(x) - 1 - x) (1/2 + b) + x / 2` below, where
  a and b are softplus of the learned numbers.

  Args:
    x: activations.
    rise: `[1]`, for a.
    fall: `[1]`, for b.
  """
  y = x.astype(jnp.float32)
  up, down = (
    jax.nn.softplus(learned.astype(jnp.float32))[0] for learned in (rise, fall)
  )
  above = up * y * y
  low = jnp.minimum(y, 0)  # twice: JAX halves its slope at 0, and halves cancel
  below = (jnp.expm1(low) - low) * (0.5 + down)
  return (jnp.where(y > 0, above, below) + 0.5 * y).astype(x.dtype)
