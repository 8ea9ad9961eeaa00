"""Frontier, poison, lengths and refusals."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from kvjax import liveness
from kvjax.liveness import analysis
from kvjax.liveness.cut import maxflow
from kvjax.liveness.evidence import lengths, perturb
from kvjax.liveness.program import record
from tests.liveness import zoo, zoo_mixers, zoo_variants
from tests.liveness.zoo import D, H, K, N, P, R

X = zoo.weight(8, D) * 3


def verdict(program: zoo.Program, length: int = 14) -> analysis.Verdict:
  x = lengths.resized(X, length, 0)
  return analysis.judge(record.trace(program, x))


class FrontierTest(parameterized.TestCase):
  def test_input_is_half_of_keys_and_values_only_for_all_heads(self) -> None:
    for kv, small in ((N, True), (1, False)):
      report = liveness.analyze(zoo.grouped(kv), X)
      names = [p.names for p in report.frontier]
      self.assertEqual(names[-1], ('k', 'v'))
      self.assertEqual(('x',) in names, small or 2 * kv * H > D, report)

  def test_points_trade_bytes_for_flops(self) -> None:
    for program in (
      zoo_variants.mla_expanded,
      zoo_variants.stack(zoo.grouped(K)),
      zoo_mixers.short_conv(zoo_mixers.conv_padded),
    ):
      points = liveness.analyze(program, X).frontier
      sizes = [p.bytes_per_token for p in points]
      flops = [p.flops_per_token for p in points]
      self.assertEqual(sizes, sorted(sizes))
      self.assertEqual(flops, sorted(flops, reverse=True))
      self.assertLen(set(sizes), len(sizes))

  def test_absorption_finds_the_latent_and_names_itself(self) -> None:
    report = liveness.analyze(zoo_variants.mla_expanded, X)
    point = next(p for p in report.frontier if p.names == ('c', 'k_rope'))
    self.assertEqual(point.bytes_per_token, 4 * (R + P))
    self.assertEqual(
      point.rewrites, ('absorption of k_nope', 'absorption of v')
    )

  def test_a_rotation_stands_in_the_way_of_absorption(self) -> None:
    report = liveness.analyze(zoo.grouped(N), X)
    point = next(p for p in report.frontier if p.names == ('x',))
    self.assertNotIn('absorption of k', point.rewrites)
    self.assertContainsSubsequence(report.notes[0], 'a table by position')
    free = liveness.analyze(zoo.grouped(N, rope=False), X)
    point = next(p for p in free.frontier if p.names == ('x',))
    self.assertEqual(point.rewrites, ('absorption of k', 'absorption of v'))
    # Scores read D for H, mixtures mix D for H, in every head.
    self.assertEqual(point.flops_per_token, 2 * 2 * N * (D - H))

  def test_fastest_is_the_cheapest_at_the_rates_of_a_device(self) -> None:
    report = liveness.analyze(zoo.grouped(N, rope=False), X)
    slow = report.fastest(bandwidth=1.0, flop_rate=1e9)
    fast = report.fastest(bandwidth=1e9, flop_rate=1.0)
    self.assertEqual(slow.names, ('x',))
    self.assertEqual(fast.names, ('k', 'v'))


class ReachTest(absltest.TestCase):
  def test_a_query_is_read_by_its_own_row_with_a_mask_or_without(self) -> None:
    own, all_of = np.eye(8, dtype=bool), np.ones((8, 8), bool)
    decoder = liveness.reach(zoo.grouped(K), X)
    np.testing.assert_array_equal(decoder['q'], own)
    np.testing.assert_array_equal(decoder['k'], np.tril(all_of))
    np.testing.assert_array_equal(decoder['v'], np.tril(all_of))
    encoder = liveness.reach(zoo_mixers.masked(zoo_mixers.everyone), X)
    np.testing.assert_array_equal(encoder['q'], own)
    np.testing.assert_array_equal(encoder['k'], all_of)
    np.testing.assert_array_equal(encoder['v'], all_of)

  def test_in_a_stack_a_query_reaches_later_rows_yet_is_not_kept(self) -> None:
    program = zoo_variants.stack(zoo.grouped(K), layers=2)
    self.assertTrue(liveness.reach(program, X)['q'][7, 0])
    self.assertEqual(liveness.analyze(program, X).live_for['q'], 0)


class PoisonTest(parameterized.TestCase):
  @parameterized.named_parameters(
    ('gqa', zoo.grouped(K)),
    ('mla', zoo_variants.mla_expanded),
    ('mta', zoo_mixers.mta),
    ('short_conv', zoo_mixers.short_conv(zoo_mixers.conv_joined)),
    ('linear', zoo_mixers.linear_scan),
    ('stack', zoo_variants.stack(zoo.grouped(K))),
  )
  def test_the_cut_separates_and_every_part_of_it_is_needed(
    self, program: zoo.Program
  ) -> None:
    v = verdict(program)
    x = lengths.resized(X, v.trace.length, 0)
    moved = lambda lost: perturb.poisoned(
      v.trace, x, analysis.fullest(v.trace).position, v.graph, v.cut, lost
    )
    self.assertEqual(moved(()), 0.0)
    for i in v.cut.kept:
      self.assertNotEqual(moved((i,)), 0.0, v.names[i])


class LengthTest(parameterized.TestCase):
  @parameterized.named_parameters(
    ('window', zoo.grouped(K, window=4)),
    ('mla', zoo_variants.mla_absorbed),
    ('mta', zoo_mixers.mta),
    ('linear', zoo_mixers.linear_cumsum),
  )
  def test_short_and_long_inputs_agree(self, program: zoo.Program) -> None:
    short = liveness.analyze(program, X)
    long = liveness.analyze(program, zoo.weight(32, D) * 3)
    self.assertEqual(short.live_for, long.live_for)
    self.assertEqual(short.keep, long.keep)
    self.assertEqual(short.bytes_per_token, long.bytes_per_token)

  def test_a_program_of_one_length_is_analysed_at_it(self) -> None:
    mask = np.tril(np.ones((9, 9), bool))
    program = lambda x: zoo_mixers.attend(*zoo_mixers.project(x), mask)
    report = liveness.analyze(program, zoo.weight(9, D))
    self.assertEqual(report.keep, ('k', 'v'))
    self.assertEqual(report.live_for['q'], 0)
    self.assertEqual(report.live_for['k'], math.inf)

  def test_a_window_wider_than_the_input_is_found(self) -> None:
    report = liveness.analyze(zoo.grouped(K, window=20), X)
    self.assertEqual(report.live_for['k'], 19)

  def test_a_window_that_no_comparison_states_is_found(self) -> None:
    def mask(T: int) -> np.ndarray:
      past = np.tril(np.ones((T, T), bool))
      return past & ~np.tril(past, -20)

    report = liveness.analyze(zoo_mixers.masked(mask), X)
    self.assertEqual(report.live_for['k'], 19)

  def test_a_program_of_whole_blocks_is_analysed_at_their_multiples(
    self,
  ) -> None:
    def program(x: jax.Array) -> jax.Array:
      rows = x.reshape(-1, 4, D)
      total = jnp.cumsum(rows.mean(1), 0)
      before = jnp.concatenate([jnp.zeros((1, D)), total[:-1]])
      return (rows + before[:, None]).cumsum(1).reshape(x.shape)

    report = liveness.analyze(program, X)
    kept = sorted((r.shape, r.live_for) for r in report.tensors if r.kept)
    self.assertEqual(kept, [((D,), 3), ((D,), 4)], report)


class RefusalTest(parameterized.TestCase):
  @parameterized.named_parameters(
    (
      'loop_by_data',
      lambda x: jax.lax.while_loop(lambda c: c.sum() > 0, lambda c: c - 1, x),
      'depends on data',
    ),
    (
      'callback',
      lambda x: jax.pure_callback(
        lambda a: a, jax.ShapeDtypeStruct(x.shape, x.dtype), x
      ),
      'pure_callback',
    ),
    ('window', zoo.grouped(K, window=4096), '4096'),
    (
      'shape_by_data',
      lambda x: x[x[:, 0] > 0],
      r'depends on data at .*test_analysis.py:\d+: .*boolean',
    ),
    (
      'branch_by_data',
      lambda x: x if x[0, 0] > 0 else -x,
      r'depends on data at .*test_analysis.py:\d+: ',
    ),
    (
      'side_effect',
      lambda x: jax.jit(lambda a: (jax.debug.print('{}', a), a)[1])(x),
      r'side effects: debug_\w+ at .*test_analysis.py:\d+',
    ),
    (
      'index_by_data',
      lambda x: x[jnp.argmax(jnp.where(zoo.causal(len(x)), x @ x.T, -9), -1)],
      'argmax',
    ),
  )
  def test_names_the_equation(self, program: zoo.Program, what: str) -> None:
    with self.assertRaisesRegex(liveness.AnalysisError, what):
      liveness.analyze(program, X)

  def test_axis(self) -> None:
    with self.assertRaisesRegex(liveness.AnalysisError, 'axis=2'):
      liveness.analyze(zoo.grouped(K), X, axis=2)


class MaxflowTest(absltest.TestCase):
  def test_equals_the_cheapest_of_all_cuts(self) -> None:
    draw = np.random.default_rng(0)
    for _ in range(20):
      edges = [
        (a, b, int(draw.integers(1, 20)))
        for a in range(6)
        for b in range(6)
        if a != b and draw.random() < 0.5
      ]
      side = maxflow.source_side(edges, 0, 5)
      price = lambda s, e=edges: sum(
        c for a, b, c in e if a in s and b not in s
      )
      least = min(
        price({0, *(i for i in range(1, 5) if bits >> i & 1)})
        for bits in range(0, 32, 2)
      )
      self.assertEqual(price(side | {0}), least)


if __name__ == '__main__':
  absltest.main()
