"""`experiments.perplexity` against losses that the test computes itself."""

import functools
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import kvjax
from experiments.perplexity import __main__ as perplexity
from experiments.perplexity import held_out
from kvjax.text import smollm2, tokenizer
from tests.checkpoints.writing import GOLDEN
from tests.experiments.flags import given_flags

TEXT = 'WHAT A TRANSFORMER MUST REMEMBER. ' * 9


@pytest.fixture
def text(tmp_path):
  path = tmp_path / 'text.txt'
  path.write_text(TEXT)
  return str(path)


def test_every_cache_beside_the_uncached_figure(tmp_path, text, capsys):
  """A window of 7 is another model, so its figures differ."""
  name = str(GOLDEN / 'deepseek_v3')
  caches = ['default', 'ring:window=7', 'paged:page=4+int8']
  with given_flags(
    perplexity.FLAGS,
    checkpoint=name,
    text=text,
    cache=caches,
    rows=2,
    length=23,
    workdir=str(tmp_path),
    weights='int8',
  ):
    perplexity.main([])
  assert 'bits per byte' in capsys.readouterr().out
  lines = (tmp_path / 'perplexity.jsonl').read_text().splitlines()
  run, plain, coded, exact, ring, int8 = map(json.loads, lines)
  assert run['flags']['length'] == 23

  config, params = kvjax.load_checkpoint(name)
  starts = [0, len(TEXT) - 23]
  ids = np.array([list(TEXT[s : s + 23].encode()) for s in starts], np.int32)
  for found, weights in ((plain, params), (coded, kvjax.quantize(params))):
    logits = kvjax.forward(config, weights, jnp.asarray(ids))
    logits = jax.nn.log_softmax(logits)
    losses = [
      -float(logits[b, t, ids[b, t + 1]]) for b in range(2) for t in range(22)
    ]
    want = sum(losses) / len(losses)
    assert found['bits_per_byte'] == pytest.approx(want / math.log(2), rel=1e-5)
    assert found['perplexity'] == pytest.approx(math.exp(want), rel=1e-5)
  apart = lambda x: abs(x['more_bits'] - coded['more_bits'])
  assert apart(exact) < 1e-5 < apart(ring)
  assert 1e-6 < apart(int8) < 0.1
  assert 1e-6 < abs(coded['more_bits']) < 0.2  # of weights drawn at random
  assert exact['bytes_per_token'] == 2 * (10 + 4) * 4
  assert ring['cache_bytes'] < exact['cache_bytes']
  assert int8['cache_bytes'] == int8['planned_bytes']


def test_a_built_model_by_its_name(tmp_path, text, monkeypatch):
  monkeypatch.setattr(smollm2, 'directory', lambda: GOLDEN / 'llama')
  given = {'text': text, 'rows': 2, 'length': 9, 'cache': ['default']}
  found = []
  for name in ('smollm2-135m', str(GOLDEN / 'llama')):
    given |= {'checkpoint': name, 'workdir': str(tmp_path / name[-4:])}
    with given_flags(perplexity.FLAGS, **given):
      perplexity.main([])
    file = tmp_path / name[-4:] / 'perplexity.jsonl'
    found.append([json.loads(x) for x in file.read_text().splitlines()[1:]])
  assert found[0] == found[1] and found[0][0]['bits_per_byte'] > 0


def test_windows_begin_as_the_tokenizer_does():
  """Tokens before a text are fed, not scored; those after it are left out."""

  class Marked(tokenizer.ByteTokenizer):
    def encode(self, text, *, special=True):
      ids = super().encode(text)
      return [1, 2, *ids, 3] if special else ids

  config = kvjax.load_config(GOLDEN / 'llama')
  found = held_out.hold_out(config, Marked(), 'ABCDEFGH', rows=3, length=5)
  np.testing.assert_array_equal(
    found.tokens, [[1, 2, *b'ABC'], [1, 2, *b'FGH']]
  )
  assert (found.first, found.tokens_per_byte) == (2, 1.0)
  losses = np.array([[9.0, 1, 2, 3], [9, 4, 5, 6]])
  assert found.scores(losses)['perplexity'] == pytest.approx(math.exp(3.5))


@pytest.mark.parametrize(
  'given, message',
  [
    ({'checkpoint': ''}, 'give --checkpoint=PATH'),
    ({'text': ''}, 'give --text=PATH'),
    ({'text': '/absent'}, '/absent cannot be read'),
    ({'rows': 0}, 'rows=0 must be a positive integer'),
    ({'length': 1}, 'length=1 tokens a window'),
    ({'length': 400}, 'length=400 tokens a window, 0 of them before any'),
    ({'cache': ['int8', 'rnig']}, "'rnig' is no name"),
    ({'checkpoint': str(GOLDEN / 't5')}, 'reads a source besides the text'),
    ({'checkpoint': str(GOLDEN / 'whisper')}, 'reads a source'),
  ],
)
def test_refusals_are_one_line(given, message, text, capsys):
  flags = {'checkpoint': str(GOLDEN / 'llama'), 'text': text, 'length': 9}
  with given_flags(perplexity.FLAGS, **flags | given):
    with pytest.raises(SystemExit) as end:
      perplexity.main([])
  assert end.value.code == 2
  said = capsys.readouterr().err
  assert message in said and said.count('\n') == 1


def test_figures_that_cannot_be_right_are_refuted():
  record = {'cache': 'default', 'cache_bytes': 8, 'planned_bytes': 8}
  record |= {'bits_per_byte': 2.001}
  refuted = functools.partial(held_out.refuted, uncached=2.0, dtype='float32')
  assert 'not the uncached model' in refuted(record, exact=True)
  assert refuted(record, exact=False) == ''
  assert 'other bytes' in refuted(record | {'cache_bytes': 9}, exact=False)
