"""What fits: bisection against counting, remedies, refusals, step times."""

import dataclasses

import jax
import pytest

import kvjax
from kvjax.memory import budget_for, device, fit, plan, step_time

LLAMA = kvjax.load_config('llama-3-8b')
GQA = kvjax.ModelConfig(
  31,
  12,
  (kvjax.Layer(kvjax.Grouped(4, 2, 6, rotary=kvjax.Rotary(6)), kvjax.MLP(17)),)
  * 3,
)
RINGS = kvjax.ModelConfig(
  31,
  12,
  (
    kvjax.Layer(
      kvjax.Grouped(4, 2, 6, visibility=kvjax.Visibility(window=5)),
      kvjax.MLP(17),
    ),
  ),
)


def total(config, batch, capacity, **more):
  return plan(config, batch_size=batch, capacity=capacity, **more).total_bytes


@pytest.mark.parametrize('capacity', (7, 40, 1_000))
def test_the_largest_batch_is_the_largest(capacity):
  found = fit(GQA, 10**6, capacity=capacity)
  assert found.fits and found.capacity == capacity
  assert total(GQA, found.batch_size, capacity) <= 10**6
  assert total(GQA, found.batch_size + 1, capacity) > 10**6
  assert found.plan.total_bytes == total(GQA, found.batch_size, capacity)


def test_the_largest_context_is_the_largest():
  found = fit(GQA, 10**6, batch_size=3, reserve_bytes=10**5)
  assert total(GQA, 3, found.capacity) <= 900_000
  assert total(GQA, 3, found.capacity + 1) > 900_000


def test_a_context_has_room_for_the_tokens_of_a_call():
  found = fit(GQA, 10**6, batch_size=3, new_tokens_per_step=50)
  assert found.capacity is not None and found.capacity > 50
  assert total(GQA, 3, found.capacity, new_tokens_per_step=50) <= 10**6
  with pytest.raises(ValueError, match='new_tokens_per_step=50 do not fit'):
    fit(GQA, 10**6, capacity=49, new_tokens_per_step=50)


def allocated(**options):
  """Bytes of all arrays that `init_cache` allocates."""
  cache = kvjax.init_cache(GQA, 3, **options)
  planned = plan(GQA, batch_size=3, **options)
  lines = [line.bytes for line in planned.lines_of('cache')]
  total = sum(leaf.nbytes for leaf in jax.tree.leaves(cache))
  assert total == planned.cache_bytes == sum(lines)
  return total


@pytest.mark.parametrize(
  ('kind', 'field', 'codec'),
  [
    (kvjax.Bounded(9, slack=3, protect=(2, 4)), 'budget', kvjax.Int8()),
    (kvjax.Bounded(9, kvjax.KeyDiff()), 'budget', None),
    (kvjax.Sinks(window=7), 'window', kvjax.Affine(group=2)),
    (None, None, kvjax.Int8()),
  ],
)
def test_a_budget_fills_its_bytes_within_one_token(kind, field, codec):
  found = budget_for(GQA, 20_000, 200, kind=kind, codec=codec, batch_size=3)

  def size(count):
    if field is None:
      return allocated(capacity=count, codec=codec)
    chosen = dataclasses.replace(kind, **{field: count})
    return allocated(capacity=200, codec=codec, kinds=chosen)

  assert 10 < found < 200
  assert size(found) <= 20_000 < size(found + 1)
  # More is never kept than there is.
  assert budget_for(GQA, 10**6, 50, kind=kind, codec=codec) == 50


def test_a_budget_that_cannot_be():
  kind = kvjax.Bounded(9, protect=(2, 4))
  with pytest.raises(ValueError, match='200 are too few: 6 tokens take'):
    budget_for(GQA, 200, 50, kind=kind)
  with pytest.raises(ValueError, match='tokens=5 must be at least the 6'):
    budget_for(GQA, 200, 5, kind=kind)
  with pytest.raises(ValueError, match='cache_bytes=0 must be'):
    budget_for(GQA, 0, 50)


