"""Every kernel against loops in NumPy, on what a cache may hold."""

import dataclasses
import functools
import os
import subprocess
import sys
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

import kvjax
from kvjax import kernels
from kvjax.caches.paged import PagedBook
from kvjax.caches.view import contiguous_view
from kvjax.kernels import ffi
from kvjax.kernels.stored import refuses_stored
from kvjax.native import library, loaded
from tests.attention import oracle

BATCH, SLOTS = 2, 37
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


def setUpModule():
  if loaded.missing():
    try:
      library.build()
    except library.BuildError as error:
      raise absltest.SkipTest(str(error)) from error
    loaded.missing.cache_clear()


def draw(shape, slots=SLOTS):
  """Returns normal queries, keys and values in NumPy."""
  heads, groups, tokens, width, value = shape
  rng = np.random.default_rng(sum(shape))
  sizes = (heads, groups, tokens, width), (heads, slots, width)
  return [
    rng.standard_normal((BATCH, *size), dtype=np.float32)
    for size in (*sizes, (heads, slots, value))
  ]


def book(length, tokens, slots=SLOTS):
  """Returns query positions `[B, T]` and slots' positions `[B, S]`."""
  held = np.full((BATCH, slots), -1, np.int32)
  held[0, :length] = np.arange(length)
  held[1, slots - length // 2 :] = np.arange(length // 2)[::-1]
  last = np.array([[length], [length // 2]], np.int32)
  positions = last - np.arange(tokens, 0, -1, dtype=np.int32)
  return np.maximum(positions, -1), held


def poison(x, held):
  """Returns streams `[B, K, S, H]`, NaN in every slot without a token."""
  return np.where(held[:, None, :, None] < 0, np.nan, x)


def ordered(length, slots=SLOTS):
  """Returns positions `[B, S]` of rows of a length and half of it."""
  index = np.arange(slots, dtype=np.int32)
  return np.where(index < [[length], [length // 2]], index, -1)


def in_pages(streams, held, page):
  """Returns pools of `[B, K, S, H]`, of positions `[B, S]`, and the table.

  Pages lie in no order, rows share the first, what is empty is in none; no row
  has the pool's last one.
  """
  columns = -(-held.shape[1] // page)
  order = np.random.default_rng(page).permutation(2 * columns)
  table = order.reshape(2, columns).astype(np.int32)
  table[1, 0] = table[0, 0]

  def pool(x, fill):
    x = np.moveaxis(x, 2, 0)
    more = np.full((columns * page - len(x), *x.shape[1:]), fill, x.dtype)
    x = np.concatenate([x, more])
    x = x.reshape(columns, page, *x.shape[1:])
    x = np.moveaxis(x, (2, 3), (1, 0))  # [K, B, columns, page, ...]
    whole = np.full((len(x), 2 * columns + 1, *x.shape[3:]), fill, x.dtype)
    for row in range(2):
      whole[:, table[row]] = x[:, row]
    return whole

  pools = {name: pool(x, np.nan) for name, x in streams.items()}
  positions = pool(held[:, None], -1)
  empty = (positions[0, table] < 0).all(-1)
  return pools, positions, np.where(empty, -1, table)


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


class SelectionTest(parameterized.TestCase):
  def view(self, tokens=1):
    q, k, v = draw((2, 2, tokens, 16, 16))
    positions, held = book(30, tokens)
    view = contiguous_view({'key': k, 'value': v}, held[:, None], 30)
    plain, codec = kvjax.Plain(), ('key', 'value')
    view = view.map(dict, lambda x: {n: plain.stored(x[n]) for n in codec})
    return {'key': jnp.asarray(q)}, view

  def choose(self, queries, view, kernel=None, **options):
    rule = kvjax.Scoring(0.25)
    return kernels.choose(queries, view, rule, kernel=kernel, **options)

  def test_default_is_the_fastest_that_serves(self):
    self.assertEqual(self.choose(*self.view()), 'ffi')
    self.assertEqual(self.choose(*self.view(), block=16), 'blockwise')
    self.assertEqual(self.choose(*self.view(tokens=100)), 'blockwise')
    queries, view = self.view()
    pages = dataclasses.replace(view, table=jnp.zeros((2, 1), jnp.int32))
    self.assertEqual(self.choose(queries, pages), 'ffi')
    rule = kvjax.Scoring(0.25)
    self.assertRegex(refuses_stored(1, 1, pages, rule), 'through a table')
    mapped = view.map(dict)  # by what nobody can say of whole leaves
    self.assertEqual(self.choose(queries, mapped), 'blockwise')

  def test_a_forced_kernel_is_refused_where_it_cannot_serve(self):
    queries, view = self.view(tokens=100)
    with self.assertRaisesRegex(ValueError, '200 query rows'):
      self.choose(queries, view, 'ffi')
    with self.assertRaisesRegex(ValueError, "'cuda' must be one of"):
      self.choose(queries, view, 'cuda')
    self.assertEqual(self.choose(*self.view(), 'blockwise'), 'blockwise')

  def test_a_size_of_block_is_refused_by_a_kernel_that_takes_none(self):
    with self.assertRaisesRegex(ValueError, 'block=16 is a size for the block'):
      self.choose(*self.view(), 'ffi', block=16)
    self.assertEqual(
      self.choose(*self.view(), 'blockwise', block=16), 'blockwise'
    )
    with mock.patch.dict(os.environ, KVJAX_KERNEL='ffi'):
      self.assertEqual(self.choose(*self.view(), block=16), 'blockwise')

  def test_a_rule_of_its_own_is_left_to_the_plain_form(self):
    class Strided(kvjax.Visibility):
      def sees(self, queries, keys):
        return super().sees(queries, keys) & (keys % 2 == 0)

    queries, view = self.view()
    rule = kvjax.Scoring(0.25, visibility=Strided())
    self.assertEqual(kernels.choose(queries, view, rule), 'blockwise')
    with self.assertRaisesRegex(ValueError, 'Strided'):
      kernels.choose(queries, view, rule, kernel='ffi')

  def test_the_environment_sets_the_default(self):
    with mock.patch.dict(os.environ, KVJAX_KERNEL='blockwise'):
      self.assertEqual(self.choose(*self.view()), 'blockwise')
      self.assertEqual(self.choose(*self.view(), 'ffi'), 'ffi')
    with mock.patch.dict(os.environ, KVJAX_KERNEL='ffi'):
      self.assertEqual(self.choose(*self.view()), 'ffi')
      self.assertEqual(self.choose(*self.view(tokens=100)), 'blockwise')

  def test_without_the_library_the_plain_form_answers(self):
    reason = 'the kernel is not built'
    with mock.patch.object(loaded, 'missing', lambda: reason):
      self.assertEqual(self.choose(*self.view()), 'blockwise')
      found = kernels.available()
      self.assertEqual((found['ffi'], found['blockwise']), (reason, ''))
      with self.assertRaisesRegex(ValueError, reason):
        self.choose(*self.view(), 'ffi')
      with mock.patch.dict(os.environ, KVJAX_KERNEL='ffi'):
        with self.assertRaisesRegex(ValueError, reason):
          self.choose(*self.view())

  def test_bad_shapes_are_refused(self):
    q, k, v = (jnp.asarray(x) for x in draw((2, 2, 1, 16, 16)))
    positions, held = (jnp.asarray(x) for x in book(30, 1))
    with self.assertRaisesRegex(Exception, 'shapes do not fit'):
      streams = {'key': kvjax.Plain().stored(k[:, :1])}
      streams['value'] = kvjax.Plain().stored(v)
      rule = kvjax.Scoring(0.25)
      held = held[:, None]
      out = ffi._attend(
        rule, (0, 29), {'key': q}, positions, streams, held, jnp.int32(30)
      )
      jax.block_until_ready(out)
    out = jax.ShapeDtypeStruct(q.shape, q.dtype)
    call = jax.ffi.ffi_call(
      loaded.DECODE, (out, jax.ShapeDtypeStruct(q.shape[:4], q.dtype))
    )
    none, last = jnp.zeros(0), jnp.int32(30)
    given = positions, held, last, jnp.zeros(0, jnp.int32), q, k, none
    # A shared stream that is not there, no value, half a value.
    for shared, more in ((1, ()), (-1, ()), (-1, (v,))):
      attributes = ffi._rule(rule, 0, 29) | {'shared': np.int32(shared)}
      with self.assertRaisesRegex(Exception, 'shapes do not fit'):
        jax.block_until_ready(call(*given, *more, **attributes))
    pool = {'key': kvjax.Plain().stored(k), 'value': kvjax.Plain().stored(k)}
    for lead, columns in (
      ((1, 2), (3, 1)),
      ((2, 2), (2, 1)),
      ((1, 3), (2, 1)),
      ((1, 2), (2,)),
    ):
      held = jnp.zeros((*lead, SLOTS), jnp.int32)
      table = jnp.zeros(columns, jnp.int32)
      with self.assertRaisesRegex(Exception, 'shapes do not fit'):
        out = ffi._attend(
          rule, (0, 29), {'key': q}, positions, pool, held, 30, table
        )
        jax.block_until_ready(out)

  def test_a_step_reads_its_cache_in_place_and_lowers_everywhere(self):
    layer = kvjax.Layer(kvjax.Grouped(4, 2, 16), kvjax.MLP(24))
    config = kvjax.ModelConfig(53, 32, (layer,) * 2)
    params = kvjax.init_params(config, jax.random.key(0))
    kinds = kvjax.Dense(), kvjax.Paged()
    cache = kvjax.init_cache(config, 3, 300, kinds=kinds)
    token = jnp.zeros((3,), jnp.int32)
    step = lambda params, cache, token: kvjax.decode_step(
      config, params, cache, token, kernel='ffi'
    )
    traced = jax.jit(step, donate_argnames='cache').trace(params, cache, token)
    compiled = traced.lower().compile()
    self.assertEqual(compiled.as_text().count(f'"{loaded.DECODE}"'), 2)
    kvjax.memory.assert_in_place(compiled, 'cache')
    for platform in ('cuda', 'tpu'):
      text = traced.lower(lowering_platforms=(platform,)).as_text()
      self.assertNotIn(loaded.DECODE, text)

  def test_without_a_compiler_the_build_says_so_in_one_line(self):
    env = os.environ | {'PATH': '', 'CXX': ''}
    done = subprocess.run(
      [sys.executable, str(library.SOURCE.with_name('library.py'))],
      env=env,
      capture_output=True,
      text=True,
    )
    self.assertEqual(done.returncode, 0)
    self.assertRegex(done.stdout, '^kvjax runs without .*compiler.*\n$')


if __name__ == '__main__':
  absltest.main()
