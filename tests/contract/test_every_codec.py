"""Every codec: cached equals uncached through it, in place, counted, kept."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import kvjax
from kvjax import memory
from kvjax.native import load
from kvjax.streams.codecs import tiering_of
from kvjax.testing import assert_cached_matches_uncached
from tests.compiler import as_users_do
from tests.contract.codecs import CODECS, GROUPED, LATENT, NARROW, Stored
from tests.contract.table import VOCAB, Same, Zero, draw, text
from tests.contract.test_product import on_clear_numbers
from tests.facts.tiny import alike

CENTRED = dataclasses.replace(CODECS['centred'], rotated=False)
BY_TOKEN = {n: x for n, x in CODECS.items() if not Stored(x).is_grouped}
CELLS = {name: Stored(codec) for name, codec in BY_TOKEN.items()} | {
  'hadamard_ring': Stored(
    CODECS['hadamard'], kinds=kvjax.Ring(window=16, slack=2)
  ),
  'by_stream_paged': Stored(CODECS['by_stream'], kinds=kvjax.Paged(page=4)),
  'centred_ring': Stored(CENTRED, kinds=kvjax.Ring(window=16, slack=2)),
  'centred_paged': Stored(CODECS['centred'], kinds=kvjax.Paged(page=4)),
  'absorbed': Stored(CODECS['hadamard'], LATENT, form='absorbed'),
  'expanded': Stored(CODECS['hadamard'], LATENT, form='expanded'),
  'rotary_by_name': Stored(
    {'latent': kvjax.GGML('q5_0'), 'rotary': kvjax.Int8()},
    LATENT,
    form='absorbed',
  ),
  'kivi_paged': Stored(CODECS['kivi'], NARROW, kinds=kvjax.Paged(page=4)),
  'kivi_latent': Stored(CODECS['kivi'], LATENT, form='absorbed'),
}


@pytest.mark.parametrize('cell', CELLS.values(), ids=CELLS)
def test_cached_matches_uncached_through_the_codec(cell):
  """Chunked, ragged, rewound, gathered, forked; and NaN in empty slots."""

  def check(seed):
    params, tokens = draw(cell.config, seed), text(seed, 2, 7)
    cell.assert_clear(params, tokens)
    return assert_cached_matches_uncached(
      functools.partial(cell.forward, params),
      cell.init,
      functools.partial(cell.extend, params),
      rewind=None if cell.is_grouped else kvjax.rewind,
      take=kvjax.take,
      fork=kvjax.fork,
      tokens=tokens,
      chunkings=(3, None),
      widths=(7,),
      rtol=2e-6,
    )

  on_clear_numbers(check)


TURNED = {
  'grouped': Stored(None),
  'absorbed': Stored(None, LATENT, form='absorbed'),
  'expanded': Stored(None, LATENT, form='expanded'),
  'renumbered': Stored(
    None, kinds=kvjax.Sinks(sinks=2, window=3, renumber=True)
  ),
  'observed': Stored(
    None, kinds=kvjax.Bounded(budget=5, score=kvjax.HeavyHitters(recent=1))
  ),
}


@pytest.mark.parametrize('cell', TURNED.values(), ids=TURNED)
def test_a_turn_alone_changes_nothing(cell):
  """A7: products of turned queries and keys are those of the others."""
  params, tokens = draw(cell.config, 0), text(0, 2, 9)
  lengths = np.asarray([9, 6])
  want, found = (
    cell.extend(params, cell.init(2, codec=codec), tokens, lengths)[0]
    for codec in (kvjax.Plain(), kvjax.Hadamard(kvjax.Plain()))
  )
  error = np.abs(found[0] - want[0]).max() / np.abs(want[0]).max()
  assert error <= 1e-6
  assert not np.array_equal(found[0], want[0])


def test_a_layer_that_reads_another_turns_its_queries_as_well():
  shared = kvjax.Grouped(4, 2, 64, value_width=32, shared_from=0)
  alone = kvjax.Grouped(4, 2, 64, value_width=32)
  layers = kvjax.Layer(alone, Zero()), kvjax.Layer(shared, Zero())
  config = kvjax.ModelConfig(VOCAB, 13, layers, norm=Same())
  params, tokens = draw(config, 0), jnp.asarray(text(0, 2, 7))
  codec = kvjax.Hadamard(kvjax.Plain())
  cache = kvjax.init_cache(config, 2, 8, codec=codec)
  found, _ = kvjax.extend(config, params, cache, tokens)
  want = kvjax.forward(config, params, tokens)
  np.testing.assert_allclose(found, want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('codec', BY_TOKEN.values(), ids=BY_TOKEN)
def test_codes_are_written_once(codec, tmp_path):
  """A5: a row's codes are those of the row alone, and stay through all."""
  cell = Stored(codec)
  params, tokens = draw(cell.config, 0), text(0, 2, 7)
  lengths = np.asarray([7, 3])
  _, cache = cell.extend(params, cell.init(2), tokens, lengths)
  _, later = cell.extend(params, cache, tokens * 0, lengths)
  later = kvjax.rewind(kvjax.fork(kvjax.take(later, [0, 1])), lengths)

  def early(cache, row, n):
    kind = cache.layout.stores[0].kind
    parts = kind.tiers(None, cache.stores[0], np.asarray([n]))
    return [
      jax.tree.map(
        lambda x, part=part: x[row, :, : int(part.length[0])], part.store
      )
      for part in parts
    ]

  for row, length in enumerate(lengths):
    alike(early(cache, row, length), early(later, row, length))
  _, alone = cell.extend(
    params, cell.init(2), tokens[::-1].copy(), np.asarray([3, 7])
  )
  alike(early(cache, 1, 3), early(alone, 0, 3))
  path = tmp_path / 'cache.safetensors'
  kvjax.save_cache(path, later, cell.config, params)
  loaded = kvjax.load_cache(path, cell.config, params)
  assert jax.tree.structure(loaded) == jax.tree.structure(later)
  alike(loaded, later)


