"""Absorption, poison, lengths and refusals."""

import math
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kvjax import liveness
from kvjax.liveness.analysis import analyze_trace
from kvjax.liveness.cut import maxflow
from kvjax.liveness.evidence import lengths, perturb
from kvjax.liveness.program.recorder import trace_program
from tests.liveness import zoo, zoo_mixers, zoo_variants
from tests.liveness.zoo import D, H, K, N, P, R

X = zoo.weight(8, D) * 3


def test_input_is_half_of_keys_and_values_only_for_all_heads() -> None:
  for kv, small in ((N, True), (1, False)):
    report = liveness.analyze(zoo.grouped(kv), X)
    names = [p.names for p in report.frontier]
    assert names[-1] == ('k', 'v')
    assert (('x',) in names) == (small or 2 * kv * H > D), report


def test_points_trade_bytes_for_flops() -> None:
  for program in (
    zoo_variants.mla_expanded,
    zoo_variants.stack(zoo.grouped(K)),
    zoo_mixers.short_conv(zoo_mixers.conv_padded),
  ):
    points = liveness.analyze(program, X).frontier
    sizes = [p.bytes_per_token for p in points]
    flops = [p.flops_per_token for p in points]
    assert sizes == sorted(sizes)
    assert flops == sorted(flops, reverse=True)
    assert len(set(sizes)) == len(sizes)


def test_absorption_finds_the_latent_and_names_itself() -> None:
  report = liveness.analyze(zoo_variants.mla_expanded, X)
  point = next(p for p in report.frontier if p.names == ('c', 'k_rope'))
  assert point.bytes_per_token == 4 * (R + P)
  assert point.rewrites == ('absorption of k_nope', 'absorption of v')


def test_a_rotation_stands_in_the_way_of_absorption() -> None:
  report = liveness.analyze(zoo.grouped(N), X)
  point = next(p for p in report.frontier if p.names == ('x',))
  assert 'absorption of k' not in point.rewrites
  assert 'a table by position' in report.notes[0]
  free = liveness.analyze(zoo.grouped(N, rope=False), X)
  point = next(p for p in free.frontier if p.names == ('x',))
  assert point.rewrites == ('absorption of k', 'absorption of v')
  # Scores read D for H, mixtures mix D for H, in every head.
  assert point.flops_per_token == 2 * 2 * N * (D - H)


def test_fastest_is_the_cheapest_at_the_rates_of_a_device() -> None:
  report = liveness.analyze(zoo.grouped(N, rope=False), X)
  slow = report.fastest(bandwidth=1.0, flop_rate=1e9)
  fast = report.fastest(bandwidth=1e9, flop_rate=1.0)
  assert slow.names == ('x',)
  assert fast.names == ('k', 'v')


def test_a_query_is_read_by_its_own_row_with_a_mask_or_without() -> None:
  own, all_of = np.eye(8, dtype=bool), np.ones((8, 8), bool)
  decoder = liveness.reach(zoo.grouped(K), X)
  np.testing.assert_array_equal(decoder['q'], own)
  np.testing.assert_array_equal(decoder['k'], np.tril(all_of))
  np.testing.assert_array_equal(decoder['v'], np.tril(all_of))
  encoder = liveness.reach(zoo_mixers.masked(zoo_mixers.everyone), X)
  np.testing.assert_array_equal(encoder['q'], own)
  np.testing.assert_array_equal(encoder['k'], all_of)
  np.testing.assert_array_equal(encoder['v'], all_of)


def test_in_a_stack_a_query_reaches_later_rows_yet_is_not_kept() -> None:
  program = zoo_variants.stack(zoo.grouped(K), layers=2)
  assert liveness.reach(program, X)['q'][7, 0]
  assert liveness.analyze(program, X).live_for['q'] == 0


@pytest.mark.parametrize(
  'program',
  [
    pytest.param(zoo.grouped(K), id='gqa'),
    pytest.param(zoo_variants.mla_expanded, id='mla'),
    pytest.param(zoo_mixers.mta, id='mta'),
    pytest.param(
      zoo_mixers.short_conv(zoo_mixers.conv_joined), id='short_conv'
    ),
    pytest.param(zoo_mixers.linear_scan, id='linear'),
    pytest.param(zoo_variants.stack(zoo.grouped(K)), id='stack'),
  ],
)
def test_the_cut_separates_and_every_part_of_it_is_needed(
  program: zoo.Program,
) -> None:
  x = lengths.resize(X, 14, 0)
  analysis = analyze_trace(trace_program(program, x))
  assert perturb.poison(analysis, x) == 0.0
  for i in analysis.cut.kept:
    assert perturb.poison(analysis, x, (i,)) != 0.0, analysis.names[i]


@pytest.mark.parametrize(
  'program',
  [
    pytest.param(zoo.grouped(K, window=4), id='window'),
    pytest.param(zoo_variants.mla_absorbed, id='mla'),
    pytest.param(zoo_mixers.mta, id='mta'),
    pytest.param(zoo_mixers.linear_cumsum, id='linear'),
  ],
)
def test_short_and_long_inputs_agree(program: zoo.Program) -> None:
  short = liveness.analyze(program, X)
  long = liveness.analyze(program, zoo.weight(32, D) * 3)
  assert short.live_for == long.live_for
  assert short.keep == long.keep
  assert short.bytes_per_token == long.bytes_per_token


