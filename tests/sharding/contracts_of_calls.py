"""Calls of a split cache, classes of users, and what a mesh refuses."""

import ast
import dataclasses
import functools
import itertools
import math
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType

import kvjax
from kvjax.sharding import Rules, of_params
from tests import compiler
from tests.contract.table import SCORES, VOCAB, WIDTH, draw, text
from tests.facts import tiny
from tests.sharding import cells
from tests.sharding.eight_devices import local_bytes
from tests.sharding.split_cache import (
  CAPACITY,
  CONTRACTS,
  ROTARY,
  RULES,
  TURN,
  close,
  contract,
  grouped,
  init,
  mesh_of,
  place,
  run_model,
)
from tests.test_extend import PAGES


@contract
def overflow_in_one_row():
  """A full row is NaN and flagged; all else is as on one device."""
  for kind in (kvjax.Dense(), kvjax.Paged(page=4)):
    config = kvjax.ModelConfig(VOCAB, WIDTH, (grouped(rotary=TURN),))
    params = draw(config, 0)
    tokens, lengths = text(0, 4, 16), np.asarray([16, 9, 0, 15])
    results = []
    for model, cache in (
      (params, kvjax.init_cache(config, 4, 16, kinds=kind)),
      (place(config, params), init(config, 4, capacity=16, kinds=kind)),
    ):
      _, cache = kvjax.prefill(config, model, cache, tokens, lengths)
      for _ in range(2):
        logits, cache = kvjax.decode_step(config, model, cache, tokens[:, 0])
      results.append((np.asarray(logits), np.asarray(cache.overflow)))
      try:
        kvjax.check(cache)
      except ValueError as error:
        assert 'Rows [0, 3]' in str(error)
      else:
        raise AssertionError('check passed')
    (alone, flags), (split, split_flags) = results
    assert flags.tolist() == split_flags.tolist() == [True, False, False, True]
    assert np.isnan(split).all(1).tolist() == flags.tolist()
    close(split[1:3], alone[1:3])


@contract
def generate_in_ragged_rows():
  """Sampling, stop tokens and rows of different length as on one device."""
  config = kvjax.ModelConfig(VOCAB, WIDTH, (grouped(rotary=TURN),))
  params = draw(config, 0)
  results = []
  for model, cache in (
    (params, kvjax.init_cache(config, 4, CAPACITY)),
    (place(config, params), init(config, 4)),
  ):
    logits, cache = kvjax.prefill(
      config, model, cache, text(0, 4, 9), [9, 1, 3, 7]
    )
    tokens, cache = kvjax.generate(
      config,
      model,
      cache,
      logits,
      12,
      temperature=0.8,
      top_k=7,
      seed=3,
      stop_tokens=(5,),
    )
    results.append((np.asarray(tokens).tolist(), cache.length.tolist()))
  assert results[0] == results[1], results


def run_encoder_decoder(rules: Rules, axes: AxisType = AxisType.Auto) -> None:
  mesh = mesh_of(axes)
  everywhere = kvjax.Visibility(causal=False)
  both = kvjax.RelativeBias(8, 11, True)
  reader = kvjax.Grouped(2, 2, 5, visibility=everywhere, bias=both)
  encoder = kvjax.Encoder((kvjax.Layer(reader, kvjax.MLP(11)),))
  writer = kvjax.Grouped(8, 2, 5, bias=kvjax.RelativeBias(8, 11))
  cross = kvjax.Grouped(4, 2, 5, visibility=everywhere)
  layer = kvjax.Layer(writer, kvjax.MLP(16), cross=cross)
  config = kvjax.ModelConfig(VOCAB, WIDTH, (layer, layer), encoder=encoder)
  params, ids, source = draw(config, 0), text(1, 4, 7), text(2, 4, 9)
  encoded = kvjax.encode(config, params, source, [9, 5, 1, 7])
  wanted = kvjax.forward(config, params, jnp.asarray(ids), encoded=encoded)
  on_mesh = jax.device_put(params, of_params(config, mesh, rules))
  encoded = kvjax.encode(config, on_mesh, source, [9, 5, 1, 7])
  cache = kvjax.init_cache(
    config, 4, CAPACITY, mesh=mesh, rules=rules, source_length=9
  )
  found, cache = kvjax.prefill(
    config, on_mesh, cache, ids[:, :4], encoded=encoded
  )
  close(found, wanted[:, 3])
  for index in range(4, 7):
    found, cache = kvjax.decode_step(config, on_mesh, cache, ids[:, index])
    close(found, wanted[:, index])


