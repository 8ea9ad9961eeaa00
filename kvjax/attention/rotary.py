"""Rotary position embeddings (Su et al. 2021, arXiv 2104.09864, eq. 34).

A rotary spec is a choice (frozen, hashable); its frequencies are NumPy
constants. Scalings whose table depends on the length of the sequence
(dynamic NTK, longrope) take that length as an argument, once, from the
cache: a table that changes while tokens are cached would not be causal.
"""

import dataclasses
import math
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np

from kvjax.arguments import check_fields

MAX_WIDTH = 1 << 14  # of the rotated features of a head; published: at most 256
LONG = 1 << 30  # tokens, more than any text


class Scaling(Protocol):
  """How the frequencies of a rotary table are stretched."""

  @property
  def depends_on_length(self) -> bool: ...

  def stretch(
    self, base: float, width: int, length: int
  ) -> tuple[np.ndarray, float]:
    """Returns frequencies `[width / 2]` and the factor on cos and sin."""
    ...


@dataclasses.dataclass(frozen=True)
class Rotary:
  """Rotates the first `width` of a head's features by the position.

  Attributes:
    width: rotated features (even); the rest of the head passes unrotated.
    base: wavelength base, `theta` in the paper.
    interleaved: pairs are (2i, 2i + 1), as in the paper; otherwise
      (i, i + width / 2), as most published checkpoints store them.
    scaling: how the frequencies are stretched; None for the paper's.
  """

  width: int
  base: float = 10000.0
  interleaved: bool = False
  scaling: Scaling | None = None

  def __post_init__(self):
    check_fields(self, above={'base': 1})
    if not 2 <= self.width <= MAX_WIDTH or self.width % 2:
      raise ValueError(
        f'Rotary width={self.width!r} is not a positive even number, at most '
        f'{MAX_WIDTH}: features are rotated in pairs. Use an even width.'
      )
    # What does not fit together is refused here, for short and long texts, and
    # not in the first call.
    for length in (1, LONG) if self.depends_on_length else (1,):
      with np.errstate(all='ignore'):
        frequencies = self.frequencies(length)[0]
      if not (np.isfinite(frequencies) & (frequencies > 0)).all():
        raise ValueError(
          f'{self} has frequencies that float32 cannot hold, at length '
          f'{length}. Change base or scaling.'
        )

  @property
  def depends_on_length(self) -> bool:
    return self.scaling is not None and self.scaling.depends_on_length

  def frequencies(self, length: int) -> tuple[np.ndarray, float]:
    """Returns float32 frequencies `[width / 2]` and the factor on cos, sin."""
    if self.scaling is None:
      return plain_frequencies(self.base, self.width), 1.0
    return self.scaling.stretch(self.base, self.width, length)


def plain_frequencies(base: float, width: int) -> np.ndarray:
  """Returns `base ** (-2i / width)` in float32, as checkpoints compute it."""
  exponents = np.arange(0, width, 2, dtype=np.float32) / np.float32(width)
  return (1.0 / np.float32(base) ** exponents).astype(np.float32)


def rotary_table(
  rotary: Rotary, positions: jax.Array, length: int
) -> tuple[jax.Array, jax.Array]:
  """Returns cos and sin `[B, T, width / 2]` at integer positions `[B, T]`."""
  frequencies, factor = rotary.frequencies(length)
  angles = jnp.maximum(positions, 0).astype(jnp.float32)[..., None]
  angles = angles * jnp.asarray(frequencies)[None, None, :]
  return jnp.cos(angles) * factor, jnp.sin(angles) * factor


def rotate(
  x: jax.Array, table: tuple[jax.Array, jax.Array], interleaved: bool
) -> jax.Array:
  """Rotates the leading features of `x`.

  Args:
    x: `[B, K, G, T, H]` or `[B, K, T, H]`.
    table: cos and sin `[B, T, width / 2]` with `width <= H`.
    interleaved: whether pairs are neighbours.

  Returns:
    Array like `x`: for each pair, `(a cos - b sin, a sin + b cos)`.
  """
  middle = tuple(range(1, x.ndim - 2))
  cos, sin = (jnp.expand_dims(t, middle) for t in table)
  half = cos.shape[-1]
  turned, rest = jnp.split(x.astype(jnp.float32), [2 * half], axis=-1)
  if interleaved:
    pairs = turned.reshape(turned.shape[:-1] + (half, 2))
    a, b = pairs[..., 0], pairs[..., 1]
  else:
    a, b = turned[..., :half], turned[..., half:]
  parts = (a * cos - b * sin, a * sin + b * cos)
  if interleaved:
    turned = jnp.stack(parts, axis=-1).reshape(turned.shape)
  else:
    turned = jnp.concatenate(parts, axis=-1)
  if rest.shape[-1]:
    turned = jnp.concatenate([turned, rest], axis=-1)
  return turned.astype(x.dtype)


