"""Which kernel attends, and what the library refuses."""

import dataclasses
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
from kvjax.kernels import cpu_library
from kvjax.kernels.refusals import refuses_stored
from kvjax.native import build, load
from kvjax.streams.view import contiguous_view
from tests.kernels.drawn import SLOTS, book, build_or_skip, draw

setUpModule = build_or_skip


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
    with mock.patch.object(load, 'missing', lambda: reason):
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
      out = cpu_library._attend(
        rule, (0, 29), {'key': q}, positions, streams, held, jnp.int32(30)
      )
      jax.block_until_ready(out)
    out = jax.ShapeDtypeStruct(q.shape, q.dtype)
    call = jax.ffi.ffi_call(
      load.DECODE, (out, jax.ShapeDtypeStruct(q.shape[:4], q.dtype))
    )
    none, last = jnp.zeros(0), jnp.int32(30)
    given = positions, held, last, jnp.zeros(0, jnp.int32), q, k, none
    # A shared stream that is not there, no value, half a value.
    for shared, more in ((1, ()), (-1, ()), (-1, (v,))):
      attributes = cpu_library._rule(rule, 0, 29) | {'shared': np.int32(shared)}
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
        out = cpu_library._attend(
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
    self.assertEqual(compiled.as_text().count(f'"{load.DECODE}"'), 2)
    kvjax.memory.assert_in_place(compiled, 'cache')
    for platform in ('cuda', 'tpu'):
      text = traced.lower(lowering_platforms=(platform,)).as_text()
      self.assertNotIn(load.DECODE, text)

  def test_without_a_compiler_the_build_says_so_in_one_line(self):
    env = os.environ | {'PATH': '', 'CXX': ''}
    done = subprocess.run(
      [sys.executable, str(build.PACKAGE / 'build.py')],
      env=env,
      capture_output=True,
      text=True,
    )
    self.assertEqual(done.returncode, 0)
    self.assertRegex(done.stdout, '^kvjax runs without .*compiler.*\n$')


if __name__ == '__main__':
  absltest.main()