CONTRACTS['encoder_decoder'] = {
  f'encoder_decoder_by_{name}': functools.partial(run_encoder_decoder, rules)
  for name, rules in {
    'rows': Rules(batch='c'),
    'heads': Rules(heads=('kv', 'c')),
    'rows_and_heads': Rules(batch='c', heads='kv'),
    'slots': RULES,
  }.items()
}
CONTRACTS['encoder_decoder']['encoder_decoder_on_explicit_axes'] = (
  functools.partial(
    run_encoder_decoder, Rules(heads=('kv', 'c')), AxisType.Explicit
  )
)


@dataclasses.dataclass(frozen=True)
class Halves:
  """A codec of a user: each number as two of bfloat16 that add up to it."""

  def leaves(self, width, dtype):
    trailing = kvjax.streams.codecs.Trailing((width,), jnp.bfloat16, ('width',))
    return {'high': trailing, 'low': trailing}

  def encode(self, x, dtype):
    high = x.astype(jnp.bfloat16)
    low = (x - high.astype(x.dtype)).astype(jnp.bfloat16)
    return {'high': high, 'low': low}

  def decode(self, encoded):
    high, low = encoded['high'], encoded['low']
    return high.astype(jnp.float32) + low.astype(jnp.float32)

  def stored(self, encoded):
    return None


@functools.cache
def names() -> dict[str, Any]:
  """Returns the classes of docs/howto, without the pages' proofs."""
  found: dict[str, Any] = {}
  for block in re.findall(r'```python\n(.*?)```', ''.join(PAGES), re.DOTALL):
    tree = ast.parse(block)
    kept = ast.Import, ast.ImportFrom, ast.ClassDef
    tree.body = [node for node in tree.body if isinstance(node, kept)]
    exec(compile(tree, 'docs/howto', 'exec'), found)
  return found


@contract
def own_kind():
  kind = names()['Chapters'](span=8)
  run_own(grouped(rotary=TURN).attention, kind, kvjax.Visibility(chunk=8))


@contract
def own_mask():
  rule = names()['Strided'](stride=3)
  attention = kvjax.Grouped(8, 2, 8, visibility=rule)
  run_own(attention, kvjax.Dense(), rule)


@contract
def own_variant():
  tied = names()['Tied'](num_heads=8, width=7)
  run_own(tied, kvjax.Ring(window=8), kvjax.Visibility(window=8))


def run_own(attention, kind, rule) -> None:
  config, seen = (
    kvjax.ModelConfig(VOCAB, WIDTH, (kvjax.Layer(x, kvjax.MLP(16)),) * 2)
    for x in (attention, dataclasses.replace(attention, visibility=rule))
  )
  run_model(config, draw(config, 0), kind, reference=seen)


@contract
def own_codec():
  """What it stores is split as any stream, and read part by part."""
  config = kvjax.ModelConfig(VOCAB, WIDTH, (grouped(rotary=TURN),))
  params, tokens = draw(config, 0), jnp.asarray(text(0, 2, 9))
  wanted, _ = kvjax.extend(
    config,
    params,
    kvjax.init_cache(config, 2, CAPACITY, codec=Halves()),
    tokens,
  )
  cache = init(config, 2, codec=Halves())
  found, cache = kvjax.extend(config, place(config, params), cache, tokens)
  close(found, wanted)