@pytest.mark.parametrize('codec', CODECS.values(), ids=CODECS)
def test_a_step_is_in_place_and_holds_no_part_of_the_cache(codec):
  """A14: all leaves aliased, temporaries below a hundredth of the bytes.

  Behind exact first tokens positions are counted anew: a number a slot, which
  all layers share.
  """
  layer = kvjax.Layer(kvjax.Grouped(4, 2, 64), kvjax.MLP(64))
  config, slots = kvjax.ModelConfig(31, 64, (layer,)), 2**19
  positions = 4 * slots if tiering_of(codec).first else 0

  def init():
    return kvjax.init_cache(config, 1, slots, codec=codec)

  cache = jax.eval_shape(init)
  assert not [x for x in jax.tree.leaves(cache) if 'int4' in str(x.dtype)]
  params = jax.eval_shape(lambda: kvjax.init_params(config, jax.random.key(0)))
  step = jax.jit(
    lambda params, cache, token: kvjax.decode_step(
      config, params, cache, token
    ),
    donate_argnames='cache',
  )
  token = jax.ShapeDtypeStruct((1,), jnp.int32)
  compiled = as_users_do(step.lower(params, cache, token))
  memory.assert_in_place(compiled, 'cache')
  measured = memory.measure(compiled)
  size = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(cache))
  assert measured.alias == size
  assert measured.temporaries < size / 100 + positions


@pytest.mark.parametrize('codec', CODECS.values(), ids=CODECS)
@pytest.mark.parametrize('kind', [None, kvjax.Paged(page=8)])
def test_the_plan_counts_what_is_allocated(codec, kind):
  """A10: to the byte; the lines of a plan add up to it."""
  layer = kvjax.Layer(GROUPED, kvjax.MLP(11))
  config = kvjax.ModelConfig(VOCAB, 13, (layer,))
  cache = kvjax.init_cache(config, 3, 16, kinds=kind, codec=codec)
  plan = memory.plan(config, batch_size=3, capacity=16, kinds=kind, codec=codec)
  assert plan.cache_bytes == sum(x.nbytes for x in jax.tree.leaves(cache))
  lines = [line.bytes for line in plan.lines if line.part == 'cache']
  assert sum(lines) == plan.cache_bytes


BYTES = {  # of a token in all 32 layers of Llama-3-8B: facts of others' caches
  'affine': (kvjax.Affine(), 40_960),
  'affine of 64': (kvjax.Affine(group=64), 36_864),
  'affine of 128': (kvjax.Affine(group=128), 34_816),
  'q8_0': (kvjax.GGML('q8_0'), 69_632),
  'q4_0': (kvjax.GGML('q4_0'), 36_864),
  'float8': (kvjax.Float8(), 65_536),
  'turbo': (kvjax.Hadamard(kvjax.LloydMax(4)), 33_792),
}


