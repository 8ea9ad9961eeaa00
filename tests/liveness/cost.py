"""Seconds that an analysis takes, by the layers of a stack.

  python -m tests.liveness.cost 1 2 4 8 16

A row a stack: its equations, seconds for live ranges and the cut, for the
frontier as well, and the points of that. Least of two runs.
"""

import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.extend import core

import kvjax
from kvjax.liveness import analysis, describe
from tests.liveness import zoo, zoo_variants

Case = tuple[Callable[[Any], Any], Any, int]


def grouped(layers: int) -> Case:
  """Rotary GQA and an MLP a layer, with names."""
  x = zoo.weight(8, zoo.D) * 3
  return zoo_variants.stack(zoo.grouped(zoo.K), layers), x, 0


def forward(layers: int) -> Case:
  """kvjax's own forward of the same kind, tokens to logits."""
  attention = kvjax.Grouped(4, 2, 6, rotary=kvjax.Rotary(4))
  layer = kvjax.Layer(attention, kvjax.MLP(11))
  config = kvjax.ModelConfig(vocab_size=17, width=14, layers=(layer,) * layers)
  params = kvjax.init_params(config, jax.random.key(0))
  tokens = np.arange(8, dtype=np.int32)[None] * 5 % 17
  return lambda t: kvjax.forward(config, params, t), tokens, 1


def equations(jaxpr: Any) -> int:
  inner = core.jaxprs_in_params
  return sum(1 + sum(map(equations, inner(eqn.params))) for eqn in jaxpr.eqns)


def seconds(program: Any, x: Any, axis: int) -> tuple[float, float, int]:
  start = time.perf_counter()
  result, stable = analysis.settle(program, x, axis)
  settled = time.perf_counter() - start
  report = describe.write_report(result, stable)
  return settled, time.perf_counter() - start, len(report.frontier)


def main(layers: list[int]) -> None:
  print('stack    layers  equations  live ranges s  all s  points')
  for make in (grouped, forward):
    seconds(*make(1))  # What JAX compiles once.
    for count in layers:
      program, x, axis = make(count)
      size = equations(jax.make_jaxpr(program)(x).jaxpr)
      settled, whole, points = min(seconds(program, x, axis) for _ in range(2))
      print(
        f'{make.__name__:8} {count:6} {size:10} {settled:14.2f} '
        f'{whole:6.2f} {points:7}'
      )


if __name__ == '__main__':
  main([int(n) for n in sys.argv[1:]] or [1, 2, 4, 8])
