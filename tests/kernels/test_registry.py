"""Which kernel attends, and what the library refuses."""

import dataclasses
import os
import re
import shutil
import subprocess
import sys
import warnings
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import kvjax
from kvjax import kernels
from kvjax.kernels import blockwise, cpu_library
from kvjax.kernels.kernel import refuses_stored
from kvjax.native import build, load
from kvjax.streams.view import contiguous_view
from tests.kernels.drawn import SLOTS, book, build_or_skip, draw

RULE = kvjax.Scoring(0.25)
setup_module = build_or_skip


def drawn_view(tokens=1):
  """Returns queries `[B, K, G, T, H]` and the view of a plain store."""
  q, k, v = draw((2, 2, tokens, 16, 16))
  _, slot_positions = book(30, tokens)
  view = contiguous_view({'key': k, 'value': v}, slot_positions[:, None], 30)
  plain, names = kvjax.Plain(), ('key', 'value')
  view = view.map(
    dict, lambda x: {name: plain.stored(x[name]) for name in names}
  )
  return {'key': jnp.asarray(q)}, view


def choose(queries, view, kernel=None, **options):
  return kernels.choose(queries, view, RULE, kernel=kernel, **options)


def test_default_is_the_fastest_that_serves():
  assert choose(*drawn_view()) == 'ffi'
  assert choose(*drawn_view(), block=16) == 'blockwise'
  assert choose(*drawn_view(tokens=100)) == 'blockwise'
  queries, view = drawn_view()
  pages = dataclasses.replace(view, table=jnp.zeros((2, 1), jnp.int32))
  assert choose(queries, pages) == 'ffi'
  assert 'through a table' in refuses_stored(1, 1, pages, RULE)
  mapped = view.map(dict)  # a map that nobody can apply to whole leaves
  assert choose(queries, mapped) == 'blockwise'


def test_a_forced_kernel_is_refused_where_it_cannot_serve():
  queries, view = drawn_view(tokens=100)
  with pytest.raises(ValueError, match='200 query rows'):
    choose(queries, view, 'ffi')
  with pytest.raises(ValueError, match="'cuda' must be one of"):
    choose(queries, view, 'cuda')
  assert choose(*drawn_view(), 'blockwise') == 'blockwise'


def test_a_size_of_block_is_refused_by_a_kernel_that_takes_none():
  with pytest.raises(ValueError, match='block=16 is a size for the block'):
    choose(*drawn_view(), 'ffi', block=16)
  assert choose(*drawn_view(), 'blockwise', block=16) == 'blockwise'


def test_a_record_needs_no_registration():
  queries, view = drawn_view()
  negated = dataclasses.replace(
    blockwise.KERNEL,
    name='negated',
    attend=lambda *args, **options: jax.tree.map(
      jnp.negative, blockwise.attend(*args, **options)
    ),
  )
  absent = dataclasses.replace(negated, missing=lambda: 'it is not here')
  positions = jnp.full((2, 1), 30)
  attend = lambda kernel: kvjax.attend(
    queries, positions, [view], RULE, kernel=kernel
  )
  assert choose(queries, view, negated) == 'negated'
  np.testing.assert_array_equal(attend(negated)[0], -attend('blockwise')[0])
  with pytest.raises(ValueError, match="kernel='negated' cannot serve: it is"):
    attend(absent)
  assert kernels.available([absent])['negated'] == 'it is not here'
  assert set(kernels.available()) == set(kernels.KERNELS)


def test_a_step_takes_a_record():
  queries = []
  recorded = dataclasses.replace(
    blockwise.KERNEL,
    name='recorded',
    attend=lambda *args, **options: (
      queries.append(args[0]) or blockwise.attend(*args, **options)
    ),
  )
  layer = kvjax.Layer(kvjax.Grouped(2, 1, 16), kvjax.MLP(24))
  config = kvjax.ModelConfig(53, 32, (layer,))
  params = kvjax.init_params(config, jax.random.key(0))
  cache = kvjax.init_cache(config, 1, 8)
  kvjax.decode_step(config, params, cache, jnp.zeros(1, int), kernel=recorded)
  assert len(queries) == 1


def test_a_rule_of_its_own_is_left_to_the_plain_form():
  class Strided(kvjax.Visibility):
    def sees(self, queries, keys):
      return super().sees(queries, keys) & (keys % 2 == 0)

  queries, view = drawn_view()
  rule = kvjax.Scoring(0.25, visibility=Strided())
  assert kernels.choose(queries, view, rule) == 'blockwise'
  with pytest.raises(ValueError, match='Strided'):
    kernels.choose(queries, view, rule, kernel='ffi')


def test_the_environment_decides_nothing():
  with mock.patch.dict(os.environ, KVJAX_KERNEL='blockwise'):
    assert choose(*drawn_view()) == 'ffi'


def test_without_the_library_the_plain_form_answers():
  reason = 'the kernel is not built'
  with mock.patch.object(load, 'missing', lambda: reason):
    assert choose(*drawn_view()) == 'blockwise'
    reasons = kernels.available()
    assert (reasons['ffi'], reasons['blockwise']) == (reason, '')
    with pytest.raises(ValueError, match=reason):
      choose(*drawn_view(), 'ffi')


