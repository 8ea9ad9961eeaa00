"""The Hopper kernel without a GPU: interpreted, and lowered for one."""

import functools
import json
from unittest import mock

import chex
import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

import kvjax
from kvjax import kernels
from kvjax.kernels.hopper import interpreter, launch, spans, tiling, tuning
from kvjax.streams.view import contiguous_view
from tests.attention import oracle

SEES = {
  'window': ({'window': 70}, lambda p, s: p - 70 < s <= p),
  'window_and_sinks': (
    {'window': 30, 'sink_tokens': 2},
    lambda p, s: s <= p and (s > p - 30 or s < 2),
  ),
  'chunk': ({'chunk': 40}, lambda p, s: s <= p and p // 40 == s // 40),
  'all': ({'causal': False}, lambda p, s: True),
}


def draw(shape, lengths, slots, dtype='bfloat16', roll=0, width=64):
  """Returns queries, keys, values, NaN where no token is, and positions."""
  heads, groups, tokens = shape
  lengths, rng = np.asarray(lengths)[:, None], np.random.default_rng(0)
  batch = len(lengths)
  slot = np.arange(slots)
  held = np.roll(np.where(slot < lengths, slot, -1), roll, 1).astype(np.int32)
  positions = np.maximum(lengths - tokens + np.arange(tokens), -1)
  sizes = (groups, tokens, 64), (slots, 64), (slots, width)
  q, k, v = (
    jnp.asarray(rng.standard_normal((batch, heads, *size)), dtype)
    for size in sizes
  )
  empty = jnp.asarray(held < 0)[:, None, :, None]
  k, v = (jnp.where(empty, jnp.asarray(jnp.nan, dtype), x) for x in (k, v))
  return q, k, v, positions.astype(np.int32), held


def view_of(k, v, held, ordered=True):
  codec, filled = kvjax.Plain(), int((held >= 0).any(0).sum())
  view = contiguous_view(
    {'key': k, 'value': v},
    jnp.asarray(held)[:, None],
    jnp.int32(filled if ordered else held.shape[1]),
    ordered=ordered,
  )
  return view.map(dict, lambda x: {name: codec.stored(x[name]) for name in x})


def wide(*arrays):
  return [np.asarray(x, np.float64) for x in arrays]


class InterpretedTest(absltest.TestCase):
  def check(self, found, q, k, v, positions, held, tolerance, **rules):
    q, k, v = wide(q, k, v)
    rules = {'scale': 0.125} | rules
    want = oracle.attention(q, positions, k, v, held, **rules)
    np.testing.assert_allclose(found[0], want[0], atol=tolerance)
    np.testing.assert_allclose(found[1], want[1], atol=1e-5)
    self.assertFalse(interpreter.races_found())

  def test_lengths_with_poison_in_a_ring_that_wraps(self):
    drawn = draw((1, 3, 1), (0, 1, 141), 192)
    q, k, v, positions, held = drawn
    with kernels.interpreted(detect_races=True):
      found = launch.attend(
        {'key': q},
        jnp.asarray(positions),
        view_of(k, v, held),
        kvjax.Scoring(0.125),
        splits=1,
        stages=2,
      )
    self.check(found, *drawn, tolerance=2e-3)
    self.assertFalse(np.any(found[0][0]))

  def test_what_was_traced_to_be_interpreted_is_traced_anew(self):
    traced = []

    @jax.jit
    def program(x):
      traced.append(interpreter.settings() is not None)
      return x

    with kernels.interpreted():
      program(1)
    program(1)
    self.assertEqual(traced, [True, False])

  def test_a_cluster_merges_its_splits_in_one_launch(self):
    drawn = draw((1, 3, 1), (0, 1, 141), 192)
    q, k, v, positions, held = drawn
    given = jnp.asarray(positions), view_of(k, v, held), kvjax.Scoring(0.125)
    cut = {'splits': 2, 'stages': 2, 'merge': 'inside'}
    with kernels.interpreted(detect_races=True):
      if interpreter.missing_clusters():
        with self.assertRaisesRegex(ValueError, 'clusters of thread blocks'):
          launch.attend({'key': q}, *given, **cut)
        return
      # Wider than the keys, and no tile: the kernel takes them as they lie.
      found = launch.attend({'key': q.astype('float32')}, *given, **cut)
    self.check(found, *drawn, tolerance=2e-3)
    self.assertFalse(np.any(found[0][0]))

  def test_rules_and_splits_where_slots_have_no_order(self):
    drawn = draw((2, 3, 2), (101,), 128, 'float16', roll=13, width=128)
    q, k, v, positions, held = drawn
    rule, sees = SEES['window']
    sinks = np.random.default_rng(1).standard_normal((2, 3), np.float32)
    scoring = kvjax.Scoring(
      0.125,
      softcap=0.7,
      visibility=kvjax.Visibility(**rule),
      sinks=jnp.asarray(sinks),
    )
    with kernels.interpreted(detect_races=True):
      found = kvjax.attend(
        {'key': q},
        jnp.asarray(positions),
        (view_of(k, v, held, ordered=False),),
        scoring,
        kernel='mosaic_gpu',
      )
    self.check(
      found, *drawn, tolerance=5e-4, sees=sees, softcap=0.7, sinks=sinks
    )


class SpanTest(parameterized.TestCase):
  @parameterized.named_parameters(
    (f'{name}_{order}', name, order == 'ordered')
    for name in SEES
    for order in ('ordered', 'rolled')
  )
  def test_every_slot_that_is_seen_is_read(self, name, ordered):
    rule, sees = SEES[name]
    lengths = (0, 1, 77, 128)
    *_, positions, held = draw((1, 1, 3), lengths, 128, roll=13 * (not ordered))
    filled = 128
    found = spans.spans(
      jnp.asarray(positions),
      jnp.asarray(held)[:, None],
      filled,
      kvjax.Visibility(**rule),
      ordered,
    )
    for row, (first, end, full) in enumerate(np.asarray(found)):
      asked = [p for p in positions[row] if p >= 0]
      needed = [
        i for i, s in enumerate(held[row])
        if s >= 0 and any(sees(p, s) for p in asked)
      ]  # fmt: skip
      self.assertTrue(all(first <= i < end for i in needed))
      self.assertTrue(np.all(held[row][first : min(end, full)] >= 0))
      if ordered and needed and name != 'all':
        tight = 'window_and' not in name
        self.assertEqual((first, end), (needed[0] * tight, needed[-1] + 1))
      if not asked:
        self.assertEqual(first, end)

  def test_splits_fill_the_cores(self):
    self.assertEqual(tiling.choose_splits(64, 512), 2)
    self.assertEqual(tiling.choose_splits(8, 512), 16)  # one wave of 128
    self.assertEqual(tiling.choose_splits(72, 512), 5)
    self.assertEqual(tiling.choose_splits(8, 3), 3)
    self.assertEqual(tiling.choose_splits(128, 512), 1)
    self.assertEqual(tiling.choose_splits(1, 0), 1)
    self.assertEqual(tiling.choose_splits(0, 4), 1)

  def test_committed_tables_can_be_launched(self):
    files = sorted(tuning.FOLDER.glob('*.json'))
    self.assertNotEmpty(files)
    for file in files:
      for problem, tiles in tuning.load(json.loads(file.read_text('utf-8'))):
        most = problem.reckoned(tiles.block).stages
        self.assertEqual(problem.slots % tiles.block, 0, file)
        self.assertBetween(tiles.stages, 2, most, file)
        self.assertBetween(tiles.splits, 1, problem.slots // tiles.block, file)

  def test_a_cut_merges_as_it_is_asked_and_by_default_after(self):
    problem = tuning.Problem(8, 4096, 128, 128)
    old = {'entries': [{
      'problem': {'programs': 8, 'slots': 4096, 'width': 128,
                  'value_width': 128},
      'tiles': {'block': 128, 'stages': 2, 'splits': 16},
    }]}  # fmt: skip
    swept = tuning.Tiles(128, 2, 16, 'inside')
    with tuning.using(tuning.load(old)):
      self.assertEqual(tuning.cut(problem), tuning.Tiles(128, 2, 16, 'after'))
      with tuning.merging('inside'):  # as many as any device launches
        eight = tuning.Tiles(128, 2, 8, 'inside')
        self.assertEqual(tuning.cut(problem), eight)
    with tuning.using([(problem, swept)]):
      self.assertEqual(tuning.cut(problem), swept)
    wide = tuning.Problem(8, 4096, 256, 192)
    for words, given, cut in (
      ("merge='x' must be one of after, inside", problem, {'merge': 'x'}),
      ('at most 16', problem, {'merge': 'inside', 'splits': 17}),
      ('widths 256 and 192', wide, {'merge': 'inside'}),
    ):
      with self.assertRaisesRegex(ValueError, words):
        tuning.cut(given, **cut)

  def test_stages_fit_in_shared_memory(self):
    self.assertEqual(tiling.choose_stages(128, 128), 4)
    self.assertLess(tiling.choose_stages(256, 256), 2)


class ChoiceTest(parameterized.TestCase):
  def refusal(self, queries=None, slots=128, scoring=None, **streams):
    q, k, v, _, held = draw((1, 2, 1), (5,), slots)
    given = {'k': k, 'v': v} | streams
    view = view_of(given['k'], given['v'], held)
    queries = queries or {'key': q}
    return launch.refuses(queries, view, scoring or kvjax.Scoring(0.125))

  def test_what_it_cannot_serve_is_named(self):
    many = jnp.zeros((1, 1, 33, 2, 64))
    narrow = jnp.zeros((1, 1, 128, 72), 'bfloat16')
    huge = jnp.zeros((1, 1, 128, 256), 'bfloat16')
    self.assertEqual(self.refusal(), '')
    for words, given in (
      ('66 query rows', {'queries': {'key': many}}),
      ('adds? up latent, rotary', {'queries': {'latent': 0, 'rotary': 0}}),
      ('100 slots', {'slots': 100}),
      ("'key' is not stored as bfloat16", {'k': jnp.zeros((1, 1, 128, 64))}),
      (r'widths \[64, 72\]', {'v': narrow}),
      ('shared memory', {'k': huge, 'v': huge}),
      ('additive bias', {'scoring': kvjax.Scoring(1.0, bias=lambda *_: 0)}),
    ):
      self.assertRegex(self.refusal(**given), words)

  def test_a_hopper_gpu_chooses_it_where_it_serves(self):
    q, k, v, positions, held = draw((1, 2, 1), (5, 0), 128)
    view, rule = view_of(k, v, held), kvjax.Scoring(0.125)
    given = {'key': q}, jnp.asarray(positions), view, rule
    with mock.patch.object(launch, 'at_home', return_value=True):
      with kernels.targeting('gpu'):
        self.assertEqual(kernels.choose(given[0], *given[2:]), 'mosaic_gpu')
        capped = kvjax.Scoring(0.125, bias=lambda *_: 0)
        name = kernels.choose(given[0], view, capped)
        self.assertEqual(name, 'blockwise')
        # The same program, lowered for another platform, goes without it.
        found = kernels.attend_view(*given)
    with kernels.targeting('gpu'):
      want = kernels.attend_view(*given, kernel='blockwise')
    chex.assert_trees_all_close(found, want, atol=1e-6)

  def test_its_home_is_compute_capability_9(self):
    for devices, home in (
      ([mock.Mock(compute_capability='9.0')], True),
      ([mock.Mock(compute_capability='8.0')], False),
      ([mock.Mock(spec=())], False),
    ):
      with (
        mock.patch.object(jax, 'default_backend', return_value='gpu'),
        mock.patch.object(jax, 'devices', return_value=devices),
      ):
        self.assertEqual(launch.at_home(), home)
        with kernels.targeting('tpu'):
          self.assertFalse(launch.at_home())
    self.assertFalse(launch.at_home())

  def test_elsewhere_it_is_chosen_by_name_alone_and_only_where_it_runs(self):
    q, k, v, _, held = draw((1, 2, 1), (5,), 128)
    given = {'key': q}, view_of(k, v, held), kvjax.Scoring(0.125)
    with self.assertRaisesRegex(ValueError, 'runs on a Hopper GPU, not on cpu'):
      kernels.choose(*given, kernel='mosaic_gpu')
    with kernels.targeting('gpu'):
      self.assertEqual(kernels.choose(*given), 'blockwise')
      choose = functools.partial(kernels.choose, *given, kernel='mosaic_gpu')
      self.assertEqual(choose(), 'mosaic_gpu')
      self.assertEqual(choose(block=64), 'mosaic_gpu')
      for block in 0, 32, 96, 256:  # of 128 slots
        with self.assertRaisesRegex(
          ValueError, f'block={block} is no multiple'
        ):
          choose(block=block)
    with self.assertRaisesRegex(ValueError, "'cuda' must be one of cpu, gpu"):
      with kernels.targeting('cuda'):
        pass


class LoweredTest(parameterized.TestCase):
  """What plain jaxlib says of programs for devices that are not here."""

  def lowered(self, platform, kernel, **options):
    attention = kvjax.Grouped(4, 2, 64, rotary=kvjax.Rotary(64))
    layer = kvjax.Layer(attention, kvjax.MLP(24))
    config = kvjax.ModelConfig(53, 32, (layer,), dtype='bfloat16')
    cache = jax.eval_shape(lambda: kvjax.init_cache(config, 3, 320))
    params = jax.eval_shape(
      lambda: kvjax.init_params(config, jax.random.key(0))
    )
    token = jax.ShapeDtypeStruct((3,), jnp.int32)

    def step(params, cache, token):
      return kvjax.decode_step(
        config, params, cache, token, kernel=kernel, **options
      )

    names = {'gpu': 'cuda', 'tpu': 'tpu'}
    with kernels.targeting(platform):
      traced = jax.jit(step, donate_argnames='cache').trace(
        params, cache, token
      )
      return traced.lower(lowering_platforms=(names[platform],)).as_text()

  @parameterized.named_parameters(
    ('gpu_whole', 'gpu', None), ('gpu_loop', 'gpu', 128),
    ('tpu_whole', 'tpu', None), ('tpu_loop', 'tpu', 128),
  )  # fmt: skip
  def test_the_plain_step(self, platform, block):
    text = self.lowered(platform, 'blockwise', block=block)
    # Narrow products that accumulate wide, and a loop only where asked for.
    self.assertRegex(
      text, r'dot_general.*xbf16>.*xbf16>\) -> tensor<3x2x\d+x2xf32>'
    )
    self.assertEqual('stablehlo.while' in text, block is not None)

  def test_the_kernel_in_a_step(self):
    text = self.lowered('gpu', 'mosaic_gpu')
    self.assertEqual(text.count('@mosaic_gpu'), 1)
    self.assertNotIn('stablehlo.while', text)
    self.assertIn('stablehlo.pad', text)  # a tile
    with tuning.merging('inside'):
      text = self.lowered('gpu', 'mosaic_gpu')
    self.assertEqual(text.count('@mosaic_gpu'), 1)
    self.assertNotIn('stablehlo.pad', text)


if __name__ == '__main__':
  absltest.main()
