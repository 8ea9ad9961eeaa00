"""Cached equals uncached over split slots, and what a mesh refuses.

  python -m tests.sharding.contracts [GROUP ...]

Runs in a process of eight CPU devices; prints name, seconds and fault of each
contract, as JSON. Kv heads are split in 2, slots in 4, weights in 8.
"""

import ast
import collections
import dataclasses
import functools
import itertools
import json
import re
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType

import kvjax
from kvjax.models.uncached import with_visibility
from kvjax.sharding import Rules, of_params
from kvjax.testing import assert_cached_matches_uncached
from tests.contract.oracle import NearTie, Sees
from tests.contract.table import (
  LENGTH,
  LONG,
  VOCAB,
  WIDTH,
  Cell,
  Row,
  Variant,
  draw,
  text,
)
from tests.sharding.eight_devices import local_bytes
from tests.test_extend import PAGES

CAPACITY = 24
RULES = Rules(heads=('kv', 'c'), slots='c')
CONTRACTS: dict[str, dict[str, Callable[[], Any]]] = collections.defaultdict(
  dict
)
"""What raises where something is wrong, by group and name."""


@functools.cache
def mesh_of(axes: AxisType = AxisType.Auto) -> jax.sharding.Mesh:
  return jax.make_mesh((2, 4), ('kv', 'c'), axis_types=(axes,) * 2)


def contract(function: Callable[[], Any]) -> Callable[[], Any]:
  """Registers a function that raises where something is wrong."""
  CONTRACTS['calls'][function.__name__] = function
  return function


@dataclasses.dataclass(frozen=True)
class SplitCell(Cell):
  """A cell of the contract table, over the mesh."""

  rules: Rules = RULES

  def init(self, batch: int, capacity: int = CAPACITY) -> kvjax.Cache:
    return init(
      self.config,
      batch,
      kinds=self.row.kind,
      codec=self.codec,
      rules=self.rules,
    )


def init(config, batch, *, rules=RULES, capacity=CAPACITY, **options):
  """Returns an empty cache over the mesh, whose slots are really split."""
  cache = kvjax.init_cache(
    config, batch, capacity, mesh=mesh_of(), rules=rules, **options
  )
  if rules['slots']:
    for leaf in jax.tree.leaves(cache.stores):
      assert leaf.addressable_shards[0].data.shape[2] < leaf.shape[2]
  return cache


def place(config: kvjax.ModelConfig, params: Any, rules: Rules = RULES) -> Any:
  return jax.device_put(params, of_params(config, mesh_of(), rules))


ROTARY = kvjax.Rotary(6, base=100.0)
GQA = Variant('gqa', kvjax.Grouped(8, 2, 6, value_width=5, rotary=ROTARY))
# No rule splits six heads in eight: one sum merges what devices attended to.
SIX = Variant('six', kvjax.Grouped(6, 2, 6, value_width=5, rotary=ROTARY))
MLA = Variant('mla', kvjax.Latent(8, 11, 5, 7, rotary=kvjax.Rotary(4)))
KINDS = (
  Row('dense', kvjax.Dense(), Sees(), 4, False),
  Row('ring', kvjax.Ring(window=5, slack=3), Sees(5), 4, True),
  Row('sinks', kvjax.Sinks(sinks=2, window=5, slack=1), Sees(5, 2), 2, True),
  Row(
    'renumbered',
    kvjax.Sinks(sinks=2, window=5, slack=1, renumber=True),
    Sees(5, 2, renumber=True),
    2,
    True,
  ),
  Row('paged', kvjax.Paged(page=4), Sees(), 4, False),
)


def product() -> dict[str, SplitCell]:
  """Returns the cells of the product that are run, by name."""
  found = [SplitCell(GQA, row, None, '') for row in KINDS]
  found += [
    SplitCell(MLA, row, None, '') for row in KINDS if row.name != 'sinks'
  ]
  found += [
    SplitCell(variant, KINDS[0], codec, '')
    for variant, codec in ((SIX, None), (GQA, kvjax.Int8()))
  ]
  found.append(SplitCell(GQA, KINDS[1], kvjax.Int8(), ''))
  found.append(SplitCell(GQA, KINDS[4], kvjax.Int8(), ''))
  return {
    f'{x.variant.name}_{x.row.name}{"_int8" if x.codec else ""}': x
    for x in found
  }


def run_cell(cell: SplitCell) -> None:
  # Rows change alike in all variants and codecs.
  changes: dict[str, Any] = {}
  if cell.variant is GQA and cell.codec is None:
    changes = {'rewind': kvjax.rewind, 'take': kvjax.take, 'fork': kvjax.fork}
  for seed in range(20):
    params = draw(cell.config, seed)
    try:
      assert_cached_matches_uncached(
        cell.oracle(params),
        cell.init,
        functools.partial(cell.extend, place(cell.config, params)),
        **changes,
        tokens=text(seed),
        chunkings=(3, None),
        widths=(3, LENGTH),
        rewind_by=cell.row.rewinds,
        wrap=LONG if cell.row.wraps else None,
      )
      return
    except NearTie:
      continue
  raise AssertionError('no seed without near ties')


for cell_name, cell in product().items():
  CONTRACTS[cell.row.name][cell_name] = functools.partial(run_cell, cell)


def grouped(**more: Any) -> kvjax.Layer:
  attention = kvjax.Grouped(8, 2, 8, value_width=5, **more)
  return kvjax.Layer(attention, kvjax.MLP(16))