@pytest.fixture
def unbuilt(monkeypatch):
  """A process that has warned of nothing, without the library."""
  monkeypatch.setattr(build, 'find', lambda: None)
  monkeypatch.setattr(build, '_libraries', lambda: [])
  for cached in (load.missing, load.warn_if_missing):
    cached.cache_clear()
  yield
  for cached in (load.missing, load.warn_if_missing):
    cached.cache_clear()


def test_without_the_library_the_first_attention_warns_once(unbuilt):
  command = f'run: {sys.executable} {build.PACKAGE / "build.py"}'
  with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter('always')
    for _ in range(2):
      assert choose(*drawn_view()) == 'blockwise'
  (warning,) = caught
  assert warning.category is kernels.KernelNotBuiltWarning
  assert str(warning.message).endswith(command)


def test_who_wants_no_library_is_not_warned(unbuilt):
  with warnings.catch_warnings():
    warnings.simplefilter('error')
    choose(*drawn_view(), 'blockwise')
    choose(*drawn_view(), block=16)
    with kernels.targeting('tpu'):
      choose(*drawn_view())


def test_bad_shapes_are_refused():
  q, k, v = (jnp.asarray(x) for x in draw((2, 2, 1, 16, 16)))
  positions, slot_positions = (jnp.asarray(x) for x in book(30, 1))
  with pytest.raises(Exception, match='shapes do not fit'):
    streams = {'key': kvjax.Plain().stored(k[:, :1])}
    streams['value'] = kvjax.Plain().stored(v)
    rule = kvjax.Scoring(0.25)
    slot_positions = slot_positions[:, None]
    out = cpu_library._attend(
      rule,
      (0, 29),
      {'key': q},
      positions,
      streams,
      blockwise.Slots(slot_positions, jnp.int32(30)),
    )
    jax.block_until_ready(out)
  out = jax.ShapeDtypeStruct(q.shape, q.dtype)
  call = jax.ffi.ffi_call(
    load.DECODE, (out, jax.ShapeDtypeStruct(q.shape[:4], q.dtype))
  )
  none, last = jnp.zeros(0), jnp.int32(30)
  given = (
    positions,
    slot_positions,
    last,
    jnp.zeros(0, jnp.int32),
    q,
    k,
    none,
    none,
  )
  # A shared stream that is not there, no value, half a value.
  for shared, more in ((1, ()), (-1, ()), (-1, (v,))):
    attributes = cpu_library._rule(rule, 0, 29) | {'shared': np.int32(shared)}
    attributes['forms'] = np.asarray([0, 16, 0] * 2, np.int32)[
      : 3 if shared > 0 else 6
    ]
    with pytest.raises(Exception, match='shapes do not fit'):
      jax.block_until_ready(call(*given, *more, **attributes))
  pool = {'key': kvjax.Plain().stored(k), 'value': kvjax.Plain().stored(k)}
  for lead, columns in (
    ((1, 2), (3, 1)),
    ((2, 2), (2, 1)),
    ((1, 3), (2, 1)),
    ((1, 2), (2,)),
  ):
    slot_positions = jnp.zeros((*lead, SLOTS), jnp.int32)
    table = jnp.zeros(columns, jnp.int32)
    with pytest.raises(Exception, match='shapes do not fit'):
      out = cpu_library._attend(
        rule,
        (0, 29),
        {'key': q},
        positions,
        pool,
        blockwise.Slots(slot_positions, 30, table),
      )
      jax.block_until_ready(out)


def test_a_step_reads_its_cache_in_place_and_lowers_everywhere():
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
  assert compiled.as_text().count(f'"{load.DECODE}"') == 2
  kvjax.memory.assert_in_place(compiled, 'cache')
  for platform in ('cuda', 'tpu'):
    text = traced.lower(lowering_platforms=(platform,)).as_text()
    assert load.DECODE not in text


def test_a_library_that_is_there_is_not_built_again(tmp_path):
  first = run_build(tmp_path)
  (library,) = tmp_path.glob('*.so')
  assert first.stdout == f'{library}\n'
  again = run_build(tmp_path, PATH='', CXX='')
  assert again.stdout == first.stdout


def run_build(folder, **changed):
  """Runs a copy of build.py in a folder where nothing is built."""
  shutil.copytree(build.PACKAGE / 'src', folder / 'src', dirs_exist_ok=True)
  shutil.copy(build.PACKAGE / 'build.py', folder)
  return subprocess.run(
    [sys.executable, str(folder / 'build.py')],
    env=os.environ | {'XDG_CACHE_HOME': str(folder / 'cache')} | changed,
    capture_output=True,
    text=True,
  )


def test_without_a_compiler_the_build_says_so_in_one_line(tmp_path):
  done = run_build(tmp_path, PATH='', CXX='')
  assert done.returncode == 0
  assert re.search('^kvjax runs without .*compiler.*\n$', done.stdout)