@contract
def codecs_of_ours():
  """Packed codes and their scales are split alike, and turned as a whole."""
  attention = kvjax.Grouped(8, 2, 32, value_width=64, rotary=TURN)
  config = kvjax.ModelConfig(
    VOCAB, WIDTH, (kvjax.Layer(attention, kvjax.MLP(16)),)
  )
  params, tokens = draw(config, 0), jnp.asarray(text(0, 2, 9))
  rng = np.random.default_rng(0)
  for key, value in (
    (kvjax.Hadamard(kvjax.Affine(group=8)), kvjax.GGML('q5_0')),
    (
      kvjax.Centred(
        kvjax.LloydMax(bits=3), rng.normal(size=(1, 2, 32)), whole=0
      ),
      kvjax.Hadamard(kvjax.Float8()),
    ),
  ):
    codec = {'key': key, 'value': value}
    wanted = kvjax.forward(config, params, tokens, codec=codec)
    cache = init(config, 2, codec=codec)
    found, cache = kvjax.extend(config, place(config, params), cache, tokens)
    close(found, wanted)


def refused(match: str, function: Callable[[], Any]) -> None:
  """Asserts that a function raises a ValueError with that text."""
  try:
    function()
  except ValueError as error:
    assert match in str(error), f'{error} has no {match!r}'
  else:
    raise AssertionError(f'nothing was raised with {match!r}')


@contract
def refusals():
  config = kvjax.ModelConfig(VOCAB, WIDTH, (grouped(rotary=TURN),))
  make = functools.partial(kvjax.init_cache, config, 4, CAPACITY)
  alive = len(jax.live_arrays())
  bounded = kvjax.Bounded(budget=8)
  refused(
    'no mesh can split its slots',
    lambda: make(kinds=bounded, mesh=mesh_of(), rules=RULES),
  )
  zero = np.zeros((1, 2, 8))
  unrotated = kvjax.Centred(kvjax.Int8(), zero, whole=0, rotated=False)
  refused(
    'are rotated where they are read',
    lambda: make(codec=unrotated, mesh=mesh_of(), rules=RULES),
  )
  refused("mesh axis 'kv' is unknown", lambda: make(mesh=mesh_of()))
  absent = Rules(heads='model')
  refused(
    "name the mesh axis 'model'", lambda: make(mesh=mesh_of(), rules=absent)
  )
  refused('need a mesh', lambda: make(rules=RULES))
  refused('is no mesh', lambda: make(mesh=8, rules=RULES))
  refused(
    "name the mesh axis 'model'", lambda: of_params(config, mesh_of(), absent)
  )
  assert len(jax.live_arrays()) == alive, 'something was allocated'


@contract
def caches_that_left_their_mesh():
  config = kvjax.ModelConfig(VOCAB, WIDTH, (grouped(rotary=TURN),))
  params, tokens = draw(config, 0), text(0, 4, 9)
  split, cache = place(config, params), init(config, 4)
  automatic = AxisType.Auto, AxisType.Auto
  other = jax.make_mesh((2, 2), ('kv', 'c'), axis_types=automatic)
  moved = jax.tree.map(
    lambda x: jax.NamedSharding(other, x.sharding.spec), cache
  )
  moved = jax.device_put(cache, moved)
  elsewhere = jax.device_put(params, of_params(config, other, RULES))
  refused(
    'for another number of devices that share slots than this mesh has, 2',
    lambda: kvjax.prefill(config, elsewhere, moved, tokens),
  )
  refused(
    'Arguments are on two meshes',
    lambda: kvjax.prefill(config, elsewhere, cache, tokens, donate=False),
  )
  on_one = jax.device_put(cache, jax.devices()[0])
  refused(
    'from a mesh of 8 devices on one',
    lambda: kvjax.prefill(config, params, on_one, tokens),
  )
  wanted, _ = kvjax.prefill(config, split, cache, tokens, donate=False)
  through_host = jax.tree.map(jax.device_get, cache)
  close(kvjax.prefill(config, params, through_host, tokens)[0], wanted)


