"""Programs of eight devices, and what kvjax.sharding finds in them, as JSON.

Runs in a process with eight CPU devices: python -m tests.sharding.programs
"""

import json

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import kvjax
from kvjax.sharding import assert_moves, collectives

DEVICES = 8
B, D, V, S = 4, 64, 32, 256
LAYER = kvjax.Layer(kvjax.Grouped(8, 2, 16), kvjax.MLP(128))
CONFIG = kvjax.ModelConfig(V, D, (LAYER, LAYER))
SHORT = kvjax.ModelConfig(V, D, (LAYER,))
SPARSE = kvjax.Layer(kvjax.Grouped(8, 2, 16), kvjax.Experts(8, 2, 32))
# By output channel, or by what the product sums over.
ROWS = ('query', 'key', 'value', 'gate', 'up', 'embedding')
COLUMNS = ('output', 'down')


def mesh_of(size: int, name: str = 'x') -> jax.sharding.Mesh:
  auto = (AxisType.Auto,)
  devices = jax.devices()[:size]
  return jax.make_mesh((size,), (name,), axis_types=auto, devices=devices)


WHOLE = P()


def array(*shape, split=WHOLE, mesh=None, dtype=jnp.float32):
  sharding = NamedSharding(mesh or mesh_of(DEVICES), split)
  return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)


def compile_step(step, *args):
  return jax.jit(step).lower(*args).compile()


def whole(x):
  return jax.lax.with_sharding_constraint(
    x, NamedSharding(mesh_of(DEVICES), P())
  )


def by_device(function, **specs):
  return jax.shard_map(function, mesh=mesh_of(DEVICES), **specs)


def contracted(x, w):
  with jax.named_scope('layer_3'), jax.named_scope('attend'):
    return whole(x @ w)


def gathered(x, w):
  return x @ whole(w)


def summed_in_loop(x):
  def turn(_, x):
    return jax.lax.psum(x, 'x') * 0.5

  def run(x):
    return jax.lax.fori_loop(0, 3, turn, jax.lax.psum(x, 'x'))

  return by_device(run, in_specs=P('x'), out_specs=P(), check_vma=False)(x)


def nested(x, w):
  def inner(_, x):
    return jnp.tanh(whole(x @ w))

  def outer(x, _):
    with jax.named_scope('layer_3'):
      return jax.lax.fori_loop(0, 5, inner, x), None

  with jax.named_scope('steps'):
    return jax.lax.scan(outer, x, None, length=3)[0]


def in_condition(x):
  def run(x):
    return jax.lax.while_loop(
      lambda x: jax.lax.pmax(x, 'x')[0] < 9, lambda x: 2 * x + 1, x
    )

  return by_device(run, in_specs=P('x'), out_specs=P('x'), check_vma=False)(x)


def exchanged(x):
  def run(x):
    return jax.lax.all_to_all(x, 'x', 1, 0, tiled=True)

  return by_device(run, in_specs=P('x'), out_specs=P('x'))(x)


def combined(x, y):
  def run(x, y):
    return jax.lax.psum((x, y), 'x')

  return by_device(run, in_specs=P('x'), out_specs=P())(x, y)


def shifted(x):
  def run(x):
    return jax.lax.ppermute(x, 'x', [(0, 1), (1, 0)])

  return by_device(run, in_specs=P('x'), out_specs=P('x'))(x)


def branches(x, w, flag):
  return jax.lax.cond(flag, lambda: whole(x @ w), lambda: whole(2 * (x @ w)))


def small_programs():
  x, w = array(4, 64, split=P(None, 'x')), array(64, 32, split=P('x'))
  square = array(64, 64, split=P('x'))
  rows = array(16, 64, split=P('x'))
  yield 'contracted', compile_step(contracted, x, w)
  yield 'gathered', compile_step(gathered, array(4, 64), w)
  yield 'summed_in_loop', compile_step(summed_in_loop, rows)
  yield 'nested', compile_step(nested, array(4, 64), square)
  yield 'in_condition', compile_step(in_condition, array(8, split=P('x')))
  yield 'exchanged', compile_step(exchanged, rows)
  other = array(8, 32, split=P('x'))
  yield 'combined', compile_step(combined, rows, other)
  yield 'shifted', compile_step(shifted, rows)
  flag = array(dtype=jnp.bool_)
  yield 'branches', compile_step(branches, x, w, flag)
  yield 'one_device', compile_step(lambda x: x @ x, jnp.ones((4, 4)))


