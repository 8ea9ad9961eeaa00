"""Decoding with the derived cache equals the uncached program."""

import jax
import numpy as np
from absl.testing import absltest, parameterized

from kvjax.liveness.derive import derive
from tests.liveness import zoo, zoo_mixers, zoo_variants

ENTRIES = zoo.ENTRIES | zoo_variants.ENTRIES | zoo_mixers.ENTRIES
LENGTHS = (7, 21, 26)  # Never traced by the analysis.
# No exact cache; two outputs; a loop over positions in Python.
WITHOUT = frozenset(
  """bidirectional one_mask_missing training length_dependent
  heavy_hitters""".split()
)


def cases() -> list[tuple[str, zoo.Entry, str]]:
  return [
    (f'{program}_{spelling}', entry, spelling)
    for program, entry in ENTRIES.items()
    if program not in WITHOUT
    for spelling in entry.spellings
    if spelling != 'loop'
  ]


class DeriveTest(parameterized.TestCase):
  @parameterized.named_parameters(*cases())
  def test_equals_the_uncached_program(
    self, entry: zoo.Entry, spelling: str
  ) -> None:
    program = entry.spellings[spelling]
    draw = np.random.default_rng(3)
    x = draw.normal(size=(max(LENGTHS), zoo.D)).astype(np.float32)
    if entry.tokens:
      x = draw.integers(0, 11, max(LENGTHS)).astype(np.int32)
    init, extend = derive(program, x[:8])
    y, _ = jax.jit(extend)(init(max(LENGTHS)), x)
    delay = 2 if 'look_ahead' in self.id() else 0
    start = 5 if '_prefix_' in self.id() else 0
    for length in LENGTHS if spelling == 'named' else LENGTHS[-1:]:
      want = jax.jit(program)(x[:length])[start : length - delay]
      got = y[delay:length][start:]
      np.testing.assert_allclose(got, want, rtol=2e-4, atol=2e-5)


if __name__ == '__main__':
  absltest.main()