@contract
def a_kernel_by_name_on_a_cache_split_by_hand():
  """No rules say how: XLA would gather all that the kernel reads."""
  if not kvjax.kernels.available()['ffi']:
    config = kvjax.ModelConfig(VOCAB, WIDTH, (grouped(rotary=TURN),))
    params = place(config, draw(config, 0))
    split = jax.NamedSharding(mesh_of(), jax.P(None, 'kv', 'c'))
    whole = jax.NamedSharding(mesh_of(), jax.P())
    cache = jax.device_put(kvjax.init_cache(config, 4, CAPACITY), whole)
    stores = jax.device_put(cache.stores, split)
    cache = dataclasses.replace(cache, stores=stores)
    token = text(0, 4, 1)[:, 0]
    refused(
      "kernel='ffi' cannot serve: arrays are split over devices by no rules",
      lambda: kvjax.decode_step(config, params, cache, token, kernel='ffi'),
    )
    kvjax.check(cache)
    kvjax.decode_step(config, params, cache, token)


@contract
def bounded_caches_split_rows_and_heads():
  """What compares all slots of a row is split by rows and heads.

  A layer has each score, and one more shares the streams of the first.
  """
  layers = (grouped(rotary=TURN),) * len(SCORES)
  layers += (grouped(rotary=TURN, shared_from=0),)
  config = kvjax.ModelConfig(VOCAB, WIDTH, layers)
  params, tokens = draw(config, 0), jnp.asarray(text(0, 4, 13))
  kinds = [kvjax.Bounded(8, score, slack=2) for score in SCORES.values()]
  kinds += [None]
  rules = Rules(batch='c', heads='kv')
  alone = kvjax.init_cache(config, 4, CAPACITY, kinds=kinds)
  wanted, alone = kvjax.extend(config, params, alone, tokens)
  cache = init(config, 4, rules=rules, kinds=kinds)
  found, cache = kvjax.extend(
    config, place(config, params, rules), cache, tokens
  )
  close(found, wanted)
  for one, other in zip(alone.books, cache.books, strict=True):
    np.testing.assert_array_equal(one.positions, other.positions)


@contract
def whole_calls_on_explicit_axes():
  """Every call of a cache works on a mesh whose axes are Explicit."""
  mesh = mesh_of(AxisType.Explicit)
  config = kvjax.ModelConfig(VOCAB, WIDTH, (grouped(rotary=TURN),))
  params, tokens = draw(config, 0), text(0, 4, 9)
  wanted = kvjax.forward(config, params, jnp.asarray(tokens))
  on_mesh = jax.device_put(params, of_params(config, mesh, RULES))
  cache = kvjax.init_cache(config, 4, CAPACITY, mesh=mesh, rules=RULES)
  found, cache = kvjax.extend(config, on_mesh, cache, tokens, donate=False)
  close(found, wanted)
  cache = kvjax.rewind(cache, np.asarray([5, 9, 5, 5]))
  cache = kvjax.take(cache, [3, 0, 0, 2])
  other = kvjax.fork(cache)
  found, cache = kvjax.decode_step(
    config, on_mesh, cache, tokens[[3, 0, 0, 2], 5]
  )
  close(found, np.asarray(wanted)[[3, 0, 0, 2], 5])
  both = kvjax.concat([cache, other])
  assert both.batch_size == 8 and both.length.tolist() == 4 * [6] + 4 * [5]
  assert 'dense' in repr(both)


SHAPES = (
  kvjax.ModelConfig(
    32,
    12,
    (
      kvjax.Layer(
        kvjax.Grouped(8, 2, 6, rotary=ROTARY, sinks=True, projection_bias=True),
        kvjax.Experts(4, 2, 10, bias=True, shared=kvjax.MLP(6)),
      ),
      kvjax.Layer(kvjax.Grouped(8, 2, 6), kvjax.MLP(14, bias=True)),
    ),
    tied=True,
  ),
  kvjax.ModelConfig(
    32,
    12,
    (
      kvjax.Layer(
        kvjax.Latent(4, 10, 6, 6, kvjax.Rotary(4), query_rank=8),
        kvjax.MLP(14),
      ),
    ),
  ),
  kvjax.ModelConfig(32, 12, tiny.recent_layers(8, 2), norm=tiny.RECENT.norm),
)
BY_NAME = (
  {'batch': 2, 'heads': 2},
  {'heads': 2, 'experts': 2},
  {'slots': 2, 'copies': 2},
)