TURN = kvjax.Rotary(8, base=100.0)
FEATURES = {
  'sink_logits_and_softcap': (
    grouped(rotary=TURN, sinks=True, softcap=3.0),
    grouped(sinks=True, scale=0.5),
  ),
  'alibi': (grouped(bias=kvjax.Alibi()),),
  'relative': (grouped(bias=kvjax.RelativeBias(8, 11)),) * 2,
  'shared_keys_and_values': (
    grouped(rotary=TURN),
    grouped(rotary=TURN, shared_from=0),
  ),
  'biased_experts': (
    dataclasses.replace(
      grouped(rotary=TURN, projection_bias=True),
      mlp=kvjax.Experts(8, 2, 16, bias=True, shared=kvjax.MLP(16)),
    ),
  ),
}
# Of how many devices share heads a bias must know nothing.
SPLITS = {'slots': RULES, 'heads': Rules(heads=('kv', 'c'))}


def run_feature(name: str, rules: Rules) -> None:
  config = kvjax.ModelConfig(VOCAB, WIDTH, FEATURES[name])
  run_model(config, draw(config, 0), rules=rules)


def run_model(config, params, kind=None, *, reference=None, **options) -> None:
  """Asserts that a split cache gives the logits of the uncached model."""
  rules = options.get('rules', RULES)
  on_mesh = place(config, params, rules)
  uncached = jax.jit(functools.partial(kvjax.forward, reference or config))
  assert_cached_matches_uncached(
    lambda tokens: uncached(params, jnp.asarray(tokens)),
    lambda batch: init(config, batch, kinds=kind, **options),
    lambda cache, tokens, lengths: kvjax.extend(
      config, on_mesh, cache, jnp.asarray(tokens), lengths
    ),
    vocab_size=config.vocab_size,
    chunkings=(3,),
    widths=(3, 7),
  )


CONTRACTS['features'] = {
  f'{name}_by_{split}': functools.partial(run_feature, name, rules)
  for name in FEATURES
  for split, rules in SPLITS.items()
}


def run_long_prefill(attention: Any, kind: kvjax.Kind) -> None:
  """Feeds 320 tokens at once, then some one by one."""
  config = kvjax.ModelConfig(
    VOCAB, WIDTH, (kvjax.Layer(attention, kvjax.MLP(16)),)
  )
  params = draw(config, 0)
  tokens = text(0, 2, 324)
  seen = with_visibility(config, kind.visible_through)
  wanted = kvjax.forward(seen, params, jnp.asarray(tokens))
  on_mesh = place(config, params)
  cache = init(config, 2, capacity=328, kinds=kind)
  found, cache = kvjax.prefill(
    config, on_mesh, cache, tokens[:, :320], [320, 317]
  )
  close(found, np.stack([wanted[0, 319], wanted[1, 316]]))
  cache = kvjax.rewind(cache, np.asarray([317, 317]))
  for index in range(317, 324):
    found, cache = kvjax.decode_step(config, on_mesh, cache, tokens[:, index])
    close(found, wanted[:, index])


LONG_KINDS = {
  'dense': kvjax.Dense(),
  'ring': kvjax.Ring(window=37, slack=7),
  'paged': kvjax.Paged(page=16),
}
CONTRACTS['long'] = {
  f'long_prefill_{variant.name}_{name}': functools.partial(
    run_long_prefill, variant.attention, kind
  )
  for variant in (GQA, MLA)
  for name, kind in LONG_KINDS.items()
}


def close(found: Any, wanted: Any, rtol: float = 1e-5) -> None:
  found, wanted = np.asarray(found), np.asarray(wanted)
  error = np.abs(found - wanted).max() / np.abs(wanted).max()
  assert error <= rtol, f'differs by {error:.1e}'


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


def run_encoder_decoder(rules: Rules) -> None:
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
  on_mesh = place(config, params, rules)
  encoded = kvjax.encode(config, on_mesh, source, [9, 5, 1, 7])
  cache = init(config, 4, rules=rules, source_length=9)
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
  """What compares all slots of a row is split by rows and heads."""
  config = kvjax.ModelConfig(VOCAB, WIDTH, (grouped(rotary=TURN),))
  params, tokens = draw(config, 0), jnp.asarray(text(0, 4, 13))
  kind = kvjax.Bounded(budget=6, slack=2)
  rules = Rules(batch='c', heads='kv')
  wanted, _ = kvjax.extend(
    config, params, kvjax.init_cache(config, 4, CAPACITY, kinds=kind), tokens
  )
  cache = init(config, 4, rules=rules, kinds=kind)
  found, cache = kvjax.extend(
    config, place(config, params, rules), cache, tokens
  )
  close(found, wanted)


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


def run(function: Callable[[], Any]) -> str:
  """Returns what is wrong with a contract, '' for nothing."""
  try:
    function()
  except Exception as error:
    return f'{type(error).__name__}: {error}'[:1500]
  return ''


def main(groups: Sequence[str]) -> None:
  for group in groups or CONTRACTS:
    for name, function in CONTRACTS[group].items():
      start = time.time()
      line = {'name': name, 'fault': run(function)}
      line['seconds'] = round(time.time() - start, 1)
      print(json.dumps(line), flush=True)


if __name__ == '__main__':
  main(sys.argv[1:])
