"""Plans of published models against figures that nobody here computed.

`figures.csv` has a row a model: the arithmetic of one token's bytes, bytes
per token in bfloat16 while no window is full, bytes that go on growing, what
window layers hold of one row at most, parameters, and, for 38 rows, the figure
somebody printed with half a unit of its last digit. `ablations` has the configs
of the cross-layer attention paper (arXiv 2405.12981); kvjax does not ship them.
"""

import csv
import json
import math
import pathlib

import pytest

import kvjax
from kvjax.checkpoints import published_names
from kvjax.memory import MemoryPlan, device, plan
from tests.checkpoints.families import FACTS

TABLE = pathlib.Path(__file__).parent / 'figures.csv'
ABLATIONS = {
  path.stem: path
  for path in pathlib.Path(__file__).parent.glob('ablations/*.json')
}
ROWS = {
  row['name']: row
  for row in csv.DictReader(TABLE.read_text(encoding='utf-8').splitlines())
}
OF_FAMILIES = {
  name: figures
  for facts in FACTS.values()
  for name, figures in facts.published.items()
}
PRINTED = [name for name, row in ROWS.items() if row['published']]


def planned(name: str, capacity: int | None = None) -> MemoryPlan:
  config = kvjax.load_config(ABLATIONS.get(name, name))
  return plan(
    config,
    batch_size=1,
    capacity=capacity or config.positions or 200_000,
    param_dtype='bfloat16',
    cache_dtype='bfloat16',
  )


def product(text: str) -> int:
  """Returns '2*8*128' or '512+64', worked out."""
  if '+' in text:
    return sum(int(part) for part in text.split('+'))
  return math.prod(int(part) for part in text.split('*'))


def test_every_published_config_has_a_row():
  assert len(ABLATIONS) == 20
  assert {*published_names(), *ABLATIONS} == {*ROWS, *OF_FAMILIES}
  assert len(PRINTED) == 38


@pytest.mark.parametrize('name', ROWS)
def test_a_plan_is_the_arithmetic_of_its_row(name):
  row, found = ROWS[name], planned(name)
  layers, windows = int(row['layers']), int(row['window_layers'])
  one = 2 * product(row['elements'])
  assert found.bytes_per_token == int(row['bytes_per_token']) == layers * one
  growing = int(row['growing'])
  assert found.growing_bytes_per_token == growing == (layers - windows) * one
  cap = int(row['cap'])
  assert found.cap_bytes == cap == windows * one * int(row['window'])
  if row['parameters']:
    # Routing corrections stay float32: their further bytes have a line.
    wide = [x.bytes for x in found.lines if x.name.startswith('corrections')]
    assert found.params_bytes - sum(wide) == 2 * int(row['parameters'])


@pytest.mark.parametrize('name', OF_FAMILIES)
def test_a_plan_is_the_arithmetic_of_its_family(name):
  figures, found = OF_FAMILIES[name], planned(name)
  one = 2 * product(figures.elements)
  bytes_per_token = figures.layers * one
  assert found.bytes_per_token == figures.bytes_per_token == bytes_per_token
  windows = figures.window_layers
  assert found.growing_bytes_per_token == (figures.layers - windows) * one
  assert found.cap_bytes == windows * one * figures.window
  wide = [x.bytes for x in found.lines if x.name.startswith('corrections')]
  assert found.params_bytes - sum(wide) == 2 * figures.parameters
  assert figures.source


@pytest.mark.parametrize('name', PRINTED)
def test_a_plan_agrees_with_the_printed_figure_to_its_last_digit(name):
  row, found = ROWS[name], planned(name)
  printed, precision = float(row['published']), float(row['precision'])
  ours = {
    'total': found.bytes_per_token,
    'growing': found.growing_bytes_per_token,
  }[row['basis']]
  assert abs(ours - printed) <= precision * printed


def test_every_config_names_its_source():
  home = pathlib.Path(kvjax.__file__).parent / 'models' / 'published'
  shipped = {name: home / f'{name}.json' for name in published_names()}
  for name, path in (shipped | ABLATIONS).items():
    values = json.loads(path.read_text())
    assert values['_source'] and values['_name_or_path'], name


# Printed totals: (model, tokens in all rows, printed bytes, half of its last
# digit). GB is 10^9 and GiB 2^30, as the source meant it.
GB, GIB = 10**9, 2**30
TOTALS = {
  # A blog says about 5 GB at 10,000 tokens: 524,288 x 10,000 = 5.243e9.
  'llama_2_7b_10000': ('llama-2-7b', 10_000, 5 * GB, 0.5 * GB),
  'llama_2_7b_kivi': ('llama-2-7b', 4_196, 2.05 * GIB, 0.005 * GIB),
  'llama_2_13b_vllm': ('llama-2-13b', 2_048, 1.7 * GB, 0.05 * GB),
  'llama_2_13b_scaling_book': ('llama-2-13b', 8_192, 6.7 * GB, 0.05 * GB),
  'llama_3_70b_kvpress': ('llama-3-70b', 10**6, 330 * GB, 5 * GB),
  'llama_3_70b_rocketkv': ('llama-3-70b', 2**20, 320 * GIB, 0.5 * GIB),
  'llama_3_8b_kvpress': ('llama-3-8b', 128_000, 15.6 * GIB, 0.05 * GIB),
  'opt_13b_vllm': ('opt-13b', 2_048, 1.6 * GB, 0.1 * GB),
}


