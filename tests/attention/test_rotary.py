"""Rotations as complex products; scalings by the published formulas."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kvjax.attention.rotary import (
  Dynamic,
  Linear,
  Llama3,
  LongRope,
  Rotary,
  Yarn,
  rotary_table,
  rotate,
  yarn_magnitude,
)

WIDTH, BASE, TOKENS = 10, 500.0, 7
AT = jnp.asarray([[0, 1, 5, 17, 100, 999, 4000]], jnp.int32)
DIVISORS = (1.0, 1.5, 2.0, 3.0, 7.0)
LONGER = (2.0, 3.0, 5.0, 11.0, 13.0)


def plain(i):
  """Returns the angle a position of pair i: `base ** (-2 i / width)`."""
  return BASE ** (-2 * i / WIDTH)


def llama3(i, high=4.0):
  """Llama 3.1's three cases, by wavelength."""
  factor, low, original = 8.0, 1.0, 200
  wavelength = 2 * math.pi / plain(i)
  if wavelength < original / high:
    return plain(i)
  if wavelength > original / low:
    return plain(i) / factor
  smooth = (original / wavelength - low) / (high - low)
  return (1 - smooth) * plain(i) / factor + smooth * plain(i)


def yarn(i, truncate=True):
  """YaRN's NTK by parts: pairs that turn often are kept, slow ones divided."""
  factor, original, fast, slow = 4.0, 256, 8.0, 1.0

  def pair(turns):
    return (
      WIDTH * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(BASE))
    )

  low, high = pair(fast), pair(slow)
  if truncate:
    low, high = math.floor(low), math.ceil(high)
  low, high = max(low, 0), min(high, WIDTH - 1)
  share = min(max((i - low) / (high - low), 0), 1)
  return plain(i) / factor * share + plain(i) * (1 - share)


def dynamic(i, length):
  """The base grows with the length beyond the original one."""
  length = max(length, 64)
  grown = 2.0 * length / 64 - (2.0 - 1)
  return (BASE * grown ** (WIDTH / (WIDTH - 2))) ** (-2 * i / WIDTH)


YARN = Yarn(4.0, 256, beta_fast=8.0, beta_slow=1.0)
LONG = LongRope(DIVISORS, LONGER, original=64, magnitude=1.2)
TEMPERATURE = 0.1 * math.log(4.0) + 1
SCALINGS = {
  'none': (None, 50, plain, 1.0),
  'linear': (Linear(4.0), 50, lambda i: plain(i) / 4, 1.0),
  'dynamic_short': (Dynamic(2.0, 64), 50, lambda i: dynamic(i, 50), 1.0),
  'dynamic_long': (Dynamic(2.0, 64), 150, lambda i: dynamic(i, 150), 1.0),
  'llama3': (Llama3(8.0, 1.0, 4.0, 200), 50, llama3, 1.0),
  'llama3_step': (
    Llama3(8.0, 1.0, 1.0, 200),
    50,
    lambda i: llama3(i, high=1.0),
    1.0,
  ),
  'yarn': (YARN, 50, yarn, TEMPERATURE),
  'yarn_exact': (
    dataclasses.replace(YARN, truncate=False, magnitude=0.7),
    50,
    lambda i: yarn(i, False),
    0.7,
  ),
  'longrope_short': (LONG, 64, lambda i: plain(i) / DIVISORS[i], 1.2),
  'longrope_long': (LONG, 65, lambda i: plain(i) / LONGER[i], 1.2),
}


