"""Every kernel against loops in NumPy, on what a cache may hold."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import kvjax
from kvjax import kernels
from kvjax.caches.paged import PagedBook
from kvjax.streams.view import contiguous_view
from tests.attention import oracle
from tests.kernels.drawn import (
  book,
  build_or_skip,
  draw,
  in_pages,
  ordered,
  poison,
)

KERNELS = ('ffi', 'blockwise')

see = lambda **rules: {'visibility': kvjax.Visibility(**rules)}
RULES = {
  'causal': ({}, {}),
  'window': (see(window=5), {'sees': lambda p, s: p - 5 < s <= p}),
  'sink_tokens': (
    see(window=4, sink_tokens=3),
    {'sees': lambda p, s: s <= p and (s > p - 4 or s < 3)},
  ),
  'chunk': (see(chunk=7), {'sees': lambda p, s: s <= p and p // 7 == s // 7}),
  'all': (see(causal=False), {'sees': lambda p, s: True}),
  'softcap': ({'softcap': 0.7}, {'softcap': 0.7}),
}
# kv heads, groups, tokens, key width, value width
SHAPES = {
  'mha': (3, 1, 1, 64, 64),
  'gqa': (2, 4, 1, 64, 64),
  'mqa_odd': (1, 7, 3, 13, 5),
  'verify': (2, 3, 5, 24, 40),
}
# tokens a page, shape, codec, rules: read in place, in place or copied by run,
# copied, copied to padded rows
PAGES = {
  '64': (64, (2, 4, 1, 64, 64), kvjax.Plain(), 'causal'),
  '96_int8': (96, (2, 2, 1, 32, 16), kvjax.Int8(), 'causal'),
  '16_verify': (16, (1, 3, 5, 32, 48), kvjax.Plain(), 'window'),
  '7': (7, (3, 1, 1, 13, 5), kvjax.Int8(), 'sink_tokens'),
  '96_packed': (96, (2, 2, 1, 64, 32), kvjax.Affine(), 'causal'),
}
# Groups of 32 features and of others, bytes with neighbours or halves of a
# head; rows of one tile and of several.
CODES = {
  'affine': (kvjax.Affine(), (2, 1, 1, 128, 64)),
  'affine_no_zero': (kvjax.Affine(zero=False), (1, 11, 1, 64, 64)),
  'affine_8_bits': (kvjax.Affine(bits=8, group=64), (2, 4, 1, 64, 64)),
  'affine_2_bits': (kvjax.Affine(bits=2), (2, 2, 1, 64, 32)),
  'groups_of_8': (kvjax.Affine(group=8), (2, 3, 1, 24, 40)),
  'q8_0': (kvjax.GGML('q8_0'), (2, 4, 1, 64, 32)),
  'q4_0': (kvjax.GGML('q4_0'), (2, 2, 2, 64, 32)),
}

setup_module = build_or_skip


@functools.partial(
  jax.jit, static_argnames=('kernel', 'rule', 'codecs', 'part')
)
def run(
  queries,
  streams,
  positions,
  slot_positions,
  table=None,
  *,
  kernel,
  rule,
  codecs,
  part=(0, 999),
):
  """Attends to streams encoded by their codecs, pools where a table is."""
  if table is None:
    view = contiguous_view(
      streams, slot_positions, jnp.int32(slot_positions.shape[2])
    )
  else:
    kind = kvjax.Paged(
      slot_positions.shape[2], slots=table.shape[1] * slot_positions.shape[2]
    )
    book = PagedBook(
      slot_positions, table, jnp.zeros(slot_positions.shape[1], jnp.int32)
    )
    (view,) = kind.views(book, streams, jnp.full(2, kind.slots, jnp.int32))
  view = view.only(*part).map(
    lambda x: {n: c.decode(x[n]) for n, c in codecs},
    lambda x: {n: c.stored(x[n]) for n, c in codecs},
  )
  return kernels.attend_view(queries, positions, view, rule, kernel=kernel)


def grouped(
  q,
  k,
  v,
  positions,
  slot_positions,
  kernel,
  codec=None,
  part=(0, 999),
  table=None,
  **rules,
):
  """Attends to keys and values; returns output and log-sum-exp."""
  codec = codec or kvjax.Plain()
  slot_positions = (
    slot_positions[:, None] if slot_positions.ndim == 2 else slot_positions
  )
  dtype = k.dtype
  streams = {
    name: codec.encode(jnp.asarray(x), dtype)
    for name, x in (('key', k), ('value', v))
  }
  return run(
    {'key': jnp.asarray(q)},
    streams,
    jnp.asarray(positions),
    jnp.asarray(slot_positions),
    None if table is None else jnp.asarray(table),
    kernel=kernel,
    rule=kvjax.Scoring(q.shape[-1] ** -0.5, **rules),
    codecs=tuple((name, codec) for name in streams),
    part=part,
  )


def check(answer, want, tolerance=1e-5):
  np.testing.assert_allclose(answer[0], want[0], atol=tolerance)
  np.testing.assert_allclose(answer[1], want[1], atol=tolerance)


@pytest.mark.parametrize('kernel', KERNELS)
@pytest.mark.parametrize('shape', SHAPES)
def test_shapes_with_poison(kernel, shape):
  q, k, v = draw(SHAPES[shape])
  positions, slot_positions = book(21, q.shape[3])
  k, v = poison(k, slot_positions), poison(v, slot_positions)
  answer = grouped(q, k, v, positions, slot_positions, kernel)
  scale = q.shape[-1] ** -0.5
  check(
    answer, oracle.attention(q, positions, k, v, slot_positions, scale=scale)
  )


@pytest.mark.parametrize('kernel', KERNELS)
@pytest.mark.parametrize('rule', RULES)
def test_rules(kernel, rule):
  q, k, v = draw((2, 3, 4, 16, 24))
  positions, slot_positions = book(33, 4)
  ours, loops = RULES[rule]
  answer = grouped(q, k, v, positions, slot_positions, kernel, **ours)
  want = oracle.attention(
    q, positions, k, v, slot_positions, scale=0.25, **loops
  )
  check(answer, want)


@pytest.mark.parametrize('kernel', KERNELS)
@pytest.mark.parametrize('length', (0, 1, 2, 35))
def test_lengths(kernel, length):
  q, k, v = draw((2, 2, 1, 16, 16))
  positions, slot_positions = book(length, 1)
  k, v = poison(k, slot_positions), poison(v, slot_positions)
  answer = grouped(q, k, v, positions, slot_positions, kernel)
  want = oracle.attention(q, positions, k, v, slot_positions, scale=0.25)
  check(answer, want)
  if not length:
    assert np.all(np.asarray(answer[1]) == -np.inf)
    assert not np.any(answer[0])


@pytest.mark.parametrize('kernel', KERNELS)
@pytest.mark.parametrize('codec', ('int8', 'half'))
def test_narrow_streams_are_read_as_they_decode(kernel, codec):
  q, k, v = draw((2, 4, 1, 64, 32), slots=300)
  positions, slot_positions = book(290, 1, slots=300)
  if codec == 'int8':
    codec = kvjax.Int8()
    read = lambda x: np.asarray(codec.decode(codec.encode(x, None)))
    k, v = poison(k, slot_positions), poison(v, slot_positions)
    wide = [np.where(np.isnan(x), 0, read(x)) for x in (k, v)]
  else:
    codec, k, v = None, k.astype(jnp.bfloat16), v.astype(jnp.bfloat16)
    wide = [x.astype(np.float32) for x in (k, v)]
  answer = grouped(q, k, v, positions, slot_positions, kernel, codec)
  check(
    answer,
    oracle.attention(q, positions, *wide, slot_positions, scale=0.125),
    2e-5,
  )


@pytest.mark.parametrize('name', CODES)
def test_codes_of_groups_are_read_as_they_decode(name):
  codec, shape = CODES[name]
  q, k, v = draw(shape, slots=150)
  positions, slot_positions = book(140, shape[2], slots=150)
  k, v = poison(k, slot_positions), poison(v, slot_positions)
  answer = grouped(q, k, v, positions, slot_positions, 'ffi', codec)
  read = lambda x: np.asarray(
    codec.decode(codec.encode(np.nan_to_num(x), None))
  )
  scale = shape[3] ** -0.5
  want = oracle.attention(
    q, positions, read(k), read(v), slot_positions, scale=scale
  )
  check(answer, want, 1e-4)  # queries have 16 bits


@pytest.mark.parametrize('kernel', KERNELS)
def test_heads_may_hold_their_own_tokens(kernel):
  q, k, v = draw((2, 2, 1, 16, 16), slots=150)
  positions, slot_positions = book(140, 1, slots=150)
  slot_positions = np.stack(
    [slot_positions, np.roll(slot_positions, 17, axis=1)], axis=1
  )
  answer = grouped(q, k, v, positions, slot_positions, kernel)
  want = oracle.attention(q, positions, k, v, slot_positions, scale=0.25)
  check(answer, want)


@pytest.mark.parametrize('case', PAGES)
def test_pages(case):
  """In any order, one shared, one missing; NaN wherever no token is."""
  page, shape, codec, rule = PAGES[case]
  q, k, v = draw(shape, slots=300)
  slot_positions = ordered(290, 300)
  slot_positions[0, page : 2 * page] = -1
  for x in (k, v):
    x[1, :, :page] = x[0, :, :page]
  pools, slots, table = in_pages(
    {'key': poison(k, slot_positions), 'value': poison(v, slot_positions)},
    slot_positions,
    page,
  )
  positions = np.array([[290], [145]], np.int32)
  positions = positions - np.arange(shape[2], 0, -1, dtype=np.int32)
  ours, loops = RULES[rule]
  attend = functools.partial(
    grouped, q, *pools.values(), positions, slots, 'ffi', codec, **ours
  )
  answer = attend(table=table)
  k, v = (np.asarray(codec.decode(codec.encode(x, x.dtype))) for x in (k, v))
  scale = q.shape[-1] ** -0.5
  want = oracle.attention(
    q, positions, k, v, slot_positions, scale=scale, **loops
  )
  check(answer, want, 1e-4 if case.endswith('packed') else 1e-5)
  for page in (-7, pools['key'].shape[1], 2**31 - 1):  # nor one of these
    other = attend(table=np.where(table < 0, page, table).astype(np.int32))
    jax.tree.map(np.testing.assert_array_equal, other, answer)


@pytest.mark.parametrize('kernel', KERNELS)
@pytest.mark.parametrize('how', ['plain', 'int8', 'pages', 'packed'])
def test_latent_streams(kernel, how):
  codecs = {'int8': kvjax.Int8(), 'packed': kvjax.Affine(group=16)}
  codec = codecs.get(how, kvjax.Plain())
  q, latent, rotary = draw((1, 6, 2, 48, 16), slots=70)
  turned = draw((1, 6, 2, 16, 16), slots=70)[0]
  positions, slot_positions = book(66, 2, slots=70)
  stored = codec.encode(jnp.asarray(latent), jnp.float32)
  where = {'latent': stored, 'rotary': rotary}, slot_positions[:, None]
  if how == 'pages':
    slot_positions = ordered(66, 70)
    for x in (latent, rotary):
      x[1, :, :16] = x[0, :, :16]
    where = in_pages({'latent': latent, 'rotary': rotary}, slot_positions, 16)
    stored = jnp.asarray(latent)
  streams, *where = jax.tree.map(jnp.asarray, where)
  answer = run(
    {'latent': jnp.asarray(q), 'rotary': jnp.asarray(turned)},
    streams,
    jnp.asarray(positions),
    *where,
    kernel=kernel,
    rule=kvjax.Scoring(0.125, value='latent'),
    codecs=(('latent', codec), ('rotary', kvjax.Plain())),
  )
  latent = np.asarray(codec.decode(stored))
  both = [np.concatenate(x, -1) for x in ((q, turned), (latent, rotary))]
  want = oracle.attention(
    both[0], positions, both[1], latent, slot_positions, scale=0.125
  )
  check(answer, want)


@pytest.mark.parametrize('kernel', KERNELS)
def test_many_blocks_of_rising_scores(kernel):
  """Whole blocks of slots, tiles of 8, 2 and 1 rows, strips of features."""
  q, k, v = draw((2, 11, 1, 64, 144), slots=300)
  positions, slot_positions = book(290, 1, slots=300)
  k = k * 0.1 + q[:, :, :1, 0] * np.linspace(0, 0.5, 300)[:, None]
  k, v = poison(k, slot_positions), poison(v, slot_positions)
  k = k.astype(np.float32)
  answer = grouped(q, k, v, positions, slot_positions, kernel)
  want = oracle.attention(q, positions, k, v, slot_positions, scale=0.125)
  check(answer, want)


@pytest.mark.parametrize('kernel', KERNELS)
@pytest.mark.parametrize('part', ['sinks', 'recent', 'none'])
def test_a_part_of_the_positions(kernel, part):
  first, last = {'sinks': (0, 3), 'recent': (4, 99), 'none': (50, 60)}[part]
  q, k, v = draw((2, 3, 4, 16, 24))
  positions, slot_positions = book(33, 4)
  rules = {'visibility': kvjax.Visibility(window=6, sink_tokens=4)}
  answer = grouped(
    q, k, v, positions, slot_positions, kernel, part=(first, last), **rules
  )
  want = oracle.attention(
    q,
    positions,
    k,
    v,
    np.where(
      (slot_positions < first) | (slot_positions > last), -1, slot_positions
    ),
    scale=0.25,
    sees=lambda p, s: s <= p and (s > p - 6 or s < 4),
  )
  check(answer, want)


def test_derivative_is_that_of_the_plain_form():
  q, k, v = draw((2, 2, 1, 16, 16))
  positions, slot_positions = np.array([[29], [14]], np.int32), ordered(30)
  pools, *where = in_pages({'key': k, 'value': v}, slot_positions, 8)

  def loss(kernel, q):
    slots, table = where
    out, _ = grouped(q, *pools.values(), positions, slots, kernel, table=table)
    return jnp.sum(out**2)

  answer, want = (jax.grad(loss, 1)(kernel, q) for kernel in KERNELS)
  np.testing.assert_allclose(answer, want, atol=1e-5)


def test_vmap():
  q, k, v = draw((2, 2, 1, 16, 16))
  positions, slot_positions = book(30, 1)
  several = np.stack([q, 2 * q])
  attend = lambda q: grouped(q, k, v, positions, slot_positions, 'ffi')[0]
  answer = jax.vmap(attend)(several)
  for i in range(2):
    np.testing.assert_allclose(answer[i], attend(several[i]), atol=1e-6)
