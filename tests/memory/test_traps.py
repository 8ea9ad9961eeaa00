"""The mistakes that made other calculators wrong, each by its name."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import pytest

import kvjax
from kvjax.memory import plan


def per_token(name: str, **more) -> int:
  config = kvjax.load_config(name)
  more = {'cache_dtype': 'bfloat16', **more}
  return plan(config, batch_size=1, capacity=1_024, **more).bytes_per_token


def test_mla_taken_for_mha():
  # 61 layers, bfloat16: a latent of 512 and one rotated key of 64.
  assert per_token('deepseek-v3') == 61 * (512 + 64) * 2 == 70_272
  # As keys and values of 128 heads of 7168 / 128: 25 times that.
  config = kvjax.load_config('deepseek-v3')
  taken = len(config.layers) * 2 * config.width * 2
  assert round(taken / per_token('deepseek-v3')) == 25


def test_mla_against_its_expanded_keys_and_values():
  # A layer of 128 heads: keys of 192 and values of 128 against 1,152 bytes.
  # The published 81,920 counts a key of 192 = 128 + 64.
  latent: Any = kvjax.load_config('deepseek-v3').layers[0].attention
  width = latent.key_width + latent.rotary.width + latent.value_width
  expanded = latent.num_heads * width * 2
  assert expanded == 81_920
  assert f'{expanded / (per_token("deepseek-v3") // 61):.1f}' == '71.1'


def test_head_dim_from_width_over_heads():
  # 1024 / 16 = 64, but config.json says 128: 28 layers of 8 kv heads.
  assert per_token('qwen3-0.6b') == 28 * 2 * 8 * 128 * 2 == 114_688
  # 3584 / 16 = 224, but heads are of 256.
  assert per_token('gemma-2-9b') == 42 * 2 * 8 * 256 * 2 == 344_064


def test_windows_dropped():
  config = kvjax.load_config('gpt-oss-20b')
  found = plan(config, batch_size=1, capacity=131_072)
  one = 2 * 8 * 64 * 2  # a layer, bfloat16
  streams = 12 * one * 131_072 + 12 * one * 128
  # Positions are int32, one for all layers of a kind.
  assert found.cache_bytes == streams + 4 * (131_072 + 128) + 4 + 1
  assert found.cache_bytes < 0.51 * 24 * one * 131_072


def test_gqa_ignored():
  # 32 query heads, but 8 kv heads.
  assert per_token('llama-3-8b') == 32 * 2 * 8 * 128 * 2 == 131_072


def test_cache_dtype_ignored():
  bfloat16 = per_token('llama-3-8b')
  assert per_token('llama-3-8b', cache_dtype='float32') == 2 * bfloat16
  # Parameters in another dtype leave the cache as it is.
  assert per_token('llama-3-8b', param_dtype='float32') == bfloat16


def test_scales_of_codes_ignored():
  # A byte an element, and a float32 a head: 128 + 4.
  found = per_token('llama-3-8b', codec=kvjax.Int8())
  assert found == 32 * 2 * 8 * (128 + 4) == 67_584


@pytest.mark.parametrize('backend', ('cpu', 'gpu'))
def test_attention_output_sized_tokens_by_tokens(backend):
  config = kvjax.load_config('llama-3-8b')
  short, long = (
    plan(
      dataclasses.replace(config, dtype='float32'),
      batch_size=1,
      capacity=2 * tokens,
      new_tokens_per_step=tokens,
      backend=backend,
    ).step_bytes
    for tokens in (4_096, 8_192)
  )
  assert long <= 2 * short
  # One head's scores of 8,192 by 8,192 tokens in all heads: 8 GiB.
  assert long < 32 * 8_192**2 * 4


def test_embedding_and_head_left_out():
  config = kvjax.load_config('llama-3-8b')
  tied = dataclasses.replace(config, tied=True)
  both, one = (
    plan(c, batch_size=1, capacity=8).params_bytes for c in (config, tied)
  )
  assert both - one == 128_256 * 4_096 * 2


def test_the_parameters_of_every_family_are_those_of_init_params():
  for name in ('gpt-2', 'opt-13b', 'palm-8b', 'gpt-oss-20b', 'deepseek-v2'):
    config = kvjax.load_config(name)
    shapes = jax.eval_shape(
      lambda config=config: kvjax.init_params(config, jax.random.key(0))
    )
    size = jnp.dtype(config.dtype).itemsize
    count = sum(x.size for x in jax.tree.leaves(shapes))
    found = plan(config, batch_size=1, capacity=8)
    assert found.params_bytes == size * count, name