@pytest.mark.parametrize(
  ('scaling', 'length', 'angle', 'factor'), SCALINGS.values(), ids=SCALINGS
)
def test_table(scaling, length, angle, factor, maybe_jit):
  rotary = Rotary(WIDTH, BASE, scaling=scaling)
  near = AT[:, :5]
  cos, sin = maybe_jit(lambda p: rotary_table(rotary, p, length))(near)
  turns = np.asarray(near)[0, :, None] * [angle(i) for i in range(WIDTH // 2)]
  np.testing.assert_allclose(cos[0], factor * np.cos(turns), atol=3e-5)
  np.testing.assert_allclose(sin[0], factor * np.sin(turns), atol=3e-5)
  frequencies, _ = rotary.frequencies(length)
  want = [angle(i) for i in range(WIDTH // 2)]
  np.testing.assert_allclose(frequencies, want, rtol=1e-6)
  longer, _ = rotary.frequencies(1000)
  moved = not np.allclose(frequencies, longer, rtol=1e-4)
  assert rotary.depends_on_length == (moved or 'long' in str(scaling))


@pytest.mark.parametrize('interleaved', [True, False])
def test_rotation_is_a_complex_product(interleaved, maybe_jit):
  x = jax.random.normal(jax.random.key(0), (1, 3, 2, TOKENS, WIDTH + 3))
  table = rotary_table(Rotary(WIDTH, BASE), AT, 0)
  run = maybe_jit(lambda x, t: rotate(x, t, interleaved))
  got = np.asarray(run(x, table))
  y = np.asarray(x, np.float64)
  half = WIDTH // 2
  pick = (
    (np.arange(0, WIDTH, 2), np.arange(1, WIDTH, 2))
    if interleaved
    else (np.arange(half), np.arange(half, WIDTH))
  )
  turns = np.asarray(AT)[0, :, None] * [plain(i) for i in range(half)]
  turned = (y[..., pick[0]] + 1j * y[..., pick[1]]) * np.exp(1j * turns)
  np.testing.assert_allclose(got[..., pick[0]], turned.real, atol=2e-3)
  np.testing.assert_allclose(got[..., pick[1]], turned.imag, atol=2e-3)
  near = [..., slice(0, 4), slice(None)]
  np.testing.assert_allclose(
    got[tuple(near)][..., pick[0]], turned.real[tuple(near)], atol=1e-5
  )
  np.testing.assert_array_equal(got[..., WIDTH:], np.asarray(x)[..., WIDTH:])


def test_golden():
  """One pair, position 1, base any: (1, 0) turns to (cos 1, sin 1)."""
  one = jnp.asarray([[1]], jnp.int32)
  table = rotary_table(Rotary(2, 7.0), one, 0)
  got = rotate(jnp.asarray([[[[1.0, 0.0]]]]), table, False)
  np.testing.assert_allclose(got[0, 0, 0], [0.5403023, 0.8414710], rtol=1e-6)


@pytest.mark.parametrize('query', [0, 3, 8, 30])
def test_renumbered_sinks_identity(query):
  """Rotations compose: sink keys need no unrotated copy (1e-6).

  In a cache of s sinks and a window of w the query at p stands at
  min(p, s + w - 1): products with sinks at their own positions, and of the
  query at p with recent keys at theirs, are those inside the cache.
  """
  sinks, window = 2, 5
  rotary = Rotary(WIDTH, BASE, scaling=Llama3(8.0, 1.0, 4.0, 200))
  q, k = jax.random.normal(jax.random.key(1), (2, 1, 1, 1, WIDTH))

  def turn(x, position):
    at = jnp.asarray([[position]], jnp.int32)
    return np.asarray(rotate(x, rotary_table(rotary, at, 0), False)).ravel()

  inside = min(query, sinks + window - 1)
  for key in range(query + 1):
    if key >= sinks and query - key >= window:
      continue
    place = key if key < sinks else inside - (query - key)
    want = turn(q, inside) @ turn(k, place)
    query_position = inside if key < sinks else query
    np.testing.assert_allclose(
      turn(q, query_position) @ turn(k, key), want, atol=1e-5
    )


def test_magnitude():
  assert yarn_magnitude(0.5) == 1.0
  assert yarn_magnitude(40.0, 0.707) == pytest.approx(1.2608, abs=5e-5)


@pytest.mark.parametrize(
  ('make', 'message'),
  [
    pytest.param(lambda: Rotary(7), 'width=7 .* even', id='odd'),
    pytest.param(lambda: Rotary(0), 'width=0 .* even', id='none'),
    pytest.param(
      lambda: Rotary(4, base=1.0), 'base=1.0 must exceed 1', id='base'
    ),
    pytest.param(
      lambda: Rotary(6, scaling=LONG).frequencies(50),
      '5 divisors for rotary width=6.*: 3',
      id='divisors',
    ),
  ],
)
def test_refusals(make, message):
  with pytest.raises(ValueError, match=message):
    make()


NAN, INF = math.nan, math.inf
# Class, arguments, message.
RECORDS = {
  'width_text': (Rotary, ('8',), "width='8' must be a whole number"),
  'width_float': (Rotary, (8.0,), 'width=8.0 must be a whole number'),
  'width_of_2_31': (
    Rotary,
    (2**31,),
    'width=2147483648 must be a whole number',
  ),
  'base_nan': (Rotary, (8, NAN), 'Rotary base=nan must be a finite'),
  'base_text': (Rotary, (8, '9'), "Rotary base='9' must be a finite"),
  'linear': (Linear, (NAN,), 'Linear factor=nan must be a finite'),
  'linear_switch': (Linear, (True,), 'Linear factor=True must be'),
  'dynamic': (Dynamic, (INF, 8), 'Dynamic factor=inf must be'),
  'dynamic_original': (Dynamic, (2.0, 0), 'original=0 must exceed 0'),
  'dynamic_fraction': (Dynamic, (2.0, 8.5), 'original=8.5.* whole number'),
  'dynamic_width': (
    Rotary,
    (2, 1e4, False, Dynamic(2.0, 8)),
    'Dynamic scaling needs a rotary width of 4',
  ),
  'llama3': (Llama3, (8.0, 1.0, INF, 8), 'Llama3 high=inf must be'),
  'llama3_order': (Llama3, (8.0, 4.5, 4.0, 8), 'low=4.5 .*must not exceed'),
  'yarn': (Yarn, (4.0, -5), 'Yarn original=-5 must exceed 0'),
  'yarn_beta': (Yarn, (4.0, 8, 0.0), 'beta_fast=0.0 must exceed 0'),
  'yarn_magnitude': (Yarn, (4.0, 8, 32.0, 1.0, NAN), 'magnitude=nan must be'),
  'longrope': (
    LongRope,
    ((1.0, 0.0), (1.0, 2.0), 8, 1.0),
    r'LongRope short=\(1.0, 0.0\) must exceed 0',
  ),
  'longrope_divisors': (
    Rotary,
    (4, 1e4, False, LongRope((1.0, 1.0), (1.0,), 8, 1.0)),
    'longrope has 1 divisors for rotary width=4',
  ),
}


@pytest.mark.parametrize('name', RECORDS)
def test_rotary_record(name):
  record, arguments, message = RECORDS[name]
  with pytest.raises(ValueError, match=message):
    record(*arguments)