@pytest.mark.parametrize('case', TOTALS)
def test_printed_totals(case):
  name, tokens, printed, half = TOTALS[case]
  found = planned(name, min(tokens, 2_048))
  assert abs(found.bytes_per_token * tokens - printed) <= half


def test_deepseek_v3_with_its_prediction_layer_is_flashmla_s_figure():
  found = planned('deepseek-v3')
  one = found.bytes_per_token // 61  # 576 x 2
  assert one == 1_152
  assert f'{62 * one * 131_072 / GIB:.2f}' == '8.72'


def test_windows_of_gemma_3_27b_leave_a_sixth_at_its_longest_context():
  full = planned('gemma-3-27b').bytes_per_token * 131_072
  found = planned('gemma-3-27b')
  kept = found.growing_bytes_per_token * 131_072 + found.cap_bytes
  assert f'{100 * kept / full:.1f}' == '16.8'


def test_the_published_rolling_buffer_holds_an_eighth():
  found = planned('mistral-7b-v0.1', 32_768)
  assert 8 * found.cap_bytes == 32_768 * found.bytes_per_token


def test_slim_attention_counts_elements():
  assert planned('gpt-2-xl').bytes_per_token // 2 * 1_024 == 157_286_400
  for name, tokens, printed in (
    ('phi-3-mini-128k', 131_072, '25.8'),
    ('smollm2-1.7b', 8_192, '0.8'),
    ('llama-2-7b', 16_384, '4.3'),  # CodeLlama-7B is of its shape
  ):
    elements = planned(name, 1_024).bytes_per_token // 2 * tokens
    assert f'{elements / 1e9:.1f}' == printed, name


# Step-3's report, Table 2: bytes at 8K tokens, each stored in one byte.
STEP_3 = {
  'deepseek-v3': '2.88e+08',
  'kimi-k2-instruct': '2.88e+08',
  'qwen3-235b-a22b': '7.89e+08',
  'qwen3-32b': '1.07e+09',
  'step-3': '2.56e+08',
}


@pytest.mark.parametrize('name', STEP_3)
def test_one_byte_an_element_at_8k(name):
  elements = planned(name, 1_024).bytes_per_token // 2
  assert f'{8_192 * elements:.2e}' == STEP_3[name]


def test_codes_of_4_5_and_8_5_bits():
  # Logged for Llama-3.1-8B at 2,048 tokens (ik_llama.cpp#92): 68 MiB of keys
  # in q8_0, 36 MiB of values in iq4_nl; two bytes in every 32 are a scale.
  keys = planned('llama-3-8b', 2_048).bytes_per_token // 4 * 2_048
  assert keys * 8.5 / 8 == 68 * 2**20
  assert keys * 4.5 / 8 == 36 * 2**20


def one_layer(attention, layers=1, **more) -> kvjax.ModelConfig:
  layer = kvjax.Layer(attention, kvjax.MLP(16_384))
  config = {'vocab_size': 32_128, 'width': 4_096, 'dtype': 'bfloat16', **more}
  return kvjax.ModelConfig(layers=(layer,) * layers, **config)


# Table 5 of "Hardware-Efficient Attention for Fast Decoding" (2505.21487), the
# variants kvjax has: bytes a token and layer, on one device and on two.
HALVED = {
  'mha': (kvjax.Grouped(16, 16, 128), 8_192, 4_096),
  'gqa': (kvjax.Grouped(16, 4, 128), 2_048, 1_024),
  'mla': (kvjax.Latent(16, 512, 128, 128, kvjax.Rotary(64)), 1_152, 1_152),
}


@pytest.mark.parametrize('name', HALVED)
def test_what_two_devices_that_share_the_heads_hold(name):
  attention, *printed = HALVED[name]
  found = [
    plan(one_layer(attention), batch_size=1, capacity=8, mesh=mesh)
    for mesh in (None, {'heads': 2})
  ]
  assert [p.bytes_per_token for p in found] == printed


def test_the_scaling_book_s_worked_example():
  config = one_layer(kvjax.Grouped(32, 8, 256), 64, tied=True)
  found = plan(config, batch_size=1, capacity=8)
  assert f'{found.params_bytes / 2e9:.1f}' == '18.4'
  assert found.bytes_per_token == 2 * 262_144


def test_three_terabytes_of_palm_with_all_its_heads():
  # Pope et al. (2211.05102): 512 rows of 2,048 tokens, 118 layers.
  config = one_layer(kvjax.Grouped(48, 48, 128), 118)
  found = plan(config, batch_size=512, capacity=2_048)
  size = found.bytes_per_token * 512 * 2_048
  assert abs(size - 3e12) <= 0.5e12
  assert 0 < found.cache_bytes - size < 1e-5 * size  # positions and lengths


def test_weights_of_a_13b_take_65_percent_of_an_a100_40():
  found = planned('llama-2-13b')  # vLLM (2309.06180), figure 1
  assert f'{found.params_bytes / device("A100-40").memory:.2f}' == '0.65'
