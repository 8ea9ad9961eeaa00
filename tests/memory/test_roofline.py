"""When a step waits for what: against figures that others have printed."""

import dataclasses

import pytest

import kvjax
from experiments.scaling import growth, tables
from kvjax.memory import device, intensity, roofline
from kvjax.memory.speed.bounds import attention_core, read_elements


@pytest.mark.parametrize(
  ('name', 'elements', 'operations_a_byte'),
  [
    ('llama-2-7b', 8192, 1),
    ('llama-3-70b', 2048, 8),
    ('step-3', 512, 64),
    ('qwen3-235b-a22b', 1024, 16),
    ('falcon-7b', 128, 71),
    ('kimi-k2-instruct', 576, 120.9),
    ('deepseek-v3', 576, 241.8),
  ],
)
def test_operations_a_byte(name, elements, operations_a_byte):
  attention = kvjax.load_config(name).layers[0].attention
  assert attention_core(attention)[0] == elements
  assert round(intensity(attention), 1) == operations_a_byte


@pytest.mark.parametrize(
  ('name', 'operations'),
  [
    ('qwen3-235b-a22b', 2.52e10),
    ('qwen3-32b', 1.72e10),
    ('step-3', 3.27e10),
    ('deepseek-v3', 1.392e11),
  ],
)
def test_step_3_s_table_of_attention_at_8k(name, operations):
  # For DeepSeek-V3 the exact count; the report takes its value for as wide as
  # its key, 1.47e11.
  config = kvjax.load_config(name)
  one = dataclasses.replace(device('H200'), flops=1, bandwidth=10**30)
  found = roofline(config, batch_size=1, context=8192, device=one).attention
  assert found == pytest.approx(operations, rel=3e-3)


def test_a_window_and_a_chunk_are_read_no_further():
  one = dataclasses.replace(device('H200'), flops=1, bandwidth=10**30)
  config = kvjax.load_config('llama-4-scout-17b-16e')
  found = roofline(config, batch_size=1, context=100_000, device=one).attention
  # 36 layers read a chunk of 8,192, 12 layers all; 40 heads of 128, twice.
  want = 4 * 40 * 128 * (36 * 8_192 + 12 * 100_000)
  assert found == pytest.approx(want)


def test_the_scaling_book_from_our_own_config():
  # It rounds 819,200 x 8192 bytes a row to 6.7e9 and the weights to 26e9.
  rows, _ = tables.published()
  book = [r for r in rows if r['name'] == 'llama-2-13b']
  assert len(book) == 6
  for row in book:
    assert row['bound'] == pytest.approx(row['seconds'], rel=1e-2)
  assert all(r['bound'] <= 1.01 * r['seconds'] for r in rows)


def test_one_row_visits_its_own_experts_and_many_rows_all():
  config = kvjax.load_config('deepseek-v3')
  one, many = (read_elements(config, rows) for rows in (1, 10**6))
  assert one == pytest.approx(37e9, rel=0.02)
  assert many == pytest.approx(671e9, rel=0.01)


def test_exponents_of_curves(monkeypatch):
  def measure(case, pace):
    assert pace.alone and case.filled == case.slots
    # The last of the seven points is twice the one before it.
    seconds = min(case.filled, 16_384) ** 0.75 * (1 + (case.filled > 16_384))
    found = {'seconds': seconds, 'bytes': 5e9 * seconds}
    return {f'kvjax {pace.kernels[0]}': found}

  monkeypatch.setattr(growth.clock, 'measure', measure)
  records = list(growth.rows(('context',), 1))
  assert len(records) == growth.count(('context',))
  # Log2 sizes 9 to 15: their squares about the mean are 28, the last is 3 off.
  assert records[-1]['exponent'] == pytest.approx(0.75 + 3 * 0.25 / 28)
  assert records[-1]['last'] == pytest.approx(1)
  table, _ = tables.curves(records)
  assert table.rows[0][0] == 'context' and table.rows[0][4] == 5
  assert table.rows[0][-2:] == [0.78, 1]
  with pytest.raises(ValueError, match="axis 'depth' is unknown"):
    growth.check(['depth'])
