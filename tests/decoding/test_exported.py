"""Programs of `jax.export`: written, read, and run in another process."""

import dataclasses
import importlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import kvjax
from kvjax.decoding import exported
from tests.facts import tiny

CONFIG = tiny.decoder()
CACHES = {
  'dense': {},
  'bfloat16': {'dtype': jnp.bfloat16},
  'int8': {'codec': kvjax.Int8()},
  'ring': {'kinds': kvjax.Ring(7)},
  'sinks': {'kinds': kvjax.Sinks(2, 5)},
  'paged': {'kinds': kvjax.Paged(3)},
  'rules': {
    'mesh': jax.make_mesh((1,), ('c',), (jax.sharding.AxisType.Auto,)),
    'rules': kvjax.sharding.Rules(slots='c', vocab=()),
  },
  'bounded': {'kinds': kvjax.Bounded(7, score=kvjax.HeavyHitters(recent=2))},
}
ANY_CALL = [
  jax.export.DisabledSafetyCheck.custom_call(name)
  for name in kvjax.kernels.CUSTOM_CALLS
]
OTHER_PROCESS = """
import sys
import jax
import jax.numpy as jnp
import numpy as np
import kvjax
from tests.facts import tiny

config = tiny.decoder()
params, tokens = tiny.params(config), tiny.tokens(2, 5)
if sys.argv[2] == 'ffi':
  assert kvjax.kernels.available()['ffi'] == ''
with open(sys.argv[1], 'rb') as file:
  program = jax.export.deserialize(file.read())
cache = kvjax.init_cache(config, 2, 16)
for token in tokens.T:
  logits, cache = program.call(params, cache, token)
assert cache.length.tolist() == [5, 5]
np.save(sys.argv[1] + '.npy', logits)
"""


def export(config, cache, kernel='blockwise', **options):
  """Returns an exported step of a model with a cache like this."""
  step = lambda params, cache, token: kvjax.decode_step(
    config, params, cache, token, kernel=kernel
  )
  token = jnp.zeros(cache.batch_size, jnp.int32)
  return jax.export.export(jax.jit(step), **options)(
    tiny.params(config), cache, token
  )


@pytest.mark.parametrize('name', CACHES)
def test_what_is_static_comes_back(name):
  cache = kvjax.init_cache(CONFIG, 2, 16, **CACHES[name])
  (layout,) = exported.read_static(exported.write_static((cache.layout,)))
  assert layout == cache.layout and hash(layout) == hash(cache.layout)


@pytest.mark.parametrize('name', CACHES)
def test_a_step_through_bytes(name):
  pytest.importorskip('flatbuffers', reason='jax.export serializes by it')
  cache = kvjax.init_cache(CONFIG, 2, 16, **CACHES[name])
  params, ids = tiny.params(CONFIG), tiny.tokens(2, 6)
  _, cache = kvjax.prefill(CONFIG, params, cache, ids[:, :5])
  data = export(CONFIG, cache).serialize()
  program = jax.export.deserialize(data)
  logits, after = program.call(params, cache, ids[:, 5])
  want, want_after = kvjax.decode_step(
    CONFIG, params, cache, ids[:, 5], donate=False, kernel='blockwise'
  )
  tiny.close(logits, want)
  assert jax.tree.structure(after) == jax.tree.structure(want_after)
  other = kvjax.init_cache(CONFIG, 2, 17, **CACHES[name])
  with pytest.raises(ValueError, match='pytree|[Ss]hape'):
    program.call(params, other, ids[:, 5])


def test_int8_params_and_a_source():
  pytest.importorskip('flatbuffers', reason='jax.export serializes by it')
  params = kvjax.quantize(tiny.params(CONFIG))
  forward = jax.jit(lambda params, ids: kvjax.forward(CONFIG, params, ids))
  ids = tiny.tokens(2, 5)
  data = jax.export.export(forward)(params, ids).serialize()
  got = jax.export.deserialize(data).call(params, ids)
  tiny.close(got, forward(params, ids))
  source = kvjax.Encoded(jnp.ones((2, 3, 5)), jnp.zeros((2, 3), jnp.int32))
  data = jax.export.export(jax.jit(lambda x: x))(source).serialize()
  same = jax.export.deserialize(data).call(source)
  tiny.alike(same, source)