@pytest.mark.parametrize(('codec', 'want'), BYTES.values(), ids=BYTES)
def test_bytes_a_token(codec, want):
  config = kvjax.load_config('llama-3-8b')
  plan = memory.plan(config, batch_size=1, capacity=1, codec=codec)
  assert plan.bytes_per_token == want


READ = {
  'int8': (Stored(kvjax.Hadamard(kvjax.Int8())), 1e-6),
  'affine': (Stored(CODECS['hadamard']), 1e-4),
  'q8_0_ring': (
    Stored(CODECS['q8_0'], kinds=kvjax.Ring(window=4, slack=8)),
    1e-4,
  ),
  'by_stream_paged': (CELLS['by_stream_paged'], 1e-4),
  'int8_mla': (Stored(kvjax.Hadamard(kvjax.Int8()), LATENT), 1e-6),
  'affine_mla': (Stored(kvjax.Affine(), LATENT), 1e-4),
}


@pytest.mark.skipif(bool(load.missing()), reason=load.missing() or 'built')
@pytest.mark.parametrize(('cell', 'error'), READ.values(), ids=READ)
def test_the_library_reads_codes_in_place(cell, error):
  """A7: as the block loop reads them, ragged rows and NaN in empty slots."""
  params, tokens = draw(cell.config, 0), jnp.asarray(text(0, 2, 7))
  cache = kvjax.testing.poison(cell.init(2))
  step = functools.partial(
    kvjax.extend, cell.config, params, tokens=tokens, lengths=np.array([7, 4])
  )
  found, want = (
    step(cache, options=kvjax.DecodeOptions(form='absorbed', kernel=kernel))[0]
    for kernel in ('ffi', 'blockwise')
  )
  for row, length in enumerate((7, 4)):
    scale = np.abs(want[row, :length]).max()
    np.testing.assert_allclose(
      found[row, :length], want[row, :length], atol=error * scale, rtol=0
    )


@pytest.mark.skipif(bool(load.missing()), reason=load.missing() or 'built')
@pytest.mark.parametrize('name', ['q5_0', 'float8', 'lloyd_max'])
def test_the_library_refuses_other_codes(name):
  cell = Stored(CODECS[name])
  params, tokens = draw(cell.config, 0), jnp.asarray(text(0, 2, 7))
  options = kvjax.DecodeOptions(kernel='ffi')
  with pytest.raises(ValueError, match='is not stored as one of float32'):
    kvjax.extend(cell.config, params, cell.init(2), tokens, options=options)


def test_eight_bit_floats_saturate():
  """A12: numbers far beyond the first ones are finite, poison or not."""
  cell = Stored(kvjax.Float8())
  params, tokens = draw(cell.config, 0), text(0, 2, 7)
  large = jax.tree.map(lambda x: 1e3 * x, params)
  _, cache = cell.extend(params, cell.init(2), tokens, np.asarray([7, 7]))
  cache = kvjax.testing.poison(cache)
  logits, _ = cell.extend(large, cache, tokens, np.asarray([7, 7]))
  assert np.isfinite(logits).all()


def test_refusals():
  """Before anything is allocated or computed."""
  cell = Stored(None, GROUPED)
  params, tokens = draw(cell.config, 0), jnp.asarray(text(0, 2, 7))
  for codec, match in (
    ({'keys': kvjax.Int8()}, "no layer has a stream 'keys'.*'key', 'value'"),
    (kvjax.Affine(group=24), 'groups of 24 do not divide.*64 features'),
    ({'value': kvjax.Hadamard(kvjax.Int8(), 64)}, 'of 32 features'),
  ):
    alive = len(jax.live_arrays())
    with pytest.raises(ValueError, match=match):
      cell.init(2, codec=codec)
    assert len(jax.live_arrays()) == alive
    with pytest.raises(ValueError, match=match):
      kvjax.forward(cell.config, params, tokens, codec=codec)
  with pytest.raises(ValueError, match='is no codec'):
    cell.init(2, codec={'key': 8})
