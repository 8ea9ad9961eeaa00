"""The task that a real model reads, and the report on a model that is none."""

import json

import jax
import numpy as np
import pytest

import kvjax
from configs.real_model import get_config
from experiments.real_model import cost, task
from kvjax.text.tokenizer import ByteTokenizer
from tests.facts import tiny

SIZE = task.Size(context=420, texts=2, following=9, numbers=3)


def made(size=SIZE, seed=0):
  return task.make_task(ByteTokenizer(), size, seed)


def text(ids):
  return bytes(ids[ids >= 0].tolist()).decode()


def test_each_question_asks_for_a_number_of_the_context():
  found = made()
  assert found.contexts.shape == (3, 420)
  assert found.row.tolist() == [0, 1, 2, 2, 2]
  context = text(found.contexts[2])
  for after, is_digit in zip(
    found.following[2:], found.is_digit[2:], strict=True
  ):
    whole, digits = text(after), text(after[is_digit])
    key = whole.split('number for ')[1].split('?')[0]
    assert len(digits) == 5 and digits.isdigit() and whole.endswith(digits)
    assert f'number for {key} is {digits}.' in context
  assert not found.is_digit[:2].any()


def test_prose_goes_on_where_its_context_ends():
  found = made()
  for row in range(2):
    assert found.is_prose[row].sum() == SIZE.following
    longer = made(task.Size(420, 2, 60, 3))
    assert text(longer.contexts[row]) != text(longer.contexts[2])
  assert not found.is_prose[2:].any()


def test_seeds_draw_other_numbers():
  assert text(made().contexts[2]) != text(made(seed=1).contexts[2])
  np.testing.assert_array_equal(made().contexts, made().contexts)


@pytest.mark.parametrize(
  ('values', 'said'),
  [
    ((200, 1, 5, 4), 'context=200 tokens have no room for 4 numbers'),
    ((400, 1, 5, 9), 'numbers=9 must be at most 7'),
    ((400, 0, 5, 2), 'texts=0'),
  ],
)
def test_refusals(values, said):
  with pytest.raises(ValueError, match=said):
    made(task.Size(*values))


def test_divergence_and_digits_by_a_second_formula():
  found = made()
  keys = jax.random.split(jax.random.key(0))
  shape = (*found.following.shape, 256)
  full, other = (
    jax.nn.log_softmax(3 * jax.random.normal(key, shape)) for key in keys
  )
  got = cost.compare(found, other, full)
  p, q = np.exp(np.asarray(full, np.float64)), np.asarray(other, np.float64)
  each = (p * (np.log(p) - q)).sum(-1)[:2, : SIZE.following]
  assert got['kl_mean'] == pytest.approx(each.mean(), rel=1e-4)
  assert got['kl_median'] == pytest.approx(np.median(each), rel=1e-4)
  losses = [
    -q[row, i - 1, found.following[row, i]] / np.log(2)
    for row in range(2)
    for i in range(1, SIZE.following)
  ]
  assert got['bits_per_byte'] == pytest.approx(np.mean(losses), rel=1e-4)
  right = [
    q[row, i - 1].argmax() == found.following[row, i]
    for row, i in np.argwhere(found.is_digit)
  ]
  assert got['digits'] == pytest.approx(np.mean(right))
  assert cost.compare(found, full, full)['kl_mean'] == 0.0


def test_report_of_a_tiny_model(tmp_path, commands):
  config = tiny.decoder(kvjax.Grouped(4, 2, 8, rotary=kvjax.Rotary(8)))
  config = kvjax.ModelConfig(256, config.width, config.layers * 2)
  params = kvjax.init_params(config, jax.random.key(0))
  kvjax.save_checkpoint(tmp_path / 'model', config, params)
  ended = commands(
    'real_model',
    '--config=configs/real_model.py:tiny',
    f'--checkpoint={tmp_path / "model"}',
    f'--workdir={tmp_path}',
  )
  assert ended.code == 0, ended.err
  lines = (tmp_path / 'real_model.jsonl').read_text().splitlines()
  records = [json.loads(line) for line in lines]
  costs = [r for r in records if r['record'] == 'cost']
  assert [r['cache'].partition(':')[0] for r in costs] == [
    *('default', 'int8', 'affine', 'sinks', 'ring', 'bounded')
  ]
  assert costs[0]['kl_mean'] == 0.0 < costs[1]['kl_mean']
  assert len([r for r in records if r['record'] == 'answer']) == 4
  assert (tmp_path / 'cost.png').stat().st_size > 10_000


def test_a_name_that_is_no_model(commands):
  ended = commands('real_model', '--checkpoint=nowhere')
  assert ended.code == 2 and ended.err.count('\n') == 1
  assert "'nowhere'" in ended.err


@pytest.mark.parametrize(
  ('missing', 'flag', 'said'),
  [
    (1, '--config.answer.tokens=4', 'task.context=512 with what follows takes'),
    (0, '--config.answer.tokens=900', 'answer.tokens=900 takes'),
  ],
)
def test_all_that_is_read_fits_before_any_work(
  missing, flag, said, tmp_path, commands
):
  """A table of positions has room for the contexts, but for nothing behind."""
  config = tiny.decoder(kvjax.Grouped(4, 2, 8))
  size = task.Size(**get_config('tiny').task)
  read = made(size)
  room = read.contexts.shape[1] + read.following.shape[1] - missing
  config = kvjax.ModelConfig(256, config.width, config.layers, positions=room)
  params = kvjax.init_params(config, jax.random.key(0))
  kvjax.save_checkpoint(tmp_path / 'model', config, params)
  ended = commands(
    'real_model',
    '--config=configs/real_model.py:tiny',
    f'--checkpoint={tmp_path / "model"}',
    f'--workdir={tmp_path / "out"}',
    flag,
  )
  assert ended.code == 2 and ended.err.count('\n') == 1
  assert said in ended.err
  assert not (tmp_path / 'out').exists()