@pytest.mark.parametrize('kernel', ['blockwise', 'ffi'])
def test_another_process_runs_it(kernel, tmp_path):
  pytest.importorskip('flatbuffers', reason='jax.export serializes by it')
  if reason := kvjax.kernels.available()[kernel]:
    pytest.skip(reason)
  checks = ANY_CALL if kernel == 'ffi' else ()
  cache = kvjax.init_cache(CONFIG, 2, 16)
  program = export(CONFIG, cache, kernel, disabled_checks=checks)
  path = tmp_path / 'step'
  path.write_bytes(program.serialize())
  subprocess.run(
    [sys.executable, '-c', OTHER_PROCESS, str(path), kernel], check=True
  )
  want = kvjax.forward(CONFIG, tiny.params(CONFIG), tiny.tokens(2, 5))[:, -1]
  tiny.close(np.load(f'{path}.npy'), want)


def test_a_call_of_the_library_is_refused_by_name():
  if reason := kvjax.kernels.available()['ffi']:
    pytest.skip(reason)
  cache = kvjax.init_cache(CONFIG, 2, 16)
  with pytest.raises(ValueError, match='custom calls[^$]*kvjax_decode'):
    export(CONFIG, cache, 'ffi')
  export(CONFIG, cache, 'ffi', disabled_checks=ANY_CALL)


def test_kvjax_can_be_imported_again():
  importlib.reload(kvjax)


@dataclasses.dataclass(frozen=True)
class Other(kvjax.Kind):
  """A kind that kvjax does not know."""


def test_a_kind_of_your_own_is_refused_by_name():
  cache = kvjax.init_cache(CONFIG, 2, 16, kinds=Other())
  with pytest.raises(ValueError, match="'Other' is a type .* jax.tree.leaves"):
    exported.write_static((cache.layout,))
  leaves, treedef = jax.tree.flatten(cache)
  step = lambda leaves, token: jax.tree.leaves(
    kvjax.decode_step(
      CONFIG, tiny.params(CONFIG), jax.tree.unflatten(treedef, leaves), token
    )
  )
  jax.export.export(jax.jit(step), disabled_checks=ANY_CALL)(
    leaves, jnp.zeros(2, jnp.int32)
  )


@pytest.mark.parametrize(
  'text', [b'', b'[', b'[{"type": "os.system"}]', b'[{"type": "Layout"}]']
)
def test_damaged_bytes_are_refused(text):
  with pytest.raises(ValueError):
    exported.read_static(text)


@pytest.mark.parametrize('weights', ['float32', 'bfloat16', 'int8'])
def test_a_symbolic_batch(weights):
  """One program of `forward`, and one of a step, for any number of rows."""
  params = tiny.params(CONFIG)
  if weights == 'int8':
    params = kvjax.quantize(params)
  else:
    params = jax.tree.map(lambda x: x.astype(weights), params)
  (b,) = jax.export.symbolic_shape('b')
  any_rows = lambda x: jax.ShapeDtypeStruct((b, *x.shape[1:]), x.dtype)
  ids = tiny.tokens(3, 5)
  forward = lambda params, ids: kvjax.forward(CONFIG, params, ids)
  program = jax.export.export(jax.jit(forward))(params, any_rows(ids))
  limit = 2e-2 if weights == 'bfloat16' else 1e-5
  tiny.close(program.call(params, ids), forward(params, ids), limit)
  step = lambda params, cache, token: kvjax.decode_step(
    CONFIG, params, cache, token, donate=False, kernel='blockwise'
  )[0]
  cache = kvjax.init_cache(CONFIG, 3, 16)
  program = jax.export.export(jax.jit(step))(
    params, jax.tree.map(any_rows, cache), any_rows(ids[:, 0])
  )
  want = step(params, cache, ids[:, 0])
  tiny.close(program.call(params, cache, ids[:, 0]), want, limit)
