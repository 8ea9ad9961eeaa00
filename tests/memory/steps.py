"""Decode steps that update their cache in place, and steps that do not.

With the shapes of their arguments: nothing here is run, only compiled.
"""

import jax
import jax.numpy as jnp
from jax import lax

BLOCK = 512


def of(*shape, dtype=jnp.float32):
  return jax.ShapeDtypeStruct(shape, dtype)


def arguments(B=2, K=2, S=2048, H=64, L=2, dtype=jnp.float32):
  leaf = of(B, K, S, H, dtype=dtype)
  query, new = of(B, K, 3, H, dtype=dtype), of(B, K, H, dtype=dtype)
  return ((leaf, leaf),) * L, query, new, of(dtype=jnp.int32)


def scatter(leaf, new, position):
  row = lambda slots, x: slots.at[position].set(x, mode='drop')
  return jax.vmap(jax.vmap(row))(leaf, new)


def update(leaf, new, position):
  return lax.dynamic_update_slice_in_dim(leaf, new[:, :, None], position, 2)


def block_of(leaf, i):
  return lax.dynamic_slice_in_dim(leaf, i * BLOCK, BLOCK, 2)


def block_loop(q, k, v, position):
  def body(i, out):
    s = jnp.einsum('BKGH,BKSH->BKGS', q, block_of(k, i))
    return out + jnp.einsum('BKGS,BKSH->BKGH', jnp.exp(s), block_of(v, i))

  return lax.fori_loop(0, position // BLOCK + 1, body, jnp.zeros_like(q))


def one_dot(q, k, v, position):
  del position
  p = jax.nn.softmax(jnp.einsum('BKGH,BKSH->BKGS', q, k), axis=-1)
  return jnp.einsum('BKGS,BKSH->BKGH', p, v)


def unrolled(write, read):
  """A step over per-layer leaves, layers unrolled in Python."""

  def step(cache, q, new, position):
    layers = []
    for k, v in cache:
      k, v = write(k, new, position), write(v, new, position)
      q = q + read(q, k, v, position)
      layers.append((k, v))
    return q, tuple(layers)

  return step


good = unrolled(scatter, block_loop)


def stacked(B=2, K=2, S=1024, H=64, L=5):
  _, q, new, position = arguments(B, K, S, H)
  return (of(L, B, K, S, H), of(L, B, K, S, H)), q, new, position


def scan_xs_ys(cache, q, new, position):
  def body(q, layer):
    k, v = (scatter(leaf, new, position) for leaf in layer)
    return q + block_loop(q, k, v, position), (k, v)

  return lax.scan(body, q, cache)


def scan_carry(cache, q, new, position):
  def body(carry, layer):
    q, k, v = carry
    at = (layer, 0, 0, position, 0)
    k = lax.dynamic_update_slice(k, new[None, :, :, None], at)
    v = lax.dynamic_update_slice(v, new[None, :, :, None], at)
    q = q + block_loop(q, k[layer], v[layer], position)
    return (q, k, v), None

  layers = jnp.arange(cache[0].shape[0])
  (q, k, v), _ = lax.scan(body, (q, *cache), layers)
  return q, (k, v)


def slots_first(cache, q, new, position):
  layers = []
  for k, v in cache:  # [B, S, K, H]
    k = lax.dynamic_update_slice_in_dim(k, new[:, None], position, 1)
    v = lax.dynamic_update_slice_in_dim(v, new[:, None], position, 1)
    p = jax.nn.softmax(jnp.einsum('BKGH,BSKH->BKGS', q, k), axis=-1)
    q = q + jnp.einsum('BKGS,BSKH->BKGH', p, v)
    layers.append((k, v))
  return q, tuple(layers)


def slots_first_arguments(B=2, K=3, S=1024, H=64):
  _, q, new, position = arguments(B, K, S, H)
  return ((of(B, S, K, H), of(B, S, K, H)),), q, new, position


def widened(q, k, v, position):
  wide = [x.astype(jnp.float32) for x in (q, k, v)]
  return block_loop(*wide, position).astype(q.dtype)


def shifted(leaf, new, position):
  del position
  return jnp.concatenate([leaf[:, :, 1:], new[:, :, None]], axis=2)


def one_hot(leaf, new, position):
  hot = (jnp.arange(leaf.shape[2]) == position).astype(leaf.dtype)
  hot = hot[None, None, :, None]
  return leaf * (1 - hot) + new[:, :, None] * hot


def old_value_read(cache, q, new, position):
  ((k, v),) = cache
  q, layers = good(cache, q, new, position)
  return q + k.sum(axis=2, keepdims=True) + v[:, :, :1], layers


def quantized(cache, q, new, position):
  """Full rows of scores beside a scale leaf of the same shape [B, K, S]."""
  codes, scale = cache
  codes = scatter(codes, new.astype(jnp.int8), position)
  ones = jnp.ones_like(scale[..., 0])
  scale = scatter(scale, ones, position)
  blocks = position // BLOCK + 1

  def score(i, s):
    block = block_of(codes, i).astype(jnp.float32)
    part = jnp.einsum('BKH,BKSH->BKS', q, block) * block_of(scale, i)
    return lax.dynamic_update_slice_in_dim(s, part, i * BLOCK, 2)

  def mix(i, out):
    block = block_of(codes, i).astype(jnp.float32)
    weights = block_of(p, i) * block_of(scale, i)
    return out + jnp.einsum('BKS,BKSH->BKH', weights, block)

  s = lax.fori_loop(0, blocks, score, jnp.zeros_like(scale))
  p = jax.nn.softmax(s, axis=-1)
  return lax.fori_loop(0, blocks, mix, jnp.zeros_like(q)), (codes, scale)


def dequantized(cache, q, new, position):
  codes, scale = cache
  codes = scatter(codes, new.astype(jnp.int8), position)
  k = codes.astype(jnp.float32) * scale[..., None]
  return block_loop(q[:, :, None], k, k, position), (codes, scale)


def quantized_arguments(B=2, K=2, S=4096, H=64):
  codes, scale = of(B, K, S, H, dtype=jnp.int8), of(B, K, S)
  return (codes, scale), of(B, K, H), of(B, K, H), of(dtype=jnp.int32)


def paged(cache, q, new, position, table):
  """Pools [K, pages, page, H]; four pages of every row at a time."""
  size, layers = cache[0][0].shape[2], []
  for k, v in cache:
    at = table[:, position // size], position % size
    k, v = (x.at[:, at[0], at[1]].set(new, mode='drop') for x in (k, v))

    def body(i, out, q=q, k=k, v=v):
      pages = lax.dynamic_slice_in_dim(table, 4 * i, 4, 1)
      s = jnp.einsum('BKGH,KBPSH->BKGPS', q, k[:, pages])
      return out + jnp.einsum('BKGPS,KBPSH->BKGH', jnp.exp(s), v[:, pages])

    trips = position // (4 * size) + 1
    q = q + lax.fori_loop(0, trips, body, jnp.zeros_like(q))
    layers.append((k, v))
  return q, tuple(layers)


def paged_arguments(B=2, K=2, pages=32, page=64, H=64):
  pool, table = of(K, pages, page, H), of(B, 16, dtype=jnp.int32)
  new, position = of(K, B, H), of(dtype=jnp.int32)
  return ((pool, pool),) * 2, of(B, K, 3, H), new, position, table


def pages_first(cache, q, new, position, table):
  """A pool [pages, page, K, H]; one page at a time, chosen by the table."""
  size = cache.shape[1]
  at = table[position // size], position % size
  cache = cache.at[at].set(new, mode='drop')

  def body(i, out):
    page = cache[table[i]]
    s = jnp.einsum('KH,SKH->KS', q, page)
    return out + jnp.einsum('KS,SKH->KH', s, page)

  trips = position // size + 1
  return lax.fori_loop(0, trips, body, jnp.zeros_like(q)), cache


def pages_first_arguments(K=2, H=64):
  table, position = of(32, dtype=jnp.int32), of(dtype=jnp.int32)
  return of(32, 64, K, H), of(K, H), of(K, H), position, table


def generation(cache, q, new, position):
  """Eight tokens on device, as `generate` runs them."""

  def body(carry, _):
    q, cache, position = carry
    q, cache = good(cache, q, new, position)
    return (q, cache, position + 1), q

  carry = q, cache, position
  (_, cache, _), out = lax.scan(body, carry, None, length=8)
  return out, cache


def one_hot_of_results(cache, q, new, position):
  """Writes by arithmetic what attention of the layer below computed."""
  layers = []
  for k, v in cache:
    k, v = (one_hot(leaf, new + q[:, :, 0], position) for leaf in (k, v))
    q = q + widened(q, k, v, position)
    layers.append((k, v))
  return q, tuple(layers)


def decayed_by_results(cache, q, new, position):
  """Leaves [B, S, K, H] that attention decays, and a dot lays out anew."""
  layers = []
  for k, v in cache:
    gate = jax.nn.sigmoid(q[:, None, :, 0])
    q, ((k, v),) = slots_first(((k * gate, v * gate),), q, new, position)
    layers.append((k, v))
  return q, tuple(layers)


def read_one_step_late(cache, q, new, position):
  """Reads in each step of a loop, widened, the leaf of the step before."""

  def body(i, carry):
    q, old, leaf = carry
    leaf = scatter(leaf, new, position + i)
    return q + widened(q, old, old, position), leaf, leaf

  carry = q, jnp.zeros_like(cache), cache
  q, _, cache = lax.fori_loop(0, 3, body, carry)
  return q, cache