def test_rings_alone_have_no_longest_context():
  found = fit(RINGS, 10**6, batch_size=2)
  assert found.fits and found.capacity is None
  gpt2 = fit(kvjax.load_config('gpt-2'), 'H200', batch_size=1)
  assert gpt2.capacity == 1_024  # learned positions end there


def test_the_frontier_falls_with_the_context():
  found = fit(LLAMA, 'H100-80', capacity=8_192, frontier=(1_024, 8_192, 65_536))
  assert dict(found.frontier)[8_192] == found.batch_size
  batches = [batch for _, batch in found.frontier]
  assert batches == sorted(batches, reverse=True)


def test_published_blocks_of_a_16_gib_card():
  # Qwen3-4B keeps what Qwen3-8B keeps: 36 x 2 x 8 x 128 x 2 bytes. vLLM logs
  # 83,488 tokens in 11.47 GiB, and 166,992 at one byte; pages round down.
  config = kvjax.load_config('qwen3-8b')
  one = plan(config, batch_size=1, capacity=1).bytes_per_token
  for size, logged in ((one, 83_488), (one / 2, 166_992)):
    assert 0 < 1 - logged / (11.47 * 2**30 / size) < 5e-4


def test_what_does_not_fit_says_by_how_much_and_what_would():
  found = fit(LLAMA, 'L4', batch_size=32, capacity=8_192)
  need = total(LLAMA, 32, 8_192, backend='gpu')
  assert not found.fits and found.short_bytes == need - 24 * 10**9
  changes = {remedy.change: remedy.total_bytes for remedy in found.remedies}
  assert all(size <= 24 * 10**9 for size in changes.values())
  for part in ('Sinks(window=', 'Bounded(budget=', 'batch_size=', 'capacity='):
    assert any(change.startswith(part) for change in changes), part
  assert 'codec=Int8()' not in changes  # 16 GB of weights leave 8; it needs 18
  half = fit(LLAMA, 'RTX 4090', batch_size=8, capacity=8_192)
  assert half.remedies[0].change == 'codec=Int8()'
  shrunk = total(LLAMA, 8, 8_192, codec=kvjax.Int8(), backend='gpu')
  assert half.remedies[0].total_bytes == shrunk


def test_reading_the_source_must_fit_too():
  seen = kvjax.Visibility(causal=False)
  both = kvjax.Grouped(4, 4, 8, visibility=seen)
  layer = kvjax.Layer(kvjax.Grouped(4, 4, 8), kvjax.MLP(17), cross=both)
  config = kvjax.ModelConfig(
    31,
    32,
    (layer,),
    encoder=kvjax.Encoder((kvjax.Layer(both, kvjax.MLP(17)),)),
  )
  found = fit(config, 10**7, capacity=16, source_length=500)
  assert found.plan.encode_bytes > 4 * found.plan.step_bytes
  assert found.plan.total_bytes < found.plan.peak_bytes <= 10**7
  more = {'capacity': 16, 'source_length': 500}
  more = plan(config, batch_size=found.batch_size + 1, **more)
  assert more.peak_bytes > 10**7


def test_weights_that_do_not_fit_ask_for_devices():
  config = kvjax.load_config('llama-3-70b')
  found = fit(config, 'H100-80', capacity=8_192)
  assert found.batch_size == 0 and not found.fits
  (remedy,) = found.remedies
  assert remedy.change == '2 devices that share the heads'
  assert fit(config, 'H100-80', capacity=8_192, mesh={'heads': 2}).fits


def test_a_mesh_that_splits_rows_counts_in_its_steps():
  found = fit(GQA, 10**6, capacity=100, mesh={'batch': 4})
  assert found.batch_size % 4 == 0
  more = found.batch_size + 4
  assert total(GQA, more, 100, mesh={'batch': 4}) > 10**6


def test_a_mesh_that_splits_slots_counts_in_its_steps():
  mesh = {'slots': 3}
  found = fit(GQA, 10**6, batch_size=3, mesh=mesh)
  assert found.capacity is not None and found.capacity % 3 == 0
  assert total(GQA, 3, found.capacity, mesh=mesh) <= 10**6
  assert total(GQA, 3, found.capacity + 3, mesh=mesh) > 10**6
  gpt2 = fit(kvjax.load_config('gpt-2'), 'H200', batch_size=1, mesh=mesh)
  assert gpt2.capacity == 1_023  # of 1,024 positions


