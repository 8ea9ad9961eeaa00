"""kvjax's own forward, whole, against the caches that kvjax ships."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

import kvjax
from kvjax import liveness
from kvjax.memory.compiled.assignment import argument_leaves, read

N, D = 4, 14
ROTARY = kvjax.Rotary(4)
MLP = kvjax.MLP(11)
SLIDING = kvjax.Visibility(window=4)


def grouped(kv: int, **options) -> kvjax.Grouped:
  return kvjax.Grouped(N, kv, 6, rotary=ROTARY, **options)


def model(*attention: kvjax.Grouped | kvjax.Latent) -> kvjax.ModelConfig:
  layers = tuple(kvjax.Layer(a, MLP) for a in attention)
  return kvjax.ModelConfig(vocab_size=17, width=D, layers=layers)


LATENT = kvjax.Latent(N, 10, 6, 5, rotary=ROTARY, query_rank=7)
GROUPED = (('q', 'query', 0), ('k', 'key', math.inf))

CONFIGS = {
  'mha': model(grouped(N), grouped(N)),
  'gqa': model(grouped(2), grouped(2)),
  'mqa': model(grouped(1), grouped(1)),
  'window': model(*(grouped(2, visibility=SLIDING),) * 2),
  'shared': model(grouped(2), grouped(2, shared_from=0)),
  'mla': model(LATENT, LATENT),
}


def shipped(config: kvjax.ModelConfig) -> dict[str, int]:
  """Bytes a token of every stream that the shipped cache allocates."""
  out: dict[str, int] = {}
  for layer in config.layers:
    for name, stream in layer.attention.streams().items():
      size = 4 * stream.heads * stream.width
      out[name] = out.get(name, 0) + size
  return out


def aliased(config: kvjax.ModelConfig, batch: int, capacity: int):
  """Bytes a slot and row of every stream that a compiled step updates."""
  specs = jax.eval_shape(
    lambda: (
      kvjax.init_params(config, jax.random.key(0)),
      kvjax.init_cache(config, batch, capacity),
      jnp.zeros(batch, jnp.int32),
    )
  )

  def step(params, cache, token):
    return kvjax.decode_step(config, params, cache, token)

  compiled = jax.jit(step, donate_argnames='cache').lower(*specs).compile()
  module, rows = read(compiled)
  out: dict[str, float] = {}
  for leaf in argument_leaves(module, rows, 'cache.stores').values():
    name = leaf.op_name.split("'")[1]
    slots = leaf.shape[2]  # [B, K, S, H]; a ring has fewer than the capacity
    if leaf.kind == 'aliased':
      out[name] = out.get(name, 0) + leaf.bytes / (batch * slots)
  return out


class ForwardTest(parameterized.TestCase):
  @parameterized.named_parameters(*((k, k, c) for k, c in CONFIGS.items()))
  def test_one_number_by_three_routes(
    self, kind: str, config: kvjax.ModelConfig
  ) -> None:
    """The derived cut, the shipped cache, what the compiled step aliases."""
    params = kvjax.init_params(config, jax.random.key(0))
    absorb = kind == 'mla'
    program = lambda tokens: kvjax.forward(
      config, params, tokens, absorb=absorb
    )
    tokens = np.arange(8, dtype=np.int32)[None] * 5 % 17
    report = liveness.analyze(program, tokens, axis=1)
    self.assertTrue(report.causal, report)
    rows = {r.name: r for r in report.tensors if r.kept}
    self.assertEqual(set(report.keep), set(rows), report)
    derived = {name: row.bytes_per_token for name, row in rows.items()}
    expected = shipped(config)
    self.assertEqual(derived, expected)
    self.assertEqual(derived, aliased(config, batch=3, capacity=16))
    live = 3 if kind == 'window' else math.inf
    self.assertEqual({row.live_for for row in rows.values()}, {live}, report)
    self.assertEqual(report.bytes_per_token, sum(expected.values()))
    self.assertEqual(report.live_for['query'], 0)
    cache = kvjax.init_cache(config, 1, 16)
    held = sum(leaf.nbytes for leaf in jax.tree.leaves(cache.stores))
    if kind != 'window':
      self.assertEqual(held, 16 * report.bytes_per_token)

  def test_expanded_latent_attention_finds_the_latent_by_absorption(
    self,
  ) -> None:
    config = CONFIGS['mla']
    params = kvjax.init_params(config, jax.random.key(0))
    program = lambda tokens: kvjax.forward(config, params, tokens)
    tokens = np.arange(8, dtype=np.int32)[None] * 5 % 17
    report = liveness.analyze(program, tokens, axis=1)
    self.assertEqual(report.bytes_per_token, 2 * 4 * (N * (6 + 5) + 4))
    points = [
      p for p in report.frontier if set(p.names) == {'latent', 'rotary'}
    ]
    self.assertLen(points, 1, report)
    self.assertEqual(points[0].bytes_per_token, 2 * 4 * (10 + 4))
    self.assertNotEmpty(points[0].rewrites)
    # A score reads R for H, a mixture R for E: 2 N (2R - H - E) a layer.
    self.assertEqual(points[0].flops_per_token, 2 * 2 * N * (20 - 6 - 5))

  def test_decodes_with_the_derived_cache(self) -> None:
    config = CONFIGS['gqa']
    params = kvjax.init_params(config, jax.random.key(0))
    program = lambda tokens: kvjax.forward(config, params, tokens)
    tokens = np.random.default_rng(0).integers(0, 17, (1, 19)).astype(np.int32)
    init, extend = liveness.derive(program, tokens[:, :8], axis=1)
    logits, cache = jax.jit(extend)(init(19), jnp.asarray(tokens))
    np.testing.assert_allclose(logits, program(tokens), rtol=1e-4, atol=1e-5)
    held = sum(leaf.nbytes for leaf in cache.streams.values())
    self.assertEqual(held, 19 * sum(shipped(config).values()))


if __name__ == '__main__':
  absltest.main()
