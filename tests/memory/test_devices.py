"""The device table."""

import pytest

from kvjax import memory


@pytest.mark.parametrize(
  'name, size, bandwidth, flops',
  [
    ('H200', 141e9, 4.8e12, 989e12),
    ('H100-80', 80e9, 3.35e12, 989e12),
    ('A100-40', 40e9, 1.555e12, 312e12),
    ('A100-80', 80e9, 2.039e12, 312e12),
    ('L4', 24e9, 300e9, 121e12),
    ('RTX 4090', 24e9, 1.008e12, 165.2e12),
    ('TPU v5e', 16e9, 819e9, 197e12),
    ('TPU v5p', 95e9, 2.765e12, 459e12),
    ('TPU v6e', 32e9, 1.64e12, 918e12),
  ],
)
def test_figures(name, size, bandwidth, flops):
  found = memory.device(name)
  assert (found.memory, found.bandwidth, found.flops) == (
    size,
    bandwidth,
    flops,
  )
  assert found.source
  assert all(
    type(x) is int for x in (found.memory, found.bandwidth, found.flops)
  )


def test_names_forgive_case_and_spacing():
  assert memory.device('rtx-4090') is memory.device('RTX 4090')
  assert memory.device('tpu_v5e').name == 'TPU v5e'


@pytest.mark.parametrize(
  'name, nearest',
  [('H20', 'H200'), ('v5e', 'TPU v5e'), ('A100', 'A100-40'), ('4090', '4090')],
)
def test_an_unknown_name_gets_the_nearest(name, nearest):
  with pytest.raises(ValueError, match=f'{name!r}.*{nearest}'):
    memory.device(name)


@pytest.mark.parametrize('name', ['', 'potato'])
def test_a_name_like_none_gets_all(name):
  with pytest.raises(ValueError, match='H200, H100-80.*TPU v6e'):
    memory.device(name)


def test_balance():
  # papers.md: an H100 needs 295 operations a byte.
  assert round(1 / memory.device('H100-80').bytes_per_flop) == 295
