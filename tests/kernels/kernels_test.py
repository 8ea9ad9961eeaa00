"""Every kernel against loops in NumPy, on what a cache may hold."""

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
from kvjax.caches.view import contiguous_view
from kvjax.kernels import ffi
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


@functools.partial(
  jax.jit, static_argnames=('kernel', 'rule', 'codecs', 'part')
)
def run(
  queries, streams, positions, held, *, kernel, rule, codecs, part=(0, 999)
):
  """Attends to streams encoded by their codecs."""
  view = contiguous_view(streams, held, jnp.int32(held.shape[2]))
  view = view.only(*part).map(
    lambda x: {n: c.decode(x[n]) for n, c in codecs},
    lambda x: {n: c.stored(x[n]) for n, c in codecs},
  )
  return kernels.attend_view(queries, positions, view, rule, kernel=kernel)


def grouped(
  q, k, v, positions, held, kernel, codec=None, part=(0, 999), **rules
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

  @parameterized.named_parameters(named(kernel=KERNELS, how=('plain', 'int8')))
  def test_latent_streams(self, kernel, how):
    codec = kvjax.Int8() if how == 'int8' else kvjax.Plain()
    q, latent, rotary = draw((1, 6, 2, 48, 16), slots=70)
    turned = draw((1, 6, 2, 16, 16), slots=70)[0]
    positions, held = book(66, 2, slots=70)
    stored = codec.encode(jnp.asarray(latent), jnp.float32)
    found = run(
      {'latent': jnp.asarray(q), 'rotary': jnp.asarray(turned)},
      {'latent': stored, 'rotary': jnp.asarray(rotary)},
      jnp.asarray(positions),
      jnp.asarray(held[:, None]),
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
    positions, held = book(30, 1)

    def loss(kernel, q):
      return jnp.sum(grouped(q, k, v, positions, held, kernel)[0] ** 2)

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

  def test_a_step_reads_its_cache_in_place_and_lowers_everywhere(self):
    layer = kvjax.Layer(kvjax.Grouped(4, 2, 16), kvjax.MLP(24))
    config = kvjax.ModelConfig(53, 32, (layer,) * 2)
    params = kvjax.init_params(config, jax.random.key(0))
    cache = kvjax.init_cache(config, 3, 300)
    token = jnp.zeros((3,), jnp.int32)
    step = lambda params, cache, token: kvjax.decode_step(
      config, params, cache, token, kernel='ffi'
    )
    traced = jax.jit(step, donate_argnames='cache').trace(params, cache, token)
    compiled = traced.lower().compile()
    self.assertIn(loaded.DECODE, compiled.as_text())
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
