"""The prompt's kernel without a GPU: by XLA, and lowered for cuDNN."""

import dataclasses
import re
from unittest import mock

import chex
import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

import kvjax
from kvjax import kernels
from kvjax.kernels import cudnn
from tests.attention import oracle
from tests.kernels.test_mosaic_gpu import draw, view_of, wide

RULE = kvjax.Scoring(0.125)
WINDOW = dataclasses.replace(RULE, visibility=kvjax.Visibility(window=6))


class AnswerTest(parameterized.TestCase):
  @parameterized.named_parameters(
    ('full_cache', 17, (0, 1, 13, 17), RULE, {}),
    ('old_slots', 41, (0, 1, 13, 41), RULE, {}),
    (
      'window', 41, (0, 1, 13, 41), WINDOW,
      {'sees': lambda p, s: p - 6 < s <= p},
    ),
  )  # fmt: skip
  def test_lengths_with_poison(self, slots, lengths, rule, sees):
    # A short row has its padding first; it is what rows of 0 and 1 are.
    q, k, v, positions, held = draw((2, 3, 17), (*lengths, 17), slots)
    positions[-1, 5] = 2  # beside its neighbours, which are at 4 and 6

    @jax.jit
    def run(q, positions, k, v):
      view = view_of(k, v, held)
      return kernels.attend_view(
        {'key': q}, positions, view, rule, kernel='cudnn'
      )

    with kernels.interpreted():
      found = [np.asarray(x) for x in run(q, positions, k, v)]
    self.assertTrue(np.all(np.isnan(found[0][-1, :, :, [4, 5, 6]])))
    self.assertFalse(np.any(found[0][0]))
    found = [x[:-1] for x in found]
    q, positions, k, v, held = (x[:-1] for x in (q, positions, k, v, held))
    q, k, v = wide(q, k, v)
    want = oracle.attention(q, positions, k, v, held, scale=0.125, **sees)
    np.testing.assert_allclose(found[0], want[0], atol=1e-5)
    np.testing.assert_allclose(found[1], want[1], atol=1e-5)

  def test_a_prompt_in_two_pieces_of_ragged_rows(self):
    layer = kvjax.Layer(
      kvjax.Grouped(4, 2, 16, rotary=kvjax.Rotary(16)), kvjax.MLP(24)
    )
    config = kvjax.ModelConfig(53, 32, (layer,), dtype='bfloat16')
    params = kvjax.init_params(config, jax.random.key(0))
    tokens = jax.random.randint(jax.random.key(1), (3, 7), 0, 53)
    found = {}
    for kernel in ('cudnn', 'blockwise'):
      cache = kvjax.init_cache(config, 3, 19)
      with kernels.interpreted():
        found[kernel] = []
        for lengths in ((7, 3, 1), (0, 5, 7)):
          logits, cache = kvjax.prefill(
            config, params, cache, tokens, np.array(lengths), kernel=kernel
          )
          found[kernel].append(logits)
    chex.assert_trees_all_close(*found.values(), atol=0.02)


class ChoiceTest(absltest.TestCase):
  def test_what_it_cannot_serve_is_named(self):
    q, k, v, _, held = draw((1, 2, 3), (5,), 8)
    view, plain = view_of(k, v, held), {'key': q}
    self.assertEqual(cudnn.refuses(plain, view, RULE), '')
    seen = lambda **rules: dataclasses.replace(
      RULE, visibility=kvjax.Visibility(**rules)
    )
    for words, given in (
      ('add up latent, rotary', ({'latent': q, 'rotary': q}, view, RULE)),
      ('one token a row', ({'key': q[:, :, :, :1]}, view, RULE)),
      ('soft-cap', (plain, view, kvjax.Scoring(1.0, softcap=5.0))),
      ('additive bias', (plain, view, kvjax.Scoring(1.0, bias=lambda *_: 0))),
      ('causal=False.* not causal', (plain, view, seen(causal=False))),
      ('sink_tokens=2', (plain, view, seen(window=3, sink_tokens=2))),
      ('chunk=4', (plain, view, seen(chunk=4))),
      ('order of positions', (plain, view_of(k, v, held, False), RULE)),
      ('order of positions', (plain, view.only(last=3), RULE)),
      ('not both stored', (plain, view_of(k.astype('float32'), v, held), RULE)),
      ('widths 64, 32', (plain, view_of(k, v[..., :32], held), RULE)),
      ('up to 128', (plain, view_of(*[jnp.tile(k, 4)] * 2, held), RULE)),
    ):
      self.assertRegex(cudnn.refuses(*given), words)

  def test_it_is_chosen_by_name_alone_and_only_where_it_runs(self):
    q, k, v, _, held = draw((1, 2, 3), (5,), 8)
    given = {'key': q}, view_of(k, v, held), RULE
    with self.assertRaisesRegex(ValueError, 'where a GPU is, not on cpu'):
      kernels.choose(*given, kernel='cudnn')
    with kernels.targeting('gpu'):
      self.assertEqual(kernels.choose(*given), 'blockwise')
      with mock.patch.object(jax, 'default_backend', lambda: 'gpu'):
        self.assertRegex(kernels.available()['cudnn'], 'no cuDNN attention')
    with kernels.interpreted():
      self.assertNotEqual(kernels.choose(*given), 'cudnn')
      with self.assertRaisesRegex(ValueError, 'block=4 is a size for the bloc'):
        kernels.choose(*given, kernel='cudnn', block=4)


class LoweredTest(absltest.TestCase):
  def test_what_is_asked_of_cudnn(self):
    q, k, v, positions, held = draw((2, 3, 5), (5, 9), 11)
    room = cudnn.importlib.import_module(cudnn._ROOM)

    def lowered(rule):
      run = lambda q, k, v, positions: cudnn.attend(
        {'key': q}, positions, view_of(k, v, held), rule
      )
      traced = jax.jit(run).trace(q, k, v, jnp.asarray(positions))
      return traced.lower(lowering_platforms=('cuda',)).as_text()

    with (
      mock.patch.object(room, 'check_cudnn_version', lambda: 91000),
      mock.patch.object(room, 'check_compute_capability', lambda _: True),
    ):
      whole, near = lowered(RULE), lowered(WINDOW)
    found = [
      re.findall(
        r'@__cudnn\$fmhaSoftmax\(.*"mask_type": "(\w+)".*'
        r'"sliding_window_length": (\d+)',
        text.replace(r'\22', '"'),
      )
      for text in (whole, near)
    ]
    self.assertEqual(found[0], [('PADDING_CAUSAL', '0'), ('PADDING', '0')])
    self.assertEqual(found[1], [('PADDING_CAUSAL', '6')])
    # Heads first, as a cache has them: nothing is turned.
    turns = re.findall(r'stablehlo.transpose .*dims = \[(.*?)\]', whole + near)
    self.assertEqual(set(turns), {'0, 1, 2, 3'})


if __name__ == '__main__':
  absltest.main()