def test_refusals_name_value_rule_and_fix():
  with pytest.raises(ValueError, match='batch_size or capacity'):
    fit(GQA, 10**6)
  with pytest.raises(ValueError, match="unknown device 'H20'.*H200"):
    fit(GQA, 'H20', capacity=8)
  with pytest.raises(ValueError, match='memory_bytes=0'):
    fit(GQA, 0, capacity=8)
  with pytest.raises(ValueError, match='memory_bytes=True must be a positive'):
    fit(GQA, True, capacity=8)
  with pytest.raises(ValueError, match='reserve_bytes=7 .* memory_bytes=7'):
    fit(GQA, 7, capacity=8, reserve_bytes=7)
  with pytest.raises(ValueError, match="mesh axis 'model' is unknown"):
    fit(GQA, 10**6, capacity=8, mesh={'model': 2})
  with pytest.raises(ValueError, match='mesh axis heads=0'):
    fit(GQA, 10**6, capacity=8, mesh={'heads': 0})
  for wrong, words in ((5, 'frontier=5 must'), ((8, 0), r'frontier\[1\]=0')):
    with pytest.raises(ValueError, match=words):
      fit(LLAMA, 'H200', capacity=8, frontier=wrong)
  with pytest.raises(ValueError, match='batch_size=-1'):
    fit(GQA, 10**6, batch_size=-1)
  with pytest.raises(ValueError, match='batch_size=0'):
    fit(GQA, 10**6, batch_size=0)
  with pytest.raises(ValueError, match='capacity=0'):
    fit(GQA, 10**6, capacity=0)


# The scaling book's table of Llama-2-13B in bfloat16, 8,192 tokens a row, on
# 8 TPU v5e: milliseconds a step by batch, with 40 kv heads and with 8.
BOOK = dataclasses.replace(device('TPU v5e'), bandwidth=820 * 10**9)
CELLS = {
  6.7e9: {
    1: '4.98',
    8: '12.13',
    16: '20.30',
    32: '36.65',
    64: '69.33',
    240: '249.09',
  },
  1.34e9: {
    1: '4.17',
    8: '5.60',
    16: '7.23',
    32: '10.50',
    64: '17.04',
    240: '52.99',
  },
}


@pytest.mark.parametrize('row', CELLS)
def test_the_scaling_book_s_twelve_step_times(row):
  for batch, printed in CELLS[row].items():
    found = step_time(
      batch_size=batch,
      cache_bytes_per_row=row,
      weight_bytes=26e9,
      params=13e9,
      device=BOOK,
      num_devices=8,
    )
    assert f'{1e3 * found.seconds:.2f}' == printed


def test_the_scaling_book_s_quiz():
  # 30B in int8, 100 kB a token, 8,192 tokens, 16 chips of 8.1e11 bytes a
  # second: 2.5 ms for 4 rows, 21 ms for 256, where arithmetic rules.
  chip = dataclasses.replace(device('TPU v5e'), bandwidth=810 * 10**9)
  for batch, printed in ((4, 2.5e-3), (256, 21e-3)):
    found = step_time(
      batch_size=batch,
      cache_bytes_per_row=100_000 * 8_192,
      weight_bytes=30e9,
      params=30e9,
      device=chip,
      num_devices=16,
    )
    assert abs(found.seconds - printed) < 1e-4
    assert (found.arithmetic > found.weights) == (batch == 256)


def test_the_scaling_book_s_llama_3_70b_in_int8():
  # 32 rows of 8,192 tokens of 160 kB: 112 GB with the weights, 17 ms a step
  # of 4 x 2 chips.
  chip = dataclasses.replace(device('TPU v5e'), bandwidth=810 * 10**9)
  rows = 160e3 * 8_192
  assert f'{(32 * rows + 70e9) / 1e9:.0f}' == '112'
  found = step_time(
    batch_size=32,
    cache_bytes_per_row=rows,
    weight_bytes=70e9,
    params=70e9,
    device=chip,
    num_devices=8,
  )
  assert f'{1e3 * found.seconds:.0f}' == '17'
