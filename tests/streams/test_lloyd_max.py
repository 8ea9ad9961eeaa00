"""Levels of least error for normal numbers."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import kvjax
from tests.streams import numpy_codecs

# Squared error of N(0, 1) by bits: Max (1960), table I.
DISTORTION = {1: 0.3634, 2: 0.1175, 3: 0.03454, 4: 0.009497}


def density(x):
  return math.exp(-x * x / 2) / math.sqrt(2 * math.pi)


def share(x):
  return (1 + math.erf(x / math.sqrt(2))) / 2


@pytest.mark.parametrize('bits', DISTORTION)
def test_a_level_is_the_mean_of_what_is_nearest_to_it(bits):
  levels = kvjax.LloydMax(bits).levels
  assert len(levels) == 2**bits
  middles = [(a + b) / 2 for a, b in itertools.pairwise(levels)]
  edges = itertools.pairwise([-40.0, *middles, 40.0])
  for level, (low, high) in zip(levels, edges, strict=True):
    mean = (density(low) - density(high)) / (share(high) - share(low))
    assert level == pytest.approx(mean, abs=1e-7)


@pytest.mark.parametrize('bits', DISTORTION)
@pytest.mark.parametrize('turns', [False, True])
def test_distortion_of_normal_numbers(bits, turns):
  """A6: within two percent of the figures of the literature."""
  codec = kvjax.LloydMax(bits)
  x = np.random.default_rng(0).standard_normal((1000, 512)).astype(np.float32)
  read = lambda x: codec.decode(codec.encode(x, None))
  if turns:
    turned = kvjax.Hadamard(codec)
    read = lambda x: turned.turn_back(turned.decode(turned.encode(x, None)))
  off = np.asarray(jax.jit(read)(jnp.asarray(x))) - x
  assert (off**2).mean() / (x**2).mean() == pytest.approx(
    DISTORTION[bits], rel=0.02
  )


@pytest.mark.parametrize('bits', DISTORTION)
def test_golden(bits):
  x = np.random.default_rng(1).standard_normal((20, 64)).astype(np.float32)
  x[3], x[4] = 0, x[4] * 1e-3
  codec = kvjax.LloydMax(bits)
  want = numpy_codecs.lloyd_max(x[4:], np.float32(codec.levels))
  found = codec.decode(codec.encode(jnp.asarray(x), None))
  np.testing.assert_allclose(found[4:], want, rtol=1e-5, atol=1e-6)
  assert not np.any(found[3])


def test_refusals():
  with pytest.raises(ValueError, match='bits=5 must be 1, 2, 3 or 4'):
    kvjax.LloydMax(5)
  with pytest.raises(ValueError, match='a byte has 8 codes'):
    kvjax.LloydMax(3).leaves(12, jnp.float32)
