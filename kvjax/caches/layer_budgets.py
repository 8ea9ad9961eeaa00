"""How a budget is shared by the layers of a model."""

import dataclasses

from kvjax.arguments import check_type, is_whole
from kvjax.caches.bounded import Bounded


def pyramid(
  kind: Bounded,
  layers: int,
  tokens: int,
  *,
  window: int = 64,
  beta: int = 20,
  uniform_if_small: bool = True,
) -> list[Bounded]:
  """Returns a kind for each layer: the first have most, the mean is the budget.

  Budgets fall in equal steps, from twice the mean less the smallest to the
  smallest, a `beta`-th of the mean (PyramidKV, arXiv 2406.02069; budgets as
  `PyramidKVPress` of kvpress 0.5.5 computes them).

  Where the smallest budget is below the window, or the largest is beyond the
  prompt, the published code gives every layer the mean: at 4,096 tokens, a
  quarter kept and a window of 64, its pyramid is uniform.

  Args:
    kind: whose budget is the mean.
    layers: of the model.
    tokens: of the prompt, T.
    window: queries that the score observes.
    beta: the mean divided by the smallest budget.
    uniform_if_small: give every layer the mean where the published code does;
      False refuses such sizes.

  Raises:
    ValueError: a size is not positive, or the budgets would be uniform.
  """
  check_type('kind', kind, Bounded, 'give a kvjax.Bounded.')
  sizes = {'layers': layers, 'tokens': tokens, 'window': window, 'beta': beta}
  for name, size in sizes.items():
    if not is_whole(size, 1):
      raise ValueError(f'pyramid {name}={size!r} must be at least 1.')
  low = kind.budget / beta
  high = 2 * kind.budget - low
  if high >= tokens - window:
    high = tokens - window
    low = 2 * kind.budget - high
  budgets = [kind.budget] * layers
  if tokens >= high >= low >= window:
    step = (high - low) / (layers - 1) if layers > 1 else 0.0
    budgets = [round(high - index * step) for index in range(layers)]
  elif not uniform_if_small:
    raise ValueError(
      f'A pyramid of budget={kind.budget} would have {low:g} to {high:g} '
      f'tokens a layer, and must stay between window={window} and '
      f'tokens={tokens}. Give a larger budget, a smaller window or beta, or '
      'uniform_if_small=True.'
    )
  return [dataclasses.replace(kind, budget=budget) for budget in budgets]
