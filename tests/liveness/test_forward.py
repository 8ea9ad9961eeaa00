"""kvjax's own forward, whole, against the caches that kvjax ships."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import kvjax
from kvjax import liveness
from kvjax.memory.compiled.assignment import argument_leaves, read
from tests.facts import tiny

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
  'recent': dataclasses.replace(
    tiny.RECENT,
    layers=tuple(
      # A loop over experts adds to rows that data choose.
      dataclasses.replace(layer, mlp=kvjax.MLP(11, 'xielu'))
      for layer in tiny.RECENT.layers
    ),
  ),
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


@pytest.mark.parametrize('kind', CONFIGS)
def test_one_number_by_three_routes(kind: str) -> None:
  """The derived cut, the shipped cache, what the compiled step aliases."""
  config = CONFIGS[kind]
  params = kvjax.init_params(config, jax.random.key(0))
  form = 'absorbed' if kind == 'mla' else 'expanded'
  program = lambda tokens: kvjax.forward(config, params, tokens, form=form)
  tokens = np.arange(8, dtype=np.int32)[None] * 5 % 17
  report = liveness.analyze(program, tokens, axis=1)
  assert report.causal, report
  rows = {r.name: r for r in report.tensors if r.kept}
  assert set(report.keep) == set(rows), report
  derived = {name: row.bytes_per_token for name, row in rows.items()}
  expected = shipped(config)
  assert derived == expected
  assert derived == aliased(config, batch=3, capacity=16)
  live = 3 if kind == 'window' else math.inf
  assert {row.live_for for row in rows.values()} == {live}, report
  assert report.bytes_per_token == sum(expected.values())
  assert report.live_for['query'] == 0
  cache = kvjax.init_cache(config, 1, 16)
  size = sum(leaf.nbytes for leaf in jax.tree.leaves(cache.stores))
  if kind != 'window':
    assert size == 16 * report.bytes_per_token


def test_expanded_latent_attention_finds_the_latent_by_absorption() -> None:
  config = CONFIGS['mla']
  params = kvjax.init_params(config, jax.random.key(0))
  program = lambda tokens: kvjax.forward(config, params, tokens)
  tokens = np.arange(8, dtype=np.int32)[None] * 5 % 17
  report = liveness.analyze(program, tokens, axis=1)
  assert report.bytes_per_token == 2 * 4 * (N * (6 + 5) + 4)
  points = [p for p in report.frontier if set(p.names) == {'latent', 'rotary'}]
  assert len(points) == 1, report
  assert points[0].bytes_per_token == 2 * 4 * (10 + 4)
  assert points[0].rewrites
  # A score reads R for H, a mixture R for E: 2 N (2R - H - E) a layer.
  assert points[0].flops_per_token == 2 * 2 * N * (20 - 6 - 5)


def test_decodes_with_the_derived_cache() -> None:
  config = CONFIGS['gqa']
  params = kvjax.init_params(config, jax.random.key(0))
  program = lambda tokens: kvjax.forward(config, params, tokens)
  tokens = np.random.default_rng(0).integers(0, 17, (1, 19)).astype(np.int32)
  init, extend = liveness.derive(program, tokens[:, :8], axis=1)
  logits, cache = jax.jit(extend)(init(19), jnp.asarray(tokens))
  np.testing.assert_allclose(logits, program(tokens), rtol=1e-4, atol=1e-5)
  size = sum(leaf.nbytes for leaf in cache.streams.values())
  assert size == 19 * sum(shipped(config).values())
