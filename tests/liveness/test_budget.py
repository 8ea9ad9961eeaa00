"""The frontier under a budget of recomputed FLOPs."""

import itertools
import math
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized
from jax.ad_checkpoint import checkpoint_name as name

from kvjax import liveness
from kvjax.liveness.cut import budget, min_cut
from kvjax.liveness.cut import nodes as tensors
from tests.liveness import zoo, zoo_variants

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


class BudgetTest(parameterized.TestCase):
  @parameterized.parameters(N, 2, 1)
  def test_a_rotation_admits_the_key_before_it(self, kv: int) -> None:
    report = liveness.analyze(rotated(kv), zoo.weight(8, D) * 3)
    size, rotation = 2 * kv * H * 4, 3 * kv * H
    self.assertEqual([p.names for p in report.within(0)], [('k', 'v')])
    self.assertEqual(report.within(0)[0].bytes_per_token, size)
    names = [p.names for p in report.within(rotation)]
    self.assertEqual(names, [('k', 'v'), ('k_early', 'v')])
    early = report.within(rotation)[1]
    self.assertEqual(early.bytes_per_token, size)
    self.assertEqual(early.flops_per_token, rotation)

  @parameterized.parameters((N, True), (2, True), (1, False))
  def test_a_projection_admits_x_unless_groups_are_large(
    self, kv: int, admitted: bool
  ) -> None:
    report = liveness.analyze(rotated(kv), zoo.weight(8, D) * 3)
    points = report.within(2 * PROJECTION)
    self.assertEqual(('x',) in [p.names for p in points], admitted)
    smaller = points[0].names == ('x',)  # with two heads a key, equal
    self.assertEqual(smaller, kv == N)

  def test_no_limit_gives_the_token_ids(self) -> None:
    report = liveness.analyze(from_ids, np.arange(8, dtype=np.int32))
    least = report.within(math.inf)[0]
    self.assertEqual((least.names, least.bytes_per_token), (('x',), 4))
    self.assertEqual(report.within(0)[0].names, ('k', 'v'))

  def test_the_factors_of_formed_keys_are_on_the_frontier(self) -> None:
    report = liveness.analyze(tensor_product, zoo.weight(8, 60) * 3)
    self.assertEqual(report.within(0)[0].names, ('k', 'v'))
    least = report.frontier[0]
    self.assertEqual(set(least.names), {'a_k', 'b_k', 'a_v', 'b_v'})
    self.assertEqual(least.bytes_per_token, 4 * 2 * 2 * (N + H))
    # Two outer products of each, formed anew: 2 * 2 * N * H for k and v.
    self.assertEqual(least.flops_per_token, 2 * 2 * 2 * N * H)

  def test_layers_of_a_stack_may_each_keep_their_own(self) -> None:
    layer, x = zoo.grouped(2), zoo.weight(8, zoo.D)
    one = liveness.analyze(zoo_variants.stack(layer, layers=1), x)
    two = liveness.analyze(zoo_variants.stack(layer, layers=2), x)
    self.assertTrue(two.frontier_complete)
    cost = lambda p: (p.bytes_per_token, p.flops_per_token)
    front = [cost(p) for p in two.frontier]
    for a, b in itertools.product(map(cost, one.frontier), repeat=2):
      size, flops = a[0] + b[0], a[1] + b[1]
      self.assertTrue(any(s <= size and f <= flops for s, f in front), (a, b))
    quick = two.frontier[-2]  # the second layer's v is made anew
    self.assertEqual(quick.names[:2], ('k', 'v.0'))
    self.assertLess(quick.flops_per_token, one.frontier[-3].flops_per_token)

  def test_a_front_of_too_many_ways_says_so(self) -> None:
    with mock.patch.object(budget, 'LIMIT', 3):
      report = liveness.analyze(rotated(N), zoo.weight(8, D) * 3)
    self.assertFalse(report.frontier_complete)
    self.assertContainsSubsequence(report.notes[-1], 'corners of its hull')
    self.assertEqual(report.frontier[-1].names, ('k', 'v'))

  def test_too_small_a_budget_is_refused(self) -> None:
    report = liveness.analyze(rotated(1), zoo.weight(8, D) * 3)
    with self.assertRaisesRegex(ValueError, 'flops=-1 is too small'):
      report.within(-1)


def random_graph(draw: np.random.Generator) -> min_cut.Graph:
  """A chain of layers of nodes, each made of some of the layer before."""
  nodes = tuple(
    tensors.Node(
      ids=np.zeros(0, np.int64),
      maker=-1 if i == 0 else i,
      names=(),
      readers=frozenset((i,)),
      frontier=True,
      rows=9,
      width=int(draw.integers(1, 9)),
      unbounded=True,
      carry=False,
      recurrent=False,
      lasts=9,
      band=False,
      itemsize=4,
      flops=0.0 if i == 0 else float(draw.integers(1, 99)),
    )
    for i in range(8)
  )
  edges = {(int(draw.integers(0, b)), b) for b in range(1, 8) for _ in range(2)}
  return min_cut.Graph(nodes, tuple(sorted(edges)), frozenset((5, 6, 7)))


def every_cut(graph: min_cut.Graph) -> set[tuple[int, float]]:
  """Bytes and FLOPs of all sets of kept nodes that suffice."""
  made_of = {b: [a for a, c in graph.edges if c == b] for b in range(8)}
  found = set()
  for bits in itertools.product((False, True), repeat=8):
    redone: set[int] = set()
    todo = [i for i in graph.future if not bits[i]]
    while todo:
      i = todo.pop()
      redone.add(i)
      todo += [a for a in made_of[i] if not bits[a] and a not in redone]
    if 0 not in redone:
      size = sum(graph.nodes[i].bytes_per_token for i in range(8) if bits[i])
      found.add((size, sum(graph.nodes[i].flops for i in redone)))
  return found


class FrontTest(absltest.TestCase):
  def test_equals_the_front_of_all_cuts(self) -> None:
    draw, between = np.random.default_rng(0), 0
    for _ in range(12):
      graph = random_graph(draw)
      points = every_cut(graph)
      best = sorted(
        p
        for p in points
        if not any(q != p and q[0] <= p[0] and q[1] <= p[1] for q in points)
      )
      found, complete = budget.front(graph, {})
      self.assertTrue(complete)
      self.assertEqual(
        [(c.bytes_per_token, c.flops_per_token) for c in found], best
      )
      between += len(best) - len(min_cut.frontier(graph))
    self.assertGreater(between, 5)  # off the hull: no price finds them


if __name__ == '__main__':
  absltest.main()