@contract
def planned_as_placed():
  """A device holds the bytes that are planned, of meshes with known names."""
  seen = set()
  for config, sizes, coded in itertools.product(SHAPES, BY_NAME, (False, True)):
    mesh = jax.make_mesh(
      tuple(sizes.values()),
      tuple(sizes),
      devices=jax.devices()[:4],
      axis_types=(AxisType.Auto,) * 2,
    )
    dtype = 'int8' if coded else None
    make = functools.partial(kvjax.init_params, config)
    params = jax.eval_shape(make, jax.random.key(0))
    params = jax.eval_shape(kvjax.quantize, params) if coded else params
    params = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), params)
    params = jax.device_put(params, of_params(config, mesh, param_dtype=dtype))
    for kind in (None, kvjax.Paged(page=4)):
      options = {'kinds': kind, 'mesh': mesh}
      cache = kvjax.init_cache(config, 4, 16, **options)
      plan = kvjax.memory.plan(
        config, batch_size=4, capacity=16, param_dtype=dtype, **options
      )
      placed = local_bytes(params), local_bytes(cache)
      assert placed == (plan.params_bytes, plan.cache_bytes), (sizes, kind)
      seen.add(placed)
  assert len(seen) > 12


def run_share(layout: str) -> None:
  """A device of a mesh needs what a model of its share needs alone.

  Temporaries may be a tenth more, for what is exchanged; all bytes together a
  twentieth.
  """
  config, split = cells.MODELS['gqa'].config, cells.LAYOUTS[layout]
  mesh = jax.make_mesh(
    tuple(split.mesh.values()),
    tuple(split.mesh),
    devices=jax.devices()[: math.prod(split.mesh.values())],
    axis_types=(AxisType.Auto,) * len(split.mesh),
  )
  ways = split.weights
  layer = config.layers[0]
  share = dataclasses.replace(
    config,
    vocab_size=config.vocab_size // ways,
    layers=(
      dataclasses.replace(
        layer,
        attention=dataclasses.replace(
          layer.attention, num_heads=8 // ways, num_kv_heads=max(2 // ways, 1)
        ),
        mlp=kvjax.MLP(cells.HIDDEN // ways),
      ),
    ),
  )
  shardings = of_params(config, mesh, split.rules)
  options = {'mesh': mesh, 'rules': split.rules}
  found = compiled_bytes(config, cells.BATCH, shardings, **options)
  alone = compiled_bytes(share, cells.BATCH // split.rows)
  assert found[0] <= 1.1 * alone[0], (found, alone)
  assert abs(found[1] / alone[1] - 1) <= 0.05, (found, alone)


def compiled_bytes(config, batch, shardings=None, **options) -> tuple[int, int]:
  """Returns bytes of temporaries, and of all, of a compiled decode step."""
  make = functools.partial(kvjax.init_params, config)
  params = jax.eval_shape(make, jax.random.key(0))
  if shardings is not None:
    params = jax.tree.map(
      lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place),
      params,
      shardings,
    )
  cache = kvjax.init_cache(config, batch, cells.CAPACITY, **options)
  step = jax.jit(
    lambda *args: kvjax.decode_step(config, *args), donate_argnums=1
  )
  lowered = step.lower(params, cache, np.zeros(batch, np.int32))
  memory = compiler.as_users_do(lowered).memory_analysis()
  temporaries = memory.temp_size_in_bytes
  made = memory.output_size_in_bytes - memory.alias_size_in_bytes
  return temporaries, memory.argument_size_in_bytes + made + temporaries


CONTRACTS['shares'] = {
  f'share_by_{layout}': functools.partial(run_share, layout)
  for layout in ('rows', 'heads', 'wide')
}