def decode_programs():
  """Yields decode steps, each split along one axis by plain jit."""
  for name, config, size, codec in (
    ('heads', CONFIG, 2, None),
    ('slots', CONFIG, 8, None),
    ('coded_slots', SHORT, 8, kvjax.Int8()),
  ):
    mesh = mesh_of(size)
    params = split_params(config, mesh, 'heads' if size == 2 else '')
    cache = split_cache(config, mesh, name, codec)
    yield name, decode(config, params, cache)
  mesh = mesh_of(2)
  generate = lambda *given: kvjax.generate(SHORT, *given, num_tokens=3)
  yield (
    'generated',
    compile_step(
      generate,
      split_params(SHORT, mesh, 'heads'),
      split_cache(SHORT, mesh, 'heads'),
      array(B, V, mesh=mesh),
    ),
  )
  mesh = mesh_of(DEVICES)
  config = kvjax.ModelConfig(V, D, (SPARSE,))
  cache = split_cache(config, mesh, '')
  params = split_params(config, mesh, 'experts')
  yield 'experts', decode(config, params, cache)
  params = split_params(config, mesh, 'experts', kvjax.quantize)
  yield 'coded_experts', decode(config, params, cache)


def decode(config, params, cache):
  def step(params, cache, token, unread):
    return kvjax.decode_step(config, params, cache, token)

  mesh = cache.length.sharding.mesh
  token = array(B, mesh=mesh, dtype=jnp.int32)
  jitted = jax.jit(step, donate_argnames='cache')
  return jitted.lower(params, cache, token, {'a': token}).compile()


def split_params(config, mesh, axis, convert=lambda params: params):
  def place(path, leaf):
    name = [key.key for key in path if hasattr(key, 'key')][-1]
    split = WHOLE
    if axis == 'heads' and name in ROWS:
      split = P('x')
    elif axis == 'heads' and name in COLUMNS:
      split = P(None, 'x')
    elif axis == 'experts' and leaf.shape[0] == 8 and name != 'router':
      split = P('x')
    return array(*leaf.shape, split=split, mesh=mesh, dtype=leaf.dtype)

  init = lambda: convert(kvjax.init_params(config, jax.random.key(0)))
  return jax.tree.map_with_path(place, jax.eval_shape(init))


def split_cache(config, mesh, axis, codec=None):
  init = lambda: kvjax.init_cache(config, B, S, codec=codec or kvjax.Plain())
  cache = jax.eval_shape(init)
  split = P(None, 'x') if axis == 'heads' else P(None, None, 'x')
  split = split if axis else P()

  def place(tree, split):
    return jax.tree.map(
      lambda x: array(*x.shape, split=split, mesh=mesh, dtype=x.dtype), tree
    )

  stores = place(cache.stores, split)
  return place(cache, P()).replace(stores=stores)


def others_step():
  """Returns a program of params that kvjax did not make, without a cache.

  Its one collective has 1,024 bytes. A device stores 4,096 bytes of the weight,
  128 and 16 of bias and norm, and the whole of the router.
  """

  def step(params, x):
    mlp = params['layers'][0]['mlp']
    y = whole(x @ mlp['up'].T) + mlp['up_bias'].sum() + mlp['up_norm'].sum()
    return y + mlp['router'].sum() + params['embedding'][0, 0]

  mlp = {
    'up': array(64, 128, split=P(None, 'x')),
    'up_bias': array(8, 32, split=P('x')),
    'up_norm': array(8, 4, split=P('x')),
    'router': array(2, 64),
  }
  params = {'layers': [{'mlp': mlp}], 'embedding': array(8, 8, split=P('x'))}
  return compile_step(step, params, array(4, 128, split=P(None, 'x')))


def error_of(compiled, **options) -> str:
  """Returns the class and the message of what `assert_moves` raises, or ''."""
  try:
    assert_moves(compiled, **options)
  except (AssertionError, ValueError) as error:
    return f'{type(error).__name__}: {error}'
  return ''


def main() -> None:
  programs = dict(small_programs()) | dict(decode_programs())
  programs['others'] = others_step()
  heads, others = programs['heads'], programs['others']
  print(
    json.dumps(
      {
        'moves': {name: collectives(x) for name, x in programs.items()},
        'texts': {name: x.as_text() for name, x in programs.items()},
        'errors': {
          'heads': error_of(heads, most={'all-reduce': 5, 'all-gather': 0}),
          'heads_of_a_kind': error_of(heads, most={'all-reduce': 4}),
          'heads_of_all_kinds': error_of(heads, most=3),
          'heads_unknown_kind': error_of(heads, most={'all_reduce': 3}),
          'heads_negative': error_of(heads, most=-1),
          'heads_unknown_group': error_of(heads, no_gather_of=('weights',)),
          'slots': error_of(programs['slots']),
          'slots_of_params': error_of(
            programs['slots'], no_gather_of=('params',)
          ),
          'coded_slots': error_of(programs['coded_slots']),
          'experts': error_of(programs['experts']),
          'coded_experts': error_of(programs['coded_experts']),
          'experts_of_cache': error_of(
            programs['experts'], no_gather_of=('cache',)
          ),
          'others': error_of(others, no_gather_of=('params',)),
          'others_without_cache': error_of(others),
          'without_params': error_of(
            programs['nested'], no_gather_of=('params',)
          ),
          'nothing': error_of(programs['nested'], no_gather_of=()),
        },
      }
    )
  )


if __name__ == '__main__':
  main()