@dataclasses.dataclass(frozen=True)
class Linear:
  """Positions divided by `factor` (Chen et al. 2023, arXiv 2306.15595)."""

  factor: float
  depends_on_length: bool = dataclasses.field(default=False, init=False)

  def __post_init__(self):
    check_fields(self, above={'factor': 0})

  def stretch(self, base, width, length):
    return plain_frequencies(base, width) / np.float32(self.factor), 1.0


@dataclasses.dataclass(frozen=True)
class Dynamic:
  """NTK-aware base, grown with the length beyond `original`."""

  factor: float
  original: int
  depends_on_length: bool = dataclasses.field(default=True, init=False)

  def __post_init__(self):
    check_fields(self, above={'factor': 0, 'original': 0})

  def stretch(self, base, width, length):
    if width == 2:
      raise ValueError('Dynamic scaling needs a rotary width of 4 or more.')
    grown = self.factor * max(length, self.original) / self.original
    base = base * (grown - (self.factor - 1)) ** (width / (width - 2))
    return plain_frequencies(base, width), 1.0


@dataclasses.dataclass(frozen=True)
class Llama3:
  """Long wavelengths divided, short ones kept, a ramp between (Llama 3.1).

  With `low == high` there is no ramp (Llama 4 Scout).
  """

  factor: float
  low: float
  high: float
  original: int
  depends_on_length: bool = dataclasses.field(default=False, init=False)

  def __post_init__(self):
    fields = 'factor', 'low', 'high', 'original'
    check_fields(self, above=dict.fromkeys(fields, 0))
    if self.low > self.high:
      raise ValueError(
        f'Llama3 low={self.low} (low_freq_factor of config.json) must not '
        f'exceed high={self.high} (high_freq_factor).'
      )

  def stretch(self, base, width, length):
    plain = plain_frequencies(base, width)
    wavelength = 2 * math.pi / plain
    turns = self.original / wavelength
    if self.low == self.high:
      ramp = (turns >= self.low).astype(np.float32)
    else:
      ramp = np.clip((turns - self.low) / (self.high - self.low), 0, 1)
    return ((1 - ramp) * plain / self.factor + ramp * plain).astype(
      np.float32
    ), 1.0


@dataclasses.dataclass(frozen=True)
class Yarn:
  """YaRN (Peng et al. 2023, arXiv 2309.00071, section 3.2).

  `magnitude` is the factor on cos and sin; None means the paper's
  `0.1 ln(factor) + 1`.
  """

  factor: float
  original: int
  beta_fast: float = 32.0
  beta_slow: float = 1.0
  magnitude: float | None = None
  truncate: bool = True
  depends_on_length: bool = dataclasses.field(default=False, init=False)

  def __post_init__(self):
    fields = 'factor', 'original', 'beta_fast', 'beta_slow', 'magnitude'
    check_fields(self, above=dict.fromkeys(fields, 0))

  def stretch(self, base, width, length):
    plain = plain_frequencies(base, width)
    low = self._feature(self.beta_fast, base, width)
    high = self._feature(self.beta_slow, base, width)
    if self.truncate:
      low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, width - 1)
    high += 0.001 if low == high else 0.0
    ramp = np.clip((np.arange(width // 2) - low) / (high - low), 0, 1)
    mixed = plain / self.factor * ramp + plain * (1 - ramp)
    magnitude = self.magnitude
    if magnitude is None:
      magnitude = yarn_magnitude(self.factor)
    return mixed.astype(np.float32), magnitude

  def _feature(self, turns: float, base: float, width: int) -> float:
    span = math.log(self.original / (turns * 2 * math.pi))
    return width * span / (2 * math.log(base))


def yarn_magnitude(factor: float, weight: float = 1.0) -> float:
  """Returns YaRN's attention temperature `0.1 weight ln(factor) + 1`."""
  return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0


@dataclasses.dataclass(frozen=True)
class LongRope:
  """One divisor a frequency, by length (Ding et al. 2024, 2402.13753)."""

  short: tuple[float, ...]
  long: tuple[float, ...]
  original: int
  magnitude: float
  depends_on_length: bool = dataclasses.field(default=True, init=False)

  def __post_init__(self):
    fields = 'short', 'long', 'original', 'magnitude'
    check_fields(self, above=dict.fromkeys(fields, 0))

  def stretch(self, base, width, length):
    divisors = self.long if length > self.original else self.short
    divisors = np.asarray(divisors, np.float32)
    if divisors.shape != (width // 2,):
      raise ValueError(
        f'longrope has {divisors.size} divisors for rotary width={width}; '
        f'it needs one a frequency: {width // 2}.'
      )
    return plain_frequencies(base, width) / divisors, self.magnitude
