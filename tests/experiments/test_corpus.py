"""Bytes in, batches out."""

import numpy as np
import pytest

from experiments.training import text


def _corpus(blocks=45, extra=7):
  data = (np.arange(blocks * text.BLOCK + extra) % 251).astype(np.uint8)
  return text.split(data.tobytes(), 'a test')


def test_every_20th_block_is_held_out():
  corpus = _corpus()
  whole = (np.arange(45 * text.BLOCK) % 251).astype(np.uint8)
  blocks = whole.reshape(45, text.BLOCK)
  np.testing.assert_array_equal(corpus.held_out, blocks[[19, 39]])
  assert corpus.train.size == 43 * text.BLOCK


def test_a_short_text_still_holds_a_block_out():
  corpus = text.split(bytes(range(256)) * 32, 'two blocks')
  assert corpus.held_out.shape == (1, text.BLOCK)
  assert corpus.train.size == text.BLOCK


@pytest.mark.parametrize('size', [0, 1, 2 * text.BLOCK - 1])
def test_too_little_text_is_refused_in_one_line(size):
  with pytest.raises(ValueError, match=f'has {size} bytes.*longer file'):
    text.split(b'a' * size, 'short.txt')


def test_a_missing_file_is_refused(tmp_path):
  with pytest.raises(ValueError, match=r'cannot be read .*Name a file\.'):
    text.load_corpus(str(tmp_path / 'missing.txt'))


def test_a_batch_depends_on_seed_and_step_alone():
  corpus = _corpus()
  batch = lambda seed, step: text.training_batch(
    corpus, seed=seed, step=step, batch=3, length=11
  )
  np.testing.assert_array_equal(batch(1, 5), batch(1, 5))
  assert (batch(1, 5) != batch(1, 6)).any()
  assert (batch(1, 5) != batch(2, 5)).any()
  assert batch(1, 5).shape == (3, 12)


def test_held_out_windows_lie_inside_held_out_blocks():
  corpus = _corpus()
  rows = text.held_out_batch(corpus, rows=5, length=100)
  unseen = corpus.held_out.reshape(2, -1)
  assert rows.shape == (5, 100)
  for row in rows:
    assert any(row.astype(np.uint8).tobytes() in b.tobytes() for b in unseen)


def test_the_standard_library_is_text():
  data = text.standard_library()
  assert len(data) > 100_000
  assert b'import' in data
