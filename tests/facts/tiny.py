"""Tiny models and what they do uncached, for facts that need a model."""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import kvjax
from kvjax.caches.kind import Kind
from kvjax.models.uncached import with_visibility

VOCAB = 31
GQA = kvjax.Grouped(6, 3, 10, 7, rotary=kvjax.Rotary(6))
MLA = kvjax.Latent(
  num_heads=3,
  latent_width=11,
  key_width=7,
  value_width=5,
  rotary=kvjax.Rotary(4),
)
KINDS = {
  'dense': kvjax.Dense(),
  'ring': kvjax.Ring(window=5),
  'sinks': kvjax.Sinks(sinks=2, window=5),
  'paged': kvjax.Paged(page=4),
  'bounded': kvjax.Bounded(budget=6, slack=3, prefill='chunks'),
}


def recent_layers(heads: int, kv_heads: int) -> tuple[kvjax.Layer, ...]:
  """Returns two layers with what Llama 4, Hunyuan, OLMo and Apertus have."""
  plain = kvjax.Norm(1e-5, weighted=False)
  turned = kvjax.Grouped(
    heads,
    kv_heads,
    8,
    5,
    rotary=kvjax.Rotary(8, base=100.0),
    qk_norm=plain,
    qk_norm_after=True,
    temperature=kvjax.Temperature(0.7, length=3, shift=1),
  )
  clipped = kvjax.Grouped(
    heads,
    kv_heads,
    8,
    5,
    clip=0.4,
    temperature=kvjax.Temperature(0.5, length=2),
  )
  experts = kvjax.Experts(
    4,
    2,
    6,
    score='sigmoid',
    renormalize=False,
    scale_input=True,
    shared=kvjax.MLP(10, 'relu2'),
    shared_gate=True,
  )
  return (
    kvjax.Layer(turned, experts),
    kvjax.Layer(clipped, kvjax.MLP(10, 'xielu', gated=False)),
  )


RECENT = kvjax.ModelConfig(
  VOCAB,
  13,
  recent_layers(6, 3),
  norm=kvjax.Norm(centered=True, weighted=False),
)


def decoder(*attention: Any, **more: Any) -> kvjax.ModelConfig:
  """Returns a model of one layer an attention given."""
  layers = tuple(kvjax.Layer(a, kvjax.MLP(11)) for a in attention or (GQA,))
  return kvjax.ModelConfig(VOCAB, 13, layers, **more)


@functools.cache
def params(config: kvjax.ModelConfig) -> Any:
  """Returns the parameters of a model: always the same."""
  with jax.ensure_compile_time_eval():  # the first caller may be tracing
    return kvjax.init_params(config, jax.random.key(0))


def tokens(batch: int, length: int, seed: int = 1) -> jax.Array:
  """Returns int32 ids `[B, T]`."""
  shape = (batch, length)
  return jax.random.randint(jax.random.key(seed), shape, 0, VOCAB, jnp.int32)


def as_seen(config: kvjax.ModelConfig, kind: Kind) -> kvjax.ModelConfig:
  """Returns the model whose uncached mask is that of a kind."""
  return with_visibility(config, kind.visible_through)


def feed(
  config: kvjax.ModelConfig,
  cache: kvjax.Cache,
  ids: jax.Array,
  sizes: Sequence[int],
  width: int = 8,
) -> tuple[np.ndarray, kvjax.Cache]:
  """Feeds `[B, sum(sizes)]` in pieces, all padded to one traced width."""
  found, start = [], 0
  for size in sizes:
    piece = ids[:, start : start + size]
    piece = jnp.pad(piece, ((0, 0), (0, width - size)))
    lengths = np.full(len(ids), size)
    logits, cache = kvjax.extend(config, params(config), cache, piece, lengths)
    found.append(np.asarray(logits[:, :size]))
    start += size
  return np.concatenate(found, axis=1), cache


def follow(
  config: kvjax.ModelConfig, cache: kvjax.Cache, ids: jax.Array
) -> tuple[np.ndarray, kvjax.Cache]:
  """Feeds `[B, T]` token by token; returns logits `[B, T, V]` as well."""
  found = []
  for i in range(ids.shape[1]):
    logits, cache = kvjax.decode_step(
      config, params(config), cache, ids[:, i], donate=False
    )
    found.append(np.asarray(logits))
  return np.stack(found, axis=1), cache


def counters(cache: kvjax.Cache) -> Any:
  """Returns all that says which token is where: no stream."""
  return cache.length, cache.overflow, cache.books


def alike(a: Any, b: Any) -> None:
  """Asserts that two pytrees are bit-identical."""
  jax.tree.map(np.testing.assert_array_equal, a, b)


def close(a: Any, b: Any, limit: float = 1e-5) -> None:
  """Asserts a largest difference below `limit` of the largest value."""
  a, b = np.asarray(a), np.asarray(b)
  assert a.shape == b.shape, (a.shape, b.shape)
  assert np.isfinite(b).all()
  worst = np.abs(a - b).max()
  assert worst <= limit * max(np.abs(b).max(), 1.0), worst
