"""Every kernel against loops in NumPy, on what a cache may hold."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

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
}

setUpModule = build_or_skip


@functools.partial(
  jax.jit, static_argnames=('kernel', 'rule', 'codecs', 'part')
)
def run(
  queries,
  streams,
  positions,
  held,
  table=None,
  *,
  kernel,
  rule,
  codecs,
  part=(0, 999),
):
  """Attends to streams encoded by their codecs, pools where a table is."""
  if table is None:
    view = contiguous_view(streams, held, jnp.int32(held.shape[2]))
  else:
    kind = kvjax.Paged(held.shape[2], slots=table.shape[1] * held.shape[2])
    book = PagedBook(held, table, jnp.zeros(held.shape[1], jnp.int32))
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
  held,
  kernel,
  codec=None,
  part=(0, 999),
  table=None,
  **rules,
):
  """Attends to keys and values; returns output and log-sum-exp."""
  codec = codec or kvjax.Plain()
  held = held[:, None] if held.ndim == 2 else held
  dtype = k.dtype
  streams = {
    name: codec.encode(jnp.asarray(x), dtype)
    for name, x in (('key', k), ('value', v))
  }
  return run(
    {'key': jnp.asarray(q)},
    streams,
    jnp.asarray(positions),
    jnp.asarray(held),
    None if table is None else jnp.asarray(table),
    kernel=kernel,
    rule=kvjax.Scoring(q.shape[-1] ** -0.5, **rules),
    codecs=tuple((name, codec) for name in streams),
    part=part,
  )


def named(**axes):
  """Returns the product of named values, each with a readable name."""
  cases = [('', ())]
  for values in axes.values():
    cases = [
      (f'{name}_{value}', (*case, value))
      for name, case in cases
      for value in values
    ]
  return [(name, *case) for name, case in cases]


class KernelTest(parameterized.TestCase):
  def check(self, found, want, tolerance=1e-5):
    np.testing.assert_allclose(found[0], want[0], atol=tolerance)
    np.testing.assert_allclose(found[1], want[1], atol=tolerance)

  @parameterized.named_parameters(named(kernel=KERNELS, shape=SHAPES))
  def test_shapes_with_poison(self, kernel, shape):
    q, k, v = draw(SHAPES[shape])
    positions, held = book(21, q.shape[3])
    k, v = poison(k, held), poison(v, held)
    found = grouped(q, k, v, positions, held, kernel)
    scale = q.shape[-1] ** -0.5
    self.check(found, oracle.attention(q, positions, k, v, held, scale=scale))

  @parameterized.named_parameters(named(kernel=KERNELS, rule=RULES))
  def test_rules(self, kernel, rule):
    q, k, v = draw((2, 3, 4, 16, 24))
    positions, held = book(33, 4)
    ours, loops = RULES[rule]
    found = grouped(q, k, v, positions, held, kernel, **ours)
    want = oracle.attention(q, positions, k, v, held, scale=0.25, **loops)
    self.check(found, want)

  @parameterized.named_parameters(named(kernel=KERNELS, length=(0, 1, 2, 35)))
  def test_lengths(self, kernel, length):
    q, k, v = draw((2, 2, 1, 16, 16))
    positions, held = book(length, 1)
    k, v = poison(k, held), poison(v, held)
    found = grouped(q, k, v, positions, held, kernel)
    want = oracle.attention(q, positions, k, v, held, scale=0.25)
    self.check(found, want)
    if not length:
      self.assertTrue(np.all(np.asarray(found[1]) == -np.inf))
      self.assertFalse(np.any(found[0]))

  @parameterized.named_parameters(named(kernel=KERNELS, codec=('int8', 'half')))
  def test_narrow_streams_are_read_as_they_decode(self, kernel, codec):
    q, k, v = draw((2, 4, 1, 64, 32), slots=300)
    positions, held = book(290, 1, slots=300)
    if codec == 'int8':
      codec = kvjax.Int8()
      read = lambda x: np.asarray(codec.decode(codec.encode(x, None)))
      k, v = poison(k, held), poison(v, held)
      wide = [np.where(np.isnan(x), 0, read(x)) for x in (k, v)]
    else:
      codec, k, v = None, k.astype(jnp.bfloat16), v.astype(jnp.bfloat16)
      wide = [x.astype(np.float32) for x in (k, v)]
    found = grouped(q, k, v, positions, held, kernel, codec)
    self.check(
      found, oracle.attention(q, positions, *wide, held, scale=0.125), 2e-5
    )

  @parameterized.named_parameters(named(kernel=KERNELS))
  def test_heads_may_hold_their_own_tokens(self, kernel):
    q, k, v = draw((2, 2, 1, 16, 16), slots=150)
    positions, held = book(140, 1, slots=150)
    held = np.stack([held, np.roll(held, 17, axis=1)], axis=1)
    found = grouped(q, k, v, positions, held, kernel)
    want = oracle.attention(q, positions, k, v, held, scale=0.25)
    self.check(found, want)

  @parameterized.named_parameters(named(case=PAGES))
  def test_pages(self, case):
    """In any order, one shared, one missing; NaN wherever no token is."""
    page, shape, codec, rule = PAGES[case]
    q, k, v = draw(shape, slots=300)
    held = ordered(290, 300)
    held[0, page : 2 * page] = -1
    for x in (k, v):
      x[1, :, :page] = x[0, :, :page]
    pools, slots, table = in_pages(
      {'key': poison(k, held), 'value': poison(v, held)}, held, page
    )
    positions = np.array([[290], [145]], np.int32)
    positions = positions - np.arange(shape[2], 0, -1, dtype=np.int32)
    ours, loops = RULES[rule]
    attend = functools.partial(
      grouped, q, *pools.values(), positions, slots, 'ffi', codec, **ours
    )
    found = attend(table=table)
    k, v = (np.asarray(codec.decode(codec.encode(x, x.dtype))) for x in (k, v))
    scale = q.shape[-1] ** -0.5
    want = oracle.attention(q, positions, k, v, held, scale=scale, **loops)
    self.check(found, want)
    for page in (-7, pools['key'].shape[1], 2**31 - 1):  # nor one of these
      other = attend(table=np.where(table < 0, page, table).astype(np.int32))
      jax.tree.map(np.testing.assert_array_equal, other, found)

  @parameterized.named_parameters(
    named(kernel=KERNELS, how=('plain', 'int8', 'pages'))
  )
  def test_latent_streams(self, kernel, how):
    codec = kvjax.Int8() if how == 'int8' else kvjax.Plain()
    q, latent, rotary = draw((1, 6, 2, 48, 16), slots=70)
    turned = draw((1, 6, 2, 16, 16), slots=70)[0]
    positions, held = book(66, 2, slots=70)
    stored = codec.encode(jnp.asarray(latent), jnp.float32)
    where = {'latent': stored, 'rotary': rotary}, held[:, None]
    if how == 'pages':
      held = ordered(66, 70)
      for x in (latent, rotary):
        x[1, :, :16] = x[0, :, :16]
      where = in_pages({'latent': latent, 'rotary': rotary}, held, 16)
      stored = jnp.asarray(latent)
    streams, *where = jax.tree.map(jnp.asarray, where)
    found = run(
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
      both[0], positions, both[1], latent, held, scale=0.125
    )
    self.check(found, want)

  @parameterized.named_parameters(named(kernel=KERNELS))
  def test_many_blocks_of_rising_scores(self, kernel):
    """Whole blocks of slots, tiles of 8, 2 and 1 rows, strips of features."""
    q, k, v = draw((2, 11, 1, 64, 144), slots=300)
    positions, held = book(290, 1, slots=300)
    k = k * 0.1 + q[:, :, :1, 0] * np.linspace(0, 0.5, 300)[:, None]
    k, v = poison(k, held), poison(v, held)
    k = k.astype(np.float32)
    found = grouped(q, k, v, positions, held, kernel)
    want = oracle.attention(q, positions, k, v, held, scale=0.125)
    self.check(found, want)

  @parameterized.named_parameters(
    named(kernel=KERNELS, part=('sinks', 'recent', 'none'))
  )
  def test_a_part_of_the_positions(self, kernel, part):
    first, last = {'sinks': (0, 3), 'recent': (4, 99), 'none': (50, 60)}[part]
    q, k, v = draw((2, 3, 4, 16, 24))
    positions, held = book(33, 4)
    rules = {'visibility': kvjax.Visibility(window=6, sink_tokens=4)}
    found = grouped(
      q, k, v, positions, held, kernel, part=(first, last), **rules
    )
    want = oracle.attention(
      q,
      positions,
      k,
      v,
      np.where((held < first) | (held > last), -1, held),
      scale=0.25,
      sees=lambda p, s: s <= p and (s > p - 6 or s < 4),
    )
    self.check(found, want)

  def test_derivative_is_that_of_the_plain_form(self):
    q, k, v = draw((2, 2, 1, 16, 16))
    positions, held = np.array([[29], [14]], np.int32), ordered(30)
    pools, *where = in_pages({'key': k, 'value': v}, held, 8)

    def loss(kernel, q):
      slots, table = where
      out, _ = grouped(
        q, *pools.values(), positions, slots, kernel, table=table
      )
      return jnp.sum(out**2)

    found, want = (jax.grad(loss, 1)(kernel, q) for kernel in KERNELS)
    np.testing.assert_allclose(found, want, atol=1e-5)

  def test_vmap(self):
    q, k, v = draw((2, 2, 1, 16, 16))
    positions, held = book(30, 1)
    several = np.stack([q, 2 * q])
    attend = lambda q: grouped(q, k, v, positions, held, 'ffi')[0]
    found = jax.vmap(attend)(several)
    for i in range(2):
      np.testing.assert_allclose(found[i], attend(several[i]), atol=1e-6)


if __name__ == '__main__':
  absltest.main()
