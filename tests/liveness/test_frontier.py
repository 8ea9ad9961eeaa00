"""The frontier of bytes and FLOPs, and what fits a budget of FLOPs."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.ad_checkpoint import checkpoint_name as name

from kvjax import liveness
from kvjax.liveness.cut import min_cut
from kvjax.liveness.cut.nodes import Extent, Node
from tests.liveness import zoo

N, H = 4, 6
D = N * H
PROJECTION = 2 * D * D  # of keys or values of all heads, a token


def rotated(kv: int) -> zoo.Program:
  """Rotary attention of D = N H; the key has a name before its rotation."""
  wq, wk, wv = (
    zoo.weight(D, kv, N // kv, H),
    zoo.weight(D, kv, H, seed=1),
    zoo.weight(D, kv, H, seed=2),
  )

  def program(x: jax.Array) -> jax.Array:
    q = zoo.rotate(jnp.einsum('TD,DKGH->TKGH', x, wq))
    early = name(jnp.einsum('TD,DKH->TKH', x, wk), 'k_early')
    k = name(zoo.rotate(early), 'k')
    v = name(jnp.einsum('TD,DKE->TKE', x, wv), 'v')
    scores = jnp.einsum('TKGH,SKH->KGTS', q, k)
    mask = jnp.broadcast_to(zoo.causal(len(x)), scores.shape)
    p = zoo.softmax_rows(scores, mask)
    return jnp.einsum('KGTS,SKE->TKGE', p, v).reshape(len(x), -1)

  return program


def from_ids(tokens: jax.Array) -> jax.Array:
  return rotated(N)(jnp.take(zoo.weight(11, D), tokens, axis=0))


def tensor_product(x: jax.Array) -> jax.Array:
  """TPA (arXiv 2501.06425) with its keys and values formed from factors."""
  factor = lambda w, seed: (x @ zoo.weight(60, 2 * w, seed=seed)).reshape(
    -1, 2, w
  )
  a_k, a_v = name(factor(N, 0), 'a_k'), name(factor(N, 2), 'a_v')
  b_k = name(zoo.rotate(factor(H, 1)), 'b_k')
  b_v = name(factor(H, 3), 'b_v')
  k = name(jnp.einsum('SCN,SCH->SNH', a_k, b_k), 'k')
  v = name(jnp.einsum('SCN,SCH->SNH', a_v, b_v), 'v')
  q = zoo.rotate(jnp.einsum('TD,DNH->TNH', x, zoo.weight(60, N, H)))
  scores = jnp.einsum('TNH,SNH->NTS', q, k)
  mask = jnp.broadcast_to(zoo.causal(len(x)), scores.shape)
  p = zoo.softmax_rows(scores, mask)
  return jnp.einsum('NTS,SNE->TNE', p, v).reshape(len(x), -1)


@pytest.mark.parametrize('kv', [N, 2, 1])
def test_without_recomputation_keys_and_values_are_kept(kv: int) -> None:
  report = liveness.analyze(rotated(kv), zoo.weight(8, D) * 3)
  points = report.within(0)
  assert [p.names for p in points] == [('k', 'v')]
  assert points[0].bytes_per_token == 2 * kv * H * 4


@pytest.mark.parametrize('kv, admitted', [(N, True), (1, False)])
def test_two_projections_admit_x_unless_groups_are_large(
  kv: int, admitted: bool
) -> None:
  report = liveness.analyze(rotated(kv), zoo.weight(8, D) * 3)
  points = report.within(2 * PROJECTION)
  assert (('x',) in [p.names for p in points]) == admitted
  assert (points[0].names == ('x',)) == admitted


def test_no_limit_gives_the_token_ids() -> None:
  report = liveness.analyze(from_ids, np.arange(8, dtype=np.int32))
  least = report.within(math.inf)[0]
  assert (least.names, least.bytes_per_token) == (('x',), 4)
  assert report.within(0)[0].names == ('k', 'v')


def test_the_factors_of_formed_keys_are_on_the_frontier() -> None:
  report = liveness.analyze(tensor_product, zoo.weight(8, 60) * 3)
  assert report.within(0)[0].names == ('k', 'v')
  least = report.frontier[0]
  assert set(least.names) == {'a_k', 'b_k', 'a_v', 'b_v'}
  assert least.bytes_per_token == 4 * 2 * 2 * (N + H)
  # Two outer products of each, formed anew: 2 * 2 * N * H for k and v.
  assert least.flops_per_token == 2 * 2 * 2 * N * H


def test_a_budget_admits_every_corner_below_it() -> None:
  report = liveness.analyze(from_ids, np.arange(8, dtype=np.int32))
  for point in report.frontier:
    fitting = report.within(point.flops_per_token)
    assert fitting[0] == point
    assert all(p.flops_per_token <= point.flops_per_token for p in fitting)


def test_too_small_a_budget_is_refused() -> None:
  report = liveness.analyze(rotated(1), zoo.weight(8, D) * 3)
  with pytest.raises(ValueError, match='flops=-1 is too small'):
    report.within(-1)


def random_graph(draw: np.random.Generator) -> min_cut.Graph:
  """A chain of layers of nodes, each made of some of the layer before."""
  nodes = tuple(
    Node(
      ids=np.zeros(0, np.int64),
      maker=-1 if i == 0 else i,
      names=(),
      readers=frozenset((i,)),
      extent=Extent.ROWS,
      width=int(draw.integers(1, 9)),
      window=9,
      itemsize=4,
      flops=0.0 if i == 0 else float(draw.integers(1, 99)),
    )
    for i in range(8)
  )
  edges = {(int(draw.integers(0, b)), b) for b in range(1, 8) for _ in range(2)}
  return min_cut.Graph(nodes, tuple(sorted(edges)), frozenset((5, 6, 7)))


def every_cut(graph: min_cut.Graph) -> set[tuple[float, float]]:
  """Bytes and FLOPs of all sets of kept nodes that suffice."""
  made_of = {b: [a for a, c in graph.edges if c == b] for b in range(8)}
  costs = set()
  for bits in itertools.product((False, True), repeat=8):
    redone: set[int] = set()
    todo = [i for i in graph.future if not bits[i]]
    while todo:
      i = todo.pop()
      redone.add(i)
      todo += [a for a in made_of[i] if not bits[a] and a not in redone]
    if 0 not in redone:
      size = sum(graph.nodes[i].bytes_per_token for i in range(8) if bits[i])
      costs.add((size, sum(graph.nodes[i].flops for i in redone)))
  return costs


def hull(costs: set[tuple[float, float]]) -> list[tuple[float, float]]:
  """The corners that some price of a FLOP makes the cheapest."""
  corners: list[tuple[float, float]] = []
  for size, flops in sorted(costs):
    if corners and flops >= corners[-1][1]:
      continue
    while len(corners) > 1:
      (a, p), (b, q) = corners[-2:]
      if (p - q) * (size - b) > (q - flops) * (b - a):
        break
      corners.pop()
    corners.append((size, flops))
  return corners


def test_equals_the_hull_of_all_cuts() -> None:
  draw = np.random.default_rng(0)
  count = 0
  for _ in range(12):
    graph = random_graph(draw)
    cuts = min_cut.find_corners(graph, {})
    corners = [(c.bytes_per_token, c.flops_per_token) for c in cuts]
    assert corners == hull(every_cut(graph))
    count += len(corners)
  assert count > 30