def test_a_program_of_one_length_is_analysed_at_it() -> None:
  mask = np.tril(np.ones((9, 9), bool))
  program = lambda x: zoo_mixers.attend(*zoo_mixers.project(x), mask)
  report = liveness.analyze(program, zoo.weight(9, D))
  assert report.keep == ('k', 'v')
  assert report.live_for['q'] == 0
  assert report.live_for['k'] == math.inf


def test_a_window_wider_than_the_input_is_found() -> None:
  report = liveness.analyze(zoo.grouped(K, window=20), X)
  assert report.live_for['k'] == 19


def test_a_window_that_no_comparison_states_is_found() -> None:
  def mask(T: int) -> np.ndarray:
    past = np.tril(np.ones((T, T), bool))
    return past & ~np.tril(past, -20)

  report = liveness.analyze(zoo_mixers.masked(mask), X)
  assert report.live_for['k'] == 19


def test_a_program_of_whole_blocks_is_analysed_at_their_multiples() -> None:
  def program(x: jax.Array) -> jax.Array:
    rows = x.reshape(-1, 4, D)
    total = jnp.cumsum(rows.mean(1), 0)
    before = jnp.concatenate([jnp.zeros((1, D)), total[:-1]])
    return (rows + before[:, None]).cumsum(1).reshape(x.shape)

  report = liveness.analyze(program, X)
  kept = sorted((r.shape, r.live_for) for r in report.tensors if r.kept)
  assert kept == [((D,), 3), ((D,), 4)], report


@pytest.mark.parametrize(
  'program, what',
  [
    pytest.param(
      lambda x: jax.lax.while_loop(lambda c: c.sum() > 0, lambda c: c - 1, x),
      'depends on data',
      id='loop_by_data',
    ),
    pytest.param(
      lambda x: jax.pure_callback(
        lambda a: a, jax.ShapeDtypeStruct(x.shape, x.dtype), x
      ),
      'pure_callback',
      id='callback',
    ),
    pytest.param(zoo.grouped(K, window=4096), '4096', id='window'),
    pytest.param(
      lambda x: x[x[:, 0] > 0],
      r'depends on data at .*test_analysis.py:\d+: .*boolean',
      id='shape_by_data',
    ),
    pytest.param(
      lambda x: x if x[0, 0] > 0 else -x,
      r'depends on data at .*test_analysis.py:\d+: ',
      id='branch_by_data',
    ),
    pytest.param(
      lambda x: jax.jit(lambda a: (jax.debug.print('{}', a), a)[1])(x),
      r'side effects: debug_\w+ at .*test_analysis.py:\d+',
      id='side_effect',
    ),
    pytest.param(
      lambda x: x[jnp.argmax(jnp.where(zoo.causal(len(x)), x @ x.T, -9), -1)],
      'argmax',
      id='index_by_data',
    ),
  ],
)
def test_names_the_equation(program: zoo.Program, what: str) -> None:
  with pytest.raises(liveness.AnalysisError, match=what):
    liveness.analyze(program, X)


def test_a_cell_of_a_notebook_goes_by_its_number(
  monkeypatch: pytest.MonkeyPatch,
) -> None:
  cells = {'/tmp/ipykernel_7/1234.py': ('Cell', 'In[5]')}
  shell = types.SimpleNamespace(
    compile=types.SimpleNamespace(format_code_name=cells.get)
  )
  ipython = types.SimpleNamespace(get_ipython=lambda: shell)
  monkeypatch.setitem(sys.modules, 'IPython', ipython)
  scope = {}
  code = 'def program(x):\n  return x if x[0, 0] > 0 else -x\n'
  exec(compile(code, next(iter(cells)), 'exec'), scope)
  with pytest.raises(liveness.AnalysisError, match=r'at Cell In\[5\], line 2'):
    liveness.analyze(scope['program'], X)
  # A function of a true file keeps the name of its file.
  with pytest.raises(liveness.AnalysisError, match=r'test_analysis.py:\d+: '):
    liveness.analyze(lambda x: x if x[0, 0] > 0 else -x, X)


def test_axis() -> None:
  with pytest.raises(liveness.AnalysisError, match='axis=2'):
    liveness.analyze(zoo.grouped(K), X, axis=2)


def test_equals_the_cheapest_of_all_cuts() -> None:
  draw = np.random.default_rng(0)
  for _ in range(20):
    edges = [
      (a, b, int(draw.integers(1, 20)))
      for a in range(6)
      for b in range(6)
      if a != b and draw.random() < 0.5
    ]
    side = maxflow.source_side(edges, 0, 5)
    price = lambda s, e=edges: sum(c for a, b, c in e if a in s and b not in s)
    least = min(
      price({0, *(i for i in range(1, 5) if bits >> i & 1)})
      for bits in range(0, 32, 2)
    )
    assert price(side | {0}) == least


def test_sums_by_fixed_index_and_of_logarithms_stay_in_their_rows() -> None:
  def program(x: jax.Array) -> jax.Array:
    rows = x.at[:, 0].add(x[:, 1])
    return jax.lax.cumlogsumexp(rows, axis=0)

  report = liveness.analyze(program, X)
  assert report.causal, report
  (point,) = (p for p in report.frontier if p.state_bytes)
  assert point.state_bytes == 4 * D
  assert point.bytes_per_token == 0
