"""Question: where int8 pages differ from the uncached form, is a tie the cause?

    python -m tests.checkpoints.ties folder [folder ...]

Both forms round keys and values to codes, with a scale for each token and head,
and what they round differs by float32 noise. A code differs only where the
noise crosses a half. This prints how far the logits differ, and every code that
differs, with both values before rounding. A difference over 1e-5 without such a
code, or with a code whose values differ by more than 1e-4 of themselves,
refutes it.
"""

import dataclasses
import functools
import pathlib
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import kvjax
from tests.checkpoints import compare

_seen: list[np.ndarray] = []


@dataclasses.dataclass(frozen=True)
class Watched(kvjax.Int8):
  """Int8 that reports its input, layer by layer."""

  program: str = ''

  def encode(self, x, dtype):
    report = lambda x: _seen.append(np.array(x))
    jax.debug.callback(report, x, ordered=True)
    return super().encode(x, dtype)


def streams(call: Any, count: int) -> tuple[np.ndarray, list[np.ndarray]]:
  """Returns logits of a call, and each of `count` streams before rounding."""
  _seen.clear()
  logits = np.asarray(call())
  jax.effects_barrier()
  # A call reports the streams of all layers in order.
  parts = [_seen[number::count] for number in range(count)]
  return logits, [np.concatenate(part, axis=2) for part in parts]


def whole(config, params, tokens, encoded) -> Any:
  """Returns logits uncached, through the codec."""
  ids = jnp.asarray(tokens)
  return kvjax.forward(config, params, ids, encoded=encoded, codec=Watched())


def steps(config, params, tokens, encoded, chunk: int) -> np.ndarray:
  """Returns logits through pages, `chunk` tokens a call."""
  cache = compare.empty(
    config, tokens, kinds=kvjax.Paged(page=8), codec=Watched(program='pages')
  )
  found = []
  for start in range(0, tokens.shape[1], chunk):
    part = jnp.asarray(tokens[:, start : start + chunk])
    logits, cache = kvjax.extend(config, params, cache, part, encoded=encoded)
    found.append(np.asarray(logits))
    jax.effects_barrier()
    encoded = None if cache.cross is not None else encoded
  return np.concatenate(found, axis=1)


def codes(x: np.ndarray) -> np.ndarray:
  """Returns what is rounded: float32 multiples of the scale."""
  scale = np.abs(x).max(-1, keepdims=True) / np.float32(127)
  return x / np.where(scale == 0, np.float32(1), scale)


def main(folders: list[str]) -> None:
  jax.config.update('jax_platforms', 'cpu')
  for path in map(pathlib.Path, folders):
    config, params = kvjax.load_checkpoint(path)
    data = dict(np.load(path / 'reference.npz'))
    encoded = compare.source(config, params, data)
    model = config, params, data['tokens'], encoded
    layers = [layer.attention.streams() for layer in config.layers]
    count = sum(s.quantize for kept in layers for s in kept.values())
    want, plain = streams(functools.partial(whole, *model), count)
    plain = list(map(codes, plain))
    for chunk in (1, data['tokens'].shape[1]):
      found, cached = streams(functools.partial(steps, *model, chunk), count)
      parted = np.abs(found - want).max() / np.abs(want).max()
      total = sum(x.size for x in plain)
      print(f'{path.name} {chunk} a call: {parted:.1e}, {total} codes', end='')
      for a, b in zip(plain, map(codes, cached), strict=True):
        for place in np.argwhere(np.round(a) != np.round(b)):
          print(f', {a[tuple(place)]:.9g} and {b[tuple(place)]:.9g}', end='')
      print(flush=True)


if __name__ == '__main__':
  main(sys.argv[1:])
